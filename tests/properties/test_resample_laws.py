import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from segpipe.inference.restore import largest_at, resample_linear, uncrop
from segpipe.preprocessing.prepare import Placement
from segpipe.preprocessing.resample import nearest_indices, resample_image, resample_labels, separate_axis

sizes = st.tuples(*[st.integers(1, 17)] * 3)
seeds = st.integers(0, 99)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, seeds)
def test_cubic_equals_scikit_image(old, new, seed):
    image = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    ours = resample_image(image[None], new, apart=None)[0]
    theirs = image if old == new else resize(image.astype(np.float64), new, order=3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(np.ptp(image), 1e-6))


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, seeds, st.integers(0, 2))
def test_an_axis_apart_is_resampled_slice_by_slice(old, new, seed, apart):
    image = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    ours = resample_image(image[None], new, apart=apart)[0]
    plane = tuple(n for a, n in enumerate(new) if a != apart)
    slices = [
        resize(s.astype(np.float64), plane, order=3, mode="edge", anti_aliasing=False)
        for s in np.moveaxis(image, apart, 0)
    ]
    expected = np.moveaxis(np.stack(slices)[nearest_indices(old[apart], new[apart])], 0, apart)
    if old != new:
        np.testing.assert_allclose(ours, expected, atol=1e-4 * max(np.ptp(image), 1e-6))


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


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, seeds, st.sampled_from([None, 0, 1, 2]))
def test_class_by_class_equals_all_largest_at_once(old, new, seed, apart):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, *old)).astype(np.float32))
    whole = logits if old == new else torch.stack([resample_linear(k, new, apart) for k in logits])
    np.testing.assert_array_equal(largest_at(logits, new, apart), whole.argmax(0).numpy())
    if apart is None and old != new:
        theirs = np.stack([resize(k.numpy(), new, order=1, mode="edge", anti_aliasing=False) for k in logits])
        np.testing.assert_allclose(whole.numpy(), theirs, atol=1e-4)


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


def test_uncrop_puts_the_box_back():
    placement = Placement((4, 5, 6), (1, 2, 3), (2, 2, 2), (1.0, 1.0, 1.0), None)
    whole = uncrop(np.ones((2, 2, 2), dtype=np.int16), placement)
    assert whole.shape == (4, 5, 6)
    assert whole.sum() == 8
    assert whole[1:3, 2:4, 3:5].all()
