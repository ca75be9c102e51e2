"""`segpipe import`: write a trained nnU-Net as a segpipe model."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.workspace import PathLike
from segpipe.errors import SegpipeError


def import_model(
    folder: PathLike, output: PathLike, *, folds: tuple[str, ...] = (), checkpoint: str = "checkpoint_final.pth"
) -> dict[str, str]:
    """Write nnU-Net's folder of a trained model as a segpipe model; returns what it is, in words.

    Parameters
    ----------
    folder : path
        ``<Trainer>__<Plans>__<configuration>``; of a cascade the first stage's folder lies beside it.
    output : path
        The .segpipe file.
    folds : tuple of str
        Folds to take; empty for all.
    checkpoint : str
        Name of the checkpoints.
    """
    from segpipe.models.nnunet.folder import read_model_folder

    target = Path(output)
    if target.suffix != ".segpipe":
        raise SegpipeError(f"{target}: a model file ends in .segpipe; give such a name")
    model = read_model_folder(Path(folder), folds=folds, checkpoint=checkpoint)
    model.write(target)
    plan = model.plan
    configuration = plan.configuration(model.configuration)
    return {
        "model": str(target),
        "configuration": model.configuration,
        "network": f"{configuration.network.architecture}, {len(configuration.network.features)} stages",
        "patch": "x".join(map(str, configuration.patch_size)),
        "spacing": " x ".join(f"{s:.4g}" for s in configuration.spacing_mm) + " mm",
        "channels": ", ".join(plan.channel_names),
        "labels": plan.labels.describe(),
        "folds": ", ".join(model.folds),
        "mirror axes": ", ".join(map(str, model.mirror_axes)) or "none",
        "first stage": "none" if model.previous is None else model.previous.configuration,
    }
