"""Terms of distillation at work in a training: their values, their weights of their own, what the log says of them."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segpipe import seeds
from segpipe.distillation.critic import Critic, critic_loss, holistic_loss
from segpipe.distillation.features import attention_loss, flow_loss, hide, hint_loss, pooled
from segpipe.distillation.relations import pair_loss, region_loss, relational_loss, similarity_loss
from segpipe.distillation.response import (
    channel_loss,
    correlation_loss,
    log_of,
    log_probabilities,
    present_classes,
    voxel_loss,
)
from segpipe.distillation.spec import (
    LOGITS,
    WITHOUT_TEACHER,
    AttentionTerm,
    ChannelTerm,
    DistTerm,
    FspTerm,
    HintTerm,
    HolisticTerm,
    KdTerm,
    MaskedTerm,
    MutualTerm,
    PairTerm,
    RegionTerm,
    RelationalTerm,
    SelfTerm,
    SimilarityTerm,
    VoxelTerm,
)
from segpipe.distillation.taps import Taps, for_student, for_teacher
from segpipe.distillation.teacher import BesideTeacher
from segpipe.errors import DistillationError
from segpipe.networks.blocks import conv_class
from segpipe.networks.build import fast_memory_format, to_device
from segpipe.networks.segmenter import Segmenter
from segpipe.training.guide import Lesson
from segpipe.training.loop import Trainer
from segpipe.training.optimise import make_optimizer

logger = logging.getLogger(__name__)

_LEAST_TASK = 1e-3
"""A loss against the labels that is nearer to its floor counts as so much, when terms are held against it."""


@dataclass
class Seen:
    """What the terms look at in one part of a batch."""

    lesson: Lesson
    student: Tensor
    """Log-probabilities (N, K, ...) at full resolution."""
    teacher: Tensor | None
    maps: dict[str, tuple[Tensor, Tensor]]
    """Feature maps of student and teacher, by the name that a term gives."""
    generator: torch.Generator

    @property
    def taught(self) -> Tensor:
        """Log-probabilities of the teacher."""
        assert self.teacher is not None
        return self.teacher


@dataclass
class Told:
    """What the terms came to since the last line of the log."""

    rows: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """Of each term, its value and its ratio to the loss against the labels, (2,) a step: asked for once an epoch, so that a GPU need
    not be waited for."""

    def taken(self) -> dict[str, list[tuple[float, float]]]:
        """All of them as numbers."""
        return {key: [(v, r) for v, r in torch.stack(rows).tolist()] for key, rows in self.rows.items()}


class DistillationGuide:
    """See :class:`segpipe.training.guide.Guide`."""

    def __init__(
        self,
        terms: tuple[KdTerm, ...],
        trainer: Trainer,
        *,
        cap: float,
        seed: int,
        patch: tuple[int, ...],
        beside: BesideTeacher | None,
        make_peer: Callable[[], Segmenter],
    ) -> None:
        """Prepare the terms; those of weight 0 are not there.

        Parameters
        ----------
        terms : tuple of KdTerm
        trainer : Trainer
            Of the student.
        cap : float
            Largest ratio of a term to the loss against the labels.
        seed : int
            Of what terms draw.
        patch : tuple of int
            Of the student.
        beside : BesideTeacher, optional
            The teacher, where it looks at the patches itself.
        make_peer : callable
            Makes a second student, for mutual learning.
        """
        self.terms = {key: term for key, term in _named(terms).items() if term.weight}
        self.trainer, self.cap, self.seed, self.beside = trainer, cap, seed, beside
        modules = tuple(dict.fromkeys(at for term in self.terms.values() for at in term.modules))
        self.modules = modules
        self.student_taps = Taps(trainer.network, tuple(map(for_student, modules)), "student") if modules else None
        self.taps = bool(modules)
        if modules and (beside is None or beside.taps is None):
            raise DistillationError(
                f"a term looks at feature maps ({', '.join(modules)}), and the teacher's are not to be had: it does not see the student's "
                "patches; give terms on logits, or a teacher of the same plan without --soft-labels"
            )
        self.told, self.warned = Told(), set[str]()
        n_channels = trainer.training.cases[0].image.shape[0]
        self.own = nn.ModuleDict(self._own_modules(n_channels, patch)).to(trainer.runtime.device)
        self.optimizer = _optimizer_without_decay(self.own, trainer) if len(self.own) else None
        self.critics = {
            key: torch.optim.Adam(critic.parameters(), lr=term.learning_rate, betas=(0.0, 0.9))
            for key, term in self.terms.items()
            if isinstance(term, HolisticTerm) and (critic := self._make_critic(key, term, n_channels, patch))
        }
        self.shown: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        mutual = any(isinstance(term, MutualTerm) for term in self.terms.values())
        self.peer = to_device(make_peer(), trainer.runtime.device).train() if mutual else None
        self.peer_optimizer = make_optimizer(self.peer, trainer.settings) if self.peer is not None else None

    def loss(self, lesson: Lesson) -> Tensor:
        """Sum of the terms for a part of a batch, each held to its cap."""
        added = lesson.task.new_zeros(())
        active = {key: w for key, term in self.terms.items() if (w := term.weight_at(lesson.progress))}
        if not active:
            if self.student_taps:
                self.student_taps.maps.clear()
            return added
        with torch.autocast(self.trainer.runtime.device.type, enabled=False):
            seen = self._look(lesson)
            above = (lesson.task / lesson.share - self.trainer.loss.floor).clamp_min(_LEAST_TASK)
            for key, weight in active.items():
                value = self._value(key, seen)
                ratio = weight * value.detach().abs() / above
                self.told.rows[key].append(torch.stack((value.detach(), ratio)))
                held = torch.where(ratio > self.cap, self.cap / ratio.clamp_min(1e-12), torch.ones_like(ratio))
                added = added + held * weight * lesson.share * value
        return added

    def step(self, learning_rate: float) -> None:
        """Let projectors, critics and the second student take a step."""
        scaler, clip = self.trainer.state.scaler, self.trainer.settings.gradient_clip
        for optimizer, module in ((self.optimizer, self.own), (self.peer_optimizer, self.peer)):
            if optimizer is None or module is None or all(p.grad is None for p in module.parameters()):
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), clip)
            scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        for key, (images, student, teacher) in self.shown.items():
            self._teach_critic(key, images, student, teacher)
        self.shown.clear()

    def summary(self) -> dict[str, Any]:
        """Mean value of each term, its mean ratio to the loss against the labels, and how often it was capped."""
        told, self.told = self.told.taken(), Told()
        found = {}
        for key, rows in told.items():
            ratios = [ratio for _, ratio in rows]
            n_capped = sum(ratio > self.cap for ratio in ratios)
            found[key] = {
                "value": sum(value for value, _ in rows) / len(rows),
                "ratio": sum(ratios) / len(ratios),
                "capped": n_capped,
            }
            if n_capped:
                self._warn(key, max(ratios))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimisers of its own; the teacher is read again."""
        return {
            "own": self.own.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "critics": {key: optimizer.state_dict() for key, optimizer in self.critics.items()},
            "peer": None if self.peer is None else self.peer.state_dict(),
            "peer_optimizer": None if self.peer_optimizer is None else self.peer_optimizer.state_dict(),
            "told": self.told.taken(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.own.load_state_dict(state["own"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        for key, optimizer in self.critics.items():
            optimizer.load_state_dict(state["critics"][key])
        if self.peer is not None and self.peer_optimizer is not None:
            self.peer.load_state_dict(state["peer"])
            self.peer_optimizer.load_state_dict(state["peer_optimizer"])
        for key, rows in state["told"].items():
            self.told.rows[key] = [torch.tensor(row) for row in rows]

    def _look(self, lesson: Lesson) -> Seen:
        regions = self.trainer.labels.regions
        teacher, maps = None, {}
        if self.beside is not None and any(not isinstance(t, WITHOUT_TEACHER) for t in self.terms.values()):
            teacher = self.beside(lesson.images)
        elif lesson.soft is not None:
            teacher = log_of(lesson.soft)
        if self.modules and self.student_taps and self.beside and self.beside.taps:
            ours = {at: self.student_taps[for_student(at)] for at in self.modules}
            maps = {at: (ours[at].float(), self.beside.taps[for_teacher(at)].detach().float()) for at in self.modules}
        generator = torch.Generator().manual_seed(
            int(seeds.stream(self.seed, "distillation", lesson.iteration).integers(2**62))
        )
        student = log_probabilities(lesson.heads[0], regions=regions)
        return Seen(lesson, student, teacher, maps, generator)

    def _value(self, key: str, seen: Seen) -> Tensor:
        """Value of a term, before its weight."""
        term, regions = self.terms[key], self.trainer.labels.regions
        match term:
            case VoxelTerm():
                return self._of_voxels(term, seen)
            case ChannelTerm(at=at):
                if at != LOGITS:
                    student, teacher = self._projected(key, *seen.maps[at])
                    return channel_loss(student, teacher, temperature=term.temperature)
                present = present_classes(seen.taught, regions=regions)
                return channel_loss(seen.student, seen.taught, temperature=term.temperature, present=present)
            case DistTerm():
                return correlation_loss(
                    seen.student,
                    seen.taught,
                    temperature=term.temperature,
                    regions=regions,
                    between=term.between,
                    within=term.within,
                )
            case PairTerm():
                # Cosines of probabilities, which are all of one sign, tell less apart than those of their logarithms.
                student, teacher = (seen.student, seen.taught) if term.at == LOGITS else seen.maps[term.at]
                return pair_loss(student, teacher, node=term.node, nearest=term.range)
            case HolisticTerm():
                return self._holistic(key, seen)
            case HintTerm(at=at):
                return hint_loss(*self._projected(key, *seen.maps[at]))
            case AttentionTerm(at=at):
                return attention_loss(*seen.maps[at], power=term.power)
            case FspTerm(at=at, to=to):
                first, second = (
                    self._projected(f"{key}.at", *seen.maps[at]),
                    self._projected(f"{key}.to", *seen.maps[to]),
                )
                return flow_loss((first[0], second[0]), (first[1], second[1]))
            case RelationalTerm(at=at):
                return relational_loss(*seen.maps[at], parts=term.parts, angle=term.angle)
            case SimilarityTerm(at=at):
                return similarity_loss(*seen.maps[at], parts=term.parts)
            case RegionTerm(at=at):
                labels = _called(seen.taught, regions=regions)
                return region_loss(*seen.maps[at], labels, self.trainer.labels.n_outputs + regions)
            case MaskedTerm(at=at):
                student, teacher = self._projected(key, *seen.maps[at])
                hidden = hide(student, term.share, seen.generator)
                return hint_loss(self.own[_safe(f"{key}.make")](hidden), teacher)
            case SelfTerm():
                return self._deep_to_shallow(term, seen)
            case MutualTerm():
                return self._mutual(term, seen)

    def _of_voxels(self, term: VoxelTerm, seen: Seen) -> Tensor:
        regions = self.trainer.labels.regions
        compare = partial(voxel_loss, temperature=term.temperature, regions=regions, by_class=term.balance == "class")
        value = compare(seen.student, seen.taught)
        if not term.lower_heads:
            return value
        for depth, head in enumerate(seen.lesson.heads[1:], start=1):
            coarse = log_of(pooled(seen.taught.exp(), tuple(head.shape[2:])))
            value = value + 0.5**depth * compare(log_probabilities(head, regions=regions), coarse)
        return value

    def _deep_to_shallow(self, term: SelfTerm, seen: Seen) -> Tensor:
        regions, finest = self.trainer.labels.regions, seen.student.detach().exp()
        value = seen.student.new_zeros(())
        for depth, head in enumerate(seen.lesson.heads[1:], start=1):
            coarse = log_of(pooled(finest, tuple(head.shape[2:])))
            student = log_probabilities(head, regions=regions)
            value = value + 0.5**depth * voxel_loss(student, coarse, temperature=term.temperature, regions=regions)
        return value

    def _mutual(self, term: MutualTerm, seen: Seen) -> Tensor:
        """Divergence from the second student; that one learns at once, from the labels and from the first."""
        assert self.peer is not None
        trainer, lesson, regions = self.trainer, seen.lesson, self.trainer.labels.regions
        images = lesson.images.contiguous(memory_format=fast_memory_format(self.peer.dims))
        with trainer.runtime.precision():
            heads = self.peer.supervised(images)
        theirs = log_probabilities(heads[0], regions=regions)
        options: dict[str, Any] = {"temperature": term.temperature, "regions": regions}
        weight = term.weight_at(lesson.progress)
        loss = trainer.task_loss(heads, lesson.labels, lesson.labelled)
        loss = (loss + weight * voxel_loss(theirs, seen.student.detach(), **options)) * lesson.share
        trainer.state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return voxel_loss(seen.student, theirs.detach(), **options)

    def _holistic(self, key: str, seen: Seen) -> Tensor:
        critic = self.own_critic(key)
        student, teacher = seen.student.exp(), seen.taught.exp()
        # What it learns from is looked at after the step; of a batch in parts, the last one.
        self.shown[key] = (seen.lesson.images.detach(), student.detach(), teacher.detach())
        critic.requires_grad_(requires_grad=False)
        value = holistic_loss(critic, seen.lesson.images, student, teacher)
        critic.requires_grad_()
        return value

    def _teach_critic(self, key: str, images: Tensor, student: Tensor, teacher: Tensor) -> None:
        term, critic, optimizer = self.terms[key], self.own_critic(key), self.critics[key]
        assert isinstance(term, HolisticTerm)
        iteration = self.trainer.progress.iteration
        generator = torch.Generator().manual_seed(int(seeds.stream(self.seed, "critic", iteration).integers(2**62)))
        optimizer.zero_grad(set_to_none=True)
        loss = critic_loss(critic, images, student, teacher, penalty=term.penalty, generator=generator)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def own_critic(self, key: str) -> Critic:
        """The critic of a term."""
        found = self.own[_safe(f"{key}.critic")]
        assert isinstance(found, Critic)
        return found

    def _make_critic(self, key: str, term: HolisticTerm, n_channels: int, patch: tuple[int, ...]) -> Critic:
        critic = Critic(n_channels + self.trainer.labels.n_outputs, patch, width=term.width)
        critic = critic.to(self.trainer.runtime.device)
        self.own[_safe(f"{key}.critic")] = critic
        return critic

    def _projected(self, key: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's map with the teacher's number of channels, and the teacher's."""
        name = _safe(f"{key}.project")
        return (self.own[name](student) if name in self.own else student), teacher

    def _own_modules(self, n_channels: int, patch: tuple[int, ...]) -> dict[str, nn.Module]:
        """Projectors where student and teacher differ in channels, found by looking at a patch of nothing."""
        if not self.modules or self.beside is None or self.beside.taps is None or self.student_taps is None:
            return {}
        network, device = self.trainer.network, self.trainer.runtime.device
        n_inputs = n_channels + self.trainer.training.n_previous
        nothing = torch.zeros(1, n_inputs, *patch, device=device)
        with torch.no_grad():
            network.eval()(nothing)
            network.train()
            self.beside(nothing)
        widths = {
            at: (self.student_taps[for_student(at)].shape[1], self.beside.taps[for_teacher(at)].shape[1])
            for at in self.modules
        }
        conv, found = conv_class(len(patch)), dict[str, nn.Module]()
        for key, term in self.terms.items():
            asked = {"": getattr(term, "at", LOGITS)}
            if isinstance(term, FspTerm):
                asked = {".at": term.at, ".to": term.to}
            elif not isinstance(term, (HintTerm, MaskedTerm, ChannelTerm)):
                continue
            for suffix, at in asked.items():
                if at != LOGITS and widths[at][0] != widths[at][1]:
                    found[_safe(f"{key}{suffix}.project")] = conv(*widths[at], 1)
            if isinstance(term, MaskedTerm):
                n = widths[term.at][1]
                found[_safe(f"{key}.make")] = nn.Sequential(
                    conv(n, n, 3, padding=1), nn.ReLU(), conv(n, n, 3, padding=1)
                )
        return found

    def _warn(self, key: str, ratio: float) -> None:
        if key not in self.warned:
            self.warned.add(key)
            self.trainer.note(
                f"distillation: the term {key} is up to {ratio:.0f} times the loss against the labels, and is scaled down to "
                f"{self.cap:g} times; a smaller weight would keep its shape (the log counts how often)"
            )


def _named(terms: tuple[KdTerm, ...]) -> dict[str, KdTerm]:
    """Terms by name; of several of one kind, the further ones by number."""
    found: dict[str, KdTerm] = {}
    for term in terms:
        n_before = sum(1 for key in found if key.partition("_")[0] == term.name)
        found[term.name if not n_before else f"{term.name}_{n_before + 1}"] = term
    return found


def _safe(key: str) -> str:
    """Key of a module: names of modules have no dots."""
    return key.replace(".", "-")


def _called(log_p: Tensor, *, regions: bool) -> Tensor:
    """Labels (N, ...) that log-probabilities call; of regions the last that is more likely than not."""
    if not regions:
        return log_p.argmax(1)
    labels = torch.zeros_like(log_p[:, 0], dtype=torch.int64)
    for number in range(log_p.shape[1]):
        labels[log_p[:, number].exp() > 0.5] = number + 1
    return labels


def _optimizer_without_decay(modules: nn.Module, trainer: Trainer) -> torch.optim.Optimizer:
    """The recipe's optimiser; projectors only translate, and are not drawn to 0."""
    return make_optimizer(modules, trainer.settings.model_copy(update={"weight_decay": 0.0}))
