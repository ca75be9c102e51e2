"""Stage 1: what cases there are, and whether they are sound."""
