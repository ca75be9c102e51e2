"""Networks that are functions, for tests of what is around them."""

from dataclasses import dataclass, field

import torch

from segpipe.inference.predictor import Predictor
from segpipe.inference.sliding import Ensemble, logit_planes, windows_of
from segpipe.inference.stage import LoadedModel


@dataclass(eq=False)
class FunctionEngine:
    """A function of tiles (N, C, *patch) to logits (N, K, *patch), in the place of a network."""

    forward: object
    n_inputs: int = 1
    batch: int = 1
    precision: str = "float32"
    sizes: list[int] = field(default_factory=list)
    """Tiles of each call."""

    def __call__(self, tiles):
        assert len(tiles) <= self.batch
        self.sizes.append(len(tiles))
        return self.forward(tiles)


def stitched(forward, image, patch, step=0.5, *, batch=1, n_outputs=2, dtype=torch.float32, axes=(), **options):
    """Logits (K, Z, Y, X) of a function slid over an image (C, Z, Y, X)."""
    ensemble = Ensemble((FunctionEngine(forward, len(image), batch),), axes)
    planes = logit_planes(
        ensemble, image, windows_of(tuple(image.shape[1:]), patch, step),
        allocate=lambda shape: torch.zeros(shape, dtype=dtype), n_outputs=n_outputs, **options,
    )  # fmt: skip
    return torch.cat(list(planes), dim=1)


def predictor_of(plan, forward, configuration="3d_fullres", rules=()):
    """A predictor whose network is a function."""
    engine = FunctionEngine(forward, len(plan.channel_names))
    stage = LoadedModel(plan, plan.configuration(configuration), Ensemble((engine,), ()), torch.device("cpu"))
    return Predictor((stage,), tuple(rules), "digest")
