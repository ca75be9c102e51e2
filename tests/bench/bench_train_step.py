"""A training step of the planned network against the same network as nnU-Net runs it on a CPU (contiguous, nn.InstanceNorm).

python tests/bench/bench_train_step.py [features]
"""

import json
import sys
import time

import torch
from torch import nn

from segpipe.losses.compound import deep_supervision, dice_cross_entropy
from segpipe.networks.blocks import InstanceNorm
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.planning.configuration import network_for
from segpipe.planning.recipe import PlannerSettings
from segpipe.planning.topology import make_topology
from segpipe.runtime import choose_runtime

PATCH, BATCH = (40, 56, 40), 2


def loss(logits, target):
    return dice_cross_entropy(logits, target, batch_dice=False)


def with_torch_norm(module):
    """Put torch's own instance normalisation in the place of ours."""
    for name, child in module.named_children():
        if isinstance(child, InstanceNorm):
            setattr(module, name, nn.InstanceNorm3d(child.weight.numel(), eps=child.eps, affine=True))
        else:
            with_torch_norm(child)
    return module


def step(network, x, target, runtime):
    start = time.perf_counter()
    with runtime.precision():
        logits = network.supervised(x)
    network.zero_grad(set_to_none=True)
    deep_supervision(logits, target, loss).backward()
    return time.perf_counter() - start


def main():
    features = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    runtime = choose_runtime("cpu")
    plain = type(runtime)(runtime.device, None)
    spec = network_for(make_topology((1.0, 1.0, 1.0), PATCH), PlannerSettings(base_features=features))
    x, target = torch.randn(BATCH, 1, *PATCH), torch.randint(0, 3, (BATCH, *PATCH))
    ours = to_device(build_network(spec, 1, 3), runtime.device)
    theirs = with_torch_norm(build_network(spec, 1, 3))
    ours_x = x.contiguous(memory_format=fast_memory_format(3))
    times = [(step(ours, ours_x, target, runtime), step(theirs, x, target, plain)) for _ in range(9)][2:]
    a, b = (sorted(t)[len(t) // 2] for t in zip(*times, strict=True))
    print(
        json.dumps({
            "bench": f"training step, {features} features, batch {BATCH} of {PATCH}, {runtime.describe()}",
            "segpipe_s": round(a, 3), "eager_contiguous_s": round(b, 3), "ratio": round(b / a, 2),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
