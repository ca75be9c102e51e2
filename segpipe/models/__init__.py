"""What a trained model is, and how any is read."""
