"""Batches from prepared cases, read ahead by threads. Each batch is a function of the seed and its number."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from segpipe.augment.apply import apply_with
from segpipe.augment.draw import Draw, draw, source_patch_size
from segpipe.augment.mr_artefacts import spoil as spoil_image
from segpipe.augment.previous import Spoiling, draw_spoiling, one_hot
from segpipe.augment.previous import spoil as spoil_previous
from segpipe.augment.spec import AugmentationSpec
from segpipe.core import seeds
from segpipe.errors import TrainingError
from segpipe.training.sampling import Patch, Sampling, Triple, draw_patches, read_box
from segpipe.training.storage import TrainingCase, unreadable

# Batches that wait beyond those that are being read.
_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch as it was read, with what augmentation will do to it."""

    images: Tensor
    """(N, C, Z, Y, X)."""
    labels: Tensor
    """(N, L, Z, Y, X): the segmentation, then the previous stage's in a cascade."""
    drawn: Draw | None
    spoilings: tuple[Spoiling, ...]
    """Errors that are drawn into the previous stage's segmentation."""
    patches: tuple[str, ...]
    """Case and place of each sample, in words."""
    soft: Tensor | None = None
    """(N, K, Z, Y, X): another model's probabilities."""
    labelled: tuple[bool, ...] = ()
    """Whether each sample's labels are somebody's."""


@dataclass(frozen=True)
class OnDevice:
    """A batch as the network sees it; 2D patches have no slice axis."""

    images: Tensor
    """(N, C, ...)."""
    labels: Tensor
    """(N, ...) label indices."""
    inside: Tensor
    """(N, ...) voxels of the image, and inside the mask that it is normalised in, where there is one."""
    soft: Tensor | None
    """(N, K, ...)."""


class BatchSource:
    """Draws and reads batches by number."""

    def __init__(
        self,
        cases: list[TrainingCase],
        how: Sampling,
        augmentation: AugmentationSpec | None,
        *,
        seed: int,
        name: str,
        flat: bool = False,
        n_previous: int = 0,
        share: slice | None = None,
    ) -> None:
        """Prepare to read.

        Parameters
        ----------
        cases : list of TrainingCase
        how : Sampling
            Its patch has three axes, the first of one voxel where ``flat``.
        augmentation : AugmentationSpec, optional
            Augmentation of the training patches; validation patches have none.
        seed : int
        name : str
            Name of the random stream.
        flat : bool
            The network is 2D: the slice axis is dropped.
        n_previous : int
            Labels of the previous stage, each a further input channel.
        share : slice, optional
            Samples of each batch that this process reads; all unless given.
        """
        if not cases:
            raise TrainingError(
                f"no case to take {name} patches from; run `segpipe preprocess` and look at its failures"
            )
        self.cases, self.how, self.augmentation = cases, how, augmentation
        self.seed, self.name, self.flat, self.n_previous = seed, name, flat, n_previous
        self.share = share or slice(None)
        self.extents = [c.extent for c in cases]
        self.regions = any(c.soft is not None and c.soft.regions for c in cases)

    def read(self, number: int) -> Batch:
        """Read the batch of this number.

        Raises
        ------
        TrainingError
            If a case can no longer be read.
        """
        rng = seeds.stream(self.seed, self.name, number)
        patches = draw_patches(self.extents, self.how, rng)
        drawn, spoilings, size = None, (Spoiling(),) * len(patches), self.how.patch
        if self.augmentation is not None:
            drawn = draw(self.augmentation, len(patches), self.cases[0].image.shape[0], rng)
            if self.n_previous:
                spoilings = tuple(draw_spoiling(self.n_previous, rng) for _ in patches)
            # Everything is drawn for the whole batch, so that it does not depend on who reads which part.
            drawn = drawn.of(self.share)
            source = source_patch_size(self.augmentation, drawn)
            size = (1, *source) if self.flat else source  # type: ignore[assignment]
        own = patches[self.share]
        samples = [self._sample(patch, size) for patch in own]
        images = torch.stack([image for image, _, _ in samples])
        if drawn is not None and any(drawn.artefacts):
            for image, artefacts in zip(images, drawn.artefacts, strict=True):
                image.copy_(torch.from_numpy(spoil_image(image.numpy(), artefacts)))
        labels = torch.stack([maps for _, maps, _ in samples])
        soft = [s for _, _, s in samples if s is not None]
        return Batch(
            images,
            labels,
            drawn,
            spoilings[self.share],
            tuple(self._named(p) for p in own),
            torch.stack(soft) if soft else None,
            tuple(self.cases[p.case].labelled for p in own),
        )

    def _sample(self, patch: Patch, size: Triple) -> tuple[Tensor, Tensor, Tensor | None]:
        """Image (C, ...), label maps (L, ...) and probabilities (K, ...) around a patch."""
        case = self.cases[patch.case]
        start = tuple(s - (n - p) // 2 for s, n, p in zip(patch.start, size, self.how.patch, strict=True))
        try:
            maps = [read_box(case.segmentation, start, size, -1)]
            if self.n_previous:
                maps.append(read_box(case.previous, start, size, 0).to(maps[0].dtype))
            soft = None if case.soft is None else case.soft.read(start, size)
            return read_box(case.image, start, size, 0), torch.stack(maps), soft
        except (OSError, RuntimeError, ValueError) as error:
            raise TrainingError(unreadable(case.id, "the workspace", error)) from error

    def _named(self, patch: Patch) -> str:
        return f"{self.cases[patch.case].id} from voxel {patch.start} over {self.how.patch}"

    def to_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """Bring a batch to the device and augment it there."""
        images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        soft = None if batch.soft is None else batch.soft.to(device, non_blocking=True)
        if self.flat:
            images, labels = images[:, :, 0], labels[:, :, 0]
            soft = None if soft is None else soft[:, :, 0]
        if self.augmentation is not None and batch.drawn is not None:
            images, labels, soft = apply_with(images, labels, soft, self.augmentation, batch.drawn)
        if soft is not None and not self.regions:
            # What lies outside the image is background, in part where it was interpolated from both.
            soft[:, 0] += 1 - soft.sum(1)
        inside, labels = labels[:, 0] >= 0, labels.clamp_min(0)
        if self.n_previous:
            spoilt = spoil_previous(labels[:, 1], batch.spoilings)
            images = torch.cat((images, one_hot(spoilt, self.n_previous)), dim=1)
        return OnDevice(images, labels[:, 0].long(), inside, soft)


class ReadAhead:
    """Batches in order, read by threads before they are asked for; counts the time spent waiting."""

    def __init__(
        self, read: Callable[[int], Batch], numbers: Iterator[int], pool: ThreadPoolExecutor, ahead: int
    ) -> None:
        self.read, self.numbers, self.pool, self.ahead = read, numbers, pool, ahead
        self.waiting: deque[Future[Batch]] = deque()
        self.waited_s = 0.0

    def __next__(self) -> Batch:
        for number in islice(self.numbers, self.ahead - len(self.waiting)):
            self.waiting.append(self.pool.submit(self.read, number))
        start = time.perf_counter()
        try:
            return self.waiting.popleft().result()
        finally:
            self.waited_s += time.perf_counter() - start


@contextmanager
def read_ahead(source: BatchSource, numbers: Iterable[int], *, n_readers: int, pin: bool) -> Iterator[ReadAhead]:
    """Read the batches of these numbers ahead while the context lasts; ``pin`` keeps them where a GPU copies from without waiting."""

    def read(number: int) -> Batch:
        batch = source.read(number)
        if pin and batch.images.device.type == "cpu":
            return _pinned(batch)
        return batch

    pool = ThreadPoolExecutor(max_workers=n_readers, thread_name_prefix="batches")
    try:
        yield ReadAhead(read, iter(numbers), pool, n_readers + _AHEAD)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pinned(batch: Batch) -> Batch:
    soft = None if batch.soft is None else batch.soft.pin_memory()
    return replace(batch, images=batch.images.pin_memory(), labels=batch.labels.pin_memory(), soft=soft)


def sampling(
    patch_size: tuple[int, ...], batch_size: int, share: float, weights: tuple[float, ...], *, by_label: bool
) -> Sampling:
    """Return how patches of a configuration are drawn; a 2D patch is one slice."""
    patch: Any = (1, *patch_size) if len(patch_size) == 2 else patch_size
    return Sampling(patch, batch_size, share, weights, by_label)
