"""What is refused is refused before anything is written, and a run's own account of how it was asked for."""

import json

import pytest
from typer.testing import CliRunner

import segpipe
from segpipe.cli.app import app
from segpipe.errors import DeviceError, SegpipeError
from tests.phantoms import TINY_RECIPE, write_small_dataset


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_RECIPE, encoding="utf-8")
    return write_small_dataset(tmp_path / "d", n_cases=3, shape=(16, 16, 16))


@pytest.mark.parametrize(
    "command",
    [segpipe.run, segpipe.train, segpipe.crossval, segpipe.distill, segpipe.list_networks],
    ids=lambda command: command.__name__,
)
def test_a_device_that_is_not_there_leaves_nothing_behind(dataset, tmp_path, command):
    with pytest.raises(DeviceError, match="cuda:99"):
        command(dataset, work=tmp_path / "w", device="cuda:99")
    assert not (tmp_path / "w").exists()


def test_a_finished_fold_keeps_the_account_of_how_it_was_asked_for(dataset, tmp_path):
    asked = {"work": tmp_path / "w", "epochs": 1, "jobs": 1, "device": "cpu", "tta": False}
    done = segpipe.run(dataset, recipe=tmp_path / "tiny.toml", **asked)
    account = done.model.parent / "fold_0" / "asked.json"
    before = account.read_bytes()
    segpipe.train(dataset, resume=True, **asked)
    assert account.read_bytes() == before
    assert json.loads(before)["command"] == "run"


def test_an_interrupted_fold_has_an_account(dataset, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise SegpipeError("stopped")

    monkeypatch.setattr("segpipe.workflows.train.train_fold", stop)
    segpipe.plan(dataset, work=tmp_path / "w", recipe=tmp_path / "tiny.toml", jobs=1)
    with pytest.raises(SegpipeError, match="stopped"):
        segpipe.train(dataset, work=tmp_path / "w", minutes=3, jobs=1, device="cpu")
    (account,) = (tmp_path / "w").rglob("asked.json")
    assert json.loads(account.read_text(encoding="utf-8"))["options"]["minutes"] == 3


def test_a_network_that_is_not_known_is_a_row_of_the_json():
    shown = CliRunner().invoke(app, ["networks", "--network", "foo", "--json"])
    assert shown.exit_code == 0
    assert "foo" in json.loads(shown.stdout)[0]["problem"]
    refused = CliRunner().invoke(app, ["networks", "--network", "foo"])
    assert isinstance(refused.exception, SegpipeError)


def test_functions_that_share_a_record_have_their_own_keywords(tmp_path):
    with pytest.raises(TypeError, match="references"):
        segpipe.apply_postprocessing(tmp_path, tmp_path / "out", references=tmp_path)
    with pytest.raises(TypeError, match="output"):
        segpipe.choose_postprocessing(tmp_path, tmp_path, output=tmp_path)
    with pytest.raises(TypeError, match="missing a required argument: 'output'"):
        segpipe.apply_postprocessing(tmp_path)
