import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.metrics.overlap import dice
from segpipe.metrics.surface import surface_distances

masks = arrays(bool, (6, 7, 8))
filled = masks.filter(lambda m: m.any())


@given(masks, masks)
def test_dice_is_symmetric_and_between_0_and_1(a, b):
    score = dice(a, b)
    if not a.any() and not b.any():
        assert np.isnan(score)
    else:
        assert score == dice(b, a)
        assert 0 <= score <= 1


@given(filled)
def test_a_mask_agrees_with_itself(mask):
    distances = surface_distances(mask, mask, (1.0, 2.0, 3.0))
    assert dice(mask, mask) == 1
    assert distances.normalised_surface_dice(0) == 1
    assert distances.hausdorff_mm() == 0


@settings(max_examples=50)
@given(filled, filled, st.floats(0.1, 10))
def test_distances_scale_with_spacing(a, b, scale):
    once, scaled = surface_distances(a, b, (1.0, 1.5, 2.0)), surface_distances(a, b, (scale, 1.5 * scale, 2 * scale))
    assert scaled.hausdorff_mm() == pytest.approx(once.hausdorff_mm() * scale)
    back = surface_distances(b, a, (1.0, 1.5, 2.0))
    assert back.hausdorff_mm() == once.hausdorff_mm()


def test_two_planes_three_slices_apart():
    a, b = np.zeros((9, 10, 10), dtype=bool), np.zeros((9, 10, 10), dtype=bool)
    a[2], b[5] = True, True
    distances = surface_distances(a, b, (2.5, 1.0, 1.0))
    assert distances.hausdorff_mm() == pytest.approx(7.5)
    assert distances.normalised_surface_dice(7.4) == 0
    assert distances.normalised_surface_dice(7.5) == 1


def test_half_a_surface_within_tolerance():
    a, b = np.zeros((1, 4, 10), dtype=bool), np.zeros((1, 4, 10), dtype=bool)
    a[0, 1, :], b[0, 1, :5], b[0, 3, 5:] = True, True, True
    # a: 5 voxels lie on b and the sixth a voxel beside it; b: 5 lie on a, the others two voxels away.
    assert surface_distances(a, b, (1.0, 1.0, 1.0)).normalised_surface_dice(1.0) == pytest.approx((6 + 5) / 20)


@settings(max_examples=20, deadline=None)
@given(filled, filled)
def test_hausdorff_equals_monai(a, b):
    from monai.metrics import compute_hausdorff_distance

    tensors = [torch.from_numpy(m)[None, None].float() for m in (a, b)]
    theirs = compute_hausdorff_distance(*tensors, include_background=True, percentile=None, spacing=[1.0, 2.0, 0.5])
    assert surface_distances(a, b, (1.0, 2.0, 0.5)).hausdorff_mm(100) == pytest.approx(float(theirs), rel=1e-5)


def test_an_empty_mask_has_no_surface():
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(ValueError, match="empty"):
        surface_distances(empty, full, (1.0, 1.0, 1.0))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(3, 3, 3\)"):
        dice(np.ones((2, 2, 2), dtype=bool), np.ones((3, 3, 3), dtype=bool))
