import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.inference.sliding import mirror_combinations, mirrored, sliding_logits
from segpipe.windows import axis_starts, gaussian_weights, padding_to, window_starts

CPU = torch.device("cpu")
sizes = st.tuples(*[st.integers(1, 14)] * 3)


def pointwise(x):
    return torch.cat((x[:, :1] * 2, 1 - x[:, :1] ** 2), dim=1)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 6)] * 3), sizes, st.floats(0.3, 1.0), st.integers(0, 9))
def test_stitching_a_pointwise_network_is_that_network(patch, shape, step, seed):
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32))
    stitched = sliding_logits(pointwise, image, patch, device=CPU, step=step)
    torch.testing.assert_close(stitched, pointwise(image[None])[0], atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.integers(1, 6)] * 2), sizes, st.floats(0.3, 1.0))
def test_a_flat_patch_slides_over_every_slice(patch, shape, step):
    image = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape) / 100
    stitched = sliding_logits(pointwise, image, patch, device=CPU, step=step)
    torch.testing.assert_close(stitched, pointwise(image[None])[0], atol=1e-3, rtol=1e-4)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 1.0))
def test_windows_cover_the_axis_with_steps_no_longer_than_asked(size, patch, step):
    size = max(size, patch)
    starts = axis_starts(size, patch, step)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    gaps = np.diff(starts)
    assert (gaps <= np.ceil(patch * step)).all()
    assert (gaps >= 0).all()


def test_starts_of_nnunet():
    # 100 voxels, patch 64, half steps: ceil(36 / 32) + 1 = 3 windows spread evenly.
    assert axis_starts(100, 64, 0.5) == [0, 18, 36]
    assert window_starts((1, 5), (1, 4), 0.5) == [(0, 0), (0, 1)]


def test_a_patch_longer_than_the_axis_is_refused():
    with pytest.raises(ValueError, match="patch 5 is longer than the axis 4"):
        axis_starts(4, 5, 0.5)


def test_the_odd_padding_voxel_goes_after():
    assert padding_to((3, 8), (6, 4)) == [(1, 2), (0, 0)]


def test_weights_peak_in_the_middle_and_are_never_zero():
    weights = gaussian_weights((8, 64, 9))
    assert weights.argmax() == np.ravel_multi_index((4, 32, 4), weights.shape)
    assert weights.max() == 10
    assert weights.min() > 0


@pytest.mark.parametrize("axes", [(), (0,), (0, 1), (0, 1, 2)])
def test_mirroring_averages_over_every_flip(axes):
    assert len(mirror_combinations(axes)) == 2 ** len(axes)
    x = torch.randn(1, 1, 4, 5, 6)

    def ramp(x):
        return x * torch.arange(6.0)

    expected = x * (torch.full((6,), 2.5) if 2 in axes else torch.arange(6.0))
    torch.testing.assert_close(mirrored(ramp, axes)(x), expected)
