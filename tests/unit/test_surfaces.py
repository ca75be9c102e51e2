"""Surfaces of two-dimensional masks, and surfaces counted by area."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.core.geometry import Grid
from segpipe.core.labels import Labels
from segpipe.evaluation.score import score_case
from segpipe.metrics.surface import surface_distances
from segpipe.metrics.surface_area import element_codes, element_sizes

flat = arrays(bool, (7, 9)).filter(lambda m: m.any())
solid = arrays(bool, (4, 5, 6)).filter(lambda m: m.any())
TOLERANCES = (0.0, 1.0, 1.5, 3.0)


def disc(centre_x, radius=30):
    y, x = np.mgrid[:80, :100]
    return (y - 40) ** 2 + (x - centre_x) ** 2 <= radius**2


def contour_points(mask, spacing):
    """Positions (mm) of pixels that have a neighbour at a side outside the mask, one by one."""
    padded = np.pad(mask, 1)
    inside = [
        (y, x)
        for y, x in zip(*np.nonzero(padded), strict=True)
        if not (padded[y - 1, x] and padded[y + 1, x] and padded[y, x - 1] and padded[y, x + 1])
    ]
    return np.array(inside, dtype=float) * spacing


def by_pairs(prediction, reference, spacing):
    """Distances of each contour's points to the other's nearest one, all pairs written out."""
    ours, theirs = (contour_points(mask, spacing) for mask in (prediction, reference))
    apart = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    return apart.min(1), apart.min(0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_discs_4_pixels_apart(axis):
    """As a single slice along any axis, of any thickness."""
    prediction, reference = (np.expand_dims(disc(x), axis) for x in (48, 52))
    spacing = tuple(np.insert([1.0, 1.0], axis, 999.0))
    found = surface_distances(prediction, reference, spacing)
    assert found.normalised_surface_dice(1.0) == pytest.approx(0.25, abs=0.005)
    assert found.hausdorff_mm() == 4.0
    grid = Grid.of_spacing(prediction.shape, spacing)
    scores = score_case("a", prediction.astype(int), reference.astype(int), grid, Labels.plain({"x": 1}), 1.0)
    assert (scores.labels["x"].nsd, scores.labels["x"].hd95_mm) == (found.normalised_surface_dice(1.0), 4.0)


def test_a_miss_in_an_image_costs_the_diagonal_in_its_plane():
    empty, full = np.zeros((1, 30, 40), dtype=int), np.ones((1, 30, 40), dtype=int)
    grid = Grid.of_spacing((1, 30, 40), (999.0, 1.0, 1.0))
    assert score_case("a", empty, full, grid, Labels.plain({"x": 1}), 1.0).labels["x"].hd95_mm == 50
    # A stack of two slices has a thickness.
    thick = Grid.of_spacing((2, 3, 4), (6.0, 1.0, 1.0))
    assert thick.diagonal_mm == 13


@given(flat, flat, st.sampled_from([(1.0, 1.0), (2.5, 0.5)]))
def test_contours_equal_all_pairs_of_points(prediction, reference, spacing):
    found = surface_distances(prediction[None], reference[None], (5.0, *spacing))
    expected = by_pairs(prediction, reference, spacing)
    np.testing.assert_allclose(np.sort(found.from_prediction_mm), np.sort(expected[0]), atol=1e-9)
    np.testing.assert_allclose(np.sort(found.from_reference_mm), np.sort(expected[1]), atol=1e-9)
    within = sum((d <= 1.0).sum() for d in expected) / sum(len(d) for d in expected)
    assert found.normalised_surface_dice(1.0) == pytest.approx(within)


@settings(max_examples=10, deadline=None)
@given(flat, flat)
def test_contours_equal_monais(prediction, reference):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    ours = surface_distances(prediction[None], reference[None], (7.0, 2.0, 0.5))
    tensors = [torch.from_numpy(m)[None, None].float() for m in (prediction, reference)]
    how = {"include_background": True, "spacing": [2.0, 0.5]}
    theirs = compute_hausdorff_distance(*tensors, percentile=95, **how)
    assert ours.hausdorff_mm() == pytest.approx(float(theirs), rel=1e-5)
    dice = compute_surface_dice(*tensors, class_thresholds=[1.0], **how)
    assert ours.normalised_surface_dice(1.0) == pytest.approx(float(dice), rel=1e-5)


def test_a_line_and_a_voxel_have_surfaces():
    line = np.zeros((1, 1, 9), dtype=bool)
    line[..., 2:5] = True
    moved = np.roll(line, 2, axis=-1)
    assert surface_distances(line, moved, (3.0, 3.0, 0.5)).hausdorff_mm(100) == 1.0
    one = np.ones((1, 1, 1), dtype=bool)
    for unit in ("voxels", "area"):
        assert surface_distances(one, one, (1.0, 1.0, 1.0), unit).normalised_surface_dice(0) == 1


# By area


def area(mask, spacing):
    return element_sizes(spacing)[element_codes(np.pad(mask, 1))].sum()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_area_of_a_cube(n):
    """Six faces through the voxels' sides, shortened by the edges, which are cut at 45 degrees, and by the corners."""
    expected = 6 * (n - 1) ** 2 + 12 * (n - 1) * np.sqrt(0.5) + 8 * np.sqrt(3) / 8
    assert area(np.ones((n, n, n), dtype=bool), (1.0, 1.0, 1.0)) == pytest.approx(expected)


def test_the_area_of_a_slab_and_of_a_sphere():
    slab = np.zeros((6, 40, 50), dtype=bool)
    slab[2:4, :, :] = True
    inner = element_sizes((3.0, 1.0, 2.0))[element_codes(slab)]
    # Two planes over 39 x 49 cells of 1 x 2 mm.
    assert inner.sum() == pytest.approx(2 * 39 * 49 * 2)
    z, y, x = np.mgrid[-20:21, -20:21, -20:21]
    # Steps between voxels make a surface some percent larger than the sphere's, at every radius.
    assert area(z**2 + y**2 + x**2 <= 15.5**2, (1.0, 1.0, 1.0)) == pytest.approx(4 * np.pi * 15.5**2, rel=0.1)


def test_the_length_of_a_rectangle():
    mask = np.zeros((8, 9), dtype=bool)
    mask[2:5, 3:7] = True
    assert area(mask, (2.0, 1.0)) == pytest.approx(2 * (2 * 2.0) + 2 * (3 * 1.0) + 4 * np.hypot(1.0, 0.5))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5), (1.0, 1.0, 1.0), (3.0, 1.0, 2.0)])
def test_what_is_inside_and_what_is_outside_have_one_surface(spacing):
    """Where one of them is fewer corners; with as many of both the surface may run either way."""
    sizes, half = element_sizes(spacing), 2 ** len(spacing) // 2
    uneven = np.array([code.bit_count() != half for code in range(len(sizes))])
    np.testing.assert_array_equal(sizes[uneven], sizes[::-1][uneven])
    assert sizes[0] == 0
    assert (sizes[1:-1] > 0).all()


def test_area_counts_millimetres_where_voxels_count_alike():
    """A flat box, 5 slices of 4 mm: its sides lie within the tolerance, its 20 mm higher top does not."""
    reference, prediction = np.zeros((2, 14, 60, 60), dtype=bool)
    reference[2:7, 10:50, 10:50] = True
    prediction[2:12, 10:50, 10:50] = True
    found = {unit: surface_distances(prediction, reference, (4.0, 1.0, 1.0), unit) for unit in ("voxels", "area")}
    for unit, one in found.items():
        assert 0 < one.normalised_surface_dice(1.0) < 1, unit
    # By hand, of area: both have the bottom (39 x 39 mm), the edges around it (2 and 0.5 mm, cut off) and the sides of 4 steps; of
    # the reference's upper edges and the prediction's next step of its sides one end lies on the other.
    edges, step = 4 * 39 * np.hypot(2.0, 0.5), 4 * 39 * 4.0
    agree = 2 * (39 * 39 + edges + 4 * step) + edges + step
    whole = 4 * 39 * 39 + 4 * edges + (4 + 9) * step
    assert found["area"].normalised_surface_dice(1.0) == pytest.approx(agree / whole, abs=0.015)
    # Of voxels a side of 39 x 4 mm counts as much as one of 39 x 1 mm.
    assert found["voxels"].normalised_surface_dice(1.0) < found["area"].normalised_surface_dice(1.0) - 0.05


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("masks", "spacing"), [(solid, (3.0, 1.0, 2.0)), (flat, (2.0, 0.5))])
def test_surface_dice_equals_deepminds(masks, spacing):
    deepmind = pytest.importorskip("surface_distance", reason="pip install surface-distance")

    @settings(max_examples=30, deadline=None)
    @given(masks, masks)
    def compare(prediction, reference):
        theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
        ours = surface_distances(prediction, reference, spacing, "area")
        for tolerance in TOLERANCES:
            expected = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert ours.normalised_surface_dice(tolerance) == pytest.approx(expected, rel=1e-6)

    compare()


def test_hd95_is_that_of_voxels_whatever_nsd_counts():
    rng = np.random.default_rng(3)
    first, second = (np.zeros((6, 20, 20), dtype=np.uint8) for _ in range(2))
    first[1:5, 4:15, 4:15], second[2:6, 6:18, 3:12] = 1, 1
    first[rng.random(first.shape) < 0.01] = 1
    grid = Grid.of_spacing((6, 20, 20), (5.0, 0.7, 0.7))
    by = {
        unit: score_case("a", first, second, grid, Labels.plain({"x": 1}), 1.0, nsd_unit=unit).labels["x"]
        for unit in ("voxels", "area")
    }
    assert by["voxels"].hd95_mm == by["area"].hd95_mm
    assert by["voxels"].nsd != by["area"].nsd
