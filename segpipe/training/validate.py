"""Dice on validation patches: cheap, the same patches every epoch."""

import torch
from torch import Tensor

from segpipe.networks.unet import UNet
from segpipe.runtime import Runtime
from segpipe.training.data import BatchSource


@torch.inference_mode()
def patch_dice(
    network: UNet, source: BatchSource, n_batches: int, n_classes: int, runtime: Runtime
) -> list[float | None]:
    """Dice of each foreground class over all voxels of the first batches; None for a class that is in neither.

    Not the score of whole cases: patches are sampled around the foreground, and no windows are joined.
    """
    counts = torch.zeros(3, n_classes - 1, dtype=torch.float64)
    network.eval()
    for number in range(n_batches):
        images, labels = source.to_device(source.read(number), runtime.device)
        with runtime.precision():
            classes = network(images).argmax(1)
        counts += _counts(classes, labels, n_classes).cpu()
    network.train()
    both, predicted, reference = counts
    total = (predicted + reference).tolist()
    return [2 * b / t if t else None for b, t in zip(both.tolist(), total, strict=True)]


def _counts(classes: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Voxels of each foreground class in both, in the prediction, in the reference: (3, K - 1)."""
    joint = (
        torch.bincount((labels * n_classes + classes).flatten(), minlength=n_classes**2)
        .reshape(n_classes, n_classes)
        .double()
    )
    return torch.stack((joint.diagonal()[1:], joint.sum(0)[1:], joint.sum(1)[1:]))
