"""Artefacts of a cross-validation: how it was designed, how cases were divided, what was chosen, what came out."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from segpipe.core.artefact import Artefact, Record
from segpipe.core.labels import Labels
from segpipe.crossvalidation.candidates import Candidate, SearchSpace
from segpipe.dataset.splits import Fold
from segpipe.errors import CrossvalError
from segpipe.planning.recipe import Recipe

FINAL = "final"
"""Name of the study of all cases, from which the model to be used comes."""

Scheme = Literal["k-fold", "leave-one-group-out", "fixed test set", "file"]


class CrossvalDesign(Artefact):
    """What was asked for. Nothing of it may change once work has begun, so that numbers are of one design."""

    software: str
    """Version of segpipe."""
    dataset_name: str
    recipe: Recipe
    candidates: tuple[Candidate, ...] = ()
    space: SearchSpace | None = None
    """What candidates are searched in, instead of a list."""
    n_trials: int | None = None
    nested: bool = True
    inner_folds: int
    refit: bool = False
    """The winner is trained again on all cases of its study, instead of its folds being averaged."""
    final: bool = True
    """A model is made of all cases too, by the same rules."""
    ensembles: bool = True
    epochs: int | None = None
    minutes: float | None = None
    tta: bool = True
    tolerance_mm: float = 1.0
    deterministic: bool = False
    seed: int = 0


class OuterFold(Record):
    """Cases that are measured on, those that everything is chosen on, and how these are divided in turn."""

    name: str
    repeat: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    """Empty where nothing is measured: the study of all cases."""
    inner: tuple[Fold, ...]


class CrossvalSplits(Artefact):
    """Every division of the cases, fixed before anything is trained."""

    dataset_digest: str
    scheme: Scheme
    seed: int
    grouped_by: str
    """Column or pattern by which cases belong together; "case" where each stands for itself."""
    stratified_by: tuple[str, ...] = ()
    groups: dict[str, str]
    """Group of each case."""
    outer: tuple[OuterFold, ...]
    final: OuterFold | None = None

    @property
    def studies(self) -> tuple[OuterFold, ...]:
        """Every outer fold, and the study of all cases where there is one."""
        return (*self.outer, *(() if self.final is None else (self.final,)))

    @property
    def n_repeats(self) -> int:
        """How often each case is tested."""
        return 1 + max((fold.repeat for fold in self.outer), default=0)

    def study(self, name: str) -> OuterFold:
        """Return a fold by its name."""
        return next(fold for fold in self.studies if fold.name == name)

    def require_apart(self) -> None:
        """Raise if any group is on two sides of a division.

        Raises
        ------
        CrossvalError
            Naming the fold and the group.
        """
        names = [fold.name for fold in self.studies]
        if len(set(names)) < len(names):
            raise CrossvalError(f"two folds have one name among {', '.join(names)}; give each its own")
        for fold in self.studies:
            _require_apart(fold.name, fold.train, fold.test, self.groups)
            for number, inner in enumerate(fold.inner):
                where = f"{fold.name}, inner fold {number}"
                _require_apart(where, inner.train, inner.validation, self.groups)
                beyond = {*inner.train, *inner.validation} - set(fold.train)
                if beyond:
                    raise CrossvalError(f"{where}: holds {min(beyond)!r}, which is not a training case of {fold.name}")
        for repeat in range(self.n_repeats):
            tested = [case for fold in self.outer if fold.repeat == repeat for case in fold.test]
            twice = (
                next((case for case in tested if tested.count(case) > 1), None)
                if len(set(tested)) < len(tested)
                else None
            )
            if twice is not None:
                raise CrossvalError(f"case {twice!r}: is tested twice in repeat {repeat}; expected once")


def _require_apart(where: str, one: tuple[str, ...], other: tuple[str, ...], groups: dict[str, str]) -> None:
    unknown = next((case for case in (*one, *other) if case not in groups), None)
    if unknown is not None:
        raise CrossvalError(f"{where}: case {unknown!r} is not a usable case of the dataset")
    shared = {groups[case] for case in one} & {groups[case] for case in other}
    if shared:
        group = min(shared)
        sides = [next(c for c in side if groups[c] == group) for side in (one, other)]
        raise CrossvalError(
            f"{where}: group {group!r} is on both sides ({sides[0]} is trained on, {sides[1]} is held out); every group belongs to one"
        )


class Proposal(Artefact):
    """What a search tries next in one study, whatever becomes of it."""

    candidate: Candidate


class Speed(Artefact):
    """How fast a candidate's network computes here: timed once, so that what runs beside shortens no fold's training alone."""

    seconds_per_gmac: float
    """Seconds of a training step, for a billion multiply-adds of its forward pass."""
    timed_by: str
    """The study that came first."""


class CandidatePlan(Artefact):
    """What became of a candidate in one study."""

    candidate: Candidate
    variant: str
    plan_digest: str
    epochs: int | None
    """How long it is trained; None for the recipe's."""
    step_s: float | None = None
    """Seconds of a training step, by the work of the plan and the network's speed; from it the epochs follow that fit the minutes."""


class Ranked(Record):
    """A single candidate, or an ensemble of several, on the out-of-fold cases of its study."""

    members: tuple[str, ...]
    mean_dice: float | None
    """Mean over labels of their mean Dice."""
    by_label: dict[str, float | None]
    n_cases: int


class Selection(Artefact):
    """What a study chose, by its own cases alone."""

    study: str
    ranking: tuple[Ranked, ...]
    """The best one first."""
    winner: tuple[str, ...]
    left_out: dict[str, str] = {}
    """Candidates that could not be compared, and cases that they were not compared on, with the reasons."""
    cases: tuple[str, ...]
    """Out-of-fold cases that all were compared on."""
    postprocessing: JsonValue
    """The rules that the winner's out-of-fold segmentations are cleaned by."""


class Bin(Record):
    """Voxels whose probability of a label lies within one part of [0, 1]; each case weighs the same."""

    share: float
    """Share of all voxels that were looked at."""
    probability: float
    """Mean of what was said."""
    frequency: float
    """Share of them that have the label."""


class Calibration(Record):
    """How far probabilities of a label are frequencies."""

    ece: float
    """Expected calibration error: mean distance of probability and frequency, by share."""
    n_cases: int
    """In every repeat."""
    bins: tuple[Bin, ...]


class Spread(Record):
    """One score over patients."""

    n_patients: int
    mean: float | None
    median: float | None
    sd: float | None
    low: float | None
    high: float | None
    """95 % interval of the mean, by bootstrap over patients."""
    fold_means: dict[str, float]
    """Mean over the cases of each outer fold."""
    between_folds_sd: float | None


class PairedTest(Record):
    """Two candidates on the same patients, none of which either was trained or chosen on."""

    first: str
    second: str
    n_patients: int
    mean: float | None
    """Second minus first."""
    low: float | None
    high: float | None
    p: float | None
    """Wilcoxon's signed rank test, two-sided."""
    p_holm: float | None
    """Corrected for all pairs of candidates."""
    rank_biserial: float | None
    """Matched-pairs rank-biserial correlation: 1 where the second is always better."""
    standardised_mean: float | None
    """Mean difference over its standard deviation (Cohen's d of paired values)."""


class Lost(Record):
    """A case that a study did without."""

    study: str
    """Empty where the case was left out of all."""
    case: str
    stage: Literal["left out", "training", "test"]
    reason: str

    @property
    def told(self) -> tuple[str, str]:
        """Which case, and what became of it."""
        where = f" ({self.study})" if self.study else ""
        return f"{self.case}{where}", f"{self.stage}: {self.reason}"


class CrossvalResult(Artefact):
    """What the outer folds measured."""

    dataset_name: str
    design_digest: str
    splits_digest: str
    nested: bool
    labels: Labels
    tolerance_mm: float
    n_cases: int
    n_patients: int
    n_repeats: int
    scores: dict[str, dict[str, Spread]]
    """By label (and the mean of labels), then by metric."""
    calibration: dict[str, Calibration]
    """By label."""
    candidates: dict[str, Spread]
    """Mean Dice of each candidate on the outer test cases."""
    tests: tuple[PairedTest, ...]
    chosen: dict[str, tuple[str, ...]]
    """Winner of each study."""
    n_missed: int
    """Labels that a prediction lacks, over all repeats."""
    lost: tuple[Lost, ...] = ()
    """Cases that were left out, or not trained on or scored in a study, with the reasons."""
    unfinished: dict[str, str] = {}
    """Jobs that failed, with the reasons."""
