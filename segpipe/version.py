"""The version, where every stage can read it."""

__version__ = "0.1.0.dev7"

CASES_AS_OF = "0.1.0.dev7"
"""The version that last changed how cases are read, measured or prepared.

It is hashed where ``__version__`` would be, so that a workspace outlives an update. Raise it when one of the three gives other results:
every case is then read, measured and prepared again.
"""
