"""What is made once per run of the suite, by whichever worker needs it first, and handed out as copies."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import segpipe
from tests.phantoms import write_small_dataset


@pytest.fixture(scope="session")
def once(request, tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function that gives the folder of a key; a function fills it the first time that it is asked for."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if hasattr(request.config, "workerinput") else base) / "once"
    root.mkdir(exist_ok=True)

    def folder_of(key: str, fill: Callable[[Path], object]) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        folder, whole = root / name, root / f"{name}.whole"
        with FileLock(root / f"{name}.lock"):
            if not whole.exists():
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def planned_once(once):
    """A function that copies a planned and prepared workspace to a place; gives the dataset, which is for reading only.

    With ``epochs``, fold 0 is trained too, and with every other word the dataset is drawn.
    """

    def copy(work: Path, recipe: str, epochs=0, prepared=True, **dataset) -> Path:
        def fill(folder: Path) -> None:
            source = write_small_dataset(folder / "dataset", **dataset)
            (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
            segpipe.plan(source, work=folder / "work", recipe=folder / "recipe.toml", jobs=1)
            if prepared:
                segpipe.preprocess(source, work=folder / "work", configuration="3d_fullres", jobs=1)
            if epochs:
                segpipe.train(source, work=folder / "work", epochs=epochs, jobs=1, device="cpu")

        made = once(repr((recipe, epochs, prepared, sorted(dataset.items()))), fill)
        shutil.copytree(made / "work", work, dirs_exist_ok=True)
        return made / "dataset"

    return copy
