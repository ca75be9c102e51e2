"""Outer and inner folds: groups stay whole, columns and labels are spread evenly, and everything follows from one seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from segpipe.core.artefact import json_digest
from segpipe.core.labels import Labels
from segpipe.crossvalidation.schema import FINAL, CrossvalSplits, OuterFold, Scheme
from segpipe.dataset.fingerprint.schema import CaseFingerprint
from segpipe.dataset.splits import Fold, make_splits
from segpipe.errors import CrossvalError

Strata = Mapping[str, tuple[str, ...]]
"""What of each case is to be spread evenly, as names: ``site=A``, ``liver present``, ``liver large``."""
_VOLUME_NAMES = ("small", "medium", "large")


@dataclass(frozen=True)
class Request:
    """How cases are to be divided."""

    groups: Mapping[str, str]
    """Group of each case."""
    grouped_by: str
    n_folds: int
    n_inner: int
    seed: int
    dataset_digest: str
    n_repeats: int = 1
    strata: Strata = field(default_factory=dict)
    stratified_by: tuple[str, ...] = ()
    nested: bool = True
    final: bool = True


def divided_evenly(request: Request) -> CrossvalSplits:
    """K folds, several times over where repeats are asked for.

    Raises
    ------
    CrossvalError
        If there are too few groups.
    """
    outer = []
    for repeat in range(request.n_repeats):
        # The first division of a dataset is the one that `segpipe train` holds out by, and nnU-Net.
        seed = request.seed if repeat == 0 else _seed_of(request.seed, f"repeat {repeat}")
        parts = divide(request.groups, request.n_folds, seed, request.strata, "--folds")
        prefix = f"repeat_{repeat}_" if request.n_repeats > 1 else ""
        outer += [(f"{prefix}fold_{number}", repeat, part) for number, part in enumerate(parts)]
    return _completed(request, "k-fold", outer)


def leaving_out(request: Request, values: Mapping[str, str]) -> CrossvalSplits:
    """A fold for each value of a column, such as a site: all its cases are tested on, by what the other ones taught.

    Raises
    ------
    CrossvalError
        If a case has no value, or there is but one.
    """
    empty = next((case for case, value in values.items() if not value), None)
    if empty is not None:
        raise CrossvalError(f"--leave-out: case {empty!r} has no value in that column; fill it in for every case")
    names = sorted(set(values.values()))
    if len(names) < 2:
        raise CrossvalError(f"--leave-out: all cases have the value {names[0]!r}; at least 2 values are needed")
    called = [_safe(name) for name in names]
    folders = [c if called.count(c) == 1 and c else f"{c}_{n}" for n, c in enumerate(called)]
    outer = [
        (f"without_{folder}", 0, {c for c, v in values.items() if v == name})
        for folder, name in zip(folders, names, strict=True)
    ]
    return _completed(request, "leave-one-group-out", outer)


def with_test_set(request: Request, test: Collection[str]) -> CrossvalSplits:
    """One outer fold, whose test cases are given.

    Raises
    ------
    CrossvalError
        If it names a case that there is not, or leaves none to train on.
    """
    _require_cases("--test-set", test, request.groups)
    if not test or len(test) == len(request.groups):
        raise CrossvalError(
            f"--test-set: {len(test)} of {len(request.groups)} cases; some must be tested on, and some trained on"
        )
    return _completed(request, "fixed test set", [("fold_0", 0, set(test))])


def as_listed(request: Request, listed: Sequence[Fold]) -> CrossvalSplits:
    """Outer folds of a file.

    Raises
    ------
    CrossvalError
        If a fold names a case that there is not, or both trains and tests a group.
    """
    outer = []
    tested: list[set[str]] = []
    for number, fold in enumerate(listed):
        _require_cases(f"--splits, fold {number}", (*fold.train, *fold.validation), request.groups)
        held_out = set(fold.validation)
        # A case that is tested again belongs to a further repeat.
        repeat = next((r for r, before in enumerate(tested) if not before & held_out), len(tested))
        tested += [set()] if repeat == len(tested) else []
        tested[repeat] |= held_out
        outer.append((f"fold_{number}", repeat, held_out, set(fold.train)))
    return _completed(request, "file", outer)


def _completed(request: Request, scheme: Scheme, outer: Sequence[tuple]) -> CrossvalSplits:  # type: ignore[type-arg]
    """Splits with inner folds for each outer one, and for the study of all cases."""
    folds = []
    for name, repeat, test, *rest in outer:
        train = rest[0] if rest else set(request.groups) - set(test)
        inner = _inner(request, name, train) if request.nested else ()
        folds.append(
            OuterFold(name=name, repeat=repeat, train=tuple(sorted(train)), test=tuple(sorted(test)), inner=inner)
        )
    final = None
    everything = tuple(sorted(request.groups))
    if not request.nested:
        again = next((f.name for f in folds if f.repeat), None)
        if again is not None:
            raise CrossvalError(
                f"--splits with --no-nested: {again} tests cases that another fold tests too, and one division both chooses and measures; "
                "give a file in which each case is tested once"
            )
        # One level alone: what is chosen on is what is measured on.
        inner = tuple(Fold(train=f.train, validation=f.test) for f in folds)
        final = OuterFold(name=FINAL, repeat=0, train=everything, test=(), inner=inner)
    elif request.final:
        inner = _inner(request, FINAL, set(everything))
        final = OuterFold(name=FINAL, repeat=0, train=everything, test=(), inner=inner)
    splits = CrossvalSplits(
        dataset_digest=request.dataset_digest,
        scheme=scheme,
        seed=request.seed,
        grouped_by=request.grouped_by,
        stratified_by=request.stratified_by,
        groups=dict(sorted(request.groups.items())),
        outer=tuple(folds) if request.nested else (),
        final=final,
    )
    splits.require_apart()
    return splits


def _inner(request: Request, name: str, train: Collection[str]) -> tuple[Fold, ...]:
    groups = {case: request.groups[case] for case in train}
    strata = {case: request.strata[case] for case in train if case in request.strata}
    parts = divide(groups, request.n_inner, _seed_of(request.seed, name), strata, f"--inner-folds in {name}")
    return tuple(Fold(train=tuple(sorted(set(groups) - part)), validation=tuple(sorted(part))) for part in parts)


def divide(groups: Mapping[str, str], n_parts: int, seed: int, strata: Strata, asked_by: str) -> list[set[str]]:
    """Divide cases into parts of about the same size; a group is never divided.

    Without strata groups are shuffled and cut, as nnU-Net cuts cases. With strata, the rarest stratum's groups are given out first, each
    to the part that lacks it most (Sechidis, Tsoumakas and Vlahavas 2011, on groups in place of single samples).

    Raises
    ------
    CrossvalError
        If there are fewer groups than parts.
    """
    names = sorted(set(groups.values()))
    if n_parts < 2 or len(names) < n_parts:
        raise CrossvalError(
            f"{asked_by} {n_parts}: {len(groups)} case(s) in {len(names)} group(s); expected at least 2 folds, and a group for each: "
            "ask for fewer folds, or add patients"
        )
    if not strata:
        folds = make_splits(dict(groups), "", n_folds=n_parts, seed=seed).folds
        return [set(fold.validation) for fold in folds]
    placed = _stratified(_members(groups), n_parts, seed, strata)
    return [{case for case, group in groups.items() if placed[group] == part} for part in range(n_parts)]


def _members(groups: Mapping[str, str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for case, group in sorted(groups.items()):
        members.setdefault(group, []).append(case)
    return members


def _stratified(members: Mapping[str, list[str]], n_parts: int, seed: int, strata: Strata) -> dict[str, int]:
    """Part of each group."""
    rng = np.random.default_rng(seed)
    names = list(members)
    rng.shuffle(names)
    features = sorted({feature for found in strata.values() for feature in found})
    at = {feature: column for column, feature in enumerate(features)}
    held = np.zeros((len(names), len(features) + 1))
    for row, name in enumerate(names):
        held[row, -1] = len(members[name])
        for case in members[name]:
            for feature in strata.get(case, ()):
                held[row, at[feature]] += 1
    lacking = np.tile(held.sum(axis=0) / n_parts, (n_parts, 1))
    taken, share = np.zeros(n_parts, dtype=int), len(names) // n_parts
    left, placed = set(range(len(names))), {}
    while left:
        rows = sorted(left)
        having = (held[rows][:, :-1] > 0).sum(axis=0)
        rarest = int(np.argmin(np.where(having > 0, having, np.inf))) if having.any() else -1
        # Large groups first: small ones fill what they leave.
        row = max((r for r in rows if held[r, rarest] > 0), key=lambda r: (held[r, rarest], held[r, -1], -r))
        # Every part gets its even share of the groups, and those that are over go to different parts.
        spare = len(names) % n_parts - int((taken > share).sum())
        open_parts = [part for part in range(n_parts) if taken[part] < share + (spare > 0)]
        part = max(open_parts, key=lambda p: (lacking[p, rarest], lacking[p, -1], -p))
        placed[names[row]] = part
        lacking[part] -= held[row]
        taken[part] += 1
        left.discard(row)
    return placed


def label_strata(cases: Sequence[CaseFingerprint], labels: Labels) -> dict[str, tuple[str, ...]]:
    """Which labels or regions each case has, and whether its volume of them is small, medium or large among the cases that have it."""
    strata: dict[str, list[str]] = {case.case: [] for case in cases}
    for target in labels.targets:
        voxels = {case.case: sum(case.label_voxels.get(value, 0) for value in target.values) for case in cases}
        volumes = {
            case.case: voxels[case.case] * float(np.prod(case.spacing_mm)) for case in cases if voxels[case.case]
        }
        thirds = np.percentile(list(volumes.values()), [100 / 3, 200 / 3]) if volumes else ()
        for case, volume in volumes.items():
            size = _VOLUME_NAMES[int(np.searchsorted(thirds, volume))]
            strata[case] += [f"{target.name} present", f"{target.name} {size}"]
        for case in set(strata) - set(volumes):
            strata[case].append(f"{target.name} absent")
    return {case: tuple(found) for case, found in strata.items()}


def _require_cases(where: str, cases: Collection[str], groups: Mapping[str, str]) -> None:
    unknown = sorted(set(cases) - set(groups))
    if unknown:
        raise CrossvalError(
            f"{where}: {len(unknown)} case(s) are not among the dataset's usable cases, such as {unknown[0]!r}; "
            "`segpipe check` lists what is wrong with cases"
        )


def _seed_of(seed: int, name: str) -> int:
    """Seed of a named division."""
    return int(json_digest([seed, name])[:8], 16) % 2**31


def _safe(name: str) -> str:
    """A group's name as part of a folder's; file systems may not tell upper from lower case."""
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name).lower()
