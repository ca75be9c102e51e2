"""Splits as files: our own, and nnU-Net's splits_final.json."""

from __future__ import annotations

import json
from pathlib import Path

from segpipe.core.regular import read_text
from segpipe.core.whole import write_atomically
from segpipe.crossvalidation.schema import CrossvalSplits, OuterFold
from segpipe.dataset.splits import Fold
from segpipe.errors import CrossvalError

_EXPECTED = 'expected nnU-Net\'s list of {"train": [...], "val": [...]}, or a splits.json of segpipe'


def read_folds(path: Path) -> tuple[Fold, ...]:
    """Read the folds of nnU-Net's splits_final.json, or the outer ones of a splits.json of ours.

    Raises
    ------
    CrossvalError
        If it is neither.
    """
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise CrossvalError(f"--splits {path}: no such file; {_EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        raise CrossvalError(f"--splits {path}: is not JSON ({error}); {_EXPECTED}") from error
    if isinstance(content, dict):
        key, held_out = ("outer", "test") if "outer" in content else ("folds", "validation")
        content = [{"train": f.get("train"), "val": f.get(held_out)} for f in content.get(key, [])]
    if not isinstance(content, list) or not content:
        raise CrossvalError(f"--splits {path}: holds no folds; {_EXPECTED}")
    return tuple(_fold(entry, number, path) for number, entry in enumerate(content))


def _fold(entry: object, number: int, path: Path) -> Fold:
    sides = [entry.get(side) for side in ("train", "val")] if isinstance(entry, dict) else [None, None]
    if not all(isinstance(side, list) and side and all(isinstance(case, str) for case in side) for side in sides):
        raise CrossvalError(f"--splits {path}: fold {number} has no lists of case ids for train and val; {_EXPECTED}")
    return Fold(train=tuple(sides[0] or ()), validation=tuple(sides[1] or ()))


def write_for_nnunet(splits: CrossvalSplits, path: Path) -> None:
    """Write the outer folds as nnU-Net reads them, and each study's inner ones beside them."""
    if splits.outer:
        _write([(f.train, f.test) for f in splits.outer], path)
    for study in splits.studies:
        _write([(f.train, f.validation) for f in study.inner], _of_study(path, study))


def _of_study(path: Path, study: OuterFold) -> Path:
    return path.with_name(f"{path.stem}.{study.name}{path.suffix}")


def _write(folds: list[tuple[tuple[str, ...], tuple[str, ...]]], path: Path) -> None:
    listed = [{"train": list(train), "val": list(held_out)} for train, held_out in folds]
    write_atomically(path, (json.dumps(listed, indent=4) + "\n").encode())
