"""Batches from preprocessed cases, read ahead in a thread. Each batch is a function of the seed and its number."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from segpipe import seeds
from segpipe.augment.apply import apply
from segpipe.augment.draw import Draw, draw, source_patch_size
from segpipe.augment.spec import AugmentationSpec
from segpipe.errors import TrainingError
from segpipe.training.sampling import CaseExtent, Patch, Triple, draw_patches, read_box

# Decoded cases stay in memory while they take less than this share of what is free.
_MEMORY_SHARE = 0.4
_AHEAD = 3


@dataclass(frozen=True)
class TrainingCase:
    """Arrays of one case; anything that has shape and dtype and slices like numpy."""

    id: str
    image: Any
    """(C, Z, Y, X) float32."""
    segmentation: Any
    """(Z, Y, X) label indices, -1 outside."""
    foreground: Any
    """(N, 4) target, z, y, x."""

    @property
    def extent(self) -> CaseExtent:
        """What the sampler needs."""
        z, y, x = self.segmentation.shape
        return CaseExtent((z, y, x), np.asarray(self.foreground))


@dataclass(frozen=True)
class Batch:
    """A batch as it was read, with what augmentation will do to it."""

    images: Tensor
    """(N, C, Z, Y, X)."""
    labels: Tensor
    """(N, Z, Y, X)."""
    drawn: Draw | None
    case_ids: tuple[str, ...]


def open_cases(folder: Path, case_ids: tuple[str, ...]) -> list[TrainingCase]:
    """Open prepared cases; they are read into memory when they all fit."""
    # Imported here so that training on arrays needs no file-format library.
    from segpipe.io.arrays import open_array, read_array
    from segpipe.workspace import PreparedFiles

    opened = []
    for case in case_ids:
        files = PreparedFiles(folder / case)
        opened.append(
            TrainingCase(case, open_array(files.image), open_array(files.segmentation), read_array(files.foreground))
        )
    n_bytes = sum(int(np.prod(c.image.shape)) * 4 + int(np.prod(c.segmentation.shape)) * 2 for c in opened)
    if n_bytes > _MEMORY_SHARE * psutil.virtual_memory().available:
        return opened
    return [TrainingCase(c.id, c.image[...], c.segmentation[...], c.foreground) for c in opened]


class BatchSource:
    """Draws and reads batches by number."""

    def __init__(
        self,
        cases: list[TrainingCase],
        patch_size: tuple[int, ...],
        batch_size: int,
        foreground_share: float,
        augmentation: AugmentationSpec | None,
        seed: int,
        name: str,
    ) -> None:
        if not cases:
            raise TrainingError(
                f"no case to take {name} patches from; run `segpipe preprocess` and look at its failures"
            )
        self.cases, self.batch_size, self.foreground_share = cases, batch_size, foreground_share
        self.augmentation, self.seed, self.name = augmentation, seed, name
        self.flat = len(patch_size) == 2
        self.patch: Triple = (1, *patch_size) if self.flat else patch_size  # type: ignore[assignment]
        self.extents = [c.extent for c in cases]

    def read(self, number: int) -> Batch:
        """Read the batch of this number."""
        rng = seeds.stream(self.seed, self.name, number)
        patches = draw_patches(self.extents, self.patch, self.batch_size, self.foreground_share, rng)
        drawn, size = None, self.patch
        if self.augmentation is not None:
            drawn = draw(self.augmentation, self.batch_size, self.cases[0].image.shape[0], rng)
            source = source_patch_size(self.augmentation, drawn)
            size = (1, *source) if self.flat else source  # type: ignore[assignment]
        images = np.stack([self._read(p, self.cases[p.case].image, size, 0) for p in patches])
        labels = np.stack([self._read(p, self.cases[p.case].segmentation, size, -1) for p in patches])
        return Batch(
            torch.from_numpy(images), torch.from_numpy(labels), drawn, tuple(self.cases[p.case].id for p in patches)
        )

    def _read(self, patch: Patch, array: Any, size: Triple, fill: float) -> Any:
        start = tuple(s - (n - p) // 2 for s, n, p in zip(patch.start, size, self.patch, strict=True))
        return read_box(array, start, size, fill)

    def to_device(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Bring a batch to the device and augment it there; 2D patches lose their slice axis."""
        images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True).long()
        if self.flat:
            images, labels = images[:, :, 0], labels[:, 0]
        if self.augmentation is None or batch.drawn is None:
            return images, labels.clamp_min(0)
        return apply(images, labels, self.augmentation, batch.drawn)


class ReadAhead:
    """Batches in order, read by a thread before they are asked for; counts the time spent waiting."""

    def __init__(self, read: Callable[[int], Batch], first: int, pool: ThreadPoolExecutor) -> None:
        self.read, self.next, self.pool = read, first, pool
        self.waiting: deque[Future[Batch]] = deque()
        self.waited_s = 0.0

    def __next__(self) -> Batch:
        while len(self.waiting) < _AHEAD:
            self.waiting.append(self.pool.submit(self.read, self.next))
            self.next += 1
        start = time.perf_counter()
        batch = self.waiting.popleft().result()
        self.waited_s += time.perf_counter() - start
        return batch


@contextmanager
def read_ahead(source: BatchSource, first: int) -> Iterator[ReadAhead]:
    """Read batches ahead while the context lasts."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        yield ReadAhead(source.read, first, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
