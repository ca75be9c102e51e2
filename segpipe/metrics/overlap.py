"""Overlap of two masks."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dice(prediction: Mask, reference: Mask) -> float:
    """Dice similarity coefficient.

    Parameters
    ----------
    prediction, reference : ndarray of bool
        Masks on the same grid.

    Returns
    -------
    float
        In [0, 1]; nan when both masks are empty.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; expected the same")
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else float("nan")
