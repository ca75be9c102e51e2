"""Artefacts of MR, drawn here and applied by TorchIO's deterministic transforms to a patch on the CPU.

Source of the parameters: the defaults of TorchIO's random transforms (Pérez-García et al. 2021), with fewer anisotropic factors.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segpipe.augment.spec import AugmentationSpec

MAX_DEGREES, MAX_SHIFT = 10.0, 10.0
"""Largest rotation and shift of a movement between two moments of the acquisition; voxels count as millimetres."""
N_MOVEMENTS = 2
GHOSTS = (4, 10)
GHOST_INTENSITY = (0.5, 1.0)
SPIKE_INTENSITY = (1.0, 3.0)
BIAS_ORDER, BIAS_COEFFICIENT = 3, 0.5
THICKNESS = (1.5, 4.0)
"""How many times thicker the slices become."""


@dataclass(frozen=True)
class Artefact:
    """One artefact of one channel with its parameters."""

    name: str
    channel: int
    parameters: dict[str, Any]


def draw_artefacts(spec: "AugmentationSpec", n_channels: int, rng: np.random.Generator) -> tuple[Artefact, ...]:
    """Draw the artefacts of one sample: each sequence (channel) is acquired by itself, so each is spoilt by itself."""
    return tuple(
        Artefact(name, channel, _DRAWN[name](rng, 1 if spec.dims == 2 else 0))
        for name, probability in spec.artefacts
        for channel in range(n_channels)
        if rng.random() < probability
    )


def spoil(image: NDArray[np.float32], artefacts: tuple[Artefact, ...]) -> NDArray[np.float32]:
    """Apply artefacts to an image (C, Z, Y, X), in order; a 2D patch has one plane."""
    import torch

    spoilt = image.copy()
    for artefact in artefacts:
        channel = torch.from_numpy(spoilt[artefact.channel][None])
        spoilt[artefact.channel] = _APPLIED[artefact.name](channel, artefact.parameters).numpy()[0]
    return spoilt


# Each is told the first axis that may be affected: 1 for a patch of one plane.
def _motion(rng: np.random.Generator, first: int) -> dict[str, Any]:
    # Moments away from the middle of k-space, as TorchIO draws them: the middle decides what is seen.
    step = 1 / (N_MOVEMENTS + 1)
    times = np.arange(1, N_MOVEMENTS + 1) * step + rng.uniform(-0.3 * step, 0.3 * step, N_MOVEMENTS)
    degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES, (N_MOVEMENTS, 3))
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, (N_MOVEMENTS, 3))
    if first:
        degrees[:, 1:], shift[:, 0] = 0, 0
    return {"degrees": degrees, "translation": shift, "times": times}


def _ghosting(rng: np.random.Generator, first: int) -> dict[str, Any]:
    ghosts, axis = int(rng.integers(GHOSTS[0], GHOSTS[1] + 1)), int(rng.integers(first, 3))
    return {"num_ghosts": ghosts, "axis": axis, "intensity": float(rng.uniform(*GHOST_INTENSITY)), "restore": None}


def _spike(rng: np.random.Generator, _first: int) -> dict[str, Any]:
    intensity = float(rng.uniform(*SPIKE_INTENSITY)) * (1 if rng.random() < 0.5 else -1)
    return {"spikes_positions": rng.uniform(0, 1, (1, 3)), "intensity": intensity}


def _bias_field(rng: np.random.Generator, _first: int) -> dict[str, Any]:
    n = sum(1 for i in range(BIAS_ORDER + 1) for j in range(BIAS_ORDER + 1 - i) for _ in range(BIAS_ORDER + 1 - i - j))
    return {"coefficients": rng.uniform(-BIAS_COEFFICIENT, BIAS_COEFFICIENT, n).tolist(), "order": BIAS_ORDER}


def _anisotropy(rng: np.random.Generator, first: int) -> dict[str, Any]:
    return {"axis": int(rng.integers(first, 3)), "factor": float(rng.uniform(*THICKNESS))}


def _by_torchio(transform: str) -> Any:
    def applied(channel: Any, parameters: dict[str, Any]) -> Any:
        # Imported where it is needed: it takes seconds.
        import torchio

        extra = {"image_interpolation": "linear"} if transform == "Motion" else {}
        return getattr(torchio, transform)(**parameters, **extra)(channel)

    return applied


def _thickened(channel: Any, parameters: dict[str, Any]) -> Any:
    """Sample one axis down and up again, as TorchIO's RandomAnisotropy does; it has no deterministic twin."""
    from torch.nn import functional

    axis, size = parameters["axis"], list(channel.shape[1:])
    coarse = list(size)
    coarse[axis] = max(round(size[axis] / parameters["factor"]), 1)
    small = functional.interpolate(channel[None], size=coarse, mode="nearest-exact")
    return functional.interpolate(small, size=size, mode="trilinear", align_corners=False)[0]


_DRAWN = {
    "motion": _motion,
    "ghosting": _ghosting,
    "spike": _spike,
    "bias_field": _bias_field,
    "anisotropy": _anisotropy,
}
_APPLIED = {
    "motion": _by_torchio("Motion"),
    "ghosting": _by_torchio("Ghosting"),
    "spike": _by_torchio("Spike"),
    "bias_field": _by_torchio("BiasField"),
    "anisotropy": _thickened,
}
