"""A training step of the planned network against the same network as nnU-Net runs it: contiguous, nn.InstanceNorm; on a GPU in float16, and
compiled besides.

python tests/bench/bench_train_step.py [--features 12] [--patch 40 56 40] [--batch 2] [--device cpu]
"""

import argparse
import json
import time
from dataclasses import replace

import torch
from torch import nn

from segpipe.core.labels import Labels
from segpipe.execution.device import choose_runtime
from segpipe.losses.compound import Loss
from segpipe.networks.blocks import InstanceNorm
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.networks.spec import NetworkChoice
from segpipe.planning.design import Channels, Design
from segpipe.planning.recipe import PlannerSettings

LOSS = Loss(Labels.plain({"a": 1, "b": 2}))


def with_torch_norm(module):
    """Put torch's own instance normalisation in the place of ours."""
    for name, child in module.named_children():
        if isinstance(child, InstanceNorm):
            setattr(module, name, nn.InstanceNorm3d(child.weight.numel(), eps=child.eps, affine=True))
        else:
            with_torch_norm(child)
    return module


def step(network, forward, x, target, runtime):
    runtime.wait()
    start = time.perf_counter()
    with runtime.precision():
        logits = forward(x)
    network.zero_grad(set_to_none=True)
    LOSS.over_heads(logits, target, network.head_weights(len(logits))).backward()
    runtime.wait()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=int, default=12)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    runtime = choose_runtime(options.device)
    # As a training does.
    torch.backends.cudnn.benchmark = True
    gpu = runtime.device.type == "cuda"
    peer = replace(runtime, autocast=torch.float16 if gpu else None)
    patch = tuple(options.patch)
    settings = PlannerSettings(base_features=options.features)
    design = Design(NetworkChoice(), settings, Channels(1, 3, 3), (1.0, 1.0, 1.0))
    spec = design.network(design.topology(patch))
    x = torch.randn(options.batch, 1, *patch, device=runtime.device)
    target = torch.randint(0, 3, (options.batch, *patch), device=runtime.device)
    ours = to_device(build_network(spec, 1, 3), runtime.device)
    theirs = with_torch_norm(build_network(spec, 1, 3)).to(runtime.device)
    runs = {
        "segpipe": (ours, ours.supervised, x.contiguous(memory_format=fast_memory_format(3)), runtime),
        "eager": (theirs, theirs.supervised, x, peer),
    }
    if gpu:
        runs["segpipe_compiled"] = (ours, torch.compile(ours.supervised, dynamic=False), runs["segpipe"][2], runtime)
        runs["compiled"] = (theirs, torch.compile(theirs.supervised, dynamic=False), x, peer)
    times = {name: [] for name in runs}
    for _ in range(9):
        for name, (network, forward, images, chosen) in runs.items():
            times[name].append(step(network, forward, images, target, chosen))
    medians = {name: sorted(t[2:])[len(t[2:]) // 2] for name, t in times.items()}
    best = min(v for name, v in medians.items() if name.startswith("segpipe"))
    print(
        json.dumps({
            "bench": f"training step, {options.features} features, batch {options.batch} of {patch}, {runtime.describe()}",
            **{f"{name}_s": round(v, 4) for name, v in medians.items()},
            **{f"ratio_to_{name}": round(v / best, 2) for name, v in medians.items() if not name.startswith("segpipe")},
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
