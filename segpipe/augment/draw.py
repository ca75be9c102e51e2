"""Draw what happens to a batch: a random stream becomes plain numbers, which can be stored and replayed. No torch."""

from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.augment.mr_artefacts import Artefact, draw_artefacts
from segpipe.augment.spec import AugmentationSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """Parameters of one batch of N samples with C channels and D axes. Neutral values mean that nothing is done."""

    matrices: Floats
    """(N, D, D): maps a voxel offset from the patch's centre to the offset in the image it is read from."""
    elastic: Floats
    """(N, M, ...) displacement in voxels of the control points, along the M axes that move; 0 for none."""
    noise_std: Floats
    """(N,), 0 for none."""
    noise_seed: NDArray[np.int64]
    """(N,)."""
    blur_sigma: Floats
    """(N, C, D) in voxels, 0 for none."""
    brightness: Floats
    """(N, C) factors, 1 for none."""
    contrast: Floats
    """(N, C) factors about the mean, 1 for none."""
    zoom: Floats
    """(N, C) share of the resolution that is kept, 1 for all."""
    gamma_inverted: Floats
    """(N, C) exponents on the inverted image, 1 for none."""
    gamma: Floats
    """(N, C) exponents, 1 for none."""
    flips: NDArray[np.bool_]
    """(N, D)."""
    artefacts: tuple[tuple[Artefact, ...], ...]
    """MR artefacts of each sample."""

    @property
    def moved(self) -> NDArray[np.intp]:
        """Indices of the samples that are rotated, scaled or deformed."""
        identity = np.eye(self.matrices.shape[1])
        turned = (self.matrices != identity).any(axis=(1, 2))
        return np.flatnonzero(turned | self.elastic.any(axis=tuple(range(1, self.elastic.ndim))))

    def of(self, samples: slice | NDArray[np.intp]) -> "Draw":
        """Return what happens to some samples."""
        chosen = np.arange(len(self.matrices))[samples]
        taken = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "artefacts"}
        return Draw(**taken, artefacts=tuple(self.artefacts[i] for i in chosen))


def draw(spec: AugmentationSpec, n_samples: int, n_channels: int, rng: np.random.Generator) -> Draw:
    """Draw the augmentation of a batch."""
    per_channel = (n_samples, n_channels)

    def happens(p: float) -> NDArray[np.bool_]:
        return rng.random(n_samples) < p

    def factors(p: float, limits: tuple[float, float]) -> Floats:
        low, high = limits
        below = rng.random(per_channel) < 0.5
        values = np.where(below, rng.uniform(low, 1, per_channel), rng.uniform(1, high, per_channel))
        return np.where(happens(p)[:, None], values, 1.0)

    matrices = np.stack([_matrix(spec, rng) for _ in range(n_samples)])
    blurred = happens(spec.p_blur)[:, None] & (rng.random(per_channel) < spec.p_blur_channel)
    coarsened = happens(spec.p_lowres)[:, None] & (rng.random(per_channel) < spec.p_lowres_channel)
    return Draw(
        matrices=matrices,
        elastic=_elastic(spec, n_samples, rng),
        noise_std=np.where(happens(spec.p_noise), rng.uniform(*spec.noise_std, n_samples), 0.0),
        noise_seed=rng.integers(2**62, size=n_samples),
        blur_sigma=np.where(blurred[..., None], rng.uniform(*spec.blur_sigma, (*per_channel, spec.dims)), 0.0),
        brightness=factors(spec.p_brightness, spec.brightness),
        contrast=factors(spec.p_contrast, spec.contrast),
        zoom=np.where(coarsened, rng.uniform(*spec.zoom, per_channel), 1.0),
        gamma_inverted=factors(spec.p_gamma_inverted, spec.gamma),
        gamma=factors(spec.p_gamma, spec.gamma),
        flips=(rng.random((n_samples, spec.dims)) < spec.p_mirror) & np.isin(np.arange(spec.dims), spec.mirror_axes),
        artefacts=tuple(draw_artefacts(spec, n_channels, rng) for _ in range(n_samples)),
    )


def source_patch_size(spec: AugmentationSpec, drawn: Draw) -> tuple[int, ...]:
    """Smallest box that holds every voxel that is read; the patch itself where none moves."""
    half = np.array(spec.patch_size) / 2
    reach = np.abs(drawn.matrices) @ half
    # A B-spline never leaves the range of its control points.
    reach[:, list(spec.moving)] += np.abs(drawn.elastic).max(axis=tuple(range(2, drawn.elastic.ndim)))
    needed = reach.max(axis=0) * 2
    # One voxel more on each side for interpolation; even growth keeps the patch in the middle.
    grown = [
        p if n <= p + 1e-9 else p + 2 * ceil((n - p) / 2 + 1) for p, n in zip(spec.patch_size, needed, strict=True)
    ]
    return tuple(int(g) for g in grown)


def _elastic(spec: AugmentationSpec, n_samples: int, rng: np.random.Generator) -> Any:
    """Displacements of the control points; a spline of degree 3 has three more of them than intervals."""
    points = tuple(ceil(spec.patch_size[a] / spec.elastic_grid) + 3 for a in spec.moving)
    shape = (n_samples, len(spec.moving), *points)
    if not spec.p_elastic:
        return np.zeros(shape)
    happens = rng.random(n_samples) < spec.p_elastic
    return rng.normal(0, spec.elastic_std, shape) * happens.reshape(-1, *(1,) * (len(shape) - 1))


def _matrix(spec: AugmentationSpec, rng: np.random.Generator) -> Floats:
    """Rotation and scaling of one sample; the identity where neither happens."""
    matrix = np.eye(spec.dims)
    if rng.random() < spec.p_rotation:
        n_angles = 1 if spec.in_plane or spec.dims == 2 else 3
        for axis, angle in enumerate(rng.uniform(*spec.rotation_rad, n_angles)):
            matrix = matrix @ _rotation(spec.dims, axis, float(angle))
    if rng.random() < spec.p_scaling:
        factors = np.ones(spec.dims)
        factors[1 if spec.in_plane else 0 :] = rng.uniform(*spec.scale)
        matrix = matrix * factors
    return matrix


def _rotation(dims: int, axis: int, angle: float) -> Floats:
    """Rotate about one axis of three, or in the plane of the last two."""
    matrix = np.eye(dims)
    i, j = [(dims - 2, dims - 1), (0, 2), (0, 1)][axis]
    matrix[[i, j], [i, j]] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix
