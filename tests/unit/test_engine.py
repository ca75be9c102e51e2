"""What the training engine promises: the same numbers however the work is shared out, and nothing lost whatever happens."""

import errno
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

import segpipe
from segpipe.augment.mr_artefacts import draw_artefacts, spoil
from segpipe.augment.previous import Spoiling, draw_spoiling, one_hot
from segpipe.augment.previous import spoil as spoil_previous
from segpipe.augment.spec import AugmentationSettings, default_spec
from segpipe.core.labels import Labels
from segpipe.core.progress import Watch
from segpipe.core.seeds import stream
from segpipe.core.workspace import Workspace
from segpipe.errors import LockedError, ModelError, PlanError, TrainingError
from segpipe.execution.device import Runtime
from segpipe.execution.locks import locked
from segpipe.losses.compound import Loss
from segpipe.losses.spec import LossTerm
from segpipe.planning.recipe import TrainingSettings
from segpipe.planning.rules import sided_labels
from segpipe.planning.schema import Plan
from segpipe.training import compiling, storage
from segpipe.training.checkpoint import State, load_checkpoint, save_checkpoint
from segpipe.training.fold import make_trainer
from segpipe.training.job import FoldJob
from segpipe.training.job import Listener as Silent
from segpipe.training.optimise import WeightAverage, make_optimizer
from segpipe.training.progress import Progress
from segpipe.training.ranks import Ranks
from segpipe.training.run import train
from segpipe.training.sampling import CaseExtent, Sampling, draw_patches
from segpipe.training.schema import TrainingRecord
from segpipe.training.settings import FoldSettings
from segpipe.version import __version__
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.fold import FoldWork
from segpipe.workflows.fold import job_of as fold_job
from segpipe.workflows.project import Project
from tests.phantoms import write_small_dataset

FLOAT32 = Runtime(torch.device("cpu"), None)
RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_batch = 4
min_batch = 4
budget_gb = 1.0
[training]
learning_rate = 0.01
momentum = 0.9
iterations_per_epoch = 4
validation_batches = 2
"""


class Notes(Watch):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def workplace(tmp_path):
    """A function that plans a small dataset with further training settings; gives its folder and workspace."""

    def plan(name="work", extra="", batch=4, **dataset):
        folder = tmp_path / "dataset"
        if not folder.exists():
            write_small_dataset(folder, **dataset)
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(RECIPE.replace("batch = 4", f"batch = {batch}") + extra)
        segpipe.plan(folder, work=tmp_path / name, recipe=recipe, jobs=1)
        return folder, Workspace(tmp_path / name)

    return plan


def job_of(workspace, **settings) -> FoldJob:
    plan = Plan.read(workspace.plan)
    project = Project(workspace.root, workspace, workers=1)
    index = prepare_arrays(project, plan, "3d_fullres")
    return fold_job(FoldWork(project, plan, "3d_fullres", FoldSettings(epochs=1, **settings), index))


def weights(workspace, name="tiny", configuration="3d_fullres", fold=0):
    from safetensors.torch import load_file

    return load_file(workspace.fold(configuration, name, fold).weights)


def farthest(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


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


@pytest.mark.parametrize(("parts", "batch"), [(2, 4), (3, 4), (9, 4)])
def test_a_batch_in_parts_is_the_batch_as_a_whole(workplace, parts, batch):
    results = []
    for number in (1, parts):
        _, workspace = workplace(f"work_{number}", f"parts = {number}\n")
        record = train(job_of(workspace, deterministic=True), FLOAT32)
        results.append((record.train_loss, weights(workspace)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert farthest(results[0][1], results[1][1]) < 1e-4


def test_the_share_of_each_process_makes_up_the_batch():
    for n, world in ((9, 2), (4, 4), (7, 3)):
        shares = [list(range(n))[Ranks(rank, world).share(n)] for rank in range(world)]
        assert [i for share in shares for i in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Never lost


def test_a_second_process_on_a_fold_is_refused_and_one_that_prepares_waits(tmp_path, workplace):
    _, workspace = workplace()
    job = job_of(workspace)
    with (
        locked(job.folder.root, wait=False),
        pytest.raises(LockedError, match=r"fold_0: another segpipe works here \(process \d+ on .*, since 20"),
    ):
        train(job, FLOAT32)
    notes = Notes()
    import threading

    held, done = threading.Event(), threading.Event()

    def hold():
        with locked(workspace.root, wait=True):
            held.set()
            done.wait(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with Project(workspace.root, workspace, notes).alone():
        assert len(notes.notes) == 1
        assert "waiting for another segpipe (process" in notes.notes[0]
    thread.join()


@pytest.mark.parametrize("what", ["checkpoint.pt", "weights.safetensors"])
def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint_whole(workplace, monkeypatch, what):
    import segpipe.core.artefact

    folder, workspace = workplace(extra="checkpoint_minutes = 0.0001\n")
    fold = workspace.fold("3d_fullres", "tiny", 0)
    whole = segpipe.core.artefact.write_atomically
    written = []

    def full(path, content):
        if path.name == what and (len(written) == 2 or what.startswith("weights")):
            raise OSError(errno.ENOSPC, "No space left on device")
        if path.name == "checkpoint.pt":
            written.append(path)
        whole(path, content)

    for module in ("segpipe.training.checkpoint", "segpipe.training.fold"):
        monkeypatch.setattr(f"{module}.write_atomically", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*continue with --resume"):
        segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cpu", deterministic=True)
    reached = torch.load(fold.checkpoint, weights_only=True)["progress"]["iteration"]
    assert reached < 8 if what == "checkpoint.pt" else reached == 8
    monkeypatch.undo()
    done = segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cpu", deterministic=True, resume=True)
    assert done.record.iterations == 8
    assert not list(fold.root.glob(".*.pt.*"))


def test_a_full_disk_anywhere_is_one_line(monkeypatch, capsys):
    import segpipe.cli.app as cli

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "model.segpipe")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("segpipe: model.segpipe: No space left on device; make room")


def test_arrays_that_vanish_while_training_are_named_and_the_state_is_saved(workplace, monkeypatch):
    _, workspace = workplace()
    monkeypatch.setattr(storage, "_MEMORY_SHARE", 0.0)
    job = job_of(workspace)
    arrays = workspace.preprocessed("3d_fullres")

    def vanish(status):
        if status.progress >= 0.5:
            for file in arrays.glob("*/image.b2nd"):
                file.write_bytes(b"")

    with pytest.raises(TrainingError, match=r"case case_\d: its prepared arrays.*state of iteration \d+ is saved"):
        train(replace(job, epochs=50), FLOAT32, Silent(on_iteration=vanish))
    assert job.folder.checkpoint.is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_fold_trains_on_a_gpu_with_its_data_there(workplace):
    from segpipe.execution.device import choose_runtime

    folder, workspace = workplace()
    notes = Notes()
    done = segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cuda", deterministic=True, watch=notes)
    assert any("on the device" in note for note in notes.notes)
    _, other = workplace("cpu")
    on_cpu = train(replace(job_of(other, deterministic=True), epochs=2), choose_runtime("cpu"))
    assert done.record.train_loss == pytest.approx(on_cpu.train_loss, abs=0.05)


def test_data_on_disk_give_the_batches_of_data_in_memory(workplace, monkeypatch):
    _, workspace = workplace()
    job, notes, batches = job_of(workspace), [], []
    for share in (0.4, 0.0):
        monkeypatch.setattr(storage, "_MEMORY_SHARE", share)
        trainer = make_trainer(job, FLOAT32, Silent(note=notes.append))
        batches.append([trainer.training.read(n) for n in (0, 7)])
    assert "in memory" in notes[0]
    assert "on disk, read by" in notes[1]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert a.patches == b.patches


def test_a_checkpoint_holds_average_best_and_random_state(tmp_path):
    def state():
        torch.manual_seed(0)
        network = nn.Conv2d(1, 2, 3)
        settings = TrainingSettings(average_decay=0.9)
        optimizer = make_optimizer(network, settings)
        return State(
            network, optimizer, torch.amp.GradScaler("cpu", enabled=True), WeightAverage(network, 0.9), Progress()
        )

    one, two = state(), state()
    for iteration in range(3):
        one.network(torch.randn(1, 1, 5, 5)).sum().backward()
        one.optimizer.step()
        one.average.update(iteration)
    one.keep_best()
    one.progress.iteration, one.progress.average_dice, one.progress.train_loss = 3, 0.5, 0.1
    save_checkpoint(tmp_path / "c.pt", one, {"plan": "a"})
    expected = torch.rand(4)
    load_checkpoint(tmp_path / "c.pt", two, {"plan": "a"})
    assert torch.equal(torch.rand(4), expected)
    assert two.progress == one.progress
    assert all(torch.equal(two.average.average[k], v) for k, v in one.average.average.items())
    assert all(torch.equal(two.best[k], v) for k, v in one.best.items())
    with pytest.raises(TrainingError, match="was trained with plan a, now it is b"):
        load_checkpoint(tmp_path / "c.pt", two, {"plan": "b"})
    held = torch.load(tmp_path / "c.pt", weights_only=True)
    assert (held["schema_version"], held["made_by"]) == (1, __version__)
    torch.save({"schema_version": 99, "made_by": "9.1.0", "colour": 2}, tmp_path / "new.pt")
    with pytest.raises(
        TrainingError, match=r"new\.pt: checkpoint has schema version 99 and .*: install segpipe 9\.1\.0 or newer$"
    ):
        load_checkpoint(tmp_path / "new.pt", two, {"plan": "a"})
    (tmp_path / "c.pt").write_bytes(b"PK damaged")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt", two, {"plan": "a"})


def test_a_patch_with_values_that_are_not_finite_is_named(workplace, monkeypatch):
    _, workspace = workplace()
    trainer = make_trainer(job_of(workspace), FLOAT32, Silent())
    # TrainingCase is frozen; its array is not.
    trainer.training.cases[1].image[:] = float("nan")
    bad = trainer.training.cases[1].id
    trainer.training.augmentation = None
    with pytest.raises(
        TrainingError, match=rf"iteration \d: the loss is nan; these patches hold values.*{bad} from voxel"
    ) as error:
        trainer.run(resume=False)
    assert all(c.id not in str(error.value) for c in trainer.training.cases if c.id != bad)


# Optimisation


def test_the_average_follows_the_weights_and_is_what_is_kept(workplace):
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, 0.5)
    start = network.weight.item()
    with torch.no_grad():
        network.weight += 1
    average.update(1000)
    assert float(average.average["weight"]) == pytest.approx(start + 0.5)
    with average.in_place():
        assert network.weight.item() == pytest.approx(start + 0.5)
    assert network.weight.item() == pytest.approx(start + 1)
    # What batch normalisation has seen belongs to the weights that saw it.
    norm = nn.BatchNorm1d(1)
    average = WeightAverage(norm, 0.5)
    norm.running_mean += 1
    average.update(1000)
    with average.in_place():
        assert norm.running_mean.item() == pytest.approx(0.5)
    assert norm.running_mean.item() == 1
    kept = []
    for extra in ("", "average_decay = 0.99\n"):
        _, workspace = workplace("avg" if extra else "plain", extra)
        train(job_of(workspace, deterministic=True), FLOAT32)
        kept.append((weights(workspace), torch.load(workspace.fold("3d_fullres", "tiny", 0).checkpoint)["network"]))
    assert farthest(*kept[0]) == 0
    assert farthest(kept[0][1], kept[1][1]) == 0
    assert farthest(*kept[1]) > 1e-4


def test_progress_stops_early_and_remembers_the_best():
    progress = Progress()
    seen = []
    for dice in (0.2, 0.6, 0.5, 0.1, 0.1, 0.1):
        progress.epoch_losses, progress.validation_dice = [1.0], [dice, None]
        progress.end_epoch(2)
        seen.append((progress.is_best, progress.stopped_early))
    assert seen == [(True, False), (True, False), (True, False), (False, False), (False, True), (False, True)]
    expected = 0.2
    for dice in (0.6, 0.5, 0.1, 0.1, 0.1):
        expected = 0.9 * expected + 0.1 * dice
    assert progress.average_dice == pytest.approx(expected)
    assert progress.best_dice == pytest.approx(0.9 * (0.9 * 0.2 + 0.1 * 0.6) + 0.1 * 0.5)


def test_early_stopping_keeps_the_weights_of_the_best_epoch(workplace, monkeypatch):
    import segpipe.training.loop as loop

    _, workspace = workplace(extra="patience_epochs = 2\n")
    scores = iter([0.1, 0.9, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    seen = []

    def scored(network, *_, **__):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return [0.0, 2 * next(scores)], 0.0

    monkeypatch.setattr(loop, "patch_dice", scored)
    record = train(replace(job_of(workspace, deterministic=True), epochs=8), FLOAT32)
    assert record.stopped_early
    assert record.epochs == record.best_epoch + 2 < 8
    assert farthest(weights(workspace), seen[record.best_epoch - 1]) == 0
    with pytest.raises(TrainingError, match=r"holds out no case.*patience_epochs"):
        train(replace(job_of(workspace), fold="all"), FLOAT32)


def test_compiling_is_measured_and_a_failure_is_no_crash(monkeypatch):
    taken, read = [], []

    class Net(nn.Sequential):
        slow_s = 0.0

        def supervised(self, x):
            time.sleep(self.slow_s)
            return [self(x)]

    def images():
        read.append(1)
        return torch.randn(2, 1, 8, 8)

    def compiled(function, **_):
        taken.append(function)
        return fast

    def fast(x):
        return [network(x)]

    def slow(x):
        time.sleep(0.05)
        return [network(x)]

    network = Net(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    network.slow_s = 0.05
    monkeypatch.setattr(torch, "compile", compiled)
    state = torch.get_rng_state()
    chosen, why = compiling.compiled_if_faster(
        network, lambda: torch.ones(2, 1, 8, 8), FLOAT32, lambda step: 1e5 * step
    )
    assert chosen is fast
    assert why.startswith("compiled: a step takes")
    # The trial leaves no trace in what batch normalisation has seen, nor in the random numbers.
    assert network[1].num_batches_tracked == 0
    assert not network[1].running_mean.any()
    assert torch.equal(torch.get_rng_state(), state)
    chosen, why = compiling.compiled_if_faster(network, images, FLOAT32, lambda _: 60.0)
    assert chosen is None
    assert "1 min of training are too short" in why
    assert (len(taken), len(read)) == (1, 0)
    network.slow_s = 0.0
    monkeypatch.setattr(torch, "compile", lambda *_, **__: slow)
    chosen, why = compiling.compiled_if_faster(network, images, FLOAT32, lambda _: 1e5)
    assert chosen is None
    assert why.startswith("eager: a step takes")

    def broken(*_, **__):
        raise RuntimeError("no compiler\ndetails")

    monkeypatch.setattr(torch, "compile", broken)
    chosen, why = compiling.compiled_if_faster(network, images, FLOAT32, lambda _: 1e5)
    assert chosen is None
    assert why == "eager: compiling failed (RuntimeError: no compiler)"
    assert all(p.grad is None for p in network.parameters())


def test_losses_over_processes_are_sums_over_processes():
    """With a stand-in for the other process: what it adds to each sum enters the loss."""
    logits, target = torch.randn(4, 2, 3, 3), torch.randint(0, 2, (4, 3, 3))
    # What is largest over all processes is the one thing that each looks for in its own part (top_k).
    names = ("dice", "cross_entropy", "focal", "tversky", "generalised_dice", "boundary", "hausdorff", "cldice")
    terms = tuple(TypeAdapter(LossTerm).validate_python({"name": name}) for name in names)
    for ignore in (None, 2):
        labels = Labels.plain({"a": 1}, ignore=ignore)
        for batch_dice in (False, True):
            whole = Loss(labels, terms, batch_dice)(logits, target)
            calls: list[torch.Tensor] = []
            Loss(labels, terms, batch_dice, total=lambda x, c=calls: c.append(x) or x)(logits[2:], target[2:])
            others = iter(list(calls))
            shared = Loss(labels, terms, batch_dice, total=lambda x, o=others: x + next(o))(logits[:2], target[:2])
            assert shared == pytest.approx(float(whole), abs=1e-6)


# Sampling and augmentation


def test_patches_of_sparse_annotation_hold_annotated_voxels():
    rng = np.random.default_rng(0)
    labelled = [[0, z, y, x] for z in range(0, 40, 5) for y in range(0, 30, 7) for x in range(0, 30, 7)]
    case = CaseExtent((40, 30, 30), np.array([*labelled, [1, 20, 5, 5]], dtype=np.int32))
    for patch in draw_patches([case], Sampling((3, 8, 8), 50, 0.33), rng):
        z = patch.start[0]
        assert any(z <= level < z + 3 for level in range(0, 40, 5))


def test_sampling_by_label_sees_a_label_of_few_cases_as_often_as_the_others():
    rows = {name: np.array(found, dtype=np.int32) for name, found in {
        "common": [[1, 5, 5, 5]], "rare": [[1, 5, 5, 5], [2, 9, 9, 9]], "empty": np.zeros((0, 4)),
    }.items()}  # fmt: skip
    cases = [CaseExtent((16, 16, 16), rows[n]) for n in ["common"] * 18 + ["rare", "empty"]]

    def share_of_rare(by_label, weights=()):
        how, rng = Sampling((4, 4, 4), 2, 0.5, weights, by_label), np.random.default_rng(0)
        forced = [draw_patches(cases, how, rng)[1] for _ in range(600)]
        centred = [p for p in forced if p.start == (7, 7, 7)]
        assert {p.case for p in centred} <= {18}
        return len(centred) / len(forced)

    assert share_of_rare(by_label=False) < 0.08
    assert share_of_rare(by_label=True) == pytest.approx(0.5, abs=0.06)
    assert share_of_rare(by_label=True, weights=(1.0, 3.0)) == pytest.approx(0.75, abs=0.06)
    # The other patches of a batch are of any case, as before.
    how, rng = Sampling((4, 4, 4), 2, 0.5, (), by_label=True), np.random.default_rng(0)
    assert len({draw_patches(cases, how, rng)[0].case for _ in range(300)}) == len(cases)


def test_foreground_weights_say_which_label_is_visited(workplace):
    rows = [[1, 0, 0, 0], [2, 50, 0, 0], [3, 20, 0, 0]]
    case = CaseExtent((60, 4, 4), np.array(rows, dtype=np.int32))
    rng = stream(0, "weights")
    starts = [p.start[0] for p in draw_patches([case], Sampling((4, 4, 4), 600, 1.0, (1.0, 3.0, 0.0)), rng)]
    assert 0.65 < np.mean([s > 40 for s in starts]) < 0.85
    assert not any(10 < s < 40 for s in starts)
    with pytest.raises(PlanError, match="names liver; the dataset has cube_1, cube_2"):
        workplace(extra="foreground_weights = { liver = 2.0 }\n")
    with pytest.raises(PlanError, match="is 0 for every label"):
        workplace(extra="foreground_weights = { cube_1 = 0, cube_2 = 0.0 }\n")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("kidney_left", "liver", "kidney_right"), ("kidney_left", "kidney_right")),
        (("LeftLung", "RightLung"), ("LeftLung", "RightLung")),
        (("L ear", "R-ear"), ("L ear", "R-ear")),
        (("left_atrium", "left_ventricle"), None),
        (("kidneyL", "kidneyR"), ("kidneyL", "kidneyR")),
        (("copyleft", "copyright"), None),
        (("ventricle", "right ventricle", "bright", "b"), None),
    ],
)
def test_left_and_right_are_told_from_label_names(names, found):
    assert sided_labels(names) == found


def test_left_and_right_labels_are_not_mirrored_into_each_other(workplace):
    _, workspace = workplace(names={"background": 0, "kidney_left": 1, "kidney_right": 2})
    plan = Plan.read(workspace.plan)
    across = plan.transpose_forward.index(2)
    assert across not in plan.mirror_axes
    assert len(plan.mirror_axes) == 2
    trainer = make_trainer(job_of(workspace), FLOAT32, Silent())
    assert trainer.training.augmentation.mirror_axes == plan.mirror_axes
    assert train(job_of(workspace), FLOAT32).mirror_axes == plan.mirror_axes
    _, other = workplace("z", '[training.augmentation]\nmirror = ["z"]\n')
    assert Plan.read(other.plan).mirror_axes == (Plan.read(other.plan).transpose_forward.index(0),)


ARTEFACTS = AugmentationSettings(motion=1, ghosting=1, spike=1, bias_field=1, anisotropy=1)


@pytest.mark.parametrize("patch", [(16, 20, 24), (20, 24)])
def test_mr_artefacts_are_replayed_from_their_seed(patch):
    spec = default_spec(patch, settings=ARTEFACTS)
    image = np.random.default_rng(0).normal(size=(2, *(1,) * (3 - len(patch)), *patch)).astype(np.float32)
    once, again, other = (spoil(image, draw_artefacts(spec, 2, stream(seed, "a"))) for seed in (0, 0, 1))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert np.isfinite(once).all()
    assert {a.name for a in draw_artefacts(spec, 2, stream(0, "a"))} == set(ARTEFACTS.artefacts)
    for artefact in draw_artefacts(spec, 2, stream(0, "a")):
        alone = spoil(image, (artefact,))
        assert np.array_equal(alone[1 - artefact.channel], image[1 - artefact.channel])
        assert not np.allclose(alone[artefact.channel], image[artefact.channel]), artefact.name


def test_a_recipe_with_artefacts_and_deformation_trains(workplace):
    extra = "[training.augmentation]\nelastic = 0.5\nmotion = 0.3\nghosting = 0.3\nspike = 0.3\nbias_field = 0.3\nanisotropy = 0.3\n"
    _, workspace = workplace(extra=extra)
    assert train(job_of(workspace), FLOAT32).iterations == 4


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 200))
def test_spoiling_a_previous_segmentation_invents_no_label(seed):
    rng = stream(seed, "spoil")
    labels = torch.zeros(2, 12, 14, 16, dtype=torch.long)
    labels[:, 2:8, 3:9, 4:12] = 1
    labels[:, 9:11, 2:5, 2:5] = 2
    spoilings = tuple(draw_spoiling(2, rng) for _ in range(2))
    spoilt = spoil_previous(labels, spoilings)
    assert set(spoilt.unique().tolist()) <= {0, 1, 2}
    for before, after, spoiling in zip(labels, spoilt, spoilings, strict=True):
        assert torch.equal(before, after) or spoiling != Spoiling()
    channels = one_hot(spoilt, 2)
    assert torch.equal(channels.argmax(1) + (channels.sum(1) > 0), spoilt)


def test_spoiling_does_what_its_name_says():
    labels = torch.zeros(1, 14, 14, 14, dtype=torch.long)
    labels[0, 4:9, 4:9, 4:9] = 1
    labels[0, 6, 6, 6] = 0
    labels[0, 12, 12, 12] = 1

    def after(*changes, removals=()):
        return spoil_previous(labels, (Spoiling(changes, removals),))[0] == 1

    before = labels[0] == 1
    grown, shrunk, opened, closed = (after((1, name, 2)) for name in ("dilate", "erode", "open", "close"))
    assert (grown & before).sum() == before.sum() < grown.sum()
    assert (shrunk & before).sum() == shrunk.sum() < before.sum()
    assert not opened[12, 12, 12]
    assert closed[6, 6, 6]
    assert after(removals=((1, 0.99),)).sum() == before.sum() - 1


def test_a_resumed_training_keeps_its_end_and_a_finished_one_its_weights(workplace):
    _, workspace = workplace()
    job = replace(job_of(workspace, deterministic=True), epochs=3)

    class Stopped(Exception):  # noqa: N818
        pass

    def stop(status):
        if status.epoch == 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(replace(job, plan=with_checkpoints(job.plan)), FLOAT32, Silent(on_iteration=stop))
    again = train(replace(job, plan=with_checkpoints(job.plan), epochs=None, resume=True), FLOAT32)
    assert again.epochs == 3
    job.folder.checkpoint.unlink()
    with pytest.raises(TrainingError, match="trained before"):
        train(replace(job, plan=with_checkpoints(job.plan)), FLOAT32)
    with pytest.raises(TrainingError, match=r"seed 0 \(now 1\)"):
        train(replace(job, plan=with_checkpoints(job.plan), seed=1, resume=True), FLOAT32)


def with_checkpoints(plan):
    settings = plan.training.model_copy(update={"checkpoint_minutes": 1e-6})
    return plan.model_copy(update={"training": settings})


def test_the_log_holds_what_tensorboard_shows(workplace):
    pytest.importorskip("tensorboard")
    folder, workspace = workplace()
    segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cpu", tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fold = workspace.fold("3d_fullres", "tiny", 0)
    events = EventAccumulator(str(fold.root / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in fold.log.read_text().splitlines()]
    assert [e.value for e in events.Scalars("train_loss")] == pytest.approx([line["train_loss"] for line in lines])
    assert [e.step for e in events.Scalars("learning_rate")] == [1, 2]


# Fine-tuning and the cascade


def test_fine_tuning_takes_over_the_plan_or_what_fits(workplace, tmp_path):
    folder, workspace = workplace()
    model = segpipe.train(folder, work=workspace.root, epochs=1, jobs=1, device="cpu").model
    other = write_small_dataset(tmp_path / "other", values=(5,), names={"background": 0, "ball": 5})
    notes = Notes()
    done = segpipe.train(other, work=tmp_path / "tuned", init_from=model, epochs=1, jobs=1, device="cpu", watch=notes)
    plan, theirs = Plan.read(tmp_path / "tuned" / "plan.json"), Plan.read(workspace.plan)
    mine = plan.configuration("3d_fullres")
    assert (mine, plan.labels.names) == (theirs.configuration("3d_fullres"), ("ball",))
    assert any("taking over that of" in note for note in notes.notes)
    assert any(note.strip().startswith("decoder.seg_layers.0.weight: 3x") for note in notes.notes)
    assert not any("encoder" in note for note in notes.notes)
    assert str(model) in done.record.begun_with
    # A plan that is there stays, and what fits is loaded.
    (tmp_path / "wide.toml").write_text(RECIPE.replace("base_features = 4", "base_features = 4\nmax_features_3d = 6"))
    segpipe.plan(other, work=tmp_path / "wide", recipe=tmp_path / "wide.toml", jobs=1)
    notes = Notes()
    segpipe.train(other, work=tmp_path / "wide", init_from=model, epochs=1, jobs=1, device="cpu", watch=notes)
    assert any(note.strip().startswith("encoder.stages.1") and "in the planned network" in note for note in notes.notes)
    assert not any(note.strip().startswith("encoder.stages.0") for note in notes.notes)
    (tmp_path / "other.toml").write_text(RECIPE.replace("base_features = 4", "base_features = 6"))
    segpipe.plan(other, work=tmp_path / "none", recipe=tmp_path / "other.toml", jobs=1)
    with pytest.raises(ModelError, match=r"none of its convolutions fits.*a new --work"):
        segpipe.train(other, work=tmp_path / "none", init_from=model, epochs=1, jobs=1, device="cpu")
    (tmp_path / "none.segpipe").write_bytes(b"")
    with pytest.raises(ModelError, match=r"none\.segpipe"):
        segpipe.train(other, work=tmp_path / "wide2", init_from=tmp_path / "none.segpipe", epochs=1, jobs=1)


def test_fine_tuning_begins_with_the_weights_and_survives_an_interruption(workplace, monkeypatch):
    folder, workspace = workplace()
    model = segpipe.train(folder, work=workspace.root, epochs=1, jobs=1, device="cpu").model
    _, second = workplace("second")
    job = job_of(second, init_from=model)
    trainer = make_trainer(job, FLOAT32, Silent())
    assert farthest(weights(workspace), trainer.network.state_dict()) == 0
    train(job, FLOAT32)
    job.folder.record.unlink()
    again = train(replace(job, resume=True, initial=None), FLOAT32)
    assert str(model) in again.begun_with


def cascade(workspace):
    """Give a plan a low-resolution stage and a cascade, which it is too small for."""
    plan = Plan.read(workspace.plan)
    full = plan.configuration("3d_fullres")
    coarse = tuple(1.5 * s for s in full.spacing_mm)
    low = full.model_copy(update={"name": "3d_lowres", "spacing_mm": coarse})
    second = full.model_copy(update={"name": "3d_cascade_fullres", "previous_stage": "3d_lowres"})
    names = {"3d_lowres": low, "3d_fullres": full, "3d_cascade_fullres": second}
    plan.model_copy(update={"configurations": names}).write(workspace.plan)


def test_a_cascade_learns_from_what_each_fold_of_its_first_stage_held_out(workplace, tmp_path):
    folder, workspace = workplace()
    cascade(workspace)
    how = {"work": workspace.root, "epochs": 1, "jobs": 1, "device": "cpu", "tta": False}
    with pytest.raises(TrainingError, match=r"-c 3d_lowres --fold 0.*-c 3d_lowres --fold 4"):
        segpipe.train(folder, configuration="3d_cascade_fullres", **how)
    for fold in range(5):
        segpipe.train(folder, configuration="3d_lowres", fold=fold, **how)
    done = segpipe.train(folder, configuration="3d_cascade_fullres", **how)
    first = done.record
    assert isinstance(first, TrainingRecord)
    assert (
        weights(workspace, configuration="3d_cascade_fullres")["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == 3
    )
    assert not (workspace.first_stage("3d_cascade_fullres", "tiny") / "case_0" / "image.b2nd").exists()
    # What training saw of a held-out case is what prediction makes of it.
    from segpipe.core.workspace import PreparedFiles
    from segpipe.dataset.load import load_image
    from segpipe.inference.predictor import Predictor, PredictorOptions
    from segpipe.io.arrays import read_array
    from segpipe.preprocessing.prepare import prepare

    (second,) = Predictor.load(done.model, FLOAT32, PredictorOptions(folds=("0",), tta=False)).stages
    assert second.previous is not None
    case = next(c for c in done.held_out.evaluation.cases).case
    source = next((folder / "images").glob(f"{case}.*"))
    image = load_image(case, [source], ("MR",)).volume
    first = Predictor.load(workspace.model("3d_lowres", "tiny"), steps_runtime(), PredictorOptions(folds=("0",)))
    expected = prepare(image, first.segment(image).labels, second.plan, second.configuration).segmentation
    held = read_array(PreparedFiles(workspace.first_stage("3d_cascade_fullres", "tiny") / case).previous)
    assert np.array_equal(held, expected)
    rows = segpipe.predict(source, tmp_path / "out", model=done.model, folds=("0",), tta=False, device="cpu")
    assert rows[0].status == "done"


def steps_runtime():
    from segpipe.execution.device import choose_runtime

    return choose_runtime("cpu")
