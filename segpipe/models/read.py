"""Read any trained model, whichever program made it."""

from pathlib import Path

from segpipe.errors import ModelError
from segpipe.models.file import ModelFile, model_in
from segpipe.models.nnunet.folder import is_model_folder, read_model_folder
from segpipe.planning.schema import Plan


def read_any_model(path: Path, folds: tuple[str, ...] = ()) -> ModelFile:
    """Read a model file, the one in a folder, or nnU-Net's folder of a trained model.

    Raises
    ------
    ModelError
        If it is none of these.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; expected a model.segpipe, or a folder with a trained model")
    if path.is_dir() and not model_in(path).is_file() and is_model_folder(path):
        return read_model_folder(path, folds=folds)
    return ModelFile.read(model_in(path))


def plan_of(model: ModelFile, path: Path) -> Plan:
    """Return a model's plan.

    Raises
    ------
    ModelError
        If it is of another version.
    """
    try:
        return Plan.model_validate_json(model.plan_json)
    except ValueError as error:
        raise ModelError(f"{path}: its plan is from another version of segpipe ({error}); export it again") from error
