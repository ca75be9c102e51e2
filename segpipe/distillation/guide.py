"""Terms of distillation at work in a training: their values, their weights of their own, what the log says of them."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.core import seeds
from segpipe.distillation.critic import Critic, critic_loss, holistic_loss
from segpipe.distillation.features import attention_loss, flow_loss, hide, hint_loss, on_grid_of, pooled
from segpipe.distillation.relations import pair_loss, region_loss, relational_loss, similarity_loss
from segpipe.distillation.response import (
    channel_loss,
    correlation_loss,
    log_probabilities,
    present_classes,
    probabilities_of,
    scores_of,
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
from segpipe.planning.recipe import TrainingSettings
from segpipe.training.guide import StepContext, TrainingContext
from segpipe.training.optimise import make_optimizer

logger = logging.getLogger(__name__)

_LEAST_TASK = 1e-3
"""A loss against the labels that is nearer to its floor counts as so much, when terms are compared with it."""


@dataclass
class Seen:
    """What the terms look at in one part of a batch."""

    step: StepContext
    student: Tensor
    """Scores (N, K, ...) at full resolution, float32."""
    teacher: Tensor | None
    """The teacher's."""
    maps: dict[str, tuple[Tensor, Tensor]]
    """Feature maps of student and teacher, by the name that a term gives."""
    generator: torch.Generator

    @property
    def taught(self) -> Tensor:
        """Scores of the teacher."""
        assert self.teacher is not None
        return self.teacher


@dataclass
class TermLog:
    """What the terms came to since the last line of the log."""

    rows: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """For each term, its value and its ratio to the loss against the labels, (2,) a step: asked for once an epoch, so that a GPU need
    not be waited for."""

    def taken(self) -> dict[str, list[tuple[float, float]]]:
        """All of them as numbers, brought from the device together."""
        told = {key: rows for key, rows in self.rows.items() if rows}
        if not told:
            return {}
        numbers = iter(torch.stack([row for rows in told.values() for row in rows]).tolist())
        return {key: [(v, r) for v, r in islice(numbers, len(rows))] for key, rows in told.items()}


class DistillationGuide:
    """See :class:`segpipe.training.guide.Guide`."""

    def __init__(
        self,
        terms: tuple[KdTerm, ...],
        training: TrainingContext,
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
        training : TrainingContext
            The student's.
        cap : float
            Largest ratio of a term to the loss against the labels.
        seed : int
            Seed of what terms draw.
        patch : tuple of int
            Patch size of the student, in voxels.
        beside : BesideTeacher, optional
            The teacher, where it looks at the patches itself.
        make_peer : callable
            Makes a second student, for mutual learning.
        """
        self.terms = {key: term for key, term in _named(terms).items() if term.weight}
        self.training, self.cap, self.seed, self.beside = training, cap, seed, beside
        modules = tuple(dict.fromkeys(at for term in self.terms.values() for at in term.modules))
        self.modules = modules
        self.student_taps = Taps(training.network, tuple(map(for_student, modules)), "student") if modules else None
        self.taps = bool(modules)
        assert not modules or (beside is not None and beside.taps is not None), "refused before any work is done"
        self.log, self.warned = TermLog(), set[str]()
        self._require_heads(patch)
        self.own = nn.ModuleDict(self._own_modules(patch)).to(training.runtime.device)
        self.optimizer = _optimizer_without_decay(self.own, training.settings) if len(self.own) else None
        shown = training.n_channels + training.labels.n_outputs
        judging = {key: term for key, term in self.terms.items() if isinstance(term, HolisticTerm)}
        self.critics = nn.ModuleDict({key: Critic(shown, patch, width=term.width) for key, term in judging.items()})
        self.critics.to(training.runtime.device)
        self.critic_optimizers = {
            key: torch.optim.Adam(self.critics[key].parameters(), lr=term.learning_rate, betas=(0.0, 0.9))
            for key, term in judging.items()
        }
        self.above: Tensor | None = None
        """What terms were last compared with: a part of a batch without labels has no loss against any."""
        self.iteration = 0
        """Number of the step whose parts are looked at."""
        self.shown: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        mutual = any(isinstance(term, MutualTerm) for term in self.terms.values())
        self.peer = to_device(make_peer(), training.runtime.device).train() if mutual else None
        self.peer_optimizer = make_optimizer(self.peer, training.settings) if self.peer is not None else None

    def loss(self, step: StepContext) -> Tensor:
        """Sum of the terms for a part of a batch, each held to its cap."""
        added, self.iteration = step.task.new_zeros(()), step.iteration
        weights = {key: term.weight_at(step.progress) for key, term in self.terms.items()}
        if not any(weights.values()) and self.peer is None:
            if self.student_taps:
                self.student_taps.maps.clear()
            return added
        with torch.autocast(self.training.runtime.device.type, enabled=False):
            seen = self._look(step)
            self.above = self._above_floor(step)
            for key, weight in weights.items():
                # A second student learns from the first step on, whenever its turn to teach begins.
                if not weight and not isinstance(self.terms[key], MutualTerm):
                    continue
                value = self._value(key, seen)
                ratio = torch.zeros_like(value) if self.above is None else weight * value.detach().abs() / self.above
                if weight:
                    self.log.rows[key].append(torch.stack((value.detach(), ratio.detach())))
                held = torch.where(ratio > self.cap, self.cap / ratio.clamp_min(1e-12), torch.ones_like(ratio))
                added = added + held.detach() * weight * step.share * value
        return added

    def _above_floor(self, step: StepContext) -> Tensor | None:
        """How far the loss against the labels is above its floor, over the samples that have labels; as before where none has."""
        share = sum(step.labelled) / max(len(step.labelled), 1) if step.labelled else 1.0
        floor = self.training.loss_floor
        if not share or floor is None:
            return self.above
        return (step.task / (step.share * share) - floor).clamp_min(_LEAST_TASK)

    def step(self, learning_rate: float) -> None:
        """Let projectors, critics and the second student take a step."""
        scaler, clip = self.training.scaler, self.training.settings.gradient_clip
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
        told, self.log = self.log.taken(), TermLog()
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
            "critics": self.critics.state_dict(),
            "critic_optimizers": {key: o.state_dict() for key, o in self.critic_optimizers.items()},
            "above": None if self.above is None else self.above.detach(),
            "peer": None if self.peer is None else self.peer.state_dict(),
            "peer_optimizer": None if self.peer_optimizer is None else self.peer_optimizer.state_dict(),
            "told": self.log.taken(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.own.load_state_dict(state["own"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.critics.load_state_dict(state["critics"])
        for key, optimizer in self.critic_optimizers.items():
            optimizer.load_state_dict(state["critic_optimizers"][key])
        device = self.training.runtime.device
        self.above = None if state["above"] is None else state["above"].to(device)
        if self.peer is not None and self.peer_optimizer is not None:
            self.peer.load_state_dict(state["peer"])
            self.peer_optimizer.load_state_dict(state["peer_optimizer"])
        for key, rows in state["told"].items():
            self.log.rows[key] = [torch.tensor(row, device=device) for row in rows]

    def _look(self, step: StepContext) -> Seen:
        regions = self.training.labels.regions
        teacher, maps = None, {}
        if self.beside is not None and any(not isinstance(t, WITHOUT_TEACHER) for t in self.terms.values()):
            teacher = self.beside(step.images)
        elif step.soft is not None:
            teacher = scores_of(step.soft, regions=regions)
        if self.modules and self.student_taps and self.beside and self.beside.taps:
            ours, theirs = self.student_taps.taken(), self.beside.taps.taken()
            maps = {at: (ours[for_student(at)].float(), theirs[for_teacher(at)].float()) for at in self.modules}
        generator = torch.Generator().manual_seed(
            int(seeds.stream(self.seed, "distillation", step.iteration).integers(2**62))
        )
        return Seen(step, step.heads[0].float(), teacher, maps, generator)

    def _value(self, key: str, seen: Seen) -> Tensor:
        """Value of a term, before its weight."""
        term, regions, kept = self.terms[key], self.training.labels.regions, seen.step.inside
        match term:
            case VoxelTerm():
                return self._of_voxels(term, seen)
            case ChannelTerm(at=at):
                if at != LOGITS:
                    student, teacher = self._projected(key, *seen.maps[at])
                    return channel_loss(on_grid_of(student, teacher), teacher, temperature=term.temperature)
                present = present_classes(seen.taught, regions=regions, kept=kept)
                said = (log_probabilities(x, regions=regions) for x in (seen.student, seen.taught))
                return channel_loss(*said, temperature=term.temperature, kept=kept, present=present)
            case DistTerm():
                return correlation_loss(
                    seen.student,
                    seen.taught,
                    temperature=term.temperature,
                    regions=regions,
                    kept=kept,
                    between=term.between,
                    within=term.within,
                )
            case PairTerm():
                # Cosines of probabilities, which are all of one sign, tell less apart than those of their logarithms.
                student, teacher = (
                    (log_probabilities(x, regions=regions) for x in (seen.student, seen.taught))
                    if term.at == LOGITS
                    else seen.maps[term.at]
                )
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
                return region_loss(*seen.maps[at], labels, self.training.labels.n_outputs + regions, kept)
            case MaskedTerm(at=at):
                student, teacher = self._projected(key, *seen.maps[at])
                hidden = hide(student, term.share, seen.generator)
                return hint_loss(self.own[_safe(f"{key}.make")](hidden), teacher)
            case SelfTerm():
                return self._deep_to_shallow(term, seen)
            case MutualTerm():
                return self._mutual(term, seen)

    def _of_voxels(self, term: VoxelTerm, seen: Seen) -> Tensor:
        regions, kept = self.training.labels.regions, seen.step.inside
        compare = partial(voxel_loss, temperature=term.temperature, regions=regions, by_class=term.balance == "class")
        value = compare(seen.student, seen.taught, kept=kept)
        if not term.lower_heads:
            return value
        said = probabilities_of(seen.taught, regions=regions)
        for depth, head in enumerate(seen.step.heads[1:], start=1):
            grid = tuple(head.shape[2:])
            coarse = scores_of(pooled(said, grid), regions=regions)
            value = value + 0.5**depth * compare(head, coarse, kept=pooled(kept[:, None].float(), grid)[:, 0] > 0.5)
        return value

    def _deep_to_shallow(self, term: SelfTerm, seen: Seen) -> Tensor:
        regions, value = self.training.labels.regions, seen.student.new_zeros(())
        finest = probabilities_of(seen.student.detach(), regions=regions)
        for depth, head in enumerate(seen.step.heads[1:], start=1):
            coarse = scores_of(pooled(finest, tuple(head.shape[2:])), regions=regions)
            value = value + 0.5**depth * voxel_loss(head, coarse, temperature=term.temperature, regions=regions)
        return value

    def _mutual(self, term: MutualTerm, seen: Seen) -> Tensor:
        """Divergence from the second student; that one learns at once, from the labels and from the first."""
        assert self.peer is not None
        training, step = self.training, seen.step
        images = step.images.contiguous(memory_format=fast_memory_format(self.peer.dims))
        with training.runtime.precision():
            heads = self.peer.supervised(images)
        compare = partial(voxel_loss, temperature=term.temperature, regions=training.labels.regions, kept=step.inside)
        loss = training.task_loss(heads, step.labels, step.labelled)
        loss = loss + term.weight_at(step.progress) * compare(heads[0], seen.student.detach())
        training.scaler.scale(loss * step.share).backward()  # type: ignore[no-untyped-call]
        return compare(seen.student, heads[0].detach())

    def _holistic(self, key: str, seen: Seen) -> Tensor:
        critic, regions = self._critic(key), self.training.labels.regions
        student, teacher = (probabilities_of(x, regions=regions) for x in (seen.student, seen.taught))
        # What it learns from is looked at after the step; of a batch in parts, the last one.
        self.shown[key] = (seen.step.images.detach(), student.detach(), teacher.detach())
        critic.requires_grad_(requires_grad=False)
        value = holistic_loss(critic, seen.step.images, student, teacher)
        critic.requires_grad_()
        return value

    def _teach_critic(self, key: str, images: Tensor, student: Tensor, teacher: Tensor) -> None:
        term, critic, optimizer = self.terms[key], self._critic(key), self.critic_optimizers[key]
        assert isinstance(term, HolisticTerm)
        generator = torch.Generator().manual_seed(
            int(seeds.stream(self.seed, "critic", self.iteration).integers(2**62))
        )
        optimizer.zero_grad(set_to_none=True)
        loss = critic_loss(critic, images, student, teacher, penalty=term.penalty, generator=generator)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def _critic(self, key: str) -> Critic:
        critic = self.critics[key]
        assert isinstance(critic, Critic)
        return critic

    def _projected(self, key: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's map with the teacher's number of channels, and the teacher's."""
        name = _safe(f"{key}.project")
        return (self.own[name](student) if name in self.own else student), teacher

    def _own_modules(self, patch: tuple[int, ...]) -> dict[str, nn.Module]:
        """Projectors where student and teacher differ in channels, found by looking at a patch of nothing."""
        if not self.modules or self.beside is None or self.beside.taps is None or self.student_taps is None:
            return {}
        with torch.no_grad():
            nothing = self._nothing(patch)
            self.training.network.eval()(nothing)
            self.training.network.train()
            self.beside(nothing)
        ours, theirs = self.student_taps.taken(), self.beside.taps.taken()
        widths = {at: (ours[for_student(at)].shape[1], theirs[for_teacher(at)].shape[1]) for at in self.modules}
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

    def _nothing(self, patch: tuple[int, ...]) -> Tensor:
        """A patch of zeros, by which shapes are found."""
        return torch.zeros(1, self.training.n_inputs, *patch, device=self.training.runtime.device)

    def _require_heads(self, patch: tuple[int, ...]) -> None:
        """Raise where a term teaches heads at lower resolution, and the student has none."""
        asking = [k for k, t in self.terms.items() if isinstance(t, SelfTerm) or getattr(t, "lower_heads", False)]
        if not asking:
            return
        with torch.no_grad():
            heads = self.training.network.eval().supervised(self._nothing(patch))
            self.training.network.train()
        if len(heads) < 2:
            raise DistillationError(
                f"the term {asking[0]} teaches heads at lower resolution, and this student has one head only; leave it out, or take a "
                "student of more resolutions"
            )

    def _warn(self, key: str, ratio: float) -> None:
        if key not in self.warned:
            self.warned.add(key)
            self.training.note(
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


def _called(scores: Tensor, *, regions: bool) -> Tensor:
    """Labels (N, ...) that scores call; of regions the last that is more likely than not."""
    if not regions:
        return scores.argmax(1)
    labels = torch.zeros_like(scores[:, 0], dtype=torch.int64)
    for number in range(scores.shape[1]):
        labels[scores[:, number] > 0] = number + 1
    return labels


def _optimizer_without_decay(modules: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The recipe's optimiser; projectors only translate, and are not drawn to 0."""
    return make_optimizer(modules, settings.model_copy(update={"weight_decay": 0.0}))
