"""A distillation as training is given it: the teachers, the terms, and what lies on disk for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segpipe.core.artefact import json_digest
from segpipe.distillation.guide import DistillationGuide
from segpipe.distillation.spec import WITHOUT_TEACHER, KdTerm
from segpipe.distillation.taps import for_teacher
from segpipe.distillation.teacher import BesideTeacher, Teacher
from segpipe.networks.build import build_network
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.schema import Configuration, Plan
from segpipe.training.guide import Guide, TrainingContext

_PEER_SEED = 1


@dataclass(frozen=True)
class Distillation:
    """See :class:`segpipe.training.guide.Guidance`."""

    terms: tuple[KdTerm, ...]
    cap: float
    teachers: tuple[Teacher, ...]
    plan: Plan
    configuration: Configuration
    """Both of the student."""
    seed: int
    soft_labels: Path | None = None
    """Where the teachers' probabilities lie; None where they look at the patches themselves, or there are no teachers."""
    unlabelled: tuple[Path, tuple[str, ...]] | None = None

    @property
    def digest(self) -> str:
        """sha256 of all that it teaches, wherever the teachers' files lie."""
        about = {key: value for key, value in self._about().items() if key != "teachers"}
        return json_digest([about, [t.digest for t in self.teachers]])

    def describe(self) -> dict[str, Any]:
        """Teachers and terms, how they are put together, and the digest of it all."""
        return self._about() | {"digest": self.digest}

    def _about(self) -> dict[str, Any]:
        return {
            "teachers": [t.describe() for t in self.teachers],
            "terms": [t.model_dump(mode="json") for t in self.terms],
            "cap": self.cap,
            "soft_labels": None if self.soft_labels is None else self.soft_labels.name,
            "unlabelled": [] if self.unlabelled is None else list(self.unlabelled[1]),
        }

    def guide(self, context: TrainingContext) -> Guide:
        """Make the guide of a training."""
        active = [term for term in self.terms if term.weight]
        taught = any(not isinstance(term, WITHOUT_TEACHER) for term in active)
        beside = None
        if taught and self.teachers and self.soft_labels is None:
            taps = dict.fromkeys(for_teacher(at) for term in active for at in term.modules)
            beside = BesideTeacher(self.teachers, self.plan.labels, context.runtime, tuple(taps))
        return DistillationGuide(
            self.terms,
            context,
            cap=self.cap,
            seed=self.seed,
            patch=self.configuration.patch_size,
            beside=beside,
            make_peer=self._peer,
        )

    def _peer(self) -> Segmenter:
        """A second student, with first weights of its own."""
        torch.manual_seed(self.seed + _PEER_SEED)
        return build_network(
            self.configuration.network, self.plan.n_inputs(self.configuration), self.plan.labels.n_outputs
        )
