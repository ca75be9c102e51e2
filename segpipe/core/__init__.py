"""What voxels, labels and files are. No torch."""
