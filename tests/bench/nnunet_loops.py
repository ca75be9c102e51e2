"""nnU-Net's network and loops on a planned network, for benchmarks: what its trainer and predictor do with the device.

Contiguous tensors, torch's own instance normalisation, float16 with a scaler, one window at a time: the defaults of nnU-Net 2.8.1.
"""

import time
from itertools import chain, combinations, product

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from segpipe.networks.build import build_network
from tests.bench.bench_train_step import with_torch_norm

CONFIGURATION = "3d_fullres"


class NNUNetLoop:
    """nnU-Net's training step on the same planned network."""

    def __init__(self, plan, runtime):
        self.network = nnunet_network(plan).to(runtime.device).train()
        self.forward = self.network.supervised
        self.device = runtime.device.type
        self.half = self.device == "cuda"
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.01, momentum=0.99, weight_decay=3e-5, nesterov=True
        )
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.half)

    def step(self, x, target):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, dtype=torch.float16, enabled=self.half):
            heads = self.forward(x)
            weights = np.array([0.5**n for n in range(len(heads))])
            loss = sum(
                w * dice_and_cross_entropy(h, target) for w, h in zip(weights / weights.sum(), heads, strict=True)
            )
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # Its trainer asks for the loss of every step.
        return loss.detach().cpu()


def dice_and_cross_entropy(logits, target):
    """Soft Dice of the foreground plus cross-entropy, at a head's resolution."""
    if logits.shape[2:] != target.shape[1:]:
        target = F.interpolate(target[:, None].float(), size=logits.shape[2:], mode="nearest")[:, 0].long()
    probabilities = logits.softmax(1)
    right = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, target[:, None], 1)
    axes = tuple(range(2, logits.ndim))
    both = (probabilities * right)[:, 1:].sum(axes)
    sizes = probabilities[:, 1:].sum(axes) + right[:, 1:].sum(axes)
    return F.cross_entropy(logits, target) - ((2 * both + 1e-5) / (sizes + 1e-5).clamp_min(1e-8)).mean()


def nnunet_network(plan):
    """The planned network with torch's own layers."""
    configuration = plan.configuration(CONFIGURATION)
    torch.manual_seed(0)
    return with_torch_norm(build_network(configuration.network, plan.n_inputs(configuration), plan.labels.n_outputs))


@torch.inference_mode()
def nnunet_tile_loop_s(plan, image, runtime, *, tta):
    """Seconds in which nnU-Net's predictor computes the windows of an image: one after the other, a flip after the other, sums in half."""
    network = nnunet_network(plan).to(runtime.device).eval()
    patch, half = plan.configuration(CONFIGURATION).patch_size, runtime.device.type == "cuda"
    there = torch.from_numpy(image[None]).to(runtime.device)
    there = F.pad(
        there,
        [side for n, p in zip(reversed(image.shape), reversed(patch), strict=True) for side in (0, max(p - n, 0))],
    )
    dtype = torch.half if half else torch.float32
    sums = torch.zeros((plan.labels.n_outputs, *there.shape[1:]), dtype=dtype, device=runtime.device)
    gauss = torch.ones(patch, dtype=dtype, device=runtime.device)
    flips = list(chain.from_iterable(combinations((2, 3, 4), n) for n in range(4 if tta else 1)))
    starts = [steps_along(n, p) for n, p in zip(there.shape[1:], patch, strict=True)]
    runtime.wait()
    start = time.perf_counter()
    with torch.autocast(runtime.device.type, dtype=torch.float16, enabled=half):
        for begin in product(*starts):
            box = (slice(None), *(slice(b, b + p) for b, p in zip(begin, patch, strict=True)))
            tile = there[box][None]
            logits = sum(network(tile.flip(axes)).flip(axes) if axes else network(tile) for axes in flips) / len(flips)
            sums[box] += logits[0] * gauss
    runtime.wait()
    return time.perf_counter() - start


def steps_along(n, patch):
    """Starts of windows along an axis, half a patch apart at most, evenly."""
    n_steps = int(np.ceil((n - patch) / (patch / 2))) + 1
    return np.round(np.linspace(0, n - patch, n_steps)).astype(int).tolist()
