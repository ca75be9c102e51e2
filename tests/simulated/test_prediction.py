"""What prediction does on a device: the labels of a processor, and a fixed number of waits a row of windows."""

import numpy as np
import pytest
import torch

from segpipe.errors import CaseError
from segpipe.execution.device import choose_runtime
from segpipe.inference import restore
from segpipe.inference.memory import Sums
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.sliding import windows_of
from tests.simulated.work import cascade_plan, image_of, model_of, predictor_of, skipping, small_planes, watched


def require_alike(there, here, gpu):
    """Rounding may move a voxel where two labels of a random network are as likely as each other; a real GPU rounds more."""
    assert len(np.unique(here)) > 1
    assert (there != here).sum() <= (2 if getattr(gpu, "simulated", True) else 1e-3 * here.size)


def labels_of(place, device, image, **how):
    return predictor_of(place, device, **how).segment(image).labels


def waits_of(gpu, place, image, **how):
    """What the host waits for in one case, by file and line, and its labels."""
    predictor = predictor_of(place, "cuda", **how)
    with watched(gpu) as waits:
        labels = predictor.segment(image).labels
    return waits, labels


def in_file(waits, *files):
    return sum(n for where, n in waits.items() if any(f in where for f in files))


@pytest.mark.parametrize("kind", ["plain", "regions"])
@pytest.mark.parametrize(
    ("spacing", "how"),
    [
        ((1.0, 1.0, 1.0), {"tta": False}),
        ((1.0, 1.0, 1.0), {"tta": True}),
        ((0.8, 1.1, 1.0), {"tta": False, "folds": ("0",)}),
        ((0.5, 1.0, 1.3), {"tta": True, "tiles": 3}),
        ((1.0, 1.0, 1.0), {"tta": False, "edit": skipping}),
    ],
)
def test_labels_are_those_of_a_processor(gpu, places, kind, spacing, how):
    place, image = places(kind), image_of((24, 30, 36), spacing)
    there, here = (labels_of(place, device, image, **how) for device in ("cuda", "cpu"))
    require_alike(there, here, gpu)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_labels_in_half_precision_hardly_differ(gpu, places, precision):
    place, image = places("plain"), image_of((24, 30, 36))
    there = labels_of(place, "cuda", image, precision=precision, tta=False)
    here = labels_of(place, "cpu", image, tta=False)
    assert (there != here).mean() < (5e-3 if precision == "float16" else 5e-2)


def test_a_cascade_is_predicted_as_on_a_processor(gpu, places):
    place = places("plain")
    plan = cascade_plan(place.plan)
    model = model_of(plan, "3d_cascade_fullres", previous=model_of(plan, "3d_lowres"))
    image = image_of((24, 30, 36), (0.8, 1.0, 1.0))
    there, here = (labels_of(place, device, image, model=model, tta=False) for device in ("cuda", "cpu"))
    require_alike(there, here, gpu)


def test_probabilities_of_a_plane_come_home_once(gpu, places):
    place, image = places("plain"), image_of((20, 24, 24))
    predictor = predictor_of(place, "cuda", tta=False)
    seen = []
    with watched(gpu) as waits:
        predictor.segment(image, sink=lambda _, number, p: seen.append((number, p.device.type, p.cpu().numpy())))
    assert [number for number, _, _ in seen] == list(range(20))
    assert {kind for _, kind, _ in seen} == {"cpu"}
    assert in_file(waits, "predictor.py", "restore.py") <= 20 + 1


def test_models_that_are_averaged_wait_for_no_single_plane(gpu, places):
    place, image = places("plain"), image_of((20, 24, 24))
    other = place.folder / "other.segpipe"
    model_of(place.plan).write(other)
    options = PredictorOptions(engine="torch", precision="float32", tta=False)
    predictor = Predictor.load((place.model, other), choose_runtime("cuda"), options)
    with watched(gpu) as waits:
        predictor.segment(image)
    assert in_file(waits, "restore.py") <= 2


# Waits: a fixed number a row of windows

CASES = {
    "same grid": ("plain", (24, 30, 30), (1.0, 1.0, 1.0), {"tta": False, "folds": ("0",)}),
    "mirrored": ("plain", (24, 30, 30), (1.0, 1.0, 1.0), {"tta": True, "folds": ("0",)}),
    "two folds, mirrored": ("plain", (24, 30, 30), (1.0, 1.0, 1.0), {"tta": True}),
    "other grid": ("plain", (24, 30, 30), (0.8, 1.1, 1.0), {"tta": False}),
    "regions, other grid": ("regions", (24, 30, 30), (0.8, 1.1, 1.0), {"tta": False}),
    "empty windows skipped": ("plain", (24, 30, 30), (1.0, 1.0, 1.0), {"tta": False, "edit": skipping}),
}


@pytest.mark.parametrize("name", CASES)
def test_waits_do_not_grow_with_tiles_nor_with_parts(gpu, places, name):
    kind, shape, spacing, how = CASES[name]
    place, image = places(kind), image_of(shape, spacing)
    many_tiles, labels = waits_of(gpu, place, image, **(how | {"tiles": 64}))
    few_tiles, _ = waits_of(gpu, place, image, **(how | {"tiles": 1}))
    assert few_tiles == many_tiles
    with small_planes():
        plane_by_plane, same = waits_of(gpu, place, image, **(how | {"tiles": 64}))
    np.testing.assert_array_equal(same, labels)
    more = plane_by_plane - many_tiles
    # Each part brings its labels home, and makes the host wait for nothing else.
    assert {where.rpartition(":")[0].rpartition("/")[2] for where in more} <= {"restore.py"}, more
    assert len(more) <= 1, more
    assert sum(more.values()) <= image.array.shape[1]


@pytest.mark.parametrize("name", CASES)
def test_waits_of_a_case_are_few_and_grow_with_rows_alone(gpu, places, name):
    kind, (z, y, x), spacing, how = CASES[name]
    place = places(kind)
    patch = place.plan.configuration("3d_fullres").patch_size
    low, high, wide = (
        sum(waits_of(gpu, place, image_of(shape, spacing), **how)[0].values())
        for shape in ((z, y, x), (2 * z, y, x), (z, 2 * y, x))
    )
    rows = [windows_of((round(n * spacing[0]), y, x), patch, 0.5) for n in (z, 2 * z)]
    n_rows = [len(w.starts[0]) for w in rows]
    assert wide == low, "windows beside each other cost nothing"
    assert high - low <= 3 * (n_rows[1] - n_rows[0])
    assert low <= 12 + 3 * n_rows[0]


def test_a_whole_case_waits_no_more_than_when_it_was_mended(gpu, places):
    """Two folds, mirrored, batches of two windows: 182 waits in version 0.1.0.dev5 (tests/bench/bench_waits.py)."""
    waits, _ = waits_of(gpu, places("plain"), image_of((30, 40, 40)), tta=True, tiles=2)
    assert sum(waits.values()) <= 12, waits


def test_a_batch_of_tiles_that_does_not_fit_is_halved(simulated, places, caplog):
    place, image = places("plain"), image_of((30, 40, 40))
    expected = labels_of(place, "cpu", image, tta=False)
    with simulated(total_bytes=12 * 2**20) as device:
        labels = labels_of(place, "cuda", image, tta=False)
        assert "going on with" in caplog.text
        require_alike(labels, expected, device)
        device.total_bytes = 2**40


def test_sums_may_lie_on_the_host(gpu, places, monkeypatch):
    monkeypatch.setattr("segpipe.inference.stage.choose_sums", lambda *_, **__: Sums("cpu", torch.float32, 0))
    place, image = places("plain"), image_of((24, 30, 30), (0.8, 1.0, 1.0))
    require_alike(*(labels_of(place, device, image, tta=False) for device in ("cuda", "cpu")), gpu)


def test_nothing_of_a_case_stays_on_the_device(simulated, places):
    with simulated() as device:
        predictor = predictor_of(places("plain"), "cuda")
        before = device.allocated
        predictor.segment(image_of((30, 40, 40), (0.8, 1.0, 1.0)))
        assert device.allocated == before
        del predictor
        assert device.allocated == 0


@pytest.mark.parametrize("kind", ["plain", "regions"])
def test_more_mixed_voxels_than_are_interpolated_together(gpu, places, kind, monkeypatch):
    place, image = places(kind), image_of((20, 24, 24), (0.7, 1.1, 1.3))
    expected = labels_of(place, "cpu", image, tta=False)
    monkeypatch.setattr(restore, "_ROWS_AT_ONCE", 16)
    monkeypatch.setattr(restore, "_VOXELS_AT_ONCE", 1)
    waits, labels = waits_of(gpu, place, image, tta=False)
    require_alike(labels, expected, gpu)
    # Each plane is a part, and brings its labels home. Where more are mixed than in the parts before, two waits more: the number that is
    # taken without asking doubles then, up to all 576 of a plane.
    assert in_file(waits, "restore.py") <= labels.shape[0] + 2 * 6


def test_logits_that_are_not_finite_are_an_error_of_the_case(gpu, places):
    place = places("plain")
    model = model_of(place.plan)
    for weights in model.folds.values():
        for name in weights:
            if name.endswith("seg_layers.0.bias") or "seg_layers" in name:
                weights[name] = torch.full_like(weights[name], float("nan"))
    with pytest.raises(CaseError, match="not finite"):
        labels_of(place, "cuda", image_of((20, 24, 24)), model=model, tta=False)
