"""The benchmark for a real GPU, rehearsed on the simulated one: every branch that is for CUDA alone runs."""

import shutil
from argparse import Namespace

import numpy as np
import pytest

from segpipe import steps
from segpipe.fingerprint.schema import Fingerprint
from segpipe.inference import sliding
from segpipe.modelfile import ModelFile
from tests.bench import bench_gpu
from tests.simulated.work import image_of


@pytest.fixture(scope="module")
def packed(places, tmp_path_factory):
    """What pack_gpu.py would pack, made of the tests' own dataset."""
    place, folder = places("plain"), tmp_path_factory.mktemp("packed")
    steps.splits_of(place.workspace, Fingerprint.read(place.workspace.fingerprint))
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
    copied, left_out = shutil.copytree(packed, tmp_path / "packed"), {}
    with simulated(capability=(6, 0)):
        found = getattr(bench_gpu, part)(copied, OPTIONS, left_out)
    if part == "waits":
        assert 0 < found["waits"]["case"] < 20
        assert not left_out
    if part == "numbers":
        assert found["numbers"]["largest_difference_of_losses"] < 1e-4
        assert found["numbers"]["voxels_that_differ"] <= 2
    assert found


def test_a_hidden_wait_ends_the_benchmark(simulated, packed, monkeypatch):
    """The part would see the fault that was there."""
    compare = sliding._compare

    def asking(labels, mean, agreement):
        compare(labels, mean, agreement)
        int(mean.sum())

    monkeypatch.setattr(sliding, "_compare", asking)
    with simulated(), pytest.raises(RuntimeError, match="synchronizing"):
        bench_gpu.waits(packed, OPTIONS, {})
