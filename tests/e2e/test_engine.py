"""What the training engine promises: the same numbers however the work is shared out, and nothing lost whatever happens."""

import pytest
import torch

from segpipe.errors import TrainingError
from segpipe.planning.schema import Plan
from segpipe.training.ranks import Ranks
from segpipe.training.run import train
from tests.helpers.engine import FLOAT32, farthest, job_of, weights

# The same numbers, however the work is shared out


@pytest.mark.parametrize(("batch_dice", "parts", "batch"), [(False, 2, 4), (True, 1, 3)])
def test_two_processes_are_one_with_the_same_batch(workplace, batch_dice, parts, batch):
    results = []
    for devices in (1, 2):
        _, workspace = workplace(f"work_{devices}", f"parts = {parts}\n", batch=batch)
        plan = Plan.read(workspace.plan)
        chosen = plan.configuration("3d_fullres").model_copy(update={"batch_dice": batch_dice})
        plan.model_copy(update={"configurations": {"3d_fullres": chosen}}).write(workspace.plan)
        record = train(job_of(workspace, devices=devices, deterministic=True), FLOAT32)
        assert record.iterations == 4
        results.append((record, weights(workspace)))
    (alone, one), (shared, two) = results
    assert shared.train_loss == pytest.approx(alone.train_loss, abs=1e-5)
    assert shared.mean_validation_dice == pytest.approx(alone.mean_validation_dice, abs=1e-4)
    assert farthest(one, two) < 1e-4
    assert farthest(one, {k: torch.zeros_like(v) for k, v in one.items()}) > 0.1


def _agreeing(rank, file, results):
    """What a process is answered when the second one fails, stops and is late."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    told = ranks.agree(elapsed_s=5.0 + rank, due=rank == 0, stop=15 * rank, failure="case b is gone" if rank else None)
    x = torch.tensor([1.0 + rank], requires_grad=True)
    (ranks.total(x) ** 2).sum().backward()
    results.put((rank, told, ranks.gather([rank]), x.grad.tolist()))
    torch.distributed.destroy_process_group()


def test_processes_agree_on_time_saving_stops_and_failures(tmp_path):
    results = torch.multiprocessing.get_context("spawn").Queue()
    torch.multiprocessing.spawn(_agreeing, args=(tmp_path / "meet", results), nprocs=2)
    for _ in range(2):
        _, told, gathered, gradient = results.get(timeout=10)
        assert told == (5.0, True, 15, "case b is gone")
        assert gathered == [0, 1]
        # Each holds the loss of the sum, 3 ** 2; averaged over processes, as DDP does, this is its gradient.
        assert gradient == [12.0]


def test_a_failure_while_several_processes_start_is_told(workplace):
    _, workspace = workplace()
    job = job_of(workspace, devices=2)
    for case in job.splits.fold(0).train:
        (workspace.preprocessed("3d_fullres") / case / "image.b2nd").unlink()
    with pytest.raises(TrainingError, match=r"case case_\d: its prepared arrays.*segpipe preprocess"):
        train(job, FLOAT32)
