"""What is chosen among: configurations, networks and training settings, listed or searched."""

from __future__ import annotations

import json
import re
import tomllib
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError, field_validator, model_validator

from segpipe.core.artefact import Record, first_problem
from segpipe.core.regular import read_text
from segpipe.errors import CrossvalError
from segpipe.networks.spec import parse_choice, parse_options
from segpipe.planning.recipe import TrainingSettings

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
_BETWEEN = re.compile(r",(?=(?:" + "|".join(CONFIGURATIONS) + r")\b)")
_ADVICE = (
    "expected CONFIGURATION[+NETWORK[:key=value,...]][@setting=value,...], such as 3d_fullres+u2netp@learning_rate=0.02"
)


class Candidate(Record):
    """One way to train: a configuration, a network instead of the recipe's, and training settings instead of the recipe's."""

    configuration: str
    network: str | None = None
    settings: dict[str, JsonValue] = {}
    """Keys of a recipe's [training], dotted where they are nested."""

    @field_validator("network")
    @classmethod
    def _in_one_spelling(cls, network: str | None) -> str | None:
        # Options in another order are the same network, and share its folder.
        return None if network is None else parse_choice(network).text

    @model_validator(mode="after")
    def _known(self) -> Candidate:
        if self.configuration not in CONFIGURATIONS:
            raise ValueError(f"configuration {self.configuration!r}: expected one of {', '.join(CONFIGURATIONS)}")
        return self

    @property
    def text(self) -> str:
        """As it is written on the command line, and called in tables."""
        network = "" if self.network is None else f"+{self.network}"
        settings = ",".join(f"{key}={_shown(value)}" for key, value in sorted(self.settings.items()))
        return f"{self.configuration}{network}{'@' if settings else ''}{settings}"

    @property
    def settings_name(self) -> str:
        """Short name of the settings, for folders; empty where there are none."""
        if not self.settings:
            return ""
        return sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]

    def changed(self, training: TrainingSettings) -> TrainingSettings:
        """Return training settings with this candidate's in place of theirs.

        Raises
        ------
        CrossvalError
            If one is not known, or its value is wrong.
        """
        held = training.model_dump()
        for key, value in self.settings.items():
            *path, last = key.split(".")
            place = held
            for part in path:
                place = place.get(part, {}) if isinstance(place, dict) else {}
            if not isinstance(place, dict) or last not in place:
                raise CrossvalError(
                    f"candidate {self.text}: training has no setting {key!r}; it has {', '.join(TrainingSettings.model_fields)}"
                )
            place[last] = value
        try:
            return TrainingSettings.model_validate(held)
        except ValidationError as error:
            raise CrossvalError(f"candidate {self.text}: {first_problem(error)}") from error


class Range(Record):
    """Numbers between two ends."""

    low: float
    high: float
    log: bool = False


class SearchSpace(Record):
    """Alternatives, out of which candidates are put together."""

    configuration: tuple[str, ...]
    network: tuple[str, ...] = ()
    """Empty for the recipe's alone."""
    settings: dict[str, tuple[JsonValue, ...] | Range] = {}

    @model_validator(mode="after")
    def _each_once(self) -> SearchSpace:
        lists = [self.configuration, self.network, *(v for v in self.settings.values() if not isinstance(v, Range))]
        for values in lists:
            shown = [json.dumps(value) for value in values]
            if len(set(shown)) < len(shown) or (not values and values is not self.network):
                raise ValueError(f"alternatives are {', '.join(shown) or 'none'}; expected at least one, and each once")
        return self

    def samples(self) -> list[Candidate]:
        """A few candidates that have every alternative, and both ends of every range, at least once."""
        first = Candidate(configuration=self.configuration[0])
        found = [Candidate(configuration=c, network=n) for c in self.configuration for n in self.network or (None,)]
        for key, values in self.settings.items():
            tried = (values.low, values.high) if isinstance(values, Range) else values
            found += [first.model_copy(update={"settings": {key: value}}) for value in tried]
        return found

    def candidates(self) -> tuple[Candidate, ...]:
        """Every combination.

        Raises
        ------
        CrossvalError
            If a setting is a range, of which there is no end.
        """
        ranges = [key for key, values in self.settings.items() if isinstance(values, Range)]
        if ranges:
            raise CrossvalError(f"setting {ranges[0]!r} is a range; give --trials to search in it, or a list of values")
        lists = [values for values in self.settings.values() if not isinstance(values, Range)]
        return tuple(
            Candidate(configuration=c, network=n, settings=dict(zip(self.settings, chosen, strict=True)))
            for c, n, *chosen in product(self.configuration, self.network or (None,), *lists)
        )


def parse_candidates(texts: tuple[str, ...]) -> tuple[Candidate, ...]:
    """Read candidates of a command line; one text may hold several, parted by commas.

    Raises
    ------
    CrossvalError
        If one cannot be read, or stands twice.
    """
    found: list[Candidate] = []
    for text in (part for whole in texts for part in _BETWEEN.split(whole)):
        candidate = _parse(text.strip())
        if candidate in found:
            raise CrossvalError(f"--candidates: {candidate.text} stands twice; give it once")
        found.append(candidate)
    if not found:
        raise CrossvalError(f"--candidates: none given; {_ADVICE}")
    return tuple(found)


def _parse(text: str) -> Candidate:
    what, _, settings = text.partition("@")
    configuration, _, network = what.partition("+")
    try:
        return Candidate(
            configuration=configuration, network=network or None, settings=parse_options(settings) if settings else {}
        )
    except ValueError as error:
        first = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise CrossvalError(f"--candidates {text!r}: {first}; {_ADVICE}") from error


def read_space(path: Path) -> SearchSpace:
    """Read a search space: a TOML file with ``configuration``, ``network`` and a table ``training`` of alternatives.

    Raises
    ------
    CrossvalError
        If it is missing or holds something else.
    """
    try:
        content: dict[str, Any] = tomllib.loads(read_text(path))
        settings = content.pop("training", {})
        return SearchSpace.model_validate({**content, "settings": settings})
    except FileNotFoundError as error:
        raise CrossvalError(f"--candidates {path}: no such file") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CrossvalError(f"{path}: is not TOML: {error}") from error
    except ValidationError as error:
        raise CrossvalError(f"{path}: {first_problem(error)}; see docs/stages/crossval.md") from error


def _shown(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)
