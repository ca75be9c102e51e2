"""A model file is given away: it says what it is, and nothing of the machine that made it."""

import shutil
import zipfile

import numpy as np
import pytest

import segpipe
from segpipe.errors import NetworkError
from segpipe.networks.catalogue import complete_options
from segpipe.networks.foreign import _made
from segpipe.networks.spec import NetworkChoice, NetworkSpec
from tests.helpers.engine import RECIPE
from tests.helpers.nnunet_models import exported
from tests.phantoms import write_small_dataset

SECRET = "WARD_OF_DR_SECRET"


def paths_in(model):
    """Members of a model that hold the name of the folder in which everything lies."""
    with zipfile.ZipFile(model) as archive:
        return [name for name in archive.namelist() if SECRET.encode() in archive.read(name)]


def test_no_door_to_a_model_puts_a_folder_into_it(tmp_path):
    home = tmp_path / SECRET
    dataset = write_small_dataset(home / "data")
    (home / "own.toml").write_text(RECIPE, encoding="utf-8")
    made = {}
    segpipe.run(dataset, work=home / "work", recipe=str(home / "own.toml"), epochs=1, device="cpu", jobs=1)
    (made["run"],) = (home / "work").rglob("model.segpipe")
    shutil.copy(made["run"], home / "start.segpipe")
    segpipe.train(dataset, init_from=home / "start.segpipe", work=home / "work2", epochs=1, device="cpu", jobs=1)
    (made["train"],) = (home / "work2").rglob("model.segpipe")
    segpipe.distill(
        dataset,
        teacher=[home / "start.segpipe"],
        student="planned:width=0.5",
        work=home / "work",
        epochs=1,
        device="cpu",
        jobs=1,
    )
    made |= {str(path): path for path in (home / "work").rglob("model.segpipe")}
    assert len(made) > 2
    segpipe.choose_postprocessing(
        home / "data" / "labels", references=home / "data" / "labels", model=made["train"], jobs=1
    )
    from segpipe.models.file import ModelFile

    folder = exported(ModelFile.read(made["run"]), home)
    made["imported"] = home / "imported.segpipe"
    segpipe.import_model(folder, made["imported"])
    assert {name: paths_in(path) for name, path in made.items() if paths_in(path)} == {}


def test_no_network_of_another_package_downloads_weights():
    with pytest.raises(NetworkError, match=r"pretrained would download weights.*--init-from"):
        complete_options(NetworkChoice(name="monai:FlexibleUNet", options={"backbone": "resnet18", "pretrained": True}))
    assert complete_options(NetworkChoice(name="monai:FlexibleUNet", options={"pretrained": False}))
    seen = {}

    def made(width, pretrained=True, pretrained_from=None):
        seen.update(width=width, pretrained=pretrained, pretrained_from=pretrained_from)
        return np

    spec = NetworkSpec(architecture="x", strides=((1, 1),), options={"width": 2, "pretrained_from": "hub"})
    assert _made(made, spec, {}) is np
    assert seen == {"width": 2, "pretrained": False, "pretrained_from": False}
