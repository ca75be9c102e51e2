"""How far probabilities are frequencies: bins of voxels, and the expected calibration error. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BINS = 15
"""As in Guo et al. 2017, On Calibration of Modern Neural Networks."""


@dataclass(frozen=True)
class Counts:
    """What a bin of [0, 1] holds, for each of ``N_BINS`` equal ones."""

    n: NDArray[np.float64]
    """Voxels."""
    probability: NDArray[np.float64]
    """Sum of what was said of them."""
    present: NDArray[np.float64]
    """How many have the label."""

    @classmethod
    def none(cls) -> Counts:
        """Empty bins."""
        return cls(*(np.zeros(N_BINS) for _ in range(3)))

    @classmethod
    def of(cls, probabilities: NDArray[Any], present: NDArray[np.bool_]) -> Counts:
        """Count voxels.

        Parameters
        ----------
        probabilities : ndarray of float
            Probabilities of the label, any shape.
        present : ndarray of bool
            Whether the reference has it, same shape.
        """
        said = probabilities.astype(np.float64).ravel()
        into = np.clip((said * N_BINS).astype(np.intp), 0, N_BINS - 1)
        return cls(
            np.bincount(into, minlength=N_BINS).astype(np.float64),
            np.bincount(into, weights=said, minlength=N_BINS).astype(np.float64),
            np.bincount(into, weights=present.ravel(), minlength=N_BINS).astype(np.float64),
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.n + other.n, self.probability + other.probability, self.present + other.present)

    def weighing_one(self) -> Counts:
        """Return the bins so that all their voxels together weigh 1."""
        total = self.n.sum()
        return Counts(self.n / total, self.probability / total, self.present / total)

    def expected_error(self) -> float:
        """Expected calibration error: the mean over voxels of their bin's distance between probability and frequency.

        Naeini, Cooper and Hauskrecht 2015; of one label's probabilities, as class-wise in Nixon et al. 2019. nan where there is no voxel.
        """
        total = self.n.sum()
        return float(np.abs(self.probability - self.present).sum() / total) if total else float("nan")
