"""Networks built from a plan's specification."""
