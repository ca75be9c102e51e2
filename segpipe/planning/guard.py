"""Is this image of the kind the model was trained on? Intensity percentiles of a case against those of the training cases. Pure.

A CT without its rescale, an 8-bit export or channels in another order give a wrong segmentation without an error. What is tolerated is
measured on the training cases themselves: each is compared with the others.
"""

import numpy as np
from numpy.typing import NDArray

from segpipe.core.artefact import Record
from segpipe.dataset.fingerprint.schema import CaseFingerprint

Floats = NDArray[np.float64]
Percentiles = tuple[tuple[float, ...], ...]

_TOLERANCE = 0.25
"""Excess, as a share of the usual range, that is never flagged: CT without its rescale exceeds by 0.5 to 1."""
_TOLERANCE_OF_FEW = 0.5
"""The same with fewer than three training cases, whose variety is not known."""
_SAFETY = 1.5
_CLEARLY_BETTER = 1.5
_HU_OFFSET = 1024


class ChannelRange(Record):
    """What the training cases' percentiles were, in one channel; tuples as PERCENTILES."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    typical: tuple[float, ...]
    """Medians over cases."""
    span: float
    """Usual distance of a case's lowest percentile from its highest."""
    tolerance: float
    """Largest excess over low and high, as a share of span, of an image of the same kind."""


class IntensityGuard(Record):
    """What images of the training kind look like, channel by channel. Without channels nothing is judged."""

    channels: tuple[ChannelRange, ...] = ()
    tells_order: bool = False
    """Every training case is nearest to its own channels in their own order, so another order can be recognised."""


def make_guard(cases: tuple[CaseFingerprint, ...]) -> IntensityGuard:
    """Learn from the training cases what their images look like."""
    if not cases or not all(c.percentiles for c in cases):
        return IntensityGuard()
    seen = np.array([c.percentiles for c in cases])
    channels = tuple(_range_of(seen[:, channel]) for channel in range(seen.shape[1]))
    enough = len(cases) >= 3 and len(channels) > 1
    tells = enough and all(_best_order(case, channels)[0] == list(range(len(channels))) for case in seen)
    return IntensityGuard(channels=channels, tells_order=tells)


def doubts(percentiles: Percentiles, guard: IntensityGuard, channel_names: tuple[str, ...]) -> tuple[str, ...]:
    """Reasons to doubt that an image is of the training kind; empty when there are none.

    Parameters
    ----------
    percentiles : tuple
        PERCENTILES of the image's non-zero voxels, one row a channel.
    guard : IntensityGuard
    channel_names : tuple of str
    """
    found = []
    if guard.tells_order:
        order, better = _best_order(np.array(percentiles), guard.channels)
        if order != list(range(len(order))) and better > _CLEARLY_BETTER:
            named = ", ".join(channel_names[c] for c in order)
            found.append(f"channels look like {named}, in this order; expected {', '.join(channel_names)}")
    for name, values, usual in zip(channel_names, percentiles, guard.channels, strict=False):
        excess = _excess(np.array(values), usual)
        if excess > usual.tolerance:
            found.append(
                f"{name}: intensities run from {values[0]:.4g} to {values[-1]:.4g} with median {values[3]:.4g}, those of training from "
                f"{min(usual.low):.4g} to {max(usual.high):.4g} with medians {usual.low[3]:.4g} to {usual.high[3]:.4g}"
                f"{_explanation(values, usual)}"
            )
    return tuple(found)


def drift(percentiles: Percentiles, guard: IntensityGuard) -> float | None:
    """How far an image lies beyond the training cases, 1 being the most that is tolerated; None where nothing is judged."""
    each = [
        _excess(np.array(values), usual) / usual.tolerance
        for values, usual in zip(percentiles, guard.channels, strict=False)
    ]
    return round(max(*each, 0.0), 4) if each else None


def _range_of(values: Floats) -> ChannelRange:
    """Range of one channel's percentiles, (cases, percentiles)."""
    span = float(np.median(values[:, -1] - values[:, 0])) or 1.0
    tolerance = _TOLERANCE_OF_FEW
    if len(values) >= 3:
        outside = [_excess(case, _plain_range(np.delete(values, i, axis=0), span)) for i, case in enumerate(values)]
        tolerance = max(_TOLERANCE, _SAFETY * max(outside))
    return _plain_range(values, span).model_copy(update={"tolerance": tolerance})


def _plain_range(values: Floats, span: float) -> ChannelRange:
    low, high, typical = values.min(axis=0), values.max(axis=0), np.median(values, axis=0)
    return ChannelRange(
        low=tuple(low.tolist()), high=tuple(high.tolist()), typical=tuple(typical.tolist()), span=span, tolerance=0.0
    )


def _excess(values: Floats, usual: ChannelRange) -> float:
    """Largest distance of a percentile from where it may lie, as a share of the usual range.

    It may lie from the lowest that the percentile before it was in training to the highest of the one after it: where a tissue
    fills a little more of one image, a percentile jumps from one tissue to the next.
    """
    low, high = np.array(usual.low), np.array(usual.high)
    low, high = np.concatenate((low[:1], low[:-1])), np.concatenate((high[1:], high[-1:]))
    return float(np.maximum(low - values, values - high).max() / usual.span)


def _best_order(values: Floats, channels: tuple[ChannelRange, ...]) -> tuple[list[int], float]:
    """For each channel of an image the training channel that it is nearest to, and how many times nearer than its own."""
    # Half a second to load, and needed only where there are several channels.
    from scipy.optimize import linear_sum_assignment

    distance = np.array([[np.abs(v - np.array(c.typical)).mean() / c.span for c in channels] for v in values])
    _, columns = linear_sum_assignment(distance)
    best = float(distance[np.arange(len(values)), columns].sum())
    own = float(np.trace(distance))
    return [int(c) for c in columns], own / max(best, 1e-9)


def _explanation(values: tuple[float, ...], usual: ChannelRange) -> str:
    shift = np.median([v - t for v, t in zip(values[1:-1], usual.typical[1:-1], strict=True)])
    if abs(abs(shift) - _HU_OFFSET) < _HU_OFFSET / 8:
        return f": shifted by about {shift:+.0f}, as a CT whose rescale intercept was lost or applied twice"
    whole_steps = all(v == round(v) for v in values)
    if whole_steps and values[0] >= 0 and values[-1] <= 255 and max(usual.high) > 2 * 255:
        return ": all within 0 to 255, as in an export of 8 bits"
    return ""
