"""Other tools' datasets, plans and models."""
