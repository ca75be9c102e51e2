"""Options that can be checked before the first file of a dataset is read. What is wrong with them ends with exit code 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.regular import lies
from segpipe.core.text import did_you_mean
from segpipe.core.workspace import Workspace
from segpipe.errors import SegpipeError, UsageError
from segpipe.training.extension import require_end

if TYPE_CHECKING:
    from segpipe.dataset.splits import Splits
    from segpipe.workflows.options import FoldOptions

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""Configurations that a plan of segpipe's own may have."""


@contextmanager
def as_usage() -> Iterator[None]:
    """Give errors that are raised inside the exit code of wrong usage."""
    try:
        yield
    except SegpipeError as error:
        error.exit_code = UsageError.exit_code
        raise


@as_usage()
def require_device(device: str, devices: int = 1) -> None:
    """Raise unless a device is there, and as many of its kind as are asked for.

    Raises
    ------
    DeviceError
    """
    from segpipe.execution.device import choose_runtime, require_devices

    require_devices(choose_runtime(device).device, devices)


@as_usage()
def require_recipe(name: str | None) -> None:
    """Raise unless there is such a recipe, and it can be read.

    Raises
    ------
    RecipeError
    """
    from segpipe.planning.recipe import load_recipe

    if name is not None:
        load_recipe(name)


@as_usage()
def require_network(text: str | None) -> None:
    """Raise unless a network is known, and has the options that it is given.

    Raises
    ------
    NetworkError
    """
    from segpipe.networks.catalogue import complete_options
    from segpipe.networks.spec import parse_choice

    if text is not None:
        complete_options(parse_choice(text))


@as_usage()
def require_models(paths: Sequence[Path], flag: str) -> None:
    """Raise unless each path is there, with the nearest name beside it.

    Raises
    ------
    UsageError
    """
    for path in paths:
        if not path.exists():
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UsageError(
                f"{flag} {path}: no such file or folder{did_you_mean(path.name, beside)}; expected a trained model, or the folder "
                "that holds one"
            )


def require_configuration(name: str | None, workspace: Workspace, init_from: Path | None = None) -> None:
    """Raise unless a plan could have a configuration: one of segpipe's own, of the workspace's plan, or of the model to begin with.

    Raises
    ------
    UsageError
    """
    known = set(CONFIGURATIONS)
    if name is None or name in known:
        return
    if lies(workspace.plan):
        from segpipe.planning.schema import Plan

        known |= set(Plan.read(workspace.plan).configurations)
    if init_from is not None:
        from segpipe.models.file import is_weights_file, read_model

        known |= set() if is_weights_file(init_from) else set(read_model(init_from).plan.configurations)
    if name not in known:
        raise UsageError(
            f"--configuration {name}: no plan has it{did_you_mean(name, known)}; expected {', '.join(sorted(known))}"
        )


def require_offered_fold(fold: int | str, workspace: Workspace, dataset: Path) -> None:
    """Raise unless there may be such a fold: by the workspace's splits, or by the number of folds that are made where it has none.

    Raises
    ------
    UsageError
    """
    from segpipe.dataset.splits import N_FOLDS, Splits

    if lies(workspace.splits):
        splits = Splits.read(workspace.splits)
        # Where cases were added, the splits are made again.
        if _has_fold(fold, len(splits.folds)) or not _same_groups(dataset, workspace):
            return
        require_fold_there(fold, splits)
    if not _has_fold(fold, N_FOLDS):
        raise UsageError(f"--fold {fold}: expected 0 to {N_FOLDS - 1}, or all")


@as_usage()
def require_fold_there(fold: int | str, splits: Splits) -> None:
    """Raise unless splits have a fold.

    Raises
    ------
    DatasetError
    """
    splits.fold(fold)


def _has_fold(fold: int | str, n_folds: int) -> bool:
    return not isinstance(fold, int) or 0 <= fold < n_folds


def _same_groups(dataset: Path, workspace: Workspace) -> bool:
    """Whether a dataset has the cases and groups that a workspace knows; no image is read."""
    from segpipe.dataset.match import match_dataset
    from segpipe.dataset.schema import Dataset

    if not lies(workspace.dataset):
        return False
    known, now = Dataset.read(workspace.dataset), match_dataset(dataset)
    return {c.id: c.group for c in known.cases} == {c.id: c.group for c in now.cases}


def require_training_options(options: FoldOptions) -> None:
    """Raise what is wrong with the options of `segpipe run` and `segpipe train`, before anything is read or written.

    Raises
    ------
    SegpipeError
        With exit code 2.
    """
    if options.extend:
        require_end(options.epochs, options.minutes)
    require_device(options.device, options.devices)
    require_recipe(getattr(options, "recipe", None))
    require_network(options.network)
    init_from = getattr(options, "init_from", None)
    if init_from is not None:
        _require_initial(init_from)
    if getattr(options, "tensorboard", False):
        from segpipe.training.board import require_tensorboard

        with as_usage():
            require_tensorboard()


def _require_initial(init_from: Path) -> None:
    """Raise unless a model or bare weights can be read."""
    from segpipe.training.initial import InitialWeights

    require_models([init_from], "--init-from")
    InitialWeights.of(init_from)
