"""Stage 8: a page for people."""
