"""Which cases train and which are held out."""

from pathlib import Path
from typing import Self

import numpy as np
from pydantic import model_validator

from segpipe.core.artefact import Artefact, Record
from segpipe.core.regular import lies
from segpipe.errors import DatasetError

# nnU-Net's own seed and number of folds, so that folds of a dataset without groups are the same cases.
SPLIT_SEED = 12345
N_FOLDS = 5


class Fold(Record):
    """Case ids of one fold."""

    train: tuple[str, ...]
    validation: tuple[str, ...]

    @property
    def holds_out(self) -> bool:
        """Whether no validation case is trained on."""
        return not set(self.train) & set(self.validation)


class Splits(Artefact):
    """Folds of a dataset; each case is held out once, and a group is never divided."""

    dataset_digest: str
    grouped: bool
    cases: tuple[str, ...]
    folds: tuple[Fold, ...]
    """Empty when there is but one group: nothing can be held out."""

    @model_validator(mode="after")
    def _hold_out(self) -> Self:
        for number, fold in enumerate(self.folds):
            if not fold.holds_out:
                both = min(set(fold.train) & set(fold.validation))
                raise ValueError(
                    f"folds.{number}: case {both} is held out and trained on; its scores would say nothing"
                )
        return self

    def fold(self, fold: int | str) -> Fold:
        """Return a fold by number, or ``all``: every case both trains and validates.

        Raises
        ------
        DatasetError
            If there is no such fold.
        """
        if fold == "all":
            return Fold(train=self.cases, validation=self.cases)
        if not self.folds:
            raise DatasetError(
                f"--fold {fold}: {len(self.cases)} usable case(s) of one group; at least 2 groups are needed to hold one out: "
                "add cases, or train with --fold all"
            )
        if not isinstance(fold, int) or not 0 <= fold < len(self.folds):
            raise DatasetError(f"--fold {fold}: expected 0 to {len(self.folds) - 1}, or all")
        return self.folds[fold]


def make_splits(groups: dict[str, str], dataset_digest: str, n_folds: int = N_FOLDS, seed: int = SPLIT_SEED) -> Splits:
    """K folds over groups, shuffled (scikit-learn's KFold, as nnU-Net uses it, applied to sorted group names).

    Parameters
    ----------
    groups : dict of str to str
        Group (patient) of each case id; a case without one is a group of its own, by its own id.
    dataset_digest : str
        Digest of the fingerprint whose cases these are.
    n_folds, seed : int
        Folds (at most as many as there are groups), and seed of the shuffle.

    Returns
    -------
    Splits
        Without folds when there is but one group.
    """
    names = sorted(set(groups.values()))
    order = np.arange(len(names))
    np.random.RandomState(seed).shuffle(order)
    folds = []
    for held_out in np.array_split(order, min(n_folds, len(names))) if len(names) > 1 else []:
        chosen = {names[i] for i in held_out}
        folds.append(
            Fold(
                train=tuple(sorted(c for c, g in groups.items() if g not in chosen)),
                validation=tuple(sorted(c for c, g in groups.items() if g in chosen)),
            )
        )
    grouped = any(case != group for case, group in groups.items())
    return Splits(dataset_digest=dataset_digest, grouped=grouped, cases=tuple(sorted(groups)), folds=tuple(folds))


def read_or_make(path: Path, groups: dict[str, str], dataset_digest: str) -> Splits:
    """Return the splits at ``path`` when they were made for these cases, else make and write them."""
    if lies(path):
        found = Splits.read(path)
        if found.dataset_digest == dataset_digest:
            return found
    splits = make_splits(groups, dataset_digest)
    splits.write(path)
    return splits
