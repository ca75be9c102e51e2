"""The benchmark for a real GPU, rehearsed on the simulated one: every branch that is for CUDA alone runs."""

import shutil
import time
from argparse import Namespace
from functools import partial

import numpy as np
import pytest

from segpipe.inference import sliding
from segpipe.models.file import ModelFile
from segpipe.workflows.project import Project
from tests.bench import bench_gpu
from tests.simulated.work import image_of


@pytest.fixture(scope="module")
def packed(places, tmp_path_factory):
    """What pack_gpu.py would pack, made of the tests' own dataset."""
    place, folder = places("plain"), tmp_path_factory.mktemp("packed")
    _ = Project(place.folder, place.workspace).splits
    shutil.copytree(place.workspace.root, folder / "hippocampus")
    shutil.copytree(place.workspace.root, folder / "large")
    ModelFile.read(place.model).write(folder / "model.segpipe")
    (folder / "scans").mkdir()
    image = image_of((20, 24, 24))
    cpu = bench_gpu.Runtime(bench_gpu.torch.device("cpu"), None)
    predictor = bench_gpu.predictor_of(folder / "model.segpipe", cpu, precision="float32")
    labels = predictor.segment(image).labels
    np.savez_compressed(
        folder / "scans" / "a.npz", image=image.array[0], labels=labels, mask_of_cpu=labels, spacing_mm=np.ones(3)
    )
    return folder


OPTIONS = Namespace(device="cuda", rehearse=True, minutes=0.01)


@pytest.mark.parametrize("part", ["steps", "waits", "numbers", "volume", "hippocampus"])
def test_a_part_runs_on_a_gpu(simulated, packed, tmp_path, part):
    copied, line = shutil.copytree(packed, tmp_path / "packed"), {"left_out": {}}
    with simulated(capability=(6, 0)):
        getattr(bench_gpu, part)(copied, OPTIONS, line)
    assert set(line) - {"left_out"}
    assert set(line["left_out"]) <= {"compiled steps"}
    if part == "waits":
        assert 0 < line["waits"]["case"] < 20
    if part == "numbers":
        assert line["numbers"]["largest_difference_of_losses"] < 1e-4
        assert line["numbers"]["voxels_that_differ"] <= 2


@pytest.mark.parametrize("where", ["_box", "_compare"])
def test_a_hidden_wait_ends_the_benchmark(simulated, packed, monkeypatch, where):
    """The part would see a wait among the windows, in the network's passes and around them."""
    real = getattr(sliding, where)

    def asking(*args):
        bench_gpu.torch.ones(1, device="cuda").item()
        return real(*args)

    monkeypatch.setattr(sliding, where, asking)
    monkeypatch.setattr(bench_gpu, "predictor_of", partial(bench_gpu.predictor_of, tta=True))
    with simulated(), pytest.raises(RuntimeError, match="synchronizing"):
        bench_gpu.waits(packed, OPTIONS, {"left_out": {}})


def test_the_clock_ends_a_part():
    with pytest.raises(bench_gpu.OutOfTimeError), bench_gpu.ends_at(time.monotonic() - bench_gpu.BEGUN + 0.05):
        time.sleep(10)
    with pytest.raises(bench_gpu.OutOfTimeError), bench_gpu.ends_at(0):
        pass
