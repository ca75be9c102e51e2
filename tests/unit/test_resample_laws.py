import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import downscale_local_mean, resize

from segpipe.inference.restore import labels_of, restored_labels, restored_probabilities, uncrop
from segpipe.preprocessing.prepare import Placement
from segpipe.preprocessing.resample import interpolate, nearest_indices, resample_image, resample_labels, separate_axis

sizes = st.tuples(*[st.integers(1, 17)] * 3)
# Longer than a block of rows along one axis, so that blocks and their windows meet.
long_axis = st.tuples(
    st.integers(0, 2), st.integers(30, 150), st.integers(30, 150), st.integers(2, 9), st.integers(2, 9)
)
seeds = st.integers(0, 99)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, seeds)
def test_cubic_equals_scikit_image(old, new, seed):
    image = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    ours = resample_image(image[None], new, apart=None)[0]
    theirs = image if old == new else resize(image.astype(np.float64), new, order=3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(np.ptp(image), 1e-6))


def beside(axis, length, other):
    """A shape of one long axis and two short ones."""
    return tuple(length if a == axis else other + a for a in range(3))


def by_scikit_image(array, new, apart, order):
    """What nnU-Net does: the whole volume at once, or the slices of an axis apart, then the nearest of them."""
    if apart is None:
        return resize(array.astype(np.float64), new, order=order, mode="edge", anti_aliasing=False)
    plane = tuple(n for a, n in enumerate(new) if a != apart)
    slices = [by_scikit_image(s, plane, None, order) for s in np.moveaxis(array, apart, 0)]
    return np.moveaxis(np.stack(slices)[nearest_indices(array.shape[apart], new[apart])], 0, apart)


@settings(deadline=None, max_examples=40)
@given(long_axis, seeds, st.sampled_from([None, 0, 1, 2]))
def test_blocks_of_a_long_axis_join(shape, seed, apart):
    axis, n, m, few, more = shape
    old, new = beside(axis, n, few), beside(axis, m, more)
    rng = np.random.default_rng(seed)
    image = rng.normal(size=old).astype(np.float32)
    ours = resample_image(image[None], new, apart=apart)[0]
    if old != new:
        np.testing.assert_allclose(ours, by_scikit_image(image, new, apart, 3), atol=1e-4 * np.ptp(image))
    labels = (rng.random(old).cumsum(axis=axis) // 7 % 4).astype(np.int16) * 40 - 1
    mapped = resample_labels(labels, new, apart=apart)
    shares = [by_scikit_image((labels == v).astype(float), new, apart, 1) for v in (-1, 39, 79, 119)]
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    np.testing.assert_array_equal(mapped[clear], (np.argmax(shares, axis=0) * 40 - 1)[clear])


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float64])
def test_any_number_type_is_resampled_as_its_values(kind):
    image = np.random.default_rng(0).integers(0, 200, (2, 9, 40, 11)).astype(kind)
    new = (12, 33, 20)
    np.testing.assert_array_equal(
        resample_image(image, new, apart=None), resample_image(image.astype(np.float32), new, apart=None)
    )


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.tuples(*[st.integers(1, 12)] * 3), seeds)
def test_area_is_the_mean_of_what_a_voxel_covers(factors, small, seed):
    image = (
        np.random.default_rng(seed)
        .normal(size=tuple(f * n for f, n in zip(factors, small, strict=True)))
        .astype(np.float32)
    )
    ours = interpolate(image, small, ("area", "area", "area"))
    np.testing.assert_allclose(ours, downscale_local_mean(image, factors), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, seeds)
def test_area_keeps_the_mean(old, new, seed):
    image = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    assert interpolate(image, new, ("area", "area", "area")).mean() == pytest.approx(image.mean(), abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, seeds, st.integers(0, 2))
def test_an_axis_apart_is_resampled_slice_by_slice(old, new, seed, apart):
    image = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    ours = resample_image(image[None], new, apart=apart)[0]
    if old != new:
        np.testing.assert_allclose(ours, by_scikit_image(image, new, apart, 3), atol=1e-4 * max(np.ptp(image), 1e-6))


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, seeds)
def test_labels_follow_their_indicators(old, new, seed):
    labels = np.random.default_rng(seed).integers(-1, 3, old).astype(np.int16)
    ours = resample_labels(labels, new, apart=None)
    if old == new:
        np.testing.assert_array_equal(ours, labels)
        return
    shares = np.stack(
        [resize((labels == v).astype(float), new, order=1, mode="edge", anti_aliasing=False) for v in range(-1, 3)]
    )
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    np.testing.assert_array_equal(ours[clear], (shares.argmax(0) - 1)[clear])
    assert set(np.unique(ours)) <= set(np.unique(labels))


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_there_and_back_keeps_a_mask_within_a_voxel(seed):
    rng = np.random.default_rng(seed)
    start, end = rng.integers(2, 6, 3), rng.integers(10, 16, 3)
    labels = np.zeros((20, 20, 20), dtype=np.int16)
    labels[tuple(slice(s, e) for s, e in zip(start, end, strict=True))] = 1
    there = resample_labels(labels, (27, 13, 31), apart=None)
    back = resample_labels(there, labels.shape, apart=None)
    assert back.shape == labels.shape
    inner = tuple(slice(s + 1, e - 1) for s, e in zip(start, end, strict=True))
    outside = np.ones(labels.shape, dtype=bool)
    outside[tuple(slice(s - 1, e + 1) for s, e in zip(start, end, strict=True))] = False
    assert back[inner].all()
    assert not back[outside].any()


def by_definition(logits, new, apart):
    """All logits on the native grid at once: one axis by nearest neighbour where it is interpolated apart."""
    if apart is None:
        return np.stack([resize(k, new, order=1, mode="edge", anti_aliasing=False) for k in logits])
    chosen = logits.take(nearest_indices(logits.shape[1 + apart], new[apart]), axis=1 + apart)
    in_plane = tuple(n for axis, n in enumerate(new) if axis != apart)
    slices = [
        [resize(s, in_plane, order=1, mode="edge", anti_aliasing=False) for s in np.moveaxis(k, apart, 0)]
        for k in chosen
    ]
    return np.moveaxis(np.array(slices), 1, 1 + apart)


def in_parts(logits, seed):
    """The planes of logits, a few at a time."""
    cuts = np.random.default_rng(seed).integers(1, 4, logits.shape[1]).cumsum()
    return iter(torch.tensor_split(torch.from_numpy(logits), cuts[cuts < logits.shape[1]].tolist(), dim=1))


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, seeds, st.sampled_from([None, 0, 1, 2]), st.booleans(), st.booleans())
def test_labels_of_planes_in_parts_equal_all_logits_interpolated_at_once(old, new, seed, apart, regions, smooth):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, *old)).astype(np.float32)
    if smooth:
        # Large areas of one label: voxels that need no interpolation.
        logits[rng.integers(4)] += 3
    whole = by_definition(logits, new, apart) if old != new else logits
    expected = whole.argmax(0)
    if regions:
        expected = np.zeros(new, dtype=int)
        for number, region in enumerate(whole, start=1):
            expected[region > 0] = number
    # A set of regions that no painting in order gives: written by itself.
    sets = ((0, 2),) if regions else ()
    if regions:
        expected[((whole > 0) == np.array([True, False, True, False])[:, None, None, None]).all(0)] = 5
    found = restored_labels(in_parts(logits, seed), old, new, apart, regions=regions, sets=sets)
    ordered = np.sort(whole, axis=0)
    clear = (np.abs(whole) > 1e-4).all(0) if regions else ordered[-1] - ordered[-2] > 1e-4
    np.testing.assert_array_equal(found[clear], expected[clear])
    planes = restored_probabilities(in_parts(logits, seed), old, new, apart, regions=regions)
    probabilities = torch.stack(list(planes), dim=1)
    painted = labels_of(iter(probabilities.unbind(1)), new, regions=regions, sets=sets)
    np.testing.assert_array_equal(painted[clear], expected[clear])
    expected_p = torch.from_numpy(whole)
    expected_p = expected_p.sigmoid() if regions else expected_p.softmax(0)
    torch.testing.assert_close(probabilities, expected_p.float(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((1, 1, 1), (2, 2, 2), None),
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 4), (1, 1, 1), 2),
        ((2, 1, 1), (7, 1, 1), 0),
        ((4, 4, 1), (1, 1, 1), None),
        ((3, 1, 1), (3, 1, 1), None),
    ],
)
def test_the_axis_that_is_interpolated_apart(old, new, axis):
    assert separate_axis(old, new) == axis


def test_regions_are_painted_over_each_other_in_order():
    logits = torch.full((3, 2, 3, 4), -1.0)
    logits[0, :, :2] = 1
    logits[1, :, 1:] = 1
    logits[2, 1] = 0.5
    painted = restored_labels(iter([logits]), (2, 3, 4), (2, 3, 4), None, regions=True)
    assert painted[0, :, 0].tolist() == [1, 2, 2]
    assert (painted[1] == 3).all()
    larger = restored_labels(iter([logits]), (2, 3, 4), (4, 6, 8), None, regions=True)
    assert larger[0, :, 0].tolist() == [1, 1, 2, 2, 2, 2]


def test_uncrop_puts_the_box_back():
    placement = Placement((4, 5, 6), (1, 2, 3), (2, 2, 2), (1.0, 1.0, 1.0), None)
    whole = uncrop(np.ones((2, 2, 2), dtype=np.int16), placement)
    assert whole.shape == (4, 5, 6)
    assert whole.sum() == 8
    assert whole[1:3, 2:4, 3:5].all()
