"""Read any trained model, whichever program made it."""

from pathlib import Path

from segpipe.core.regular import lies
from segpipe.errors import ModelError
from segpipe.models.file import ModelFile, model_in
from segpipe.models.nnunet.folder import is_model_folder, read_model_folder


def read_any_model(path: Path, folds: tuple[str, ...] = ()) -> ModelFile:
    """Read a model file, the one in a folder, or nnU-Net's folder of a trained model.

    Raises
    ------
    ModelError
        If it is none of these.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; expected a model.segpipe, or a folder with a trained model")
    if path.is_dir() and not lies(model_in(path)) and is_model_folder(path):
        return read_model_folder(path, folds=folds)
    return ModelFile.read(model_in(path))
