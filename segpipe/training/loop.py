"""The loop: batches in, weights out. Knows arrays and a folder for its checkpoint, no dataset and no file format."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.core.artefact import json_lines
from segpipe.core.labels import Labels
from segpipe.core.regular import lies, read_text
from segpipe.core.whole import write_atomically
from segpipe.core.workspace import FoldFolder
from segpipe.errors import TrainingError, TrainingInterrupted
from segpipe.execution.device import Runtime, arriving, sent
from segpipe.execution.signals import StopRequest, stop_requests
from segpipe.losses.compound import Loss
from segpipe.networks.build import fast_memory_format, to_device
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.recipe import TrainingSettings
from segpipe.training.checkpoint import State, load_checkpoint, save_checkpoint
from segpipe.training.compiling import Supervised, compiled_if_faster
from segpipe.training.data import Batch, BatchSource, ReadAhead, read_ahead
from segpipe.training.guide import Guidance, StepContext, TrainingContext
from segpipe.training.optimise import WeightAverage, make_optimizer
from segpipe.training.patch_dice import patch_dice
from segpipe.training.progress import Progress, Status, mean_dice
from segpipe.training.ranks import ALONE, Ranks
from segpipe.training.schedule import Schedule, learning_rate

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Everything one fold's training needs. :meth:`run` trains to the end of the schedule."""

    network: Segmenter
    training: BatchSource
    validation: BatchSource
    labels: Labels
    batch_dice: bool
    settings: TrainingSettings
    schedule: Schedule
    runtime: Runtime
    folder: FoldFolder
    identity: dict[str, str]
    spacing: tuple[float, ...] = ()
    """Spacing of a voxel of a patch, for losses of distances."""
    n_readers: int = 1
    end_is_asked_for: bool = True
    """Whether the schedule's end is the user's; a resumed training keeps its own otherwise."""
    extend: bool = False
    """Whether a finished training is continued, with a fresh decay of the learning rate."""
    begun_with: str | None = None
    """Whose weights the network was given, if it was."""
    compile_if_faster: bool = False
    on_iteration: Callable[[Status], None] = lambda _: None
    on_epoch: Callable[[], None] = lambda: None
    note: Callable[[str], None] = lambda _: None
    guidance: Guidance | None = None
    """What is learned from beside the labels."""
    ranks: Ranks = ALONE
    fabric: Any = None
    """Lightning Fabric, where several processes average their gradients."""
    last_loss: float | None = field(default=None, init=False)
    saved_at: float = field(default_factory=time.monotonic, init=False)
    """Time of the last checkpoint, or of the beginning."""
    pending: tuple[int, Batch, Callable[[], list[float]]] | None = field(default=None, init=False)
    """The last step, whose values have not been looked at yet."""

    def run(self, *, resume: bool) -> Progress:
        """Train; continue from the checkpoint when ``resume`` and there is one. The network then holds the weights to keep.

        Raises
        ------
        TrainingInterrupted
            When a signal asked to stop; the state has been saved.
        TrainingError
            If the loss is not finite, the checkpoint does not fit, data can no longer be read, or nothing can be written.
        """
        with _explained(self.runtime, self.settings.parts):
            return self._run(resume=resume)

    def _run(self, *, resume: bool) -> Progress:
        self._take_up(resume=resume)
        pin = self.runtime.device.type == "cuda"
        first = self.state.progress.iteration
        with (
            stop_requests() as stop,
            read_ahead(self.training, count(first), n_readers=self.n_readers, pin=pin) as batches,
        ):
            self._choose_forward(first)
            self.saved_at = time.monotonic()
            while True:
                waited_before, start = batches.waited_s, time.perf_counter()
                batch = self._next(batches, stop)
                if batch is None:
                    break
                values = self._step(batch)
                # The values of the step before: asking a GPU for these of this step would leave it idle.
                self._settle()
                self.pending = (self.progress.iteration, batch, arriving(values))
                if not pin:
                    self._settle()
                self.progress.elapsed_s += time.perf_counter() - start
                self.progress.waited_s += batches.waited_s - waited_before
                self._after_iteration()
        self._settle()
        if self.progress.epoch_losses:
            self._end_epoch()
        self._save()
        self._put_kept_weights_in_place()
        return self.progress

    def __post_init__(self) -> None:
        with _explained(self.runtime, self.settings.parts):
            self._build()

    def _build(self) -> None:
        """Bring the network to the device, and make all that it is trained with."""
        to_device(self.network, self.runtime.device)
        self.format = fast_memory_format(self.network.dims)
        decay = self.settings.average_decay
        self.state = State(
            network=self.network,
            optimizer=make_optimizer(self.network, self.settings),
            scaler=torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.needs_scaling),
            average=None if decay is None else WeightAverage(self.network, decay),
            progress=Progress(begun_with=self.begun_with),
        )
        self.loss = Loss(self.labels, self.settings.loss, self.batch_dice, self.spacing, self.ranks.total)
        if self.guidance is not None:
            # What it draws its own weights from is no part of the training.
            with torch.random.fork_rng(devices=[]):
                self.state.guide = self.guidance.guide(self._context())
        self.progress = self.state.progress
        self.forward: Any = Supervised(self.network)

    def _context(self) -> TrainingContext:
        """What a guide may know of this training."""
        n_channels = self.training.cases[0].image.shape[0]
        return TrainingContext(
            network=self.network,
            labels=self.labels,
            runtime=self.runtime,
            settings=self.settings,
            scaler=self.state.scaler,
            n_channels=n_channels,
            n_inputs=n_channels + self.training.n_previous,
            loss_floor=self.loss.floor,
            task_loss=self.task_loss,
            note=self.note,
        )

    def _take_up(self, *, resume: bool) -> None:
        """Continue from the checkpoint where that is asked for, and cut the log to what the state holds."""
        if resume and lies(self.folder.checkpoint):
            load_checkpoint(self.folder.checkpoint, self.state, self.identity)
            if not self.end_is_asked_for:
                kept = self.state.progress
                self.schedule = replace(self.schedule, epochs=kept.epochs, minutes=kept.minutes)
            if self.extend:
                self.state.progress.extend(self.schedule.epochs, self.schedule.minutes)
            if self.state.progress.extensions:
                _, iteration, seconds = self.state.progress.extensions[-1]
                self.schedule = replace(self.schedule, from_iteration=iteration, from_s=seconds)
        self.progress = self.state.progress
        self.progress.epochs, self.progress.minutes = self.schedule.epochs, self.schedule.minutes
        if self.ranks.first:
            self.folder.root.mkdir(parents=True, exist_ok=True)
            self._cut_log()

    def _choose_forward(self, first: int) -> None:
        """Compile the forward pass where that is faster; every process decides for its own device."""
        taps = self.state.guide is not None and self.state.guide.taps
        if self.compile_if_faster and not taps and not self._done():
            start = time.perf_counter()

            def images() -> Tensor:
                batch = self.training.to_device(self.training.read(first), self.runtime.device).images
                return batch.contiguous(memory_format=self.format)[: -(-len(batch) // self.settings.parts)]

            self.forward.compiled, why = compiled_if_faster(
                self.network,
                images,
                self.runtime,
                lambda step_s: self.schedule.remaining_s(first, self.progress.elapsed_s, step_s),
            )
            self.note(why)
            self.progress.elapsed_s += time.perf_counter() - start
        if self.fabric:
            self.forward = self.fabric.setup_module(self.forward)

    def _done(self) -> bool:
        return self.progress.stopped_early or self._share_done() >= 1

    def _next(self, batches: ReadAhead, stop: StopRequest) -> Batch | None:
        """Read the next batch; None when training is over.

        All processes agree on the time, and so on the end, on saving, on stopping and on failures: none waits for another that has left.
        """
        failure, batch = None, None
        try:
            batch = next(batches)
        except TrainingError as error:
            failure = str(error)
        progress = self.progress
        due = time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes
        progress.elapsed_s, due, stop_signal, failure = self.ranks.agree(
            elapsed_s=progress.elapsed_s, due=due, stop=stop.signal_number or 0, failure=failure
        )
        if self._done():
            return None
        if due or stop_signal or failure:
            self._settle()
            self._save()
        if failure:
            raise TrainingError(f"{failure} (the state of iteration {progress.iteration} is saved)")
        if stop_signal:
            raise TrainingInterrupted(
                f"stopped by {StopRequest.name_of(stop_signal)} at iteration {progress.iteration} (epoch {progress.epoch}); "
                f"the state is in {self.folder.checkpoint}: continue with --resume",
                signal_number=stop_signal,
            )
        return batch

    def _step(self, batch: Batch) -> Tensor:
        """One step of the optimiser; returns the loss, the norm of the gradient, and a sum of each sample's logits."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        seen = self.training.to_device(batch, self.runtime.device)
        images = seen.images.contiguous(memory_format=self.format)
        state.optimizer.zero_grad(set_to_none=True)
        batch_size = self.training.how.batch_size
        parts = min(self.settings.parts, max(batch_size // self.ranks.world, 1))
        shares = [n / batch_size for n in self.ranks.part_sizes(batch_size, parts)]
        total, sums = torch.zeros((), device=images.device), []
        for number, part in enumerate(_parts_of(len(images), parts)):
            some, answers = images[part], seen.labels[part]
            with self._gradients_together(last=number == parts - 1):
                with self.runtime.precision():
                    logits = self.forward(some)
                loss = self.task_loss(logits, answers, batch.labelled[part]) * shares[number]
                if state.guide is not None:
                    step = StepContext(
                        images=some,
                        labels=answers,
                        inside=seen.inside[part],
                        soft=None if seen.soft is None else seen.soft[part],
                        heads=logits,
                        task=loss.detach(),
                        share=shares[number],
                        iteration=self.progress.iteration,
                        progress=self._share_done(),
                        labelled=batch.labelled[part],
                    )
                    loss = loss + state.guide.loss(step)
                state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            finest = logits[0].detach()
            sums.append(finest.sum(dim=tuple(range(1, finest.ndim)), dtype=torch.float32))
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        state.scaler.step(state.optimizer)
        if state.guide is not None:
            state.guide.step(self._learning_rate())
        state.scaler.update()
        if state.average:
            state.average.update(self.progress.iteration)
        return torch.cat([total[None], norm[None].to(total.dtype), *sums])

    def task_loss(self, heads: list[Tensor], answers: Tensor, labelled: tuple[bool, ...]) -> Tensor:
        """Loss against the labels, of the samples that have some."""
        weights = self.network.head_weights(len(heads))
        if all(labelled):
            return self.loss.over_heads(heads, answers, weights)
        if not any(labelled):
            # Every weight is used, as in any other step, and none is moved.
            return torch.stack([0.0 * head.float().sum() for head in heads]).sum()
        # Numbers, not a mask: of a mask, the host would have to wait for how many it picks.
        which = sent([n for n, there in enumerate(labelled) if there], answers.device)
        return self.loss.over_heads([h[which] for h in heads], answers[which], weights) * (
            sum(labelled) / len(labelled)
        )

    def _gradients_together(self, *, last: bool) -> Any:
        """Only the last part's backward pass exchanges gradients between processes."""
        return nullcontext() if self.fabric is None else self.fabric.no_backward_sync(self.forward, enabled=not last)

    def _settle(self) -> None:
        """Take in the values of the step that is pending.

        Raises
        ------
        TrainingError
            If its loss or its gradient is not finite; no checkpoint holds what it made of the weights.
        """
        if self.pending is None:
            return
        number, batch, arrived = self.pending
        self.pending = None
        loss, norm, *sums = arrived()
        if not isfinite(loss) or not (isfinite(norm) or self.runtime.needs_scaling):
            raise TrainingError(self._not_finite(number, batch, loss, sums))
        self.progress.epoch_losses.append(loss)
        self.last_loss = loss

    def _not_finite(self, number: int, batch: Batch, loss: float, sums: list[float]) -> str:
        found = [
            (patch, bool(image.isfinite().all()), isfinite(total))
            for patch, image, total in zip(batch.patches, batch.images, sums, strict=True)
        ]
        found = self.ranks.gather(found)
        where = f"iteration {number}: the loss is {loss}"
        spoilt = [patch for patch, image, _ in found if not image]
        if spoilt:
            return f"{where}; these patches hold values that are not finite: {'; '.join(spoilt)}. Look at these images"
        culprits = [patch for patch, _, logits in found if not logits]
        advice = "lower training.learning_rate in the recipe, or look at these images"
        if culprits and len(culprits) < len(found):
            return f"{where}; the network's output is not finite on: {'; '.join(culprits)}. {advice}"
        return f"{where} (or its gradient is not finite) on the patches: {'; '.join(p for p, _, _ in found)}. {advice}"

    def _share_done(self) -> float:
        return self.schedule.progress(self.progress.iteration, self.progress.elapsed_s)

    def _learning_rate(self) -> float:
        return learning_rate(self.settings, self.progress.iteration, self._share_done())

    def _after_iteration(self) -> None:
        progress, epoch = self.progress, self.progress.epoch
        progress.iteration += 1
        if progress.iteration % self.schedule.iterations_per_epoch == 0:
            self._settle()
            self._end_epoch()
        if self.ranks.first and self.last_loss is not None:
            self.on_iteration(
                Status(
                    self.schedule.progress(progress.iteration, progress.elapsed_s),
                    progress.elapsed_s,
                    epoch,
                    self.last_loss,
                    tuple(zip(self.labels.names, progress.validation_dice, strict=False)),
                )
            )

    def _n_validation_batches(self) -> int:
        """Fewer batches than the recipe's when epochs are short, so that validation stays a fifth of the work."""
        return max(min(self.settings.validation_batches, self.schedule.iterations_per_epoch // 5), 1)

    def _end_epoch(self) -> None:
        progress, start = self.progress, time.perf_counter()
        with self._kept_weights():
            progress.validation_dice, waited = patch_dice(
                self.network, self.validation, self._n_validation_batches(), self.labels, self.runtime, self.ranks,
                n_readers=self.n_readers,
            )  # fmt: skip
        progress.end_epoch(self.settings.patience_epochs)
        progress.waited_s += waited
        progress.elapsed_s += time.perf_counter() - start
        if progress.is_best and self.settings.patience_epochs is not None:
            with self._kept_weights():
                self.state.keep_best()
        if not self.ranks.first:
            return
        self._log(
            {
                "epoch": progress.epoch,
                "iteration": progress.iteration,
                "elapsed_s": round(progress.elapsed_s, 2),
                "train_loss": progress.train_loss,
                "validation_dice": progress.validation_dice,
                "mean_validation_dice": mean_dice(progress.validation_dice),
                "average_dice": progress.average_dice,
                "learning_rate": self._learning_rate(),
                "data_wait_share": round(progress.waited_s / progress.elapsed_s, 4),
                **({} if self.state.guide is None else {"guide": self.state.guide.summary()}),
            }
        )
        self.on_epoch()

    def _kept_weights(self) -> Any:
        """The weights that would be kept if training ended now: the average, where there is one."""
        return self.state.average.in_place() if self.state.average else nullcontext()

    def _put_kept_weights_in_place(self) -> None:
        if self.state.best:
            self.network.load_state_dict(self.state.best)
        elif self.state.average:
            self.network.load_state_dict(self.state.average.average, strict=False)

    def _cut_log(self) -> None:
        """Take out lines of epochs that a crash undid: they are later than the checkpoint."""
        if lies(self.folder.log):
            lines = json_lines(read_text(self.folder.log), "epoch", "iteration")
            kept = [json.dumps(line) + "\n" for line in lines if self.progress.holds(line)]
            write_atomically(self.folder.log, "".join(kept).encode())

    def _log(self, line: dict[str, Any]) -> None:
        with self.folder.log.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        if self.ranks.first:
            save_checkpoint(self.folder.checkpoint, self.state, self.identity)
        self.saved_at = time.monotonic()


def _parts_of(n: int, parts: int) -> list[slice]:
    """Samples of each part of a batch, as torch's tensor_split would cut it."""
    ends = [0]
    for part in range(parts):
        ends.append(ends[-1] + n // parts + (part < n % parts))
    return [slice(a, b) for a, b in pairwise(ends)]


@contextmanager
def _explained(runtime: Runtime, parts: int) -> Iterator[None]:
    """State what the user can do where memory runs out, or where torch refuses an operation under --deterministic."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{runtime.describe()}: out of memory ({str(error).splitlines()[0]}); set training.parts in the recipe to "
            f"{2 * parts}, or plan with a smaller --budget-gb"
        ) from error
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise TrainingError(
            f"--deterministic: a step of this training has no deterministic form on {runtime.describe()} "
            f"({str(error).splitlines()[0]}); leave it out, train with --device cpu, or take plain_unet"
        ) from error
