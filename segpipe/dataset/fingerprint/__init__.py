"""Stage 2: what was measured on the cases."""
