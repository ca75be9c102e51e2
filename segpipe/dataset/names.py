"""What digits such as _0001 at the end of an image's name mean: the number of a channel, or a part of the case's id.

It is decided for each beginning of a name by itself, with evidence: labels of the same names, the channels within the files, and the
number of channels that is expected. One odd file leaves the other names as they are.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Literal

from segpipe.io.formats import stem_of

Digits = Literal["channel", "case"]
"""What the digits at the end of names are: the number of a channel, or a part of the case's id."""
Channels = dict[int, list[Path]]
"""Files of one case by the number of their channel; more than one of a channel is the caller's to refuse."""
ChannelsWithin = Callable[[Path], int]
_NUMBERED = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def numbered(stem: str) -> tuple[str, int] | None:
    """Return the beginning of a name and the number at its end; None if no four digits stand there."""
    found = _NUMBERED.match(stem)
    return (found["case"], int(found["channel"])) if found else None


def cases_with_labels(
    images: Iterable[Path], labels: Collection[str], n_channels: int, within: ChannelsWithin
) -> dict[str, Channels]:
    """Group the images of a training set to cases.

    Parameters
    ----------
    images : iterable of Path
    labels : collection of str
        Names of the label files, without their endings.
    n_channels : int
        Declared channels; 0 if none are.
    within : callable
        Returns the channels of one file; 0 if it cannot be read.
    """
    known = set(labels)
    families, cases = _families(images)
    clear = {name: _clear_reading(name, family, known) for name, family in families.items()}
    usual = Counter(reading for reading in clear.values() if reading is not None).most_common(1)
    for name, family in families.items():
        reading = clear[name] or _weighed_reading(name, family, known, n_channels, within)
        _take(cases, name, family, reading or (usual[0][0] if usual else "channel"))
    return cases


def cases_to_predict(
    images: Iterable[Path], n_channels: int, trained_as: Digits, within: ChannelsWithin
) -> tuple[dict[str, Channels], list[str]]:
    """Group images without labels to cases for a model.

    Parameters
    ----------
    images : iterable of Path
    n_channels : int
        Channels of the model.
    trained_as : "channel" or "case"
        What the digits at the end of the training images' names were.
    within : callable
        Returns the channels of one file; 0 if it cannot be read. Asked of models of several channels only.

    Returns
    -------
    tuple of dict and list of str
        Cases, and the beginnings of names whose digits were taken for a part of the id, although those of the training images numbered
        channels.
    """
    families, cases = _families(images)
    taken_whole = []
    for name, family in families.items():
        if trained_as == "case":
            _take(cases, name, family, "case")
        elif n_channels == 1:
            # One channel is number 0; with more numbers they count images.
            alone = set(family) == {0}
            _take(cases, name, family, "channel" if alone else "case")
            taken_whole += [] if alone or set(family) & {0} == set() else [name]
        else:
            whole = {number for number, files in family.items() if any(within(f) == n_channels for f in files)}
            whole = whole if len(family) > 1 else set()
            _take(cases, name, {n: f for n, f in family.items() if n in whole}, "case")
            _take(cases, name, {n: f for n, f in family.items() if n not in whole}, "channel")
    return cases, taken_whole


def digits_of(named: Iterable[tuple[str, str]]) -> Digits:
    """Return what digits at the end of names are in most cases.

    Parameters
    ----------
    named : iterable of (str, str)
        Id of each case, and the name of its first image without the ending.
    """
    whole = [case == stem for case, stem in named if numbered(stem) is not None]
    return "case" if 2 * sum(whole) > len(whole) else "channel"


def _families(images: Iterable[Path]) -> tuple[dict[str, Channels], dict[str, Channels]]:
    """Return files by the beginning of their name and the number at its end, and the cases whose names have no such number."""
    families: dict[str, Channels] = defaultdict(lambda: defaultdict(list))
    cases: dict[str, Channels] = defaultdict(lambda: defaultdict(list))
    for file in images:
        stem = stem_of(file)
        found = numbered(stem)
        if found is None:
            cases[stem][0].append(file)
        else:
            families[found[0]][found[1]].append(file)
    return families, cases


def _take(cases: dict[str, Channels], name: str, family: Channels, reading: Digits) -> None:
    for number, files in family.items():
        for file in files:
            case, channel = (name, number) if reading == "channel" else (stem_of(file), 0)
            cases[case][channel].append(file)


def _left_over(name: str, family: Channels, labels: set[str]) -> dict[Digits, int]:
    """Count the files that have no partner, under each reading."""
    own = {stem_of(file) for files in family.values() for file in files}
    n_images = sum(map(len, family.values()))
    return {
        "channel": len(own & labels) + (0 if name in labels else n_images),
        "case": len(own - labels) + (name in labels),
    }


def _clear_reading(name: str, family: Channels, labels: set[str]) -> Digits | None:
    """Return the reading under which every file has its partner, if there is just one."""
    left = _left_over(name, family, labels)
    whole: list[Digits] = [reading for reading, n in left.items() if n == 0]
    return whole[0] if len(whole) == 1 else None


def _weighed_reading(
    name: str, family: Channels, labels: set[str], n_channels: int, within: ChannelsWithin
) -> Digits | None:
    """Return the reading that gives the expected number of channels, else the one that leaves fewer files over; None if both are alike."""
    if n_channels > 1:
        held = within(next(iter(family.values()))[0])
        if held == n_channels:
            return "case"
        if held * len(family) == n_channels and sorted(family) == list(range(len(family))):
            return "channel"
    left = _left_over(name, family, labels)
    if left["channel"] == left["case"]:
        return None
    return min(left, key=lambda reading: left[reading])
