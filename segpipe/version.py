"""The version, where every stage can read it."""

__version__ = "0.1.0.dev7"

CASES_AS_OF = "0.1.0.dev5"
"""The version that last changed how cases are measured or prepared.

It is hashed where ``__version__`` would be, so that a workspace outlives an update. Raise it when one of the two gives other results:
every case is then read, measured and prepared again.
"""

READ_AS_OF = "0.1.0.dev7"
"""The version that last changed what is read from files.

Raise it when a file is read in another way: cases that an earlier version read are then read again. Where the voxels are the same,
whatever was made of them stays valid.
"""
