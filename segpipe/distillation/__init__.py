"""Small networks taught by large ones."""
