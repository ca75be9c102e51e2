"""What the training engine promises: the same numbers however the work is shared out, and nothing lost whatever happens."""

import errno
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from segpipe.augment.mr_artefacts import draw_artefacts, spoil
from segpipe.augment.previous import Spoiling, draw_spoiling, one_hot
from segpipe.augment.previous import spoil as spoil_previous
from segpipe.augment.spec import AugmentationSettings, default_spec
from segpipe.core.labels import Labels
from segpipe.core.seeds import stream
from segpipe.errors import LockedError, PlanError, TrainingError
from segpipe.execution.locks import locked
from segpipe.losses.compound import Loss
from segpipe.losses.spec import LossTerm
from segpipe.planning.recipe import TrainingSettings
from segpipe.planning.rules import sided_labels
from segpipe.training import compiling, storage
from segpipe.training.checkpoint import State, load_checkpoint, save_checkpoint
from segpipe.training.fold import make_trainer
from segpipe.training.job import Listener as Silent
from segpipe.training.optimise import WeightAverage, make_optimizer
from segpipe.training.progress import Progress
from segpipe.training.ranks import Ranks
from segpipe.training.run import train
from segpipe.training.sampling import CaseExtent, Sampling, draw_patches
from segpipe.version import __version__
from segpipe.workflows.project import Project
from tests.helpers.engine import FLOAT32, Notes, job_of

# The same numbers, however the work is shared out


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


def test_a_full_disk_anywhere_is_one_line(monkeypatch, capsys):
    import segpipe.cli.app as cli

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "model.segpipe")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("segpipe: model.segpipe: No space left on device; make room")


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
    assert (held["schema_version"], held["made_by"]) == (2, __version__)
    torch.save({"schema_version": 99, "made_by": "9.1.0", "colour": 2}, tmp_path / "new.pt")
    with pytest.raises(
        TrainingError, match=r"new\.pt: checkpoint has schema version 99 and .*: install segpipe 9\.1\.0 or newer$"
    ):
        load_checkpoint(tmp_path / "new.pt", two, {"plan": "a"})
    (tmp_path / "c.pt").write_bytes(b"PK damaged")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt", two, {"plan": "a"})


# Optimisation


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
