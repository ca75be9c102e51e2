import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.augment import apply as augment
from segpipe.augment.draw import Draw, draw, source_patch_size
from segpipe.augment.spec import default_spec
from segpipe.core import seeds

PATCHES = [(8, 12, 10), (4, 20, 18), (16, 14)]


def neutral(n, c, dims) -> Draw:
    return Draw(
        matrices=np.stack([np.eye(dims)] * n), noise_std=np.zeros(n), noise_seed=np.zeros(n, dtype=np.int64),
        elastic=np.zeros((n, dims) + (4,) * dims), blur_sigma=np.zeros((n, c, dims)),
        brightness=np.ones((n, c)), contrast=np.ones((n, c)), zoom=np.ones((n, c)), gamma_inverted=np.ones((n, c)), gamma=np.ones((n, c)),
        flips=np.zeros((n, dims), dtype=bool), artefacts=((),) * n,
    )  # fmt: skip


def batch(shape, n=3, c=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, c, *shape), generator=generator), torch.randint(-1, 3, (n, 1, *shape), generator=generator)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("seed", range(5))
def test_one_seed_gives_one_batch(patch, seed):
    spec = default_spec(patch)
    results = []
    for _ in range(2):
        drawn = draw(spec, 3, 2, seeds.stream(seed, "augment"))
        images, labels = batch(source_patch_size(spec, drawn))
        results.append(augment.apply(images, labels, spec, drawn))
    (image, label), (again, label_again) = results
    assert image.shape == (3, 2, *patch)
    assert label.shape == (3, 1, *patch)
    assert torch.equal(image, again)
    assert torch.equal(label, label_again)
    assert label.min() >= 0
    assert torch.isfinite(image).all()


@pytest.mark.parametrize("patch", PATCHES)
def test_a_neutral_draw_changes_nothing(patch):
    spec = default_spec(patch)
    images, labels = batch(patch)
    image, label = augment.apply(images.clone(), labels.clone(), spec, neutral(3, 2, len(patch)))
    assert torch.equal(image, images)
    assert torch.equal(label, labels.clamp_min(0))


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_flip_twice_is_the_identity(axes):
    images, labels = batch((4, 5, 6))
    flips = np.array([axes] * 3)
    once = augment.flip(images.clone(), flips), augment.flip(labels.clone(), flips)
    assert torch.equal(augment.flip(once[0].clone(), flips), images)
    assert torch.equal(augment.flip(once[1].clone(), flips), labels)
    expected = images.flip([2 + a for a, chosen in enumerate(axes) if chosen]) if any(axes) else images
    assert torch.equal(once[0], expected)


def test_a_quarter_turn_moves_voxels_where_it_should():
    """Rotation by 90 degrees about z equals torch's own rot90, for images and labels alike."""
    spec = default_spec((5, 9, 9), mirror_axes=())
    images, labels = batch((5, 9, 9), n=1, c=1)
    labels = labels.clamp_min(0)
    turn = np.eye(3)
    turn[1:, 1:] = [[0, -1], [1, 0]]
    drawn = neutral(1, 1, 3)
    drawn = Draw(**{**drawn.__dict__, "matrices": turn[None]})
    image, label = augment.move(images, labels, spec, drawn)
    expected = torch.rot90(images, 1, (3, 4))
    other = torch.rot90(images, -1, (3, 4))
    assert torch.allclose(image, expected, atol=1e-4) or torch.allclose(image, other, atol=1e-4)
    matching = torch.rot90(labels, 1 if torch.allclose(image, expected, atol=1e-4) else -1, (3, 4))
    assert torch.equal(label, matching)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 500), st.sampled_from(PATCHES))
def test_the_source_patch_holds_every_voxel_that_is_read(seed, patch):
    """Inside the image nothing is padded: a constant image stays constant however it is turned."""
    spec = default_spec(patch)
    drawn = draw(spec, 4, 1, seeds.stream(seed, "x"))
    size = source_patch_size(spec, drawn)
    assert all(s >= p and (s - p) % 2 == 0 for s, p in zip(size, patch, strict=True))
    image, label = augment.move(torch.ones((4, 1, *size)), torch.ones((4, 1, *size), dtype=torch.long), spec, drawn)
    assert image.min() > 0.999
    assert label.min() == 1


def test_probabilities_are_those_of_the_table():
    spec = default_spec((32, 32, 32))
    rng = seeds.stream(0, "many")
    draws = [draw(spec, 1, 2, rng) for _ in range(4000)]

    def share(of):
        return np.mean([bool(of(d)) for d in draws])

    expected = {
        "moved": (lambda d: len(d.moved), 1 - 0.8 * 0.8), "noise": (lambda d: d.noise_std[0] > 0, 0.1),
        "blur": (lambda d: d.blur_sigma.any(), 0.2 * 0.75), "brightness": (lambda d: (d.brightness != 1).any(), 0.15),
        "contrast": (lambda d: (d.contrast != 1).any(), 0.15), "low resolution": (lambda d: (d.zoom != 1).any(), 0.25 * 0.75),
        "gamma inverted": (lambda d: (d.gamma_inverted != 1).any(), 0.1), "gamma": (lambda d: (d.gamma != 1).any(), 0.3),
        "mirror": (lambda d: d.flips[0, 0], 0.5),
    }  # fmt: skip
    for name, (of, probability) in expected.items():
        assert share(of) == pytest.approx(probability, abs=0.03), name
    brightness = np.array([d.brightness for d in draws])
    changed = brightness[brightness != 1]
    assert changed.min() >= 0.75
    assert changed.max() <= 1.25
    assert np.mean(changed < 1) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("patch", "in_plane", "degrees"),
    [
        ((32, 32, 32), False, 30),
        ((8, 64, 64), True, 180),
        ((64, 64), False, 180),
        ((40, 64), False, 15),
        ((48, 64), False, 180),
    ],
)
def test_angles_follow_the_patch(patch, in_plane, degrees):
    spec = default_spec(patch)
    assert spec.in_plane is in_plane
    assert np.rad2deg(spec.rotation_rad[1]) == pytest.approx(degrees)


def test_in_plane_never_mixes_slices():
    spec = default_spec((4, 20, 20), mirror_axes=())
    for seed in range(30):
        drawn = draw(spec, 2, 1, seeds.stream(seed, "x"))
        assert (drawn.matrices[:, 0] == [1, 0, 0]).all()
        assert source_patch_size(spec, drawn)[0] == 4


def test_gamma_and_contrast_keep_what_they_promise():
    images, _ = batch((6, 7, 8), n=1, c=1)
    for inverted in (False, True):
        bent = augment.apply_gamma(images.clone(), np.array([[0.7]]), inverted=inverted)
        assert bent.mean() == pytest.approx(float(images.mean()), abs=1e-4)
        assert bent.std() == pytest.approx(float(images.std()), abs=1e-4)
        assert not torch.allclose(bent, images, atol=1e-2)
    stretched = augment.scale_contrast(images.clone(), np.array([[1.25]]))
    assert stretched.min() >= images.min()
    assert stretched.max() <= images.max()


def test_blur_is_scipys():
    from scipy.ndimage import gaussian_filter

    image = torch.randn((1, 1, 9, 10, 11), generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(image[0, 0].numpy(), (0.6, 0.9, 1.0), mode="mirror", truncate=3.0)
    np.testing.assert_allclose(
        augment.blur(image.clone(), np.array([[[0.6, 0.9, 1.0]]]))[0, 0].numpy(), expected, atol=2e-3
    )


def test_outside_the_non_zero_region_masked_channels_stay_zero():
    spec = default_spec((8, 12, 10), masked_channels=(1,))
    images, labels = batch((8, 12, 10))
    outside = labels[:, 0] < 0
    drawn = Draw(**{**neutral(3, 2, 3).__dict__, "noise_std": np.full(3, 0.1)})
    image, _ = augment.apply(images.clone(), labels.clone(), spec, drawn)
    assert not image[:, 1][outside].any()
    assert image[:, 1][~outside].all()
    assert image[:, 0][outside].all()
