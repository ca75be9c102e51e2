"""What computes a network in prediction: PyTorch or OpenVINO."""
