"""Stage 5: arrays become weights."""
