"""One trained configuration of a model, ready to compute: a prepared image in, logits out, plane by plane."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segpipe.augment.previous import one_hot
from segpipe.core.volume import Volume
from segpipe.inference.calling import MOST_REGIONS, largest
from segpipe.inference.memory import choose_sums
from segpipe.inference.restore import labels_of, restored_labels, restored_probabilities, uncrop
from segpipe.inference.sliding import Agreement, Ensemble, logit_planes, windows_of
from segpipe.inference.tally import Tally
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.normalise import outside_values
from segpipe.preprocessing.prepare import Prepared, prepare
from segpipe.preprocessing.room import Resampling, resampling_of_image


@dataclass
class CaseTrace:
    """What is noticed while a case is computed."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    n_windows: int = 0
    agreement: Agreement = field(default_factory=Agreement)
    entropy: Tally = field(default_factory=Tally)
    """Summed over the foreground, each voxel's between 0 and 1."""
    foreground: Tally = field(default_factory=Tally)
    """Voxels, at the network's spacing."""
    _within: list[str] = field(default_factory=list)
    _since: float = 0.0

    @property
    def mean_entropy(self) -> float | None:
        """Mean entropy of the foreground's voxels, as a share of the largest possible; None without foreground."""
        return self.entropy.value / self.foreground.value if self.foreground.value else None

    def settle(self) -> None:
        """Bring what was counted on the device to the host."""
        for counted in (self.entropy, self.foreground, self.agreement):
            counted.settle()

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Charge the seconds inside to a stage; a stage within a stage is not charged to both."""
        self._charge()
        self._within.append(what)
        try:
            yield
        finally:
            self._charge()
            self._within.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._within:
            self.seconds[self._within[-1]] = self.seconds.get(self._within[-1], 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True)
class LoadedModel:
    """A configuration with the networks of its folds."""

    plan: Plan
    configuration: Configuration
    ensemble: Ensemble
    device: torch.device
    step: float = 0.5
    previous: "LoadedModel | None" = None
    """Whose segmentation is a further input (cascade)."""

    def resamplings(self, image: Volume) -> list[Resampling]:
        """Return what becomes of an image (C, Z, Y, X) in this stage and in those before it."""
        # On the CPU a padded copy may lie beside the resampled image.
        copies = 1 if self.device.type == "cuda" else 2
        own = resampling_of_image(image, self.plan, self.configuration, n_copies=copies)
        return [*([] if self.previous is None else self.previous.resamplings(image)), own]

    def prepare(self, image: Volume) -> Prepared | None:
        """Prepare an image (C, Z, Y, X) in the plan's orientation; None where that needs the first stage's segmentation.

        Raises
        ------
        CaseError
            If it would not fit into the free memory in one of the stages (NoRoomError), or cannot be prepared.
        """
        for resampling in self.resamplings(image):
            resampling.require_room()
        return None if self.previous else prepare(image, None, self.plan, self.configuration)

    def ready(self, image: Volume, prepared: Prepared | None, measured: CaseTrace) -> tuple[Prepared, Tensor]:
        """Return a prepared image, and its channels with those of the first stage's segmentation behind them."""
        found = None
        if self.previous is not None:
            found = self.previous.segment(image, self.previous.prepare(image), measured)
            found = found.transpose(self.previous.plan.transpose_backward)
            # What is reported of the quality is of the last stage.
            measured.entropy, measured.foreground, measured.agreement = Tally(), Tally(), Agreement()
        with measured.timing("prepare"):
            if prepared is None:
                self.resamplings(image)[-1].require_room()
                prepared = prepare(image, found, self.plan, self.configuration)
            voxels = torch.from_numpy(prepared.image)
            if prepared.segmentation is not None:
                # One channel of indices; windows are given one channel a label.
                voxels = torch.cat((voxels, torch.from_numpy(np.maximum(prepared.segmentation, 0)).float()[None]))
        return prepared, voxels

    def segment(self, image: Volume, prepared: Prepared | None, measured: CaseTrace) -> NDArray[np.unsignedinteger]:
        """Return stored label values (Z, Y, X) of the whole image, in the plan's axis order."""
        labels = self.plan.labels
        prepared, voxels = self.ready(image, prepared, measured)
        placement, shape = prepared.placement, tuple(voxels.shape[1:])
        planes = self.logits(voxels, measured)
        with measured.timing("restore"):
            sets = tuple(labels.own_sets.values())
            if labels.regions and labels.n_outputs > MOST_REGIONS:
                native = restored_probabilities(
                    planes, shape, placement.shape_after_crop, placement.apart_back, regions=True
                )
                painted = labels_of(native, placement.shape_after_crop, regions=True, sets=sets)
            else:
                painted = restored_labels(
                    planes, shape, placement.shape_after_crop, placement.apart_back, regions=labels.regions, sets=sets
                )
            return labels.written(uncrop(painted, placement))

    def probabilities(self, image: Volume, prepared: Prepared | None, measured: CaseTrace) -> "Probabilities":
        """Return probabilities on the native grid of the crop, plane by plane."""
        prepared, voxels = self.ready(image, prepared, measured)
        placement = prepared.placement
        planes = restored_probabilities(
            self.logits(voxels, measured),
            tuple(voxels.shape[1:]),
            placement.shape_after_crop,
            placement.apart_back,
            regions=self.plan.labels.regions,
        )
        return Probabilities(prepared, planes)

    def logits(self, voxels: Tensor, measured: CaseTrace) -> Iterator[Tensor]:
        """Logits (K, n, Y, X) of a prepared image (C, Z, Y, X), a few planes at a time."""
        windows = windows_of(tuple(voxels.shape[1:]), self.configuration.patch_size, self.step)
        labels = self.plan.labels
        n_outputs, measured.agreement.regions = labels.n_outputs, labels.regions
        sums = choose_sums(windows, n_outputs, self.ensemble.batch, self.device, taken=2 * voxels.nbytes)

        def count(n: int) -> None:
            measured.n_windows += n

        planes = logit_planes(
            self.ensemble,
            voxels.to(self.device),
            windows,
            allocate=sums.allocate,
            n_outputs=n_outputs,
            regions=labels.regions,
            expand=self._expand,
            outside=self._outside(voxels.shape[0]),
            agreement=measured.agreement,
            on_tile=count,
        )
        for logits in timed(planes, "network", measured):
            with measured.timing("quality"):
                _add_entropy(logits, measured, regions=self.plan.labels.regions)
            yield logits

    def _expand(self, tiles: Tensor) -> Tensor:
        """What the network is given of tiles (N, C, *patch): of a first stage's labels one channel each."""
        if self.previous is None:
            return tiles
        found = one_hot(tiles[:, -1].to(torch.int16), len(self.plan.labels.values) - 1)
        return torch.cat((tiles[:, :-1], found), dim=1)

    def _outside(self, n_inputs: int) -> Tensor | None:
        """Value of each input channel outside the body, where the plan says that windows of nothing else are skipped."""
        if not self.plan.inference.skip_empty_windows:
            return None
        values = outside_values(
            self.configuration.normalisation, self.configuration.use_mask_for_norm, self.plan.intensities
        )
        return None if values is None else F.pad(torch.tensor(values), (0, n_inputs - len(values))).to(self.device)


@dataclass(frozen=True)
class Probabilities:
    """Probabilities of a case, computed as they are asked for."""

    prepared: Prepared
    planes: Iterator[Tensor]
    """(K, Y, X) of each plane of the crop, in order."""


def timed(items: Iterator[Tensor], what: str, measured: CaseTrace) -> Iterator[Tensor]:
    """Yield items, charging the seconds that each takes to come to a stage."""
    while True:
        with measured.timing(what):
            item = next(items, None)
        if item is None:
            return
        yield item


def entropy_of(probabilities: Tensor, *, regions: bool) -> Tensor:
    """Entropy of (K, ...), between 0 and 1: of the distribution over labels, or the mean of each region's own."""
    if regions:
        both = torch.stack((probabilities, 1 - probabilities))
        entropy: Tensor = torch.special.entr(both).sum(0).mean(0) / log(2)
    else:
        entropy = torch.special.entr(probabilities).sum(0) / log(len(probabilities))
    return entropy


def _add_entropy(logits: Tensor, measured: CaseTrace, *, regions: bool) -> None:
    foreground = (logits > 0).any(0) if regions else largest(logits) > 0
    measured.foreground.add(foreground.sum())
    if logits.device.type == "cpu":
        # Few voxels are foreground. A GPU computes all of them sooner than it says how many.
        logits, foreground = logits[:, foreground], foreground[foreground]
    probabilities = logits.sigmoid() if regions else logits.softmax(0)
    measured.entropy.add((entropy_of(probabilities, regions=regions) * foreground).sum())
