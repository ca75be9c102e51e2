"""Stage 3: what follows from the fingerprint."""

from segpipe.planning.make import make_plan

__all__ = ["make_plan"]
