"""Stage 6: images become segmentations."""
