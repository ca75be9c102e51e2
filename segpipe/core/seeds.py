"""Named random streams from one seed.

A stream is a function of the seed and of its name alone, so that a resumed run draws exactly what the uninterrupted
run would have drawn, and adding a draw in one place changes nothing elsewhere.
"""

from hashlib import sha256

import numpy as np


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """Return the random stream called ``name``, for example ``stream(seed, "batch", iteration)``."""
    words = sha256("/".join(map(str, (seed, *name))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(words[:16], "little")))
