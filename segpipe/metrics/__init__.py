"""Scores of masks: arrays in, numbers out. No torch."""
