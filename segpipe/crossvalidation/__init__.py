"""Nested cross-validation: outer folds measure, inner folds choose."""
