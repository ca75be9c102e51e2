"""`segpipe export`: write a model for another program."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.workspace import PathLike
from segpipe.errors import ModelError


def export_model(model: PathLike, output: PathLike, *, form: str = "nnunet", ending: str = ".nii.gz") -> dict[str, str]:
    """Write a model so that another program predicts with it; returns what was written, in words.

    Parameters
    ----------
    model : path
        A model.segpipe file, or the folder that holds one.
    output : path
        New folder.
    form : "nnunet"
    ending : str
        Of the images that it will be given.
    """
    from segpipe.models.file import read_model
    from segpipe.models.nnunet.folder import write_model_folder

    if form != "nnunet":
        raise ModelError(f"--format {form}: models are written for nnunet")
    held = read_model(Path(model))
    folder = write_model_folder(held, Path(output), ending)
    labels = held.plan.labels
    numbers = {value: number for number, value in enumerate(labels.values)}
    renumbered = ", ".join(f"{value} becomes {number}" for value, number in numbers.items() if value != number)
    folds = " ".join(held.folds)
    return {
        "folder": str(folder),
        "labels": renumbered or "as they are",
        "left out": "post-processing, which nnU-Net keeps apart" if held.postprocessing_json else "nothing",
        "predict with": f"nnUNetv2_predict_from_modelfolder -i IMAGES -o OUTPUT -m {folder} -f {folds}",
    }
