"""Augmentation: drawn from a random stream, applied to a whole batch on its device."""
