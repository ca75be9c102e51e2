import numpy as np
import pytest

from segpipe.dataset.fingerprint.measure import image_percentiles
from segpipe.dataset.fingerprint.schema import CaseFingerprint
from segpipe.planning.guard import IntensityGuard, doubts, make_guard

ONE_VOXEL = {"shape": (1, 1, 1), "spacing_mm": (1, 1, 1), "shape_after_crop": (1, 1, 1)}


def ct(rng):
    """Air, fat, soft tissue and bone in shares that vary."""
    shares = rng.dirichlet([30, 20, 40, 4])
    tissue = rng.choice([-1000, -100, 45, 600], size=(1, 20, 20, 20), p=shares)
    return tissue + rng.normal(0, 20, tissue.shape) + 0.5


def mr(rng, scale=None):
    """Three sequences with the contrast of each, at a scanner's own gain."""
    gain = rng.uniform(0.5, 2) if scale is None else scale
    tissue = rng.choice(3, size=(20, 20, 20), p=rng.dirichlet([30, 40, 20]))
    contrasts = np.array([[200, 500, 800], [900, 400, 150], [100, 120, 900]])
    return gain * (contrasts[:, tissue] + rng.normal(0, 20, (3, *tissue.shape)))


def guard_of(images):
    cases = tuple(
        CaseFingerprint(case=str(i), **ONE_VOXEL, percentiles=image_percentiles(image))
        for i, image in enumerate(images)
    )
    return make_guard(cases)


@pytest.fixture(scope="module")
def of_ct():
    return guard_of([ct(np.random.default_rng(i)) for i in range(12)])


@pytest.mark.parametrize("seed", range(20, 40))
def test_an_image_of_the_same_kind_raises_no_doubt(of_ct, seed):
    assert doubts(image_percentiles(ct(np.random.default_rng(seed))), of_ct, ("CT",)) == ()
    of_mr = guard_of([mr(np.random.default_rng(i)) for i in range(12)])
    assert doubts(image_percentiles(mr(np.random.default_rng(seed))), of_mr, ("T1", "T2", "FLAIR")) == ()


@pytest.mark.parametrize("seed", range(20, 30))
def test_what_cannot_be_of_the_same_kind_is_doubted(of_ct, seed):
    image = ct(np.random.default_rng(seed))
    (lost,) = doubts(image_percentiles(image + 1024), of_ct, ("CT",))
    assert "medians" in lost
    (eight_bit,) = doubts(image_percentiles(np.round((image + 1100) / 7).clip(1, 255)), of_ct, ("CT",))
    assert "CT: intensities run from" in eight_bit


def test_the_likely_reason_is_told(of_ct):
    typical = np.array(of_ct.channels[0].typical)
    (lost,) = doubts((tuple(typical + 1024),), of_ct, ("CT",))
    assert "shifted by about +1024, as a CT whose rescale intercept was lost" in lost
    (eight_bit,) = doubts((tuple(np.round((typical + 1100) / 7)),), of_ct, ("CT",))
    assert "as in an export of 8 bits" in eight_bit


def test_channels_in_another_order_are_told():
    of_mr = guard_of([mr(np.random.default_rng(i), scale=1.0) for i in range(8)])
    assert of_mr.tells_order
    names = ("T1", "T2", "FLAIR")
    images = [mr(np.random.default_rng(seed), scale=1.0) for seed in range(20, 30)]
    in_order = [doubts(image_percentiles(image), of_mr, names) for image in images]
    swapped = [doubts(image_percentiles(image[[1, 0, 2]]), of_mr, names) for image in images]
    told = "channels look like T2, T1, FLAIR, in this order; expected T1, T2, FLAIR"
    assert not any("channels look like" in d for found in in_order for d in found)
    assert sum(told in found for found in swapped) >= 8


def test_without_measurements_nothing_is_judged():
    assert doubts(((1.0,) * 7,), IntensityGuard(), ("CT",)) == ()
    assert make_guard(()) == IntensityGuard()


def test_percentiles_are_of_the_voxels_that_are_not_zero():
    image = np.zeros((2, 30, 30, 30), dtype=np.int16)
    image[0, 10:] = np.random.default_rng(0).integers(1, 101, (20, 30, 30))
    low, high = image_percentiles(image)
    np.testing.assert_allclose(low, [1, 5, 25, 50, 75, 95, 100], atol=1.5)
    assert high == (0,) * 7
