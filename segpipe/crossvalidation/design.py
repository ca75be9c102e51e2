"""The jobs that follow from a design and its splits."""

from __future__ import annotations

from collections.abc import Callable

from segpipe.crossvalidation.schema import CrossvalDesign, OuterFold

Maker = Callable[..., str]
"""Takes down a job of a study and what it waits for; returns its id."""

_ARRAYS = {"3d_cascade_fullres": "3d_fullres"}
"""Configurations that are trained on the arrays of another."""
_FIRST_STAGE = {"3d_cascade_fullres": "3d_lowres"}


def n_candidates(design: CrossvalDesign) -> int:
    """Candidates of each study: those listed, or the trials of a search."""
    return design.n_trials or len(design.candidates)


def compares(design: CrossvalDesign) -> bool:
    """Whether the same candidates are trained in every study, so that they can be compared on the test cases."""
    return design.space is None and n_candidates(design) > 1


def configurations(design: CrossvalDesign) -> tuple[str, ...]:
    """Configurations whose arrays are needed."""
    named = (
        design.space.configuration if design.space is not None else tuple(c.configuration for c in design.candidates)
    )
    return tuple(dict.fromkeys(_ARRAYS.get(name, name) for name in named))


def plan_study(design: CrossvalDesign, study: OuterFold, make: Maker) -> None:
    """Take down every job of a study, each after those that it waits for.

    Nothing that chooses waits for a test; a test waits for all that was chosen.
    """
    folds = range(len(study.inner))
    numbers = range(n_candidates(design))
    measured = make("measure")
    prepared = {name: make("prepare", configuration=name, needs=[measured]) for name in configurations(design)}
    planned: list[str] = []
    trained: list[list[str]] = []
    for number in numbers:
        # In a search each candidate follows from what the ones before came to.
        before = [*planned, *(job for jobs in trained for job in jobs)] if design.space is not None else []
        planned.append(make("candidate", candidate=number, needs=[measured], after=before))
        # What a search will propose is not known: some of the configurations there may not be planned at all.
        arrays, others = [], list(prepared.values())
        first: list[str] = []
        if design.space is None:
            others = []
            configuration = design.candidates[number].configuration
            arrays = [prepared[_ARRAYS.get(configuration, configuration)]]
            first = _first_stage(design, number, trained)
        trained.append(
            [
                make("train", candidate=number, fold=k, needs=[planned[number], *arrays, *first], after=others)
                for k in folds
            ]
        )
    settled = [*planned, *(job for jobs in trained for job in jobs)]
    if design.ensembles and len(numbers) > 1:
        settled += [make("ensemble", fold=k, after=settled) for k in folds]
    selected = make("select", after=settled)
    packed = make("model", needs=[selected], after=settled)
    if study.test:
        make("test", needs=[packed])
        if compares(design):
            for number in numbers:
                make("test_candidate", candidate=number, needs=[packed, planned[number], *trained[number]])


def _first_stage(design: CrossvalDesign, number: int, trained: list[list[str]]) -> list[str]:
    """Trainings of a cascade's first stage, which is a candidate before it."""
    candidate = design.candidates[number]
    first = _FIRST_STAGE.get(candidate.configuration)
    if first is None:
        return []
    wanted = candidate.model_copy(update={"configuration": first})
    return trained[design.candidates.index(wanted)] if wanted in design.candidates[:number] else []
