"""nnU-Net's trained-model folders, ``<Trainer>__<Plans>__<configuration>``, as segpipe models and back."""

import json
from pathlib import Path
from typing import Any

import torch

from segpipe.core.regular import lies, read_text
from segpipe.core.system_names import below
from segpipe.core.whole import write_atomically
from segpipe.errors import ModelError, SegpipeError
from segpipe.models.file import ModelFile, Weights
from segpipe.models.nnunet.checkpoint import Checkpoint, as_float, checkpoint_bytes, fitted, read_checkpoint
from segpipe.models.nnunet.plans import dataset_to_nnunet, plan_from_nnunet, plan_to_nnunet, resolved
from segpipe.models.nnunet.vocabulary import BATCH_NORM_TRAINER, trains_as_planned
from segpipe.networks.build import build_network
from segpipe.planning.schema import Plan

FINAL = "checkpoint_final.pth"
_TRAINER, _READERS = "nnUNetTrainer", {"canonical": "NibabelIOWithReorient", "as_stored": "SimpleITKIO"}


def is_model_folder(path: Path) -> bool:
    """Whether a folder is nnU-Net's of a trained model, or holds such folders."""
    return path.is_dir() and bool(_model_folders(path))


def read_model_folder(path: Path, *, folds: tuple[str, ...] = (), checkpoint: str = FINAL) -> ModelFile:
    """Read a trained-model folder; a cascade with its first stage, from the folder beside it.

    Parameters
    ----------
    path : Path
        The folder with plans.json, dataset.json and fold_0, fold_1, ...; or one that holds a single such folder.
    folds : tuple of str
        Folds to read; empty for all that hold the checkpoint.
    checkpoint : str
        Name of the files.

    Raises
    ------
    ModelError
        If it is no such folder, or asks for something that segpipe does not compute as nnU-Net does; it is named.
    """
    found = _model_folders(path)
    if len(found) != 1:
        names = "; ".join(f.relative_to(path).as_posix() for f in found)
        problem = f"holds {len(found)} trained models ({names}); give the folder of one" if found else _NONE_FOUND
        raise ModelError(f"{path}: {problem}")
    return _read(found[0], folds, checkpoint)


_NONE_FOUND = "no trained nnU-Net model in it; expected plans.json, dataset.json and fold_0, fold_1, ... or fold_all"


def write_model_folder(model: ModelFile, path: Path, ending: str = ".nii.gz") -> Path:
    """Write a model so that nnU-Net (2.3 or newer) loads it and predicts with it; returns the folder of the model.

    For a cascade the first stage is written beside it, as nnU-Net has it.

    Parameters
    ----------
    model : ModelFile
    path : Path
        New or empty; gets ``<Trainer>__<Plans>__<configuration>``.
    ending : str
        Ending of the images that nnU-Net will be given.

    Raises
    ------
    PlanError
        If nnU-Net has no such network.
    SegpipeError
        If the folder is not empty.
    """
    if path.exists() and any(path.iterdir()):
        raise SegpipeError(f"{path}: is not empty; give a new folder for the exported model")
    return _write(model.single(path, "nnU-Net's folder"), path, ending)


def _model_folders(path: Path) -> list[Path]:
    if lies(path / "plans.json") and lies(path / "dataset.json"):
        return [path]
    return sorted(p.parent for depth in ("*", "*/*") for p in path.glob(f"{depth}/plans.json") if _has_folds(p.parent))


def _has_folds(folder: Path) -> bool:
    return any(folder.glob("fold_*/checkpoint_*.pth"))


def _read(folder: Path, folds: tuple[str, ...], checkpoint: str) -> ModelFile:
    try:
        plans, dataset = (json.loads(read_text(folder / name)) for name in ("plans.json", "dataset.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: plans.json or dataset.json cannot be read ({error})") from error
    files = _checkpoint_files(folder, folds, checkpoint)
    read = {fold: read_checkpoint(file) for fold, file in files.items()}
    # As nnU-Net does: trainer, configuration and mirroring are the first fold's.
    first = next(iter(read.values()))
    if not trains_as_planned(first.trainer):
        raise ModelError(
            f"{folder}: was trained by {first.trainer}, which is none of nnU-Net's own trainers whose network follows from the plans: "
            "it may compute something else, so it is not imported"
        )
    try:
        plan = plan_from_nnunet(
            plans, dataset, first.configuration, batch_norm=first.trainer == BATCH_NORM_TRAINER
        ).model_copy(update={"mirror_axes": _in_space(first, plans)})
    except KeyError as error:
        raise ModelError(f"{folder}: plans.json or dataset.json lacks {error}; is it of nnU-Net 2?") from error
    except (ModelError, ValueError, TypeError) as error:
        raise ModelError(f"{folder}: {error}") from error
    configuration = plan.configuration(first.configuration)
    previous = None
    if configuration.previous_stage is not None:
        previous = _read(_first_stage(folder, configuration.previous_stage), folds, checkpoint)
    return ModelFile(
        plan.to_json(),
        first.configuration,
        variant=plan.recipe,
        mirror_axes=first.mirror_axes,
        folds={fold: _weights(found, plan, files[fold]) for fold, found in read.items()},
        previous=previous,
    )


def _checkpoint_files(folder: Path, folds: tuple[str, ...], checkpoint: str) -> dict[str, Path]:
    there = {p.parent.name.removeprefix("fold_"): p for p in sorted(folder.glob(f"fold_*/{checkpoint}"))}
    wanted = folds or tuple(there)
    missing = [f for f in wanted if f not in there]
    if missing or not there:
        others = sorted({p.name for p in folder.glob("fold_*/*.pth")})
        raise ModelError(
            f"{folder}: no {checkpoint} in {', '.join(f'fold_{f}' for f in missing) or 'any fold'}; folds with one: "
            f"{', '.join(there) or 'none'}; checkpoints found: {', '.join(others) or 'none'} (segpipe import takes another by --checkpoint)"
        )
    return {fold: there[fold] for fold in wanted}


def _first_stage(folder: Path, name: str) -> Path:
    """Folder of a cascade's first stage: the same trainer and plans, beside it; else the only one of that configuration."""
    same = folder.with_name("__".join([*folder.name.split("__")[:-1], name]))
    beside = [same] if same.is_dir() else sorted(p for p in folder.parent.glob(f"*__{name}") if p.is_dir())
    if len(beside) != 1:
        found = f"{len(beside)} such folders" if beside else "none"
        raise ModelError(
            f"{folder}: is the second stage of a cascade; its first stage was looked for as {same.name} beside it, and {found} found; "
            "put the folder of the first stage there"
        )
    return beside[0]


def _in_space(first: Checkpoint, plans: dict[str, Any]) -> tuple[int, ...]:
    """Mirror axes as axes of (z, y, x); a 2D network counts its own from y."""
    missing = 3 - len(resolved(plans, first.configuration)["patch_size"])
    return tuple(a + missing for a in first.mirror_axes)


def _weights(found: Checkpoint, plan: Plan, file: Path) -> Weights:
    configuration = plan.configuration(found.configuration)
    with torch.device("meta"):
        network = build_network(configuration.network, plan.n_inputs(configuration), plan.labels.n_outputs)
    return fitted(as_float(found.weights), network, str(file))


def _write(model: ModelFile, path: Path, ending: str) -> Path:
    plan = model.plan
    name = model.configuration
    plans = plan_to_nnunet(plan.model_copy(update={"configurations": {name: plan.configuration(name)}}))
    plans["image_reader_writer"] = _READERS[plan.orientation]
    folder = below(path, f"{_TRAINER}__{plans['plans_name']}__{name}")
    dataset = dataset_to_nnunet(plan, ending)
    init_args = {"plans": plans, "configuration": name, "dataset_json": dataset, "device": "cpu"}
    for fold, weights in model.folds.items():
        content = checkpoint_bytes(
            as_float(weights),
            trainer=_TRAINER,
            mirror_axes=model.mirror_axes,
            init_args={**init_args, "fold": int(fold) if fold.isdigit() else fold},
        )
        write_atomically(below(folder, f"fold_{fold}") / FINAL, content)
    for file, value in (("plans.json", plans), ("dataset.json", dataset)):
        write_atomically(folder / file, json.dumps(value, indent=4).encode())
    if model.previous is not None:
        _write(model.previous, path, ending)
    return folder
