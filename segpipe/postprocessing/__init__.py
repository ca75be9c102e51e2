"""Stage 7: segmentations are cleaned by rules that were chosen on cases with a reference."""
