"""Losses, one formula a function."""
