"""Dice on validation patches: cheap, the same patches every epoch."""

import torch
from torch import Tensor

from segpipe.core.labels import Labels
from segpipe.errors import TrainingError
from segpipe.execution.device import Runtime
from segpipe.losses.reference import is_any
from segpipe.networks.build import fast_memory_format
from segpipe.networks.segmenter import Segmenter
from segpipe.training.data import BatchSource, read_ahead
from segpipe.training.ranks import Ranks


@torch.no_grad()
def patch_dice(
    network: Segmenter,
    source: BatchSource,
    n_batches: int,
    labels: Labels,
    runtime: Runtime,
    ranks: Ranks,
    *,
    n_readers: int,
) -> tuple[list[float | None], float]:
    """Dice of each target over all voxels of the first batches, None for one that is in neither; and the seconds spent waiting for data.

    Ignored voxels do not count. Raises TrainingError where a case can no longer be read.

    Not the score of whole cases: patches are sampled around the foreground, and no windows are joined.
    """
    counts = torch.zeros(3, len(labels.targets), dtype=torch.int64, device=runtime.device)
    failure = None
    network.eval()
    with read_ahead(source, range(n_batches), n_readers=n_readers, pin=runtime.device.type == "cuda") as batches:
        try:
            for _ in range(n_batches):
                seen = source.to_device(next(batches), runtime.device)
                with runtime.precision():
                    logits = network(seen.images.contiguous(memory_format=fast_memory_format(network.dims)))
                counts += _counts(logits, seen.labels, labels)
        except TrainingError as error:
            failure = str(error)
    network.train()
    # Raised by all processes together: none may wait for the counts of another that has left.
    failures = [f for f in ranks.gather([failure]) if f]
    if failures:
        raise TrainingError(failures[0])
    both, predicted, reference = ranks.total(counts).cpu()
    total = (predicted + reference).tolist()
    return [2 * b / t if t else None for b, t in zip(both.tolist(), total, strict=True)], batches.waited_s


def _counts(logits: Tensor, target: Tensor, labels: Labels) -> Tensor:
    """Voxels of each target in both, in the prediction, in the reference: (3, T)."""
    kept = torch.ones_like(target, dtype=torch.bool) if labels.ignore_index is None else target != labels.ignore_index
    winner = None if labels.regions else logits.argmax(1)
    rows = []
    for number, members in enumerate(labels.members):
        predicted = (logits[:, number] > 0 if winner is None else winner == number + 1) & kept
        reference = is_any(target, members)
        rows.append(torch.stack([(predicted & reference).sum(), predicted.sum(), reference.sum()]))
    return torch.stack(rows, dim=1)
