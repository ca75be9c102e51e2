"""`segpipe crossval`: the jobs of a cross-validation."""
