"""A methods paragraph, put together from the artefacts: what was done, and nothing that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segpipe.crossvalidation.design import n_candidates
from segpipe.crossvalidation.groups import BY_CASE
from segpipe.crossvalidation.pool import NAME_BETWEEN
from segpipe.crossvalidation.schema import FINAL, CrossvalDesign, CrossvalResult, CrossvalSplits
from segpipe.evaluation.comparison import ALL_LABELS
from segpipe.evaluation.statistics import N_BOOTSTRAP
from segpipe.metrics.calibration import N_BINS
from segpipe.training.schema import TrainingRecord
from segpipe.version import __version__

_REFERENCES = {
    "nested": "Varma S, Simon R. Bias in error estimation when using cross-validation for model selection. BMC Bioinformatics 2006;7:91.",
    "nnunet": "Isensee F, Jaeger PF, Kohl SAA, Petersen J, Maier-Hein KH. nnU-Net: a self-configuring method for deep learning-based "
    "biomedical image segmentation. Nature Methods 2021;18:203-211.",
    "stratified": "Sechidis K, Tsoumakas G, Vlahavas I. On the stratification of multi-label data. ECML PKDD 2011:145-158.",
    "optuna": "Akiba T, Sano S, Yanase T, Ohta T, Koyama M. Optuna: a next-generation hyperparameter optimization framework. KDD "
    "2019:2623-2631.",
    "nsd": "Nikolov S, Blackwell S, Zverovitch A, et al. Clinically applicable segmentation of head and neck anatomy for radiotherapy: "
    "deep learning algorithm development and validation study. Journal of Medical Internet Research 2021;23:e26151.",
    "bootstrap": "Efron B, Tibshirani RJ. An Introduction to the Bootstrap. Chapman and Hall, 1993.",
    "wilcoxon": "Wilcoxon F. Individual comparisons by ranking methods. Biometrics Bulletin 1945;1:80-83.",
    "holm": "Holm S. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 1979;6:65-70.",
    "kerby": "Kerby DS. The simple difference formula: an approach to teaching nonparametric correlation. Comprehensive Psychology "
    "2014;3:11.IT.3.1.",
    "ece": "Naeini MP, Cooper GF, Hauskrecht M. Obtaining well calibrated probabilities using Bayesian binning. AAAI 2015:2901-2907.",
}


@dataclass(frozen=True)
class Trainings:
    """What the records of all trainings say."""

    n: int
    iterations: tuple[int, int]
    """Fewest and most."""
    epochs: tuple[int, int]
    devices: tuple[str, ...]
    versions: tuple[str, ...]

    @classmethod
    def of(cls, records: Sequence[TrainingRecord]) -> Trainings | None:
        """Summarise; None where there is none."""
        if not records:
            return None
        iterations, epochs = [r.iterations for r in records], [r.epochs for r in records]
        return cls(
            n=len(records),
            iterations=(min(iterations), max(iterations)),
            epochs=(min(epochs), max(epochs)),
            devices=tuple(sorted({r.device for r in records})),
            versions=tuple(sorted({f"torch {r.versions['torch']}" for r in records})),
        )


class _Text:
    """Sentences with numbered references, in the order in which they are cited."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.cited: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def cite(self, name: str) -> str:
        if name not in self.cited:
            self.cited.append(name)
        return f"[{self.cited.index(name) + 1}]"


def methods(design: CrossvalDesign, splits: CrossvalSplits, result: CrossvalResult, trainings: Trainings | None) -> str:
    """Return the paragraph and its references, as Markdown."""
    text = _Text()
    _say_splits(text, design, splits, result)
    _say_choices(text, design, splits, result, trainings)
    _say_statistics(text, splits, result)
    listed = "\n".join(f"{n}. {_REFERENCES[name]}" for n, name in enumerate(text.cited, start=1))
    about = f"Design {result.design_digest[:12]}, splits {result.splits_digest[:12]}, segpipe {__version__}."
    return f"## Methods\n\n{' '.join(text.sentences)}\n\n{about}\n\n## References\n\n{listed}\n"


def _say_splits(text: _Text, design: CrossvalDesign, splits: CrossvalSplits, result: CrossvalResult) -> None:
    n_cases, n_groups = len(splits.groups), len(set(splits.groups.values()))
    by_case = splits.grouped_by == BY_CASE
    who = (
        f"{n_cases} scans" if by_case else f"{n_cases} scans of {n_groups} patients (grouped by {splits.grouped_by!r})"
    )
    whole = "" if by_case else ", a patient's scans always on one side of a division"
    spread = (
        f", spread evenly by {' and '.join(splits.stratified_by)} {text.cite('stratified')}"
        if splits.stratified_by
        else ""
    )
    if not design.nested:
        n = len(splits.final.inner) if splits.final else 0
        text.say(
            f"{who} were divided into {n} folds{whole}{spread} (seed {splits.seed}). What was chosen was chosen on the same folds "
            f"that it was measured on, and the plan was made from all cases: scores are optimistic {text.cite('nested')}."
        )
        return
    outer = {
        "k-fold": f"{len(splits.outer) // splits.n_repeats}-fold cross-validation",
        "leave-one-group-out": f"leaving out one of {len(splits.outer)} groups at a time",
        "fixed test set": "with one fixed test set",
        "file": f"with {len(splits.outer)} given outer folds",
    }[splits.scheme]
    times = f", repeated {splits.n_repeats} times" if splits.n_repeats > 1 else ""
    inner = sorted({len(fold.inner) for fold in splits.outer})
    text.say(
        f"{who} were evaluated by nested cross-validation {text.cite('nested')}: {outer}{times} measured, and {_range(inner)}-fold "
        f"cross-validation within each outer training set chose{whole}{spread} (seed {splits.seed})."
    )
    text.say(
        "Intensity statistics, target spacing, patch and batch sizes and network topology were derived by the rules of nnU-Net "
        f"{text.cite('nnunet')} from the outer training cases alone, anew in every outer fold; no outer test case entered these, a "
        "training, or any choice."
    )
    n_lost = len({lost.case for lost in result.lost})
    if n_lost:
        text.say(
            f"{n_lost} case(s) were left out, or not trained on or scored in some fold; they are listed with the reasons."
        )
    if "labels" in splits.stratified_by:
        text.say(
            "The division knew which labels each case has, and whether they are small or large; nothing after it did."
        )


def _say_choices(
    text: _Text, design: CrossvalDesign, splits: CrossvalSplits, result: CrossvalResult, trainings: Trainings | None
) -> None:
    if design.space is not None:
        text.say(
            f"In each outer fold {n_candidates(design)} candidates were proposed one after the other by a tree-structured Parzen estimator "
            f"(Optuna {text.cite('optuna')}) from the inner folds' scores."
        )
    elif len(design.candidates) == 1:
        text.say(f"One candidate was trained: {design.candidates[0].text}.")
    else:
        text.say(f"{len(design.candidates)} candidates were compared: {'; '.join(c.text for c in design.candidates)}.")
    pairs = " and averages of two candidates' probabilities" if design.ensembles and n_candidates(design) > 1 else ""
    text.say(
        f"Single candidates{pairs} were ranked by the mean over labels of the mean Dice of the same out-of-fold cases, on which removal "
        "of small components and filling of holes were chosen too; thresholds of probabilities were not tuned."
    )
    text.say(
        "The chosen candidate was then trained on all training cases of its outer fold."
        if design.refit
        else "The chosen candidate's inner-fold networks were averaged."
    )
    if trainings is not None:
        mirrored = "with" if design.tta else "without"
        text.say(
            f"In all {trainings.n} networks were trained (recipe {design.recipe.name}, {_range(trainings.epochs)} epochs, "
            f"{_range(trainings.iterations)} iterations each, seed {design.seed}) on {'; '.join(trainings.devices)} with segpipe "
            f"{__version__} and {', '.join(trainings.versions)}; predictions were made {mirrored} averaging over mirrored images."
        )
    chosen = _counted({name: w for name, w in result.chosen.items() if name != FINAL or not design.nested})
    if chosen:
        text.say(f"Chosen were {chosen}.")


def _say_statistics(text: _Text, splits: CrossvalSplits, result: CrossvalResult) -> None:
    who = {BY_CASE: "scans", "patient": "patients"}.get(splits.grouped_by, "groups")
    spread = result.scores[ALL_LABELS]["dice"]
    text.say(
        f"Segmentations were scored by Dice, normalised surface Dice at {result.tolerance_mm:g} mm {text.cite('nsd')}, counted in voxels "
        "of the surfaces (of two-dimensional images, pixels of the contours), and the 95th "
        "percentile of the Hausdorff distance; a label found in only one of prediction and reference counts with Dice 0, a label in "
        "neither does not count."
    )
    text.say(
        f"Scores of one of these {who}, over its scans and over repeats, were averaged first; intervals are 95 % percentile intervals of "
        f"the mean from {N_BOOTSTRAP} bootstrap samples of {who} {text.cite('bootstrap')}."
    )
    if spread.mean is not None and spread.low is not None and spread.high is not None:
        between = (
            ""
            if spread.between_folds_sd is None
            else f"; standard deviation between folds {spread.between_folds_sd:.3f}"
        )
        text.say(
            f"Mean Dice over labels was {spread.mean:.3f} (95 % CI {spread.low:.3f} to {spread.high:.3f}; median {spread.median:.3f}; "
            f"{spread.n_patients} {who}{between})."
        )
    if result.tests:
        where = (
            "on the test cases, which none was chosen on" if result.nested else "on the cases that they were chosen on"
        )
        text.say(
            f"Candidates were compared {where}, by Wilcoxon's signed rank test {text.cite('wilcoxon')} on {who}, with Holm's correction "
            f"{text.cite('holm')} and the matched-pairs rank-biserial correlation {text.cite('kerby')}."
        )
    if result.calibration:
        text.say(
            f"Calibration was measured by the expected calibration error of each label {text.cite('ece')} in {N_BINS} bins, over "
            "voxels in the box around the foreground of reference and prediction widened by 10 mm, each case weighing the same."
        )


def _range(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _counted(chosen: Mapping[str, tuple[str, ...]]) -> str:
    counted: dict[str, int] = {}
    for members in chosen.values():
        counted[NAME_BETWEEN.join(members)] = counted.get(NAME_BETWEEN.join(members), 0) + 1
    ranked = sorted(counted.items(), key=lambda c: -c[1])
    return ", ".join(f"{name} ({n} of {len(chosen)})" for name, n in ranked)
