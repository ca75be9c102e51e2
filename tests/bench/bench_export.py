"""Logits of many labels onto a large native grid: seconds and memory of the export alone, against nnU-Net's interpolation.

    python tests/bench/bench_export.py [--labels 60] [--network 300 273 273] [--native 300 512 512]

One JSON line. Logits come a few planes at a time, as from the sliding window; making them is not counted. nnU-Net interpolates every
label with skimage in double precision and holds all of them: a few labels are measured (``--peer-labels``), and the time for all is told
in proportion.
"""

import argparse
import json
import time

import numpy as np
import torch
from torch.nn import functional as F

from segpipe.execution.memory import PeakMemory
from segpipe.inference.restore import restored_labels

PLANES = 8


def main() -> None:
    options = arguments()
    shape, native = tuple(options.network), tuple(options.native)
    torch.manual_seed(0)
    coarse = torch.randn(1, options.labels, *(max(n // 24, 2) for n in shape)) * 3
    coarse[:, 0] += 2
    spent = 0.0

    def planes():
        """Organs as blobs: random values on a coarse lattice, joined smoothly."""
        nonlocal spent
        lattice = torch.linspace(-1, 1, shape[0])
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
        for first in range(0, shape[0], PLANES):
            start = time.perf_counter()
            z = lattice[first : first + PLANES]
            grid = torch.stack(
                (x.expand(len(z), -1, -1), y.expand(len(z), -1, -1), z[:, None, None].expand(-1, *x.shape)), -1
            )
            logits = F.grid_sample(coarse, grid[None], align_corners=True)[0]
            spent += time.perf_counter() - start
            yield logits

    with PeakMemory() as memory:
        start = time.perf_counter()
        labels = restored_labels(planes(), shape, native, None, regions=False)
        elapsed = time.perf_counter() - start - spent
    line = {
        "benchmark": "export", "labels": options.labels, "network_grid": shape, "native_grid": native,
        "seconds": round(elapsed, 1), "peak_gb": memory.gb, "labels_found": len(np.unique(labels)),
    }  # fmt: skip
    if options.peer_labels:
        line |= peer(shape, native, options)
        line["times_faster"] = round(line["nnunet_s_in_proportion"] / elapsed, 1)
    print(json.dumps(line))


def peer(shape: tuple[int, ...], native: tuple[int, ...], options: argparse.Namespace) -> dict[str, float]:
    """Nnu-Net's export of a few labels: skimage's resize of float64, kept as float16."""
    from skimage.transform import resize

    logits = np.random.default_rng(0).normal(size=shape)
    with PeakMemory() as memory:
        start = time.perf_counter()
        for _ in range(options.peer_labels):
            resize(logits, native, order=1, mode="edge", anti_aliasing=False).astype(np.float16)
        elapsed = time.perf_counter() - start
    held = 2 * options.labels * (np.prod(shape) + np.prod(native))
    return {
        "nnunet_s_in_proportion": round(elapsed / options.peer_labels * options.labels, 1),
        "nnunet_gb_in_proportion": round(memory.gb + held / 1e9, 1),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", type=int, default=60)
    parser.add_argument("--network", type=int, nargs=3, default=[300, 273, 273])
    parser.add_argument("--native", type=int, nargs=3, default=[300, 512, 512])
    parser.add_argument("--peer-labels", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
