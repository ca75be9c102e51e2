"""What is stored of the training cases is measured as the image that is compared with it: the training images raise no doubts."""

import numpy as np
import pytest

from segpipe.core.labels import Labels
from segpipe.core.volume import Volume
from segpipe.dataset.fingerprint.measure import flat_axis, flat_cases, image_percentiles, measure_case, widened
from segpipe.planning.guard import doubts, make_guard
from segpipe.planning.usual import unusual_spacing, unusual_volumes, usual_cases
from tests.phantoms import axis_grid

LABELS = Labels.plain({"a": 1, "b": 2})
SHEARED = np.array([[0.3, 0.1, 1.0], [0.0, 1.5, 0.2], [2.0, 0.0, 0.0]])


def cases(flat, spacing=(1.0, 1.0, 1.0), n=5, padded=False):
    """Images, labels and grids; single slices along an axis, or volumes."""
    made = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        shape = [24, 28, 30]
        if flat is not None:
            shape[flat] = 1
        labels = np.zeros(shape, dtype=np.uint8)
        labels[tuple(slice(0, max(s // 2, 1)) for s in shape)] = 1
        labels[tuple(slice(0, max(s // 4, 1)) for s in shape)] = 2
        image = (100 * labels + rng.normal(50, 5, shape)).astype(np.float32)
        if padded:
            for axis in (a for a in range(3) if a != flat):
                image[(slice(None),) * axis + (slice(0, 3),)] = 0
            labels[image == 0] = 0
        made.append((image, labels, axis_grid(tuple(shape), tuple(s * (1 + 0.01 * seed) for s in spacing))))
    return made


def stored(made):
    """Fingerprints as the dataset stage makes them: of the box of the non-zero voxels."""
    found = []
    for number, (image, labels, grid) in enumerate(made):
        volume = Volume(image[None], grid)
        inside = np.argwhere(image != 0)
        low, high = inside.min(0), inside.max(0) + 1
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        found.append(measure_case(str(number), volume.cropped(box), labels[box], grid.shape).fingerprint)
    return tuple(flat_cases(found))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.25, 0.5), (3.0, 0.1, 0.1)])
@pytest.mark.parametrize("flat", [0, 1, 2, None])
def test_training_images_raise_no_doubts(flat, spacing, padded):
    made = cases(flat, spacing, padded=padded)
    known = stored(made)
    usual, guard = usual_cases(known, LABELS), make_guard(known)
    for image, labels, grid in made:
        voxels = {"a": int((labels == 1).sum()), "b": int((labels == 2).sum())}
        assert unusual_spacing(grid.spacing_mm, usual) == {}
        assert unusual_volumes(voxels, grid.shape, grid.spacing_mm, usual) == {}
        assert doubts(image_percentiles(image[None]), guard, ("MR",)) == ()


def test_percentiles_of_an_image_are_those_of_its_box():
    """A lattice over the padding would begin elsewhere, and give other percentiles."""
    rng = np.random.default_rng(0)
    image = np.zeros((1, 150, 150, 150), dtype=np.float32)
    image[0, 20:81, 10:93, 5:100] = rng.normal(100, 30, (61, 83, 95))
    assert image_percentiles(image) == image_percentiles(image[:, 20:81, 10:93, 5:100])


def test_a_slice_with_other_pixels_or_another_area_is_still_doubted():
    usual = usual_cases(stored(cases(0)), LABELS)
    assert usual.spacing_mm[0][0] == pytest.approx(999)
    assert list(unusual_spacing((1.0, 2.0, 1.0), usual)) == ["y"]
    (words,) = unusual_volumes({"a": 10, "b": 50}, (1, 28, 30), (1.0, 1.0, 1.0), usual).values()
    assert words.startswith("a covers 10 mm2, in training 1")


def test_several_slices_have_no_counterpart_in_single_ones():
    usual = usual_cases(stored(cases(0)), LABELS)
    assert unusual_volumes({"a": 10, "b": 5000}, (7, 28, 30), (5.0, 1.0, 1.0), usual) == {}
    assert unusual_spacing((5.0, 1.0, 1.0), usual) == {}


def test_volumes_of_a_sheared_image_are_measured_as_in_training():
    from segpipe.core.geometry import Grid

    affine = np.eye(4)
    affine[:3, :3] = SHEARED
    grid = Grid.from_affine((24, 28, 30), affine)
    made = [(image, labels, grid) for image, labels, _ in cases(None)]
    usual = usual_cases(stored(made), LABELS)
    labels = made[0][1]
    voxels = {"a": int((labels == 1).sum()), "b": int((labels == 2).sum())}
    assert unusual_volumes(voxels, grid.shape, grid.spacing_mm, usual) == {}


def test_the_flat_axis_is_known_from_the_ranges():
    assert widened((1.0, 0.5, 0.25), 0) == (499.5, 0.5, 0.25)
    assert flat_axis([(999, 1500), (1.0, 1.5), (1.0, 1.5)]) == 0
    assert flat_axis([(1.0, 1.0), (1.0, 1.0), (999.0, 999.0)]) == 2
    assert flat_axis([(10.0, 12.0), (0.5, 0.5), (0.5, 0.5)]) is None
    assert flat_axis([]) is None
