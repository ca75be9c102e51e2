"""What stored label values mean, and what a network tells apart.

Stored values are any non-negative integers. Inside, a voxel holds the *index* of its value: 0 for the background, 1..K for the
other values in ascending order, and K + 1 where a value says that the voxel is to be ignored. A *target* is what gets
a score and an output of the network: a value, or, where a dataset declares regions, a union of values. Regions may overlap, so
each has a probability of its own, and they are painted over each other in a declared order (:mod:`segpipe.core.painting`).
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from segpipe.core.artefact import Record, added_later
from segpipe.core.painting import LabelValue, sets_not_given_back
from segpipe.core.painting import Target as Target

OUTSIDE = -1
"""Index of a voxel outside the non-zero region of an image that is normalised inside it."""


class Labels(Record):
    """The labels of a dataset."""

    targets: tuple[Target, ...]
    """In the order of the network's outputs; regions in the order in which they are painted."""
    regions: bool = False
    """Each target is told apart from everything else by itself; else the targets and the background exclude each other."""
    background: LabelValue = 0
    ignore: LabelValue | None = None
    """Stored value of voxels that nobody labelled: never in loss, sampling or metrics."""
    n_entries: int = Field(ge=1)
    """Names declared, background and ignore included; nnU-Net's memory estimate counts them."""
    by_set: bool = added_later(False)
    """A voxel in a set of regions that a value stands for is written as that value, also where painting in order would lose the set.
    False of models of nnU-Net and of models made before there was this field: these paint in order alone."""

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        for what, found in (
            ("name", self.names),
            ("value", () if self.regions else [v for t in self.targets for v in t.values]),
        ):
            if len(set(found)) < len(found):
                raise ValueError(f"one {what} stands for two labels")
        return self

    @classmethod
    def plain(cls, values: dict[str, int], *, background: int = 0, ignore: int | None = None) -> "Labels":
        """Labels that exclude each other, from the foreground's names and values."""
        targets = tuple(
            Target(name=name, values=(value,), paint=value)
            for name, value in sorted(values.items(), key=lambda v: v[1])
        )
        n_entries = 1 + len(targets) + (ignore is not None)
        return cls(targets=targets, background=background, ignore=ignore, n_entries=n_entries)

    @property
    def values(self) -> tuple[int, ...]:
        """Stored value of each index, background first, without the ignored one."""
        return (self.background, *sorted({v for t in self.targets for v in t.values}))

    @property
    def aside(self) -> tuple[int, ...]:
        """Stored values that are no structure: the background, then the ignored one."""
        return (self.background, *(() if self.ignore is None else (self.ignore,)))

    @property
    def accepted(self) -> tuple[int, ...]:
        """Every value that a label file may hold, ascending."""
        return tuple(sorted({*self.values, *self.aside}))

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each target."""
        return tuple(t.name for t in self.targets)

    @property
    def ignore_index(self) -> int | None:
        """Index of ignored voxels; None where no value is ignored."""
        return None if self.ignore is None else len(self.values)

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Indices that each target covers."""
        index = {value: i for i, value in enumerate(self.values)}
        return tuple(tuple(sorted(index[v] for v in t.values)) for t in self.targets)

    @property
    def own_sets(self) -> dict[int, tuple[int, ...]]:
        """Sets of regions that are written by themselves, not painted in order: the value of each, and its regions' numbers from 0."""
        return sets_not_given_back(self.targets) if self.by_set else {}

    def value_of(self, name: str) -> int:
        """Value of a voxel that is known to lie in a target: the one that stands for this target alone, else what it is painted with."""
        number = self.names.index(name)
        return next(
            (value for value, numbers in self.own_sets.items() if numbers == (number,)), self.targets[number].paint
        )

    @property
    def n_outputs(self) -> int:
        """Channels of the network's output: one a region, or one a label and one for the background."""
        return len(self.targets) + (not self.regions)

    def indices_of(self, stored: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
        """Map stored values (any shape) to indices; every value must be an accepted one."""
        known = dict(zip((*self.values, *self.aside[1:]), range(len(self.accepted)), strict=True))
        if all(value == index for value, index in known.items()):
            return stored.astype(np.int16)
        if max(known) < 2**16:
            table = np.zeros(max(known) + 1, dtype=np.int16)
            table[list(known)] = list(known.values())
            return table.take(stored)
        ascending = np.array(sorted(known))
        found: NDArray[np.int16] = np.array([known[v] for v in ascending], dtype=np.int16)
        return found[np.searchsorted(ascending, stored)]

    def written(self, painted: NDArray[np.integer[Any]]) -> NDArray[np.unsignedinteger]:
        """Map the number of a target (1, 2, ...; 0 for the background) to the stored value it is written as.

        The numbers after the last target's are those of ``own_sets``. The type is the smallest unsigned one that holds every value of
        the dataset, the same for every case.
        """
        written = [self.background, *(t.paint for t in self.targets), *self.own_sets]
        table = np.array(written, dtype=smallest_dtype(max(self.accepted)))
        values: NDArray[np.unsignedinteger] = table[painted]
        return values

    def describe(self) -> str:
        """Names and values in one line."""
        shown = ", ".join(f"{t.name} = {' + '.join(map(str, t.values))}" for t in self.targets)
        names = {
            value: " with ".join(self.targets[n].name for n in numbers) for value, numbers in self.own_sets.items()
        }
        shown += "".join(f", {name} written as {value}" for value, name in names.items())
        return shown + ("" if self.ignore is None else f", ignored = {self.ignore}")


def smallest_dtype(largest: int) -> np.dtype[Any]:
    """Return the smallest of uint8, uint16 and uint32 that holds the largest label value."""
    return np.dtype(np.uint8 if largest <= 255 else np.uint16 if largest <= 65535 else np.uint32)
