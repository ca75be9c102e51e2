"""What augmentation may do: probabilities and ranges. No torch."""

from dataclasses import dataclass
from math import pi
from typing import Literal

from pydantic import Field

from segpipe.core.artefact import Record

Anatomical = Literal["x", "y", "z"]


class AugmentationSettings(Record):
    """What a recipe chooses. Everything else is nnU-Net's default, without which ``enabled`` is false."""

    enabled: bool = True
    mirror: Literal["auto"] | tuple[Anatomical, ...] = "auto"
    """Axes to mirror in training and at inference: x is left-right, y back-front, z feet-head. ``auto`` takes all of them, but not x
    where labels come as a left and a right one."""
    elastic: float = Field(0.0, ge=0, le=1)
    """Probability of an elastic deformation: B-splines over a grid of 32 voxels, displacements of standard deviation 4 voxels."""
    motion: float = Field(0.0, ge=0, le=1)
    """Probability of each artefact of MR, a channel: the patient moved, ghosts, spikes in k-space, a bias field, thick slices."""
    ghosting: float = Field(0.0, ge=0, le=1)
    spike: float = Field(0.0, ge=0, le=1)
    bias_field: float = Field(0.0, ge=0, le=1)
    anisotropy: float = Field(0.0, ge=0, le=1)

    @property
    def artefacts(self) -> dict[str, float]:
        """Probability of each artefact that may happen."""
        names = ("motion", "ghosting", "spike", "bias_field", "anisotropy")
        return {name: p for name in names if (p := getattr(self, name)) > 0}


@dataclass(frozen=True)
class AugmentationSpec:
    """nnU-Net 2's default augmentation. Probabilities are per sample; ranges are uniform unless stated."""

    patch_size: tuple[int, ...]
    rotation_rad: tuple[float, float]
    """Each rotation angle; in-plane only where ``in_plane``."""
    in_plane: bool
    """Move only the last two axes of a 3D patch, because the first is much coarser."""
    mirror_axes: tuple[int, ...]
    artefacts: tuple[tuple[str, float], ...] = ()
    """MR artefacts that may happen, with their probabilities (segpipe.augment.mr_artefacts)."""
    masked_channels: tuple[int, ...] = ()
    """Channels that were normalised inside the non-zero region: outside it they are set back to 0 at the end."""
    p_rotation: float = 0.2
    p_scaling: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
    p_elastic: float = 0.0
    elastic_grid: int = 32
    """Voxels between control points."""
    elastic_std: float = 4.0
    """Standard deviation of a control point's displacement, in voxels (Çiçek et al. 2016, arXiv 1606.06650)."""
    p_noise: float = 0.1
    noise_std: tuple[float, float] = (0.0, 0.1)
    p_blur: float = 0.2
    p_blur_channel: float = 0.5
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    p_brightness: float = 0.15
    brightness: tuple[float, float] = (0.75, 1.25)
    """Drawn below 1 or above 1 with equal chance."""
    p_contrast: float = 0.15
    contrast: tuple[float, float] = (0.75, 1.25)
    p_lowres: float = 0.25
    p_lowres_channel: float = 0.5
    zoom: tuple[float, float] = (0.5, 1.0)
    p_gamma_inverted: float = 0.1
    p_gamma: float = 0.3
    gamma: tuple[float, float] = (0.7, 1.5)
    p_mirror: float = 0.5
    """Per axis."""

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def moving(self) -> tuple[int, ...]:
        """Axes that rotation and deformation move voxels along."""
        return (1, 2) if self.in_plane else tuple(range(self.dims))


ANISOTROPIC_PATCH = 3
"""A 3D patch whose longest axis is over this many times its first is rotated in-plane only."""


def default_spec(
    patch_size: tuple[int, ...],
    *,
    mirror_axes: tuple[int, ...] | None = None,
    masked_channels: tuple[int, ...] = (),
    settings: AugmentationSettings | None = None,
) -> AugmentationSpec:
    """Return the augmentation of a patch: angles follow from its shape (nnU-Net's rule), the rest from the settings.

    Parameters
    ----------
    patch_size : tuple of int
    mirror_axes : tuple of int, optional
        Axes of the patch to mirror; all unless given.
    masked_channels : tuple of int
        Channels that were normalised inside the non-zero region.
    settings : AugmentationSettings, optional
    """
    chosen = settings or AugmentationSettings()
    dims = len(patch_size)
    in_plane = dims == 3 and max(patch_size) / patch_size[0] > ANISOTROPIC_PATCH
    limit = pi if in_plane else 30 / 180 * pi
    if dims == 2:
        limit = 15 / 180 * pi if max(patch_size) / min(patch_size) > 1.5 else pi
    return AugmentationSpec(
        patch_size,
        (-limit, limit),
        in_plane=in_plane,
        mirror_axes=tuple(range(dims)) if mirror_axes is None else mirror_axes,
        artefacts=tuple(chosen.artefacts.items()),
        masked_channels=masked_channels,
        p_elastic=chosen.elastic,
    )
