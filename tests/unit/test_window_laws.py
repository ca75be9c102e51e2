from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.core.windows import axis_starts, gaussian_weights, padding_to
from segpipe.errors import CaseError
from segpipe.execution.memory import PeakMemory
from segpipe.inference.sliding import (
    Agreement,
    Ensemble,
    _require_finite,
    logit_planes,
    mirror_combinations,
    windows_of,
)
from tests.engines import FunctionEngine, stitched

sizes = st.tuples(*[st.integers(1, 14)] * 3)


def pointwise(x):
    return torch.cat((x[:, :1] * 2, 1 - x[:, :1] ** 2), dim=1)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 6)] * 3), sizes, st.floats(0.3, 1.0), st.integers(0, 9), st.integers(1, 5))
def test_stitching_a_pointwise_network_is_that_network(patch, shape, step, seed, batch):
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32))
    found = stitched(pointwise, image, patch, step, batch=batch)
    torch.testing.assert_close(found, pointwise(image[None])[0], atol=1e-4, rtol=1e-4)
    halved = stitched(pointwise, image, patch, step, batch=batch, dtype=torch.float16)
    torch.testing.assert_close(halved, pointwise(image[None])[0], atol=2e-2, rtol=1e-2)


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.integers(1, 6)] * 2), sizes, st.floats(0.3, 1.0), st.integers(1, 30))
def test_a_flat_patch_slides_over_every_slice(patch, shape, step, batch):
    image = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape) / 100
    found = stitched(pointwise, image, patch, step, batch=batch)
    torch.testing.assert_close(found, pointwise(image[None])[0], atol=1e-3, rtol=1e-4)


def whole_sums(ramp, image, patch, step):
    """What sliding is by definition: the sums over the whole image, held at once."""
    weights = torch.from_numpy(gaussian_weights(patch))
    windows = windows_of(tuple(image.shape[1:]), patch, step)
    total, seen = torch.zeros(image.shape), torch.zeros(image.shape[1:])
    for start in product(*windows.starts):
        box = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        total[(slice(None), *box)] += ramp(image[(slice(None), *box)][None])[0] * weights
        seen[box] += weights
    return total / seen


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(2, 6)] * 3), st.floats(0.3, 1.0), st.integers(0, 99))
def test_planes_that_are_handed_on_equal_the_sums_over_the_whole_image(patch, step, seed):
    """With a network whose answer depends on where in the window a voxel lies."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(1, *(p + rng.integers(0, 12) for p in patch))).astype(np.float32))
    ramp = torch.from_numpy(rng.normal(size=patch).astype(np.float32))
    found = stitched(lambda x: x * ramp, image, patch, step, n_outputs=1)
    torch.testing.assert_close(found, whole_sums(lambda x: x * ramp, image, patch, step), atol=1e-4, rtol=1e-3)


def test_sums_are_as_high_as_a_patch_and_not_as_the_image():
    shapes = []

    def allocate(shape):
        shapes.append(shape)
        return torch.zeros(shape)

    windows = windows_of((50, 8, 8), (6, 8, 8), 0.5)
    ensemble = Ensemble((FunctionEngine(pointwise),), ())
    n = sum(
        p.shape[1] for p in logit_planes(ensemble, torch.randn(1, 50, 8, 8), windows, allocate=allocate, n_outputs=2)
    )
    assert (n, shapes) == (50, [(2, 6, 8, 8)])


def test_windows_of_nothing_but_air_are_not_computed_and_are_background():
    image = torch.full((1, 12, 12, 12), -3.0)
    image[0, :3, :3, :3] = 1
    computed = []
    found = stitched(
        lambda x: torch.cat((-x, x), 1), image, (4, 4, 4), outside=torch.tensor([-3.0]), on_tile=computed.append
    )
    assert sum(computed) == 8
    assert torch.equal(found.argmax(0).bool(), image[0] > 0)
    everything = stitched(lambda x: torch.cat((-x, x), 1), image, (4, 4, 4))
    assert torch.equal(everything.argmax(0), found.argmax(0))


def test_windows_that_are_passed_over_belong_to_no_region():
    image = torch.full((1, 12, 12, 12), -3.0)
    image[0, :3, :3, :3] = 1
    found = stitched(lambda x: torch.cat((x, x), 1), image, (4, 4, 4), outside=torch.tensor([-3.0]), regions=True)
    assert torch.equal(found[0] > 0, image[0] > 0)


def test_passes_fill_a_batch():
    """Tiles, and their mirror images, are computed as many at once as the engine asks for."""
    engine = FunctionEngine(pointwise, batch=6)
    ensemble = Ensemble((engine,), (0, 1, 2))
    ensemble(torch.randn(1, 1, 4, 4, 4))
    ensemble(torch.randn(3, 1, 4, 4, 4))
    assert engine.sizes == [6, 2, 6, 6, 6, 6]


def test_disagreement_is_the_share_of_the_foreground_that_passes_label_in_another_way():
    def half(value):
        def forward(x):
            return torch.stack((torch.zeros_like(x[:, 0]), torch.full_like(x[:, 0], value)), 1)

        return FunctionEngine(forward)

    agreement = Agreement()
    # Two folds call everything foreground, one nothing; the mean calls it foreground.
    Ensemble((half(2.0), half(2.0), half(-1.0)), ())(torch.zeros(1, 1, 4, 4, 4), agreement)
    assert agreement.foreground.value == 64
    assert agreement.disagreement == pytest.approx(1 / 3)

    def all_below(x):
        return torch.stack((x[:, 0] - 2, x[:, 0] - 1), 1)

    regions = Agreement(regions=True)
    Ensemble((FunctionEngine(all_below), FunctionEngine(lambda x: all_below(x).flip(1))), ())(
        torch.zeros(1, 1, 4, 4, 4), regions
    )
    assert regions.foreground.value == 0
    assert regions.disagreement is None


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
    assert windows_of((1, 5, 4), (5, 4), 0.5).starts == ((0,), (0,), (0,))


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
    torch.testing.assert_close(Ensemble((FunctionEngine(ramp),), axes)(x), expected)


def test_the_check_for_finite_sums_takes_no_memory_that_counts():
    """Sums in half precision are held where memory is short: a copy of them in single precision would not fit."""
    sums = torch.ones((4, 16, 512, 512), dtype=torch.float16)
    with PeakMemory() as idle:
        pass
    with PeakMemory() as busy:
        _require_finite(sums)
    assert busy.gb - idle.gb < 0.5 * sums.nbytes / 1e9
    sums[2, 7, 100, 100] = float("inf")
    with pytest.raises(CaseError, match="not finite"):
        _require_finite(sums)
    # Finite, though their sum is not.
    _require_finite(torch.full((2, 2, 4, 4), 3e38))
