"""Sliding windows over a prepared image: logits in the order of its planes, without ever holding those of the whole image.

Windows are computed row by row along the first axis. What no later window reaches is handed on at once, so that the sums of one
row's height are all that is held: memory grows with the labels times a patch's depth, not with the image's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product

import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.core.windows import axis_starts, gaussian_weights, padding_to
from segpipe.errors import CaseError
from segpipe.execution.device import sent
from segpipe.inference.calling import call
from segpipe.inference.engines.base import Engine
from segpipe.inference.tally import Tally

PLANES_BYTES = 2**26
"""About what is handed on at a time."""

_BATCHES_OF_SLICES = 4
_SMALLEST_HALF_WEIGHT = 1e-3
_NO_DIFFERENCE = 1e-3
"""In units of the normalised image."""

Slices = tuple[slice, ...]
Allocate = Callable[[tuple[int, ...]], Tensor]


@dataclass
class Agreement:
    """How often folds and mirror images agree with their mean, in voxels of windows that any of them calls foreground."""

    regions: bool = False
    """Outputs are regions; a voxel's label is the set of those that are more likely than not."""
    foreground: Tally = field(default_factory=Tally)
    differing: dict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))
    """Voxels that a pass labels in another way than the mean, summed over the passes; by the number of passes."""

    @property
    def disagreement(self) -> float | None:
        """Share of the foreground that one of them, on average, labels in another way than their mean; None with one pass only."""
        if not self.foreground.value:
            return None
        return sum(tally.value / n for n, tally in self.differing.items()) / self.foreground.value

    def settle(self) -> None:
        """Bring the counts to the host."""
        for tally in (self.foreground, *self.differing.values()):
            tally.settle()


@dataclass(frozen=True)
class Windows:
    """Where windows lie on an image, padded where it is smaller than the patch."""

    shape: tuple[int, int, int]
    """Shape of the image."""
    patch: tuple[int, int, int]
    step: float
    flat: bool
    """The network knows two axes only; the first one's patch is a slice."""
    padding: tuple[tuple[int, int], ...] = field(init=False)
    starts: tuple[tuple[int, ...], ...] = field(init=False)
    """First voxels of the windows, along each axis."""

    def __post_init__(self) -> None:
        padding = padding_to(self.shape, self.patch)
        padded = [n + before + after for n, (before, after) in zip(self.shape, padding, strict=True)]
        starts = (tuple(axis_starts(n, p, self.step)) for n, p in zip(padded, self.patch, strict=True))
        object.__setattr__(self, "padding", tuple(padding))
        object.__setattr__(self, "starts", tuple(starts))

    @property
    def padded(self) -> tuple[int, int, int]:
        """Shape with the padding."""
        z, y, x = (n + before + after for n, (before, after) in zip(self.shape, self.padding, strict=True))
        return z, y, x

    @property
    def n_tiles(self) -> int:
        """Number of windows."""
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])

    def rows(self, batch: int) -> list[tuple[int, ...]]:
        """Starts along the first axis that are computed together: one; of slices as many as fill some batches."""
        a_row = len(self.starts[1]) * len(self.starts[2])
        together = -(-_BATCHES_OF_SLICES * batch // a_row) if self.flat else 1
        first = self.starts[0]
        return [first[i : i + together] for i in range(0, len(first), together)]

    def height(self, batch: int) -> int:
        """Planes that a row of windows covers."""
        return max(row[-1] - row[0] for row in self.rows(batch)) + self.patch[0]


def windows_of(shape: tuple[int, ...], patch: tuple[int, ...], step: float) -> Windows:
    """Lay windows on an image; a patch of two axes is slid over every slice."""
    z, y, x = shape
    flat = len(patch) == 2
    pz, py, px = (1, *patch) if flat else patch
    return Windows((z, y, x), (pz, py, px), step, flat)


def mirror_combinations(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every set of axes to flip, the empty one first."""
    return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


class Ensemble:
    """Folds and mirror images of one network, whose logits are averaged."""

    def __init__(self, engines: tuple[Engine, ...], mirror_axes: tuple[int, ...]) -> None:
        self.engines = engines
        self.flips = [tuple(2 + a for a in chosen) for chosen in mirror_combinations(mirror_axes)]
        self.batch = engines[0].batch

    def __call__(self, tiles: Tensor, agreement: Agreement | None = None) -> Tensor:
        """Mean logits (N, K, *patch), float32, of tiles (N, C, *patch)."""
        total: Tensor | None = None
        labels = []
        passes = list(product(self.engines, self.flips))
        together = max(self.batch // tiles.shape[0], 1)
        for first in range(0, len(passes), together):
            for logits in self._some(passes[first : first + together], tiles):
                if agreement is not None and len(passes) > 1:
                    labels.append(call(logits, axis=1, regions=agreement.regions))
                # The first is copied: an engine may use its memory again.
                total = logits.float().clone() if total is None else total.add_(logits)
        assert total is not None
        total /= len(passes)
        if labels and agreement is not None:
            _compare(labels, call(total, axis=1, regions=agreement.regions), agreement)
        return total

    def _some(self, passes: list[tuple[Engine, tuple[int, ...]]], tiles: Tensor) -> Iterator[Tensor]:
        """Logits of some passes, turned back; those of one engine are computed together."""
        for engine in dict.fromkeys(engine for engine, _ in passes):
            flips = [dims for other, dims in passes if other is engine]
            flipped = [tiles.flip(dims) if dims else tiles for dims in flips]
            logits = engine(flipped[0] if len(flipped) == 1 else torch.cat(flipped))
            for dims, part in zip(flips, torch.split(logits, tiles.shape[0]), strict=True):
                yield part.flip(dims) if dims else part


def _compare(labels: list[Tensor], mean: Tensor, agreement: Agreement) -> None:
    foreground = mean != 0
    for one in labels:
        foreground |= one != 0
        agreement.differing[len(labels)].add((one != mean).sum())
    agreement.foreground.add(foreground.sum())


@torch.inference_mode()
def logit_planes(
    ensemble: Ensemble,
    image: Tensor,
    windows: Windows,
    *,
    allocate: Allocate,
    n_outputs: int,
    regions: bool = False,
    expand: Callable[[Tensor], Tensor] = lambda tiles: tiles,
    outside: Tensor | None = None,
    agreement: Agreement | None = None,
    on_tile: Callable[[int], None] = lambda _: None,
) -> Iterator[Tensor]:
    """Yield a network's logits over windows, weighted by a Gaussian, a few planes at a time in their order.

    Parameters
    ----------
    ensemble : Ensemble
    image : Tensor of float32
        (C, Z, Y, X), where windows are computed.
    windows : Windows
        Windows of the image's shape.
    allocate : callable
        Makes the tensor of zeros of a shape that logits are added up in; its device and number type are the caller's choice.
    n_outputs : int
    regions : bool
        Outputs are regions, and the background is none of them; else it is the first one.
    expand : callable
        Makes of tiles (N, C, *patch) of the image what the network is given.
    outside : Tensor of float32, optional
        Value (C,) of each channel that proves a voxel to lie outside the body: windows of nothing else are not computed, and what no
        window was computed for is background.
    agreement : Agreement, optional
        Counts how passes agree.
    on_tile : callable
        Called with the number of windows computed, after each batch.

    Yields
    ------
    Tensor of float32
        (K, n, Y, X).
    """
    padded = F.pad(image, [n for before_after in reversed(windows.padding) for n in before_after])
    inside = None if outside is None else _inside(padded, outside)
    total = allocate((n_outputs, windows.height(ensemble.batch), *windows.padded[1:]))
    weight_sum = torch.zeros(total.shape[1:], device=total.device)
    gauss = _importance(windows, total)
    rows = windows.rows(ensemble.batch)
    for number, row in enumerate(rows):
        starts = list(product(row, *windows.starts[1:]))
        if inside is not None:
            starts = _holding_some(starts, inside, windows.patch)
        for first in range(0, len(starts), ensemble.batch):
            some = starts[first : first + ensemble.batch]
            tiles = torch.stack([padded[(slice(None), *_box(s, windows.patch))] for s in some])
            tiles = expand(tiles)
            logits = ensemble(tiles[:, :, 0], agreement)[:, :, None] if windows.flat else ensemble(tiles, agreement)
            weighted = logits.to(total.device).mul_(gauss)
            for start, added in zip(some, weighted, strict=True):
                box = _box((start[0] - row[0], *start[1:]), windows.patch)
                total[(slice(None), *box)] += added
                weight_sum[box] += gauss
            on_tile(len(some))
        upcoming = rows[number + 1][0] if number + 1 < len(rows) else windows.padded[0]
        done = _finished(total, weight_sum, row[0], upcoming, windows)
        yield from done if outside is None else _with_background(done, regions=regions)
        _shift(total, weight_sum, upcoming - row[0])


def _importance(windows: Windows, total: Tensor) -> Tensor:
    """Weights of a window's voxels, of the patch's shape."""
    gauss = torch.from_numpy(gaussian_weights(windows.patch[1:] if windows.flat else windows.patch))
    if total.dtype == torch.float16:
        # Products with the smallest weights would vanish. What only one window sees is its logit, whatever the weight.
        gauss = gauss.clamp_min(_SMALLEST_HALF_WEIGHT)
    return sent(gauss.reshape(windows.patch), total.device)


def _finished(total: Tensor, weight_sum: Tensor, first: int, upcoming: int, windows: Windows) -> Iterator[Tensor]:
    """Yield the planes that no later window reaches, without the padding; NaN where no window was computed."""
    (before, _), *in_plane = windows.padding
    y, x = (slice(b, b + n) for (b, _), n in zip(in_plane, windows.shape[1:], strict=True))
    begin, end = max(first, before) - first, min(upcoming, before + windows.shape[0]) - first
    _require_finite(total[:, begin:end, y, x])
    at_once = max(PLANES_BYTES // (4 * total[:, 0].numel()), 1)
    for z in range(begin, end, at_once):
        planes = slice(z, min(z + at_once, end))
        yield total[:, planes, y, x].float() / weight_sum[planes, y, x]


def _require_finite(sums: Tensor) -> None:
    """Raise unless all sums (K, n, Y, X) are finite. Asked once for all planes: each answer makes the host wait for a GPU."""
    # A sum takes no memory (on a CPU one of half precision makes a copy: plane by plane there), and is finite unless one is not, or
    # they are huge.
    planes = sums.unbind(1)
    summed = planes if sums.device.type == "cpu" else (sums,)
    if all(bool(part.sum(dtype=torch.float32).isfinite()) for part in summed):
        return
    if not all(bool(plane.isfinite().all()) for plane in planes):
        raise CaseError(
            "the network's logits are not finite numbers: its precision overflows on this image, or its weights are damaged; "
            "try --precision float32"
        )


def _with_background(planes: Iterator[Tensor], *, regions: bool) -> Iterator[Tensor]:
    """Call background where no window was computed: its sum of weights is 0, and the mean 0 / 0."""
    for mean in planes:
        unseen = mean[0].isnan()
        mean.masked_fill_(unseen, -1.0)
        if not regions:
            mean[0].masked_fill_(unseen, 1.0)
        yield mean


def _shift(total: Tensor, weight_sum: Tensor, n: int) -> None:
    """Move sums down by some planes, in place: plane by plane, ascending, so that nothing is read after it was written."""
    height = weight_sum.shape[0]
    for z in range(height):
        if z + n < height:
            total[:, z], weight_sum[z] = total[:, z + n], weight_sum[z + n]
        else:
            total[:, z], weight_sum[z] = 0, 0


def _box(start: tuple[int, ...], patch: tuple[int, ...]) -> Slices:
    return tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))


def _inside(image: Tensor, outside: Tensor) -> Tensor:
    """Voxels (Z, Y, X) of an image (C, Z, Y, X) where a channel differs from its value outside the body."""
    inside = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    at_once = max(PLANES_BYTES // (4 * inside[0].numel()), 1)
    for channel, value in zip(image, outside, strict=True):
        for planes, differs in zip(torch.split(channel, at_once), torch.split(inside, at_once), strict=True):
            # Interpolation leaves a constant region constant up to rounding.
            differs |= ~((planes - value).abs() < _NO_DIFFERENCE)
    return inside


def _holding_some(starts: list[tuple[int, ...]], inside: Tensor, patch: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Windows with at least one voxel inside the body. Asked for all of them at once, since each answer makes the host wait for a GPU."""
    holds = torch.stack([inside[_box(start, patch)].any() for start in starts]).tolist()
    return [start for start, some in zip(starts, holds, strict=True) if some]
