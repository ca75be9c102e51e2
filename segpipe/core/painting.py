"""Whether regions that are painted over each other can be read back.

A voxel lies in a set of regions: its value stands for all regions that have the value. Painted in order, the last region of the set
gives the voxel its value. The painting is right where that value stands for the same set again.
"""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from segpipe.core.artefact import Record

LARGEST_VALUE = 2**32 - 1
"""Largest stored value of a label: the largest number of the widest type that masks are written in."""
LabelValue = Annotated[int, Field(ge=0, le=LARGEST_VALUE)]


class Target(Record):
    """A label, or a region of several labels."""

    name: str
    values: tuple[LabelValue, ...] = Field(min_length=1)
    """Stored values it covers."""
    paint: LabelValue
    """Stored value it is written as, one of them."""

    @model_validator(mode="after")
    def _painted_with_an_own_value(self) -> Self:
        if self.paint not in self.values:
            raise ValueError(f"is painted with {self.paint}; expected one of its values {list(self.values)}")
        return self


def sets_of_values(targets: Sequence[Target]) -> dict[int, tuple[int, ...]]:
    """Return the numbers, from 0, of the targets that each value stands for."""
    values = sorted({v for t in targets for v in t.values})
    return {v: tuple(n for n, t in enumerate(targets) if v in t.values) for v in values}


def sets_not_given_back(targets: Sequence[Target]) -> dict[int, tuple[int, ...]]:
    """Return the sets of targets that painting in order does not give back, by the value that stands for each; the lowest of several."""
    stands_for = sets_of_values(targets)
    lost: dict[tuple[int, ...], int] = {}
    for value, numbers in stands_for.items():
        if stands_for.get(targets[numbers[-1]].paint) != numbers:
            lost.setdefault(numbers, value)
    return {value: numbers for numbers, value in lost.items()}


def painting_problems(targets: Sequence[Target]) -> list[str]:
    """Return a phrase for each set of targets that painting in order does not give back, with what is lost and what is added."""
    stands_for = sets_of_values(targets)
    problems = []
    for value, numbers in sets_not_given_back(targets).items():
        painted = targets[numbers[-1]].paint
        read = stands_for.get(painted, ())
        lost = ", ".join(targets[n].name for n in numbers if n not in read)
        added = ", ".join(targets[n].name for n in read if n not in numbers)
        what = " and ".join(filter(None, (f"lost from {lost}" if lost else "", f"added to {added}" if added else "")))
        inside = ", ".join(targets[n].name for n in numbers)
        problems.append(f"voxels of value {value} ({inside}) are written as {painted}, {what}")
    return problems


def working_order(targets: Sequence[Target]) -> tuple[Target, ...] | None:
    """Return the targets in an order, and with values, that painting gives back; None where there is no such order.

    Found from the last one: the region that is painted last gives its value to all of its voxels, so these must be of one set. What it
    paints is right then, and the same is asked of the other regions and the other values. The declared order and values are kept where
    they work.
    """
    stands_for = sets_of_values(targets)
    left, order = list(targets), list[Target]()
    while left:
        for target in reversed(left):
            values = [v for v in target.values if v in stands_for]
            if len({stands_for[v] for v in values}) > 1:
                continue
            own = values or list(target.values)
            order.append(target.model_copy(update={"paint": target.paint if target.paint in own else own[0]}))
            left.remove(target)
            painted = {stands_for[v] for v in values}
            stands_for = {v: numbers for v, numbers in stands_for.items() if numbers not in painted}
            break
        else:
            return None
    return tuple(reversed(order))
