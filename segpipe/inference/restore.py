"""From logits at the network's spacing to labels and probabilities on the image's own grid, a few planes at a time.

Interpolating linearly is taking a mean of the eight logits around a voxel. Where one label is the largest at all eight, it is the
largest of their mean, whatever the weights: such voxels, nearly all of an image, need no interpolation. For the rest all labels are
interpolated, exactly. (With regions, each with a probability of its own, the same holds for the set of regions that are more
likely than not.) So the work hardly grows with the labels, and memory is that of the planes in hand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segpipe.execution.device import arriving, sent
from segpipe.inference.calling import call, largest
from segpipe.preprocessing.prepare import Placement
from segpipe.preprocessing.resample import nearest_indices

Shape = tuple[int, ...]
Sets = tuple[tuple[int, ...], ...]
"""Sets of regions, by their numbers from 0, that are no painting in order: each has a number after the last region's."""

_VOXELS_AT_ONCE = 2**22
"""Native voxels that are restored together."""
_ROWS_AT_ONCE = 2**19
"""Voxels of these that are interpolated together."""


@dataclass(frozen=True)
class Axis:
    """For each position of one axis of the native grid: the two of the network's grid that it lies between."""

    low: Tensor
    high: Tensor
    share: Tensor
    """Weight of the higher one."""


def axis_between(n_in: int, n_out: int, *, nearest: bool) -> Axis:
    """Positions of linear interpolation with voxel boundaries aligned and edges extended, or of the nearest neighbour."""
    if nearest or n_in == n_out:
        index = torch.from_numpy(nearest_indices(n_in, n_out)) if nearest else torch.arange(n_in)
        return Axis(index, index, torch.zeros(n_out))
    centres = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    low = np.minimum(np.floor(centres), n_in - 1).astype(np.int64)
    high = np.minimum(low + 1, n_in - 1)
    return Axis(torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy((centres - low).astype(np.float32)))


class Restoring:
    """Collects planes of logits and tells which native planes follow from those that are there."""

    def __init__(self, shape_in: Shape, shape_out: Shape, apart: int | None) -> None:
        self.shape_in, self.shape_out = shape_in, shape_out
        self.axes = [
            axis_between(n, m, nearest=axis == apart)
            for axis, (n, m) in enumerate(zip(shape_in, shape_out, strict=True))
        ]
        self._on_device: tuple[Axis, Axis, Axis] | None = None
        self.same = tuple(shape_in) == tuple(shape_out)
        self.arrived = 0
        self.next = 0
        """First native plane that is not restored yet."""
        self.blocks = 1
        """How often as many voxels as are interpolated together are taken from a part without asking how many are mixed."""

    def axes_on(self, device: torch.device) -> tuple[Axis, Axis, Axis]:
        """Positions along the three axes, on the device that all planes of a case lie on; sent there once."""
        if self._on_device is None:
            z, y, x = (Axis(*(sent(t, device) for t in (a.low, a.high, a.share))) for a in self.axes)
            self._on_device = (z, y, x)
        return self._on_device

    def ready(self, n: int) -> slice:
        """Take note of ``n`` further planes; returns the native planes that they complete."""
        self.arrived += n
        end = int(torch.searchsorted(self.axes[0].high, self.arrived))
        planes = slice(self.next, end)
        self.next = end
        return planes

    @property
    def first_needed(self) -> int:
        """First plane of logits that a native plane still needs."""
        low = self.axes[0].low
        return int(low[self.next]) if self.next < len(low) else self.arrived


def restored_labels(
    planes: Iterator[Tensor], shape_in: Shape, shape_out: Shape, apart: int | None, *, regions: bool, sets: Sets = ()
) -> NDArray[np.int16]:
    """Interpolate logits to the native grid and take the largest, or with regions paint each that is more likely than not.

    Parameters
    ----------
    planes : iterator of Tensor
        Logits (K, n, Y, X), in the order of their planes.
    shape_in, shape_out : tuple of int
        (Z, Y, X) of the network's and of the native grid.
    apart : int or None
        Axis taken by nearest neighbour.
    regions : bool
        Outputs are regions, painted in their order, later ones over earlier ones; else the first output is the background.
    sets : tuple of tuple of int
        Sets of regions with a number of their own.

    Returns
    -------
    ndarray
        (Z, Y, X); number of the label, region or set, 0 for the background.
    """
    restoring = Restoring(shape_in, shape_out, apart)
    labels = np.empty(shape_out, dtype=np.int16)
    table = calls = None
    for logits in planes:
        here, called = logits.permute(1, 2, 3, 0).contiguous(), call(logits, regions=regions)
        table, calls = (
            (here, called) if table is None or calls is None else (torch.cat((table, here)), torch.cat((calls, called)))
        )
        first = restoring.arrived + here.shape[0] - table.shape[0]
        done = restoring.ready(here.shape[0])
        at_once = max(_VOXELS_AT_ONCE // (shape_out[1] * shape_out[2]), 1)
        for z in range(done.start, done.stop, at_once):
            part = slice(z, min(z + at_once, done.stop))
            labels[part] = _restore(table, calls, first, part, restoring, sets if regions else None)
        kept = restoring.first_needed - first
        table, calls = table[kept:], calls[kept:]
    return labels


def _restore(
    table: Tensor, calls: Tensor, first: int, part: slice, restoring: Restoring, sets: Sets | None
) -> NDArray[np.int16]:
    """Labels of some native planes; ``table`` holds logits (n, Y, X, K) from plane ``first`` on; without ``sets`` these are no regions."""
    regions, sets = sets is not None, sets or ()
    n_regions = table.shape[-1] if regions else None
    if restoring.same:
        return _painted(calls[part.start - first : part.stop - first], n_regions, sets).cpu().numpy()
    z, y, x = restoring.axes_on(table.device)
    z = Axis(z.low[part] - first, z.high[part] - first, z.share[part])
    least, most = calls, calls
    for number, axis in enumerate((z, y, x)):
        least, most = (
            combine(values.index_select(number, axis.low), values.index_select(number, axis.high))
            for combine, values in ((torch.minimum, least), (torch.maximum, most))
        )
    labels, mixed = _painted(least, n_regions, sets), least != most
    rows = table.reshape(-1, table.shape[-1])

    def interpolate(voxels: Tensor) -> None:
        logits = _interpolated(rows, calls.shape, voxels, (z, y, x))
        called = call(logits.T, regions=True) if regions else logits.argmax(1)
        labels[voxels.unbind(1)] = _painted(called, n_regions, sets)

    if labels.device.type == "cpu":
        for some in torch.split(mixed.nonzero(), _ROWS_AT_ONCE):
            interpolate(some)
        return labels.numpy()
    # How many voxels are mixed is known on the device alone. As many as were in the parts before are taken without asking (where there
    # are fewer, the rest is voxel 0, which interpolation leaves as it is); the number comes home with the labels.
    taken = min(restoring.blocks * _ROWS_AT_ONCE, mixed.numel())
    for some in torch.split(torch.nonzero_static(mixed, size=taken, fill_value=0), _ROWS_AT_ONCE):
        interpolate(some)
    count = arriving(mixed.sum())
    home = labels.cpu()
    n_mixed: int = count()
    if n_mixed > taken:
        # Doubled at least, so that this happens a few times a case and not once a part.
        restoring.blocks = max(-(-n_mixed // _ROWS_AT_ONCE), 2 * restoring.blocks)
        for some in torch.split(mixed.nonzero()[taken:], _ROWS_AT_ONCE):
            interpolate(some)
        home = labels.cpu()
    return home.numpy()


def _interpolated(rows: Tensor, shape: torch.Size, voxels: Tensor, axes: tuple[Axis, Axis, Axis]) -> Tensor:
    """Logits (N, K) at native voxels (N, 3): means of the eight rows around each."""
    index = torch.zeros((len(voxels), 1), dtype=torch.int64, device=rows.device)
    weight = torch.ones((len(voxels), 1), device=rows.device)
    for number, axis in enumerate(axes):
        at = voxels[:, number]
        ends = torch.stack((axis.low[at], axis.high[at]), dim=1)
        shares = torch.stack((1 - axis.share[at], axis.share[at]), dim=1)
        index = (index[:, :, None] * shape[number] + ends[:, None]).flatten(1)
        weight = (weight[:, :, None] * shares[:, None]).flatten(1)
    return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")


def _painted(calls: Tensor, n_regions: int | None, sets: Sets) -> Tensor:
    """Labels of what is called: as it is, or of so many regions the set's own number, else that of the last region in it."""
    if n_regions is None:
        return calls.to(torch.int16)
    painted = torch.zeros(calls.shape, dtype=torch.int16, device=calls.device)
    for number in range(n_regions):
        painted.masked_fill_((calls >> number & 1).bool(), number + 1)
    for number, members in enumerate(sets, start=n_regions + 1):
        painted.masked_fill_(calls == sum(1 << member for member in members), number)
    return painted


def restored_probabilities(
    planes: Iterator[Tensor], shape_in: Shape, shape_out: Shape, apart: int | None, *, regions: bool
) -> Iterator[Tensor]:
    """Yield probabilities (K, Y, X) of each native plane in order: interpolated logits through softmax, or sigmoid with regions.

    Parameters
    ----------
    planes, shape_in, shape_out, apart, regions
        As for :func:`restored_labels`.
    """
    for mixed in interpolated_planes(planes, shape_in, shape_out, apart):
        yield mixed.sigmoid() if regions else mixed.softmax(0)


def interpolated_planes(
    planes: Iterator[Tensor], shape_in: Shape, shape_out: Shape, apart: int | None = None
) -> Iterator[Tensor]:
    """Yield each plane (K, Y, X) of another grid over the same box, interpolated linearly from planes (K, n, Y, X) in order.

    Parameters
    ----------
    planes, shape_in, shape_out, apart
        As for :func:`restored_labels`; the values may be any.
    """
    restoring = Restoring(shape_in, shape_out, apart)
    held: Tensor | None = None
    for arrived in planes:
        values = arrived.float()
        within = _in_plane(values, restoring, apart)
        held = within if held is None else torch.cat((held, within), 1)
        first = restoring.arrived + values.shape[1] - held.shape[1]
        done, axis = restoring.ready(values.shape[1]), restoring.axes[0]
        for z in range(done.start, done.stop):
            yield torch.lerp(held[:, axis.low[z] - first], held[:, axis.high[z] - first], float(axis.share[z]))
        held = held[:, restoring.first_needed - first :]


def labels_of(probabilities: Iterator[Tensor], shape: Shape, *, regions: bool, sets: Sets = ()) -> NDArray[np.int16]:
    """Labels of planes of probabilities, brought to the host some planes at a time.

    Parameters
    ----------
    probabilities : iterator of Tensor
        (K, Y, X) of each plane, in order.
    shape : tuple of int
        (Z, Y, X).
    regions : bool
        Outputs are regions; else the first one is the background.
    sets : tuple of tuple of int
        Sets of regions with a number of their own.

    Returns
    -------
    ndarray
        (Z, Y, X); number of the label, or of the set or the last region that is more likely than not, 0 for the background.
    """
    labels, at_once = np.empty(shape, dtype=np.int16), max(_VOXELS_AT_ONCE // (shape[1] * shape[2]), 1)
    painted = (_painted_plane(plane, regions=regions, sets=sets) for plane in probabilities)
    for first in range(0, shape[0], at_once):
        together = torch.stack(list(islice(painted, at_once)))
        labels[first : first + at_once] = together.cpu().numpy()
    return labels


def _painted_plane(probabilities: Tensor, *, regions: bool, sets: Sets) -> Tensor:
    """Numbers of labels (Y, X) from probabilities (K, Y, X)."""
    if not regions:
        return largest(probabilities).to(torch.int16)
    painted = torch.zeros(probabilities.shape[1:], dtype=torch.int16, device=probabilities.device)
    for number, region in enumerate(probabilities, start=1):
        painted.masked_fill_(region > 0.5, number)
    for number, members in enumerate(sets, start=len(probabilities) + 1):
        there = [(region > 0.5) == (k in members) for k, region in enumerate(probabilities)]
        painted.masked_fill_(torch.stack(there).all(0), number)
    return painted


def _in_plane(logits: Tensor, restoring: Restoring, apart: int | None) -> Tensor:
    """Interpolate (K, n, Y, X) along its last two axes."""
    shape_out = restoring.shape_out
    if apart in (1, 2):
        logits = logits.index_select(1 + apart, restoring.axes_on(logits.device)[apart].low)
    if tuple(logits.shape[2:]) == tuple(shape_out[1:]):
        return logits
    return F.interpolate(logits.movedim(1, 0), size=shape_out[1:], mode="bilinear", align_corners=False).movedim(0, 1)


def uncrop(labels: NDArray[np.int16], placement: Placement) -> NDArray[np.int16]:
    """Put the crop back; background (0) outside it."""
    whole = np.zeros(placement.shape_before_crop, dtype=labels.dtype)
    whole[placement.box] = labels
    return whole
