"""The next candidate of a search, by Optuna, from what the ones before came to. Nothing is kept but the trials themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import JsonValue

from segpipe.crossvalidation.candidates import Candidate, Range, SearchSpace
from segpipe.errors import CrossvalError

N_RANDOM = 5
"""Trials that are drawn at random before the others are compared."""
_SETTING = "training."


def require_optuna() -> None:
    """Raise where Optuna is not installed.

    Raises
    ------
    CrossvalError
        With what to install.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise CrossvalError(
            "--trials: needs Optuna; install segpipe with the extra `search`, on every worker"
        ) from error


def n_combinations(space: SearchSpace) -> int | None:
    """Candidates that a space holds; None where it has a range."""
    if any(isinstance(values, Range) for values in space.settings.values()):
        return None
    return len(space.candidates())


def propose(space: SearchSpace, before: Sequence[tuple[Candidate, float | None]], seed: int) -> Candidate:
    """Return the next candidate to try: a tree-structured Parzen estimator's choice, and never one that was tried before.

    Parameters
    ----------
    space : SearchSpace
    before : sequence of (candidate, score)
        Trials so far in their order; None for one that failed.
    seed : int
        The same trials and seed propose the same candidate.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = _distributions(space)
    sampler = optuna.samplers.TPESampler(seed=(seed + len(before)) % 2**32, n_startup_trials=N_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for candidate, score in before:
        state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                params=_parameters(candidate, space), distributions=distributions, value=score, state=state
            )
        )
    chosen = _candidate(study.ask(distributions).params, space)
    tried = [candidate for candidate, _ in before]
    if chosen not in tried:
        return chosen
    if n_combinations(space) is None:
        # A range was left at a value that was drawn before: of its many others one is drawn at random.
        sampler = optuna.samplers.RandomSampler(seed=(seed + len(before)) % 2**32)
        return _candidate(optuna.create_study(sampler=sampler).ask(distributions).params, space)
    left = [candidate for candidate in space.candidates() if candidate not in tried]
    return left[int(np.random.default_rng([seed, len(before)]).integers(len(left)))]


def _distributions(space: SearchSpace) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, Any] = {"configuration": CategoricalDistribution(space.configuration)}
    if space.network:
        found["network"] = CategoricalDistribution(space.network)
    for key, values in space.settings.items():
        if isinstance(values, Range):
            found[_SETTING + key] = FloatDistribution(values.low, values.high, log=values.log)
        else:
            # Optuna's alternatives are plain values; a setting's may be a list.
            found[_SETTING + key] = CategoricalDistribution([json.dumps(value) for value in values])
    return found


def _parameters(candidate: Candidate, space: SearchSpace) -> dict[str, Any]:
    found: dict[str, Any] = {"configuration": candidate.configuration}
    if space.network:
        found["network"] = candidate.network
    for key, value in candidate.settings.items():
        found[_SETTING + key] = value if isinstance(space.settings[key], Range) else json.dumps(value)
    return found


def _candidate(parameters: dict[str, Any], space: SearchSpace) -> Candidate:
    settings: dict[str, JsonValue] = {}
    for key, values in space.settings.items():
        value = parameters[_SETTING + key]
        settings[key] = value if isinstance(values, Range) else json.loads(value)
    return Candidate(configuration=parameters["configuration"], network=parameters.get("network"), settings=settings)
