"""Losses joined: the terms of a recipe, over the heads of a network."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.core.labels import Labels
from segpipe.execution.device import sent
from segpipe.losses.cldice import cldice_loss
from segpipe.losses.overlap import generalised_dice_loss, soft_dice_loss, tversky_loss
from segpipe.losses.reference import Reference, Total, alone
from segpipe.losses.spec import (
    BACKGROUND,
    DEFAULT_LOSS,
    BoundaryTerm,
    ClDiceTerm,
    CrossEntropyTerm,
    DiceTerm,
    FocalTerm,
    GeneralisedDiceTerm,
    HausdorffTerm,
    LossTerm,
    TopKTerm,
    TverskyTerm,
)
from segpipe.losses.surface import boundary_loss, hausdorff_loss
from segpipe.losses.voxelwise import cross_entropy, top_k_cross_entropy

_OF_SHAPES = (BoundaryTerm, HausdorffTerm, ClDiceTerm)
"""Terms of surfaces and skeletons: at lower resolutions these are other shapes, so only full resolution has them."""


@dataclass(frozen=True)
class Loss:
    """The weighted sum of a recipe's terms, as the labels mean them."""

    labels: Labels
    terms: tuple[LossTerm, ...] = DEFAULT_LOSS
    batch_dice: bool = False
    """Where a term does not say: sum overlaps over the batch before dividing."""
    spacing: tuple[float, ...] = ()
    """Size of a voxel, for terms of distances; all edges alike unless given."""
    total: Total = alone
    """Sum over the processes that share a batch: the loss is that of the whole batch."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (N, K, ...) against label indices (N, ...), in float32 or better."""
        return self._sum(self.terms, logits, target)

    @property
    def floor(self) -> float | None:
        """Least value, that of a perfect answer: Dice counts from -1, the others from 0; none where there is a boundary loss."""
        if any(isinstance(term, BoundaryTerm) for term in self.terms):
            return None
        return -sum(term.weight for term in self.terms if isinstance(term, DiceTerm))

    def over_heads(self, heads: list[Tensor], target: Tensor, weights: list[float]) -> Tensor:
        """Weighted sum over a network's heads; the target is brought to each by nearest neighbour.

        Parameters
        ----------
        heads : list of Tensor
            (N, K, ...), full resolution first.
        target : Tensor of int64
            (N, ...) at full resolution.
        weights : list of float
            One a head.
        """
        everywhere = tuple(term for term in self.terms if not isinstance(term, _OF_SHAPES))
        of_shapes = tuple(term for term in self.terms if isinstance(term, _OF_SHAPES))
        summed = heads[0].new_zeros((), dtype=_exact(heads[0]).dtype)
        for weight, head in zip(weights, heads, strict=True):
            if everywhere:
                summed = summed + weight * self._sum(everywhere, head, shrink_labels(target, tuple(head.shape[2:])))
        return summed + self._sum(of_shapes, heads[0], target) if of_shapes else summed

    def _sum(self, terms: tuple[LossTerm, ...], logits: Tensor, target: Tensor) -> Tensor:
        logits, reference = _exact(logits), Reference.of(target, self.labels)
        values = [term.weight * self._value(term, logits, reference) for term in terms]
        return torch.stack(values).sum()

    def _value(self, term: LossTerm, logits: Tensor, reference: Reference) -> Tensor:
        total, spacing = self.total, self.spacing or (1.0,) * (logits.ndim - 2)
        match term:
            case CrossEntropyTerm():
                return cross_entropy(logits, reference, weights=self._weights(term.class_weights, logits), total=total)
            case FocalTerm(gamma=gamma):
                weights = self._weights(term.class_weights, logits)
                return cross_entropy(logits, reference, weights=weights, gamma=gamma, total=total)
            case TopKTerm(share=share):
                return top_k_cross_entropy(logits, reference, share=share, total=total)
            case GeneralisedDiceTerm():
                return generalised_dice_loss(logits, reference, total=total)
        probabilities = reference.probabilities(logits)
        match term:
            case DiceTerm():
                return soft_dice_loss(
                    probabilities,
                    reference.target,
                    reference.members,
                    batch_dice=self.batch_dice if term.batch is None else term.batch,
                    kept=reference.kept,
                    total=total,
                )
            case TverskyTerm():
                return tversky_loss(
                    probabilities,
                    reference,
                    false_positives=term.false_positives,
                    false_negatives=term.false_negatives,
                    exponent=term.exponent,
                    batch=self.batch_dice if term.batch is None else term.batch,
                    total=total,
                )
            case BoundaryTerm():
                return boundary_loss(probabilities, reference, spacing=spacing, total=total)
            case HausdorffTerm():
                return hausdorff_loss(probabilities, reference, spacing=spacing, alpha=term.alpha, total=total)
            case ClDiceTerm():
                return cldice_loss(probabilities, reference, iterations=term.iterations, total=total)

    def _weights(self, given: object, logits: Tensor) -> Tensor | None:
        """(K,) of the network's outputs, where the logits are."""
        if given is None:
            return None
        assert isinstance(given, dict), f"class weights {given!r}: a plan holds numbers"
        names = self.labels.names if self.labels.regions else (BACKGROUND, *self.labels.names)
        return sent([float(given.get(name, 1.0)) for name in names], logits.device, logits.dtype)


def shrink_labels(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring labels (N, ...) to a smaller shape by nearest neighbour."""
    if tuple(target.shape[1:]) == shape:
        return target
    return F.interpolate(target[:, None].float(), size=shape, mode="nearest-exact")[:, 0].to(target.dtype)


def _exact(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
