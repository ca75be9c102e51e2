"""A network computed by PyTorch."""

import logging

import torch
from torch import Tensor

from segpipe.execution.device import Runtime
from segpipe.inference.engines.base import precision_name, prediction_network
from segpipe.models.file import Weights
from segpipe.networks.build import fast_memory_format, to_device
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.schema import Configuration, Plan

logger = logging.getLogger(__name__)

_BATCH_VOXELS = {"cpu": 2**18, "cuda": 2**23}
"""Voxels of a batch of tiles: smaller ones do not fill the device. On a CPU larger ones gain nothing (docs/experiments.md)."""


class TorchEngine:
    """A network computed by PyTorch."""

    def __init__(self, network: Segmenter, n_inputs: int, batch: int, runtime: Runtime) -> None:
        self.network, self.n_inputs, self.batch, self.runtime = network, n_inputs, batch, runtime
        self.precision = precision_name(runtime)
        self.memory_format = fast_memory_format(network.dims)

    def __call__(self, tiles: Tensor) -> Tensor:
        """See :class:`Engine`."""
        if len(tiles) > self.batch:
            return torch.cat([self(some) for some in torch.split(tiles, self.batch)])
        x = tiles.to(self.runtime.device).contiguous(memory_format=self.memory_format)
        try:
            with self.runtime.precision():
                logits: Tensor = self.network(x)
                return logits
        except torch.OutOfMemoryError:
            if len(tiles) == 1:
                raise
        # Outside of the handler: what the failed pass held is free only when its error is gone.
        self.batch = len(tiles) // 2
        logger.warning("the device's memory holds no batch of %d tiles; going on with %d", len(tiles), self.batch)
        torch.cuda.empty_cache()
        return self(tiles)


def tiles_at_once(patch: tuple[int, ...], device: torch.device) -> int:
    """Tiles of a patch that are best computed together on a device."""
    voxels = 1
    for n in patch:
        voxels *= n
    return max(_BATCH_VOXELS[device.type] // voxels, 1)


def torch_engine(plan: Plan, configuration: Configuration, weights: Weights, runtime: Runtime) -> TorchEngine:
    """Make a fold's network, on its device, computed by PyTorch."""
    network, n_inputs = prediction_network(plan, configuration, weights)
    to_device(network, runtime.device)
    return TorchEngine(network, n_inputs, tiles_at_once(configuration.patch_size, runtime.device), runtime)
