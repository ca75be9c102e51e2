"""Stage 4: cases become arrays ready for training."""
