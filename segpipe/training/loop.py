"""The loop: batches in, weights out. Knows arrays and a folder for its checkpoint, no dataset and no file format."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from segpipe.artefact import write_atomically
from segpipe.errors import TrainingError, TrainingInterrupted
from segpipe.labels import Labels
from segpipe.losses.compound import deep_supervision, loss_for
from segpipe.networks.build import fast_memory_format, to_device
from segpipe.networks.unet import UNet
from segpipe.planning.recipe import TrainingSettings
from segpipe.runtime import Runtime
from segpipe.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from segpipe.training.data import Batch, BatchSource, read_ahead
from segpipe.training.schedule import Schedule, poly_learning_rate
from segpipe.training.signals import StopRequest, stop_requests
from segpipe.training.validate import patch_dice
from segpipe.workspace import FoldFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """What a progress display shows after an iteration."""

    progress: float
    elapsed_s: float
    epoch: int
    loss: float
    mean_dice: float | None

    @property
    def remaining_s(self) -> float | None:
        """Forecast of the time that is left."""
        return self.elapsed_s / self.progress * (1 - self.progress) if self.progress > 0 else None


@dataclass
class Trainer:
    """Everything one fold's training needs. :meth:`run` trains to the end of the schedule."""

    network: UNet
    training: BatchSource
    validation: BatchSource
    labels: Labels
    batch_dice: bool
    settings: TrainingSettings
    schedule: Schedule
    runtime: Runtime
    folder: FoldFolder
    identity: dict[str, str]
    on_iteration: Callable[[Status], None] = lambda _: None

    def run(self, *, resume: bool) -> Progress:
        """Train; continue from the checkpoint when ``resume`` and there is one.

        Raises
        ------
        TrainingInterrupted
            When a signal asked to stop; the state has been saved.
        TrainingError
            If the loss is not finite, or the checkpoint does not fit.
        """
        to_device(self.network, self.runtime.device)
        self.format = fast_memory_format(self.network.dims)
        self.optimizer = make_optimizer(self.network, self.settings)
        self.state = Progress()
        if resume and self.folder.checkpoint.is_file():
            self.state = load_checkpoint(self.folder.checkpoint, self.network, self.optimizer, self.identity)
        self.folder.root.mkdir(parents=True, exist_ok=True)
        self.loss = loss_for(self.labels, batch_dice=self.batch_dice)
        self._cut_log()
        with stop_requests() as stop, read_ahead(self.training, self.state.iteration) as batches:
            self.saved_at = time.monotonic()
            while self.schedule.progress(self.state.iteration, self.state.elapsed_s) < 1:
                waited_before, start = batches.waited_s, time.perf_counter()
                loss = self._step(next(batches))
                self.state.elapsed_s += time.perf_counter() - start
                self.state.waited_s += batches.waited_s - waited_before
                self._after_iteration(loss)
                self._save_if_due(stop)
        if self.state.epoch_losses:
            self._end_epoch()
        save_checkpoint(self.folder.checkpoint, self.network, self.optimizer, self.state, self.identity)
        return self.state

    def _learning_rate(self) -> float:
        progress = self.schedule.progress(self.state.iteration, self.state.elapsed_s)
        return poly_learning_rate(self.settings.learning_rate, progress)

    def _n_validation_batches(self) -> int:
        """Fewer batches than the recipe's when epochs are short, so that validation stays a fifth of the work."""
        return max(min(self.settings.validation_batches, self.schedule.iterations_per_epoch // 5), 1)

    def _step(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        images, labels = self.training.to_device(batch, self.runtime.device)
        images = images.contiguous(memory_format=self.format)
        with self.runtime.precision():
            logits = self.network.supervised(images)
        loss = deep_supervision(logits, labels, self.loss)
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise TrainingError(
                f"iteration {self.state.iteration}: the loss is {value} on patches of {', '.join(batch.case_ids)}; "
                "look at these images, or lower training.learning_rate in the recipe"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        return value

    def _after_iteration(self, loss: float) -> None:
        state = self.state
        state.iteration += 1
        state.epoch_losses.append(loss)
        if state.iteration % self.schedule.iterations_per_epoch == 0:
            self._end_epoch()
        self.on_iteration(
            Status(
                self.schedule.progress(state.iteration, state.elapsed_s),
                state.elapsed_s,
                state.epoch,
                loss,
                mean_dice(state.validation_dice),
            )
        )

    def _end_epoch(self) -> None:
        state, start = self.state, time.perf_counter()
        state.validation_dice = patch_dice(
            self.network, self.validation, self._n_validation_batches(), self.labels, self.runtime
        )
        state.elapsed_s += time.perf_counter() - start
        state.train_loss = sum(state.epoch_losses) / len(state.epoch_losses)
        state.epoch += 1
        state.epoch_losses = []
        self._log(
            {
                "epoch": state.epoch,
                "iteration": state.iteration,
                "elapsed_s": round(state.elapsed_s, 2),
                "train_loss": state.train_loss,
                "validation_dice": state.validation_dice,
                "mean_validation_dice": mean_dice(state.validation_dice),
                "learning_rate": self._learning_rate(),
                "data_wait_share": round(state.waited_s / state.elapsed_s, 4),
            }
        )

    def _cut_log(self) -> None:
        """Take out lines of epochs that a crash undid: they are later than the checkpoint."""
        if self.folder.log.is_file():
            lines = self.folder.log.read_text().splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= self.state.iteration
            ]
            write_atomically(self.folder.log, "".join(kept).encode())

    def _log(self, line: dict[str, Any]) -> None:
        with self.folder.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _save_if_due(self, stop: StopRequest) -> None:
        due = time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes
        if not (due or stop):
            return
        save_checkpoint(self.folder.checkpoint, self.network, self.optimizer, self.state, self.identity)
        self.saved_at = time.monotonic()
        if stop and self.schedule.progress(self.state.iteration, self.state.elapsed_s) < 1:
            raise TrainingInterrupted(
                f"stopped by {stop.name} at iteration {self.state.iteration} (epoch {self.state.epoch}); "
                f"the state is in {self.folder.checkpoint}: continue with --resume",
                signal_number=stop.signal_number or 0,
            )


def make_optimizer(network: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the recipe's optimiser."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def mean_dice(scores: list[float | None]) -> float | None:
    """Mean over the classes that were seen; None when none was."""
    seen = [s for s in scores if s is not None]
    return sum(seen) / len(seen) if seen else None
