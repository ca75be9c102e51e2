"""Weights of labels in the loss from how often they occur. Pure."""

import numpy as np

from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import PlanError
from segpipe.losses.spec import BACKGROUND, LossTerm, WeightedTerm
from segpipe.planning.recipe import TrainingSettings
from segpipe.planning.schema import Decision


def with_class_weights(settings: TrainingSettings, fingerprint: Fingerprint) -> tuple[TrainingSettings, list[Decision]]:
    """Return the settings with numbers where the recipe says how they follow from the dataset, and what was decided.

    Raises
    ------
    PlanError
        If a term weighs a label that the dataset does not have, or every label 0.
    """
    terms: list[LossTerm] = []
    decisions = []
    for term in settings.loss:
        given = term.class_weights if isinstance(term, WeightedTerm) else None
        if isinstance(given, str):
            weights = class_weights(fingerprint, given)
            decisions.append(
                Decision(
                    rule=f"class weights of {term.name}",
                    chosen=", ".join(f"{name} {weight:.3g}" for name, weight in weights.items()),
                    because=f"{given}: from the voxels of each label in the dataset",
                )
            )
            terms.append(term.model_copy(update={"class_weights": weights}))
            continue
        if given is not None:
            _require_names(given, fingerprint)
        terms.append(term)
    return settings.model_copy(update={"loss": tuple(terms)}), decisions


def class_weights(fingerprint: Fingerprint, rule: str) -> dict[str, float]:
    """Weight of each label, background first, or of each region.

    ``balanced``: all labelled voxels over (number of classes times voxels of the class), so that every class counts the same in all.
    ``median_frequency``: the median of the classes' frequencies over the class's own, a frequency being a class's share of the
    voxels of the cases that hold it (Eigen and Fergus 2015, arXiv 1411.4734).

    Raises
    ------
    PlanError
        If a label is in no case.
    """
    cases = fingerprint.cases
    labelled = np.array([np.prod(c.shape_after_crop) - c.ignored_voxels for c in cases], dtype=np.float64)
    counts = {
        t.name: np.array([sum(c.label_voxels.get(v, 0) for v in t.values) for c in cases])
        for t in fingerprint.labels.targets
    }
    if not fingerprint.labels.regions:
        counts = {BACKGROUND: labelled - sum(counts.values())} | counts
    absent = [name for name, voxels in counts.items() if not voxels.any()]
    if absent:
        raise PlanError(
            f"class_weights {rule!r}: no case has {', '.join(absent)}, whose weight would be infinite; give weights as numbers"
        )
    if rule == "balanced":
        found = {name: labelled.sum() / (len(counts) * voxels.sum()) for name, voxels in counts.items()}
    else:
        shares = {name: voxels.sum() / labelled[voxels > 0].sum() for name, voxels in counts.items()}
        found = {name: float(np.median(list(shares.values()))) / share for name, share in shares.items()}
    return {name: float(f"{weight:.6g}") for name, weight in found.items()}


def _require_names(weights: dict[str, float], fingerprint: Fingerprint) -> None:
    names = fingerprint.labels.names
    known = names if fingerprint.labels.regions else (BACKGROUND, *names)
    unknown = [name for name in weights if name not in known]
    if unknown:
        raise PlanError(f"class_weights names {', '.join(unknown)}; the dataset has {', '.join(known)}")
    if not any(weights.get(name, 1.0) for name in known):
        raise PlanError("class_weights is 0 for every label; give one of them more")
