"""From what a user asked for to a design and a division of the cases, checked."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.artefact import Artefact
from segpipe.core.regular import lies, read_text
from segpipe.crossvalidation.candidates import Candidate, SearchSpace, parse_candidates, read_space
from segpipe.crossvalidation.files import read_folds, write_for_nnunet
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.crossvalidation.groups import column, groups_of
from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalSplits
from segpipe.crossvalidation.search import n_combinations, require_optuna
from segpipe.crossvalidation.splits import (
    Request,
    as_listed,
    divided_evenly,
    label_strata,
    leaving_out,
    with_test_set,
)
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.patients import joined_groups
from segpipe.dataset.schema import Dataset
from segpipe.dataset.splits import SPLIT_SEED
from segpipe.errors import CrossvalError
from segpipe.networks.catalogue import complete_options
from segpipe.networks.spec import parse_choice
from segpipe.planning.make import make_plan
from segpipe.planning.recipe import Recipe, load_recipe
from segpipe.planning.schema import Plan
from segpipe.workflows.options import CrossvalOptions
from segpipe.workflows.planning import probe_for

N_FOLDS, N_INNER = 5, 3
"""Outer and inner folds unless asked for."""
LABELS = "labels"
"""Stands among the columns to stratify by for the presence and volume of every label."""


def candidates_asked(
    options: CrossvalOptions, measured: Fingerprint | None, recipe: Recipe | None
) -> tuple[tuple[Candidate, ...], SearchSpace | None]:
    """Candidates of a command line or a file; where they are searched for, none and the space.

    Parameters
    ----------
    options : CrossvalOptions
    measured : Fingerprint or None
        Says whether a dataset is two-dimensional, where no candidates are given.
    recipe : Recipe or None
        Says whether a wide view is compared too, where no candidates are given.

    Raises
    ------
    CrossvalError
        If they cannot be read, or cannot be trained in this order.
    """
    texts, trials = options.candidates, options.trials
    if len(texts) == 1 and texts[0].endswith(".toml"):
        space = read_space(Path(texts[0]))
        if trials is None:
            listed = space.candidates()
            _require_first_stages(listed)
            return listed, None
        require_optuna()
        if "3d_cascade_fullres" in space.configuration:
            raise CrossvalError(
                "--trials: a cascade cannot be searched for, since it needs its first stage; list it in --candidates"
            )
        n = n_combinations(space)
        if n is not None and n <= trials:
            raise CrossvalError(
                f"--trials {trials}: {texts[0]} has {n} combination(s); leave out --trials to try them all"
            )
        return (), space
    if trials is not None:
        raise CrossvalError("--trials: searches among the alternatives of a TOML file; give one with --candidates")
    if not texts:
        return tuple(Candidate(configuration=c) for c in _usual_configurations(measured, recipe)), None
    listed = parse_candidates(texts)
    _require_first_stages(listed)
    return listed, None


def _usual_configurations(measured: Fingerprint | None, recipe: Recipe | None) -> tuple[str, ...]:
    """Return what is compared unless the user lists candidates: 2D, the wide view where the recipe asks for one, and full resolution."""
    if measured is None or recipe is None:
        return ("2d", "3d_fullres")
    if all(min(case.shape) == 1 for case in measured.cases):
        return ("2d",)
    wide = recipe.planner.least_view is not None and "3d_lowres" in _planned(measured, recipe).configurations
    return ("2d", *(("3d_lowres",) if wide else ()), "3d_fullres")


def _planned(measured: Fingerprint, recipe: Recipe) -> Plan:
    return make_plan(measured, recipe, probe=probe_for(recipe.network))


def _require_first_stages(listed: tuple[Candidate, ...]) -> None:
    """Raise unless a cascade's first stage is a candidate before it."""
    for number, candidate in enumerate(listed):
        if candidate.configuration == "3d_cascade_fullres":
            first = candidate.model_copy(update={"configuration": "3d_lowres"})
            if first not in listed[:number]:
                raise CrossvalError(f"candidate {candidate.text}: learns from {first.text}; list that one before it")


def require_sound(design: CrossvalDesign) -> None:
    """Raise where a design contradicts itself, before anything is trained for it.

    Raises
    ------
    CrossvalError, NetworkError
        If a network or a setting is wrong or cannot be refitted, or nothing would be done.
    """
    _require_something_to_do(nested=design.nested, final=design.final)
    for candidate in design.candidates if design.space is None else design.space.samples():
        if candidate.network is not None:
            complete_options(parse_choice(candidate.network))
        settings = candidate.changed(design.recipe.training)
        if design.refit and settings.patience_epochs is not None:
            raise CrossvalError(
                f"--refit: candidate {candidate.text} stops by held-out cases (patience_epochs), and a training on all cases has none; "
                "leave out one of the two"
            )


def request_of(matched: Dataset, measured: Fingerprint, options: CrossvalOptions) -> Request:
    """Groups, strata and numbers of folds.

    Raises
    ------
    CrossvalError
        If a column is missing, a pattern does not fit, or there are no inner folds to have a number of.
    """
    _require_inner_folds(options)
    usable = frozenset(case.case for case in measured.cases)
    by, groups = groups_of(matched, usable, options.group_by)
    groups = joined_groups(groups, measured.equal_images)
    strata: dict[str, tuple[str, ...]] = {}
    for name in options.stratify_by:
        if name == LABELS:
            found = label_strata(measured.cases, measured.labels)
        else:
            found = {case: (f"{name}={value}",) for case, value in column(matched, usable, name).items()}
        strata = {case: (*strata.get(case, ()), *found[case]) for case in groups}
    return Request(
        groups=groups,
        grouped_by=by,
        n_folds=options.folds or N_FOLDS,
        n_inner=options.inner_folds or N_INNER,
        # Seed 0 divides as `segpipe train` and nnU-Net do.
        seed=SPLIT_SEED + options.seed,
        dataset_digest=measured.digest(),
        n_repeats=options.repeats,
        strata=strata,
        stratified_by=options.stratify_by,
        nested=options.nested,
        final=options.final,
    )


def splits_asked(request: Request, matched: Dataset, options: CrossvalOptions) -> CrossvalSplits:
    """Divide the cases in the way that was asked for.

    A number of folds is refused where another way says how many there are.

    Raises
    ------
    CrossvalError
        If two ways were asked for, or it cannot be done.
    """
    leave_out, test_set, file = options.leave_out, options.test_set, options.splits
    _require_one_division(options, nested=request.nested, repeats=request.n_repeats)
    if leave_out is not None:
        return leaving_out(request, column(matched, request.groups, leave_out))
    if file is not None:
        return as_listed(request, read_folds(file))
    if test_set is not None:
        name, equals, value = test_set.partition("=")
        if equals:
            return with_test_set(request, [c for c, v in column(matched, request.groups, name).items() if v == value])
        return with_test_set(request, _listed_cases(Path(test_set)))
    return divided_evenly(request)


def _require_one_division(options: CrossvalOptions, *, nested: bool, repeats: int) -> None:
    """Raise where two ways to divide the cases are asked for."""
    asked = {"--leave-out": options.leave_out, "--test-set": options.test_set, "--splits": options.splits}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise CrossvalError(f"{' and '.join(given)} are two ways to divide the cases; give one")
    if given and options.folds is not None:
        raise CrossvalError(
            f"--folds {options.folds} with {given[0]}: it says itself how many folds there are; leave out --folds"
        )
    if not nested and repeats > 1:
        raise CrossvalError(
            f"--repeats {repeats} with --no-nested: one division both chooses and measures; leave out one of the two"
        )
    if given and repeats > 1:
        raise CrossvalError(
            f"--repeats {repeats} with {given[0]}: there is but one such division; leave out one of the two"
        )


def _require_inner_folds(options: CrossvalOptions) -> None:
    """Raise where inner folds are asked for, and there are none."""
    if options.inner_folds is not None and not options.nested:
        raise CrossvalError(
            f"--inner-folds {options.inner_folds} with --no-nested: there are none; leave out one of the two"
        )


def require_together(options: CrossvalOptions) -> None:
    """Raise where options are wrong or do not go together: before any file of the dataset is read.

    Raises
    ------
    CrossvalError, NetworkError, RecipeError
        Naming the options.
    """
    if options.cluster is not None and options.recipe is None:
        raise CrossvalError(
            f"--cluster {options.cluster}: which recipe suits is the workers' matter, not this machine's; "
            "give --recipe default for GPUs, or cpu"
        )
    _require_inner_folds(options)
    _require_one_division(options, nested=options.nested, repeats=options.repeats)
    _require_something_to_do(nested=options.nested, final=options.final)
    if options.recipe is not None:
        load_recipe(options.recipe)
    # Without candidates they follow from the dataset.
    listed, space = (
        candidates_asked(options, None, None) if options.candidates or options.trials is not None else ((), None)
    )
    for candidate in listed if space is None else space.samples():
        if candidate.network is not None:
            complete_options(parse_choice(candidate.network))
    if options.splits is not None and not lies(options.splits):
        raise CrossvalError(f"--splits {options.splits}: no such file")
    if options.test_set is not None and "=" not in options.test_set:
        _listed_cases(Path(options.test_set))


def _require_something_to_do(*, nested: bool, final: bool) -> None:
    if not nested and not final:
        raise CrossvalError("--no-nested with --no-final: nothing would be left to do; give one of them")


def _listed_cases(path: Path) -> list[str]:
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except OSError as error:
        raise CrossvalError(
            f"--test-set {path}: cannot be read ({error.strerror}); expected a file with a case id a line, or COLUMN=VALUE"
        ) from error


def settle(folder: CrossvalFolder, design: CrossvalDesign, splits: CrossvalSplits) -> None:
    """Take down the design and the splits, or make sure that they are the ones that work began with.

    Raises
    ------
    CrossvalError
        If they are not.
    """
    if lies(folder.design) and lies(folder.splits):
        pairs = ((CrossvalDesign.read(folder.design), design), (CrossvalSplits.read(folder.splits), splits))
        for before, now in pairs:
            differing = [name for name in type(now).model_fields if getattr(before, name) != getattr(now, name)]
            if differing:
                what = _what_differs(differing, before, now)
                raise CrossvalError(
                    f"{folder.root}: holds a cross-validation with other settings ({what} changed since it began), and its numbers are of "
                    "one design: give the same options and data to continue it, another --work for another one, or delete that folder"
                )
        return
    design.write(folder.design)
    splits.write(folder.splits)
    write_for_nnunet(splits, folder.nnunet_splits)


def _what_differs(differing: list[str], before: Artefact, now: Artefact) -> str:
    """In a user's words."""
    if "software" in differing:
        return f"segpipe {getattr(before, 'software', '')} became {getattr(now, 'software', '')}, and"
    return "the dataset" if "dataset_digest" in differing else ", ".join(differing)
