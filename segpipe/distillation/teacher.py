"""Teachers: trained models whose probabilities, averaged, a student learns from."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segpipe.core.artefact import json_digest
from segpipe.core.labels import Labels
from segpipe.distillation.response import probabilities_of, scores_of
from segpipe.distillation.taps import Taps
from segpipe.errors import DistillationError
from segpipe.execution.device import Runtime
from segpipe.inference.engines.base import make_network
from segpipe.models.file import ModelFile
from segpipe.models.read import read_any_model
from segpipe.networks.build import to_device
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.schema import Configuration, Plan


@dataclass(frozen=True)
class Teacher:
    """A model as a teacher: some of its folds, each counting alike."""

    path: Path
    model: ModelFile
    plan: Plan
    folds: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, *, fold: int | str, folds: tuple[str, ...] = ()) -> "Teacher":
        """Read a model.

        Parameters
        ----------
        path : Path
            A .segpipe file, the folder that holds one, or nnU-Net's folder of a trained model.
        fold : int or str
            That is held out from the student.
        folds : tuple of str
            Folds of the model; empty for the one that held out the same cases, where the model has it, else all.

        Raises
        ------
        ModelError
            If it is no model, or lacks a fold.
        """
        model = read_any_model(path, folds).single(path, "--teacher")
        same = (str(fold),) if str(fold) in model.folds else model.used(())
        chosen = folds or same
        missing = [f for f in chosen if f not in model.folds]
        if missing:
            raise DistillationError(
                f"--teacher-fold {missing[0]}: {path} has the folds {', '.join(model.folds)}; give one of them"
            )
        if model.previous is not None:
            raise DistillationError(
                f"{path}: is a cascade, which cannot teach; distil from its first stage or another model"
            )
        return cls(path, model, model.plan, chosen)

    @property
    def configuration(self) -> Configuration:
        """The model's configuration."""
        return self.plan.configuration(self.model.configuration)

    @property
    def digest(self) -> str:
        """sha256 of plan and weights."""
        return self.model.digest(self.folds)

    def describe(self) -> str:
        """File, folds and content."""
        return f"{self.path} fold {', '.join(self.folds)}, sha256 {self.digest[:12]}"


def digest_of(teachers: Iterable[Teacher]) -> str:
    """sha256 of several teachers, in any order."""
    return json_digest(sorted(t.digest for t in teachers))


def output_map(teacher: Labels, student: Labels, path: Path) -> Tensor | None:
    """Matrix (student's outputs, teacher's outputs) by which a teacher's probabilities become the student's; None where they are the same.

    Labels are matched by name; what the teacher knows beyond the student's labels is background to the student.

    Raises
    ------
    DistillationError
        If the teacher does not know a label of the student.
    """
    if teacher.names == student.names and teacher.regions == student.regions:
        return None
    missing = [name for name in student.names if name not in teacher.names]
    if missing or teacher.regions != student.regions:
        kinds = {True: "regions", False: "labels"}
        found = (
            f"does not know {', '.join(missing)} (it knows {', '.join(teacher.names)})"
            if missing
            else f"tells {kinds[teacher.regions]} apart, the student {kinds[student.regions]}"
        )
        raise DistillationError(f"teacher {path}: {found}; labels are matched by their names in dataset.json")
    first = 0 if student.regions else 1
    matrix = torch.zeros(student.n_outputs, teacher.n_outputs)
    for number, name in enumerate(student.names):
        matrix[first + number, first + teacher.names.index(name)] = 1
    if not student.regions:
        matrix[0] = 1 - matrix[1:].sum(0)
    return matrix


def why_not_beside(teacher: Teacher, plan: Plan, configuration: Configuration) -> str | None:
    """Why a teacher cannot be shown the student's own patches; None where it can: both see the same arrays in the same way."""
    theirs = teacher.configuration
    differences: dict[str, tuple[Any, Any]] = {
        "axes": (teacher.plan.transpose_forward, plan.transpose_forward),
        "orientation": (teacher.plan.orientation, plan.orientation),
        "channels": (teacher.plan.channel_names, plan.channel_names),
        "dimensions": (theirs.dims, configuration.dims),
        "spacing": (theirs.spacing_mm, configuration.spacing_mm),
        "normalisation": (theirs.normalisation, configuration.normalisation),
        "masks": (theirs.use_mask_for_norm, configuration.use_mask_for_norm),
    }
    if "ct" in configuration.normalisation:
        differences["intensities"] = (teacher.plan.intensities, plan.intensities)
    found = [
        f"{what} ({a} and {b})" if what != "intensities" else what for what, (a, b) in differences.items() if a != b
    ]
    return f"it sees images with other {', '.join(found)}" if found else None


class BesideTeacher:
    """Teachers that look at the student's patches while it trains.

    Their networks are in no module of the student's, and so in no optimiser, average or checkpoint of it.
    """

    def __init__(self, teachers: tuple[Teacher, ...], student: Labels, runtime: Runtime, taps: tuple[str, ...]) -> None:
        """Build the networks.

        Raises
        ------
        DistillationError
            If feature maps are asked of several networks, or of a module that is not there.
        """
        self.runtime, self.regions = runtime, student.regions
        self.members: list[tuple[Segmenter, Tensor | None]] = []
        for teacher in teachers:
            mapping = output_map(teacher.plan.labels, student, teacher.path)
            for fold in teacher.folds:
                network, _ = make_network(teacher.plan, teacher.configuration, teacher.model.folds[fold])
                to_device(network, runtime.device)
                self.members.append((network, None if mapping is None else mapping.to(runtime.device)))
        if taps and len(self.members) > 1:
            raise DistillationError(
                f"feature maps are taken from one network, and there are {len(self.members)} teachers (folds count); "
                "give one --teacher and one --teacher-fold, or terms on logits only"
            )
        self.taps = Taps(self.members[0][0], taps, "teacher") if taps else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Scores (N, K, ...): logits of a network, or of the mean of the probabilities of several."""
        if len(self.members) == 1 and self.members[0][1] is None:
            return self._logits(self.members[0][0], images).float()
        total: Tensor | None = None
        for network, mapping in self.members:
            probabilities = mapped(probabilities_of(self._logits(network, images), regions=self.regions), mapping)
            total = probabilities if total is None else total + probabilities
        assert total is not None
        return scores_of(total / len(self.members), regions=self.regions)

    def _logits(self, network: Segmenter, images: Tensor) -> Tensor:
        with self.runtime.precision():
            logits: Tensor = network.eval()(images)
        return logits


def mapped(probabilities: Tensor, mapping: Tensor | None) -> Tensor:
    """Probabilities (N, K, ...) of a teacher as the student's outputs."""
    return probabilities if mapping is None else torch.einsum("sk,nk...->ns...", mapping, probabilities)
