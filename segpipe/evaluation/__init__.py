"""Stage 7: segmentations are scored against references."""
