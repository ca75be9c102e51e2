"""What augmentation may do: probabilities and ranges. No torch."""

from dataclasses import dataclass
from math import pi


@dataclass(frozen=True)
class AugmentationSpec:
    """nnU-Net 2's default augmentation. Probabilities are per sample; ranges are uniform unless stated."""

    patch_size: tuple[int, ...]
    rotation_rad: tuple[float, float]
    """Each rotation angle; in-plane only where ``in_plane``."""
    in_plane: bool
    """Move only the last two axes of a 3D patch, because the first is much coarser."""
    mirror_axes: tuple[int, ...]
    masked_channels: tuple[int, ...] = ()
    """Channels that were normalised inside the non-zero region: outside it they are set back to 0 at the end."""
    p_rotation: float = 0.2
    p_scaling: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
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


ANISOTROPIC_PATCH = 3
"""A 3D patch whose longest axis is over this many times its first is rotated in-plane only."""


def default_spec(
    patch_size: tuple[int, ...], *, mirror: bool, masked_channels: tuple[int, ...] = ()
) -> AugmentationSpec:
    """Return the default augmentation for a patch: angles follow from its shape (nnU-Net's rule)."""
    axes = tuple(range(len(patch_size))) if mirror else ()
    if len(patch_size) == 2:
        limit = 15 / 180 * pi if max(patch_size) / min(patch_size) > 1.5 else pi
        return AugmentationSpec(
            patch_size, (-limit, limit), in_plane=False, mirror_axes=axes, masked_channels=masked_channels
        )
    in_plane = max(patch_size) / patch_size[0] > ANISOTROPIC_PATCH
    limit = pi if in_plane else 30 / 180 * pi
    return AugmentationSpec(
        patch_size, (-limit, limit), in_plane=in_plane, mirror_axes=axes, masked_channels=masked_channels
    )
