"""What training does on a device: the numbers of a processor, no wait but those that are documented, the same bytes after a resume."""

import gc
from contextlib import nullcontext
from functools import partial
from typing import get_args
from unittest.mock import patch

import numpy as np
import pytest
import torch

import segpipe
from segpipe.augment import previous
from segpipe.augment.previous import Spoiling, one_hot, spoil
from segpipe.augment.spec import AugmentationSettings
from segpipe.errors import TrainingError
from segpipe.execution.device import Runtime, choose_runtime
from segpipe.losses.spec import LossTerm
from segpipe.networks.blocks import MeanPool3d
from segpipe.networks.build import to_device
from segpipe.training import checkpoint
from segpipe.training.loop import Trainer
from segpipe.training.optimise import make_optimizer
from segpipe.training.patch_dice import patch_dice
from tests.simulated.backend import MAX_POOL3D_IS_DETERMINISTIC
from tests.simulated.pairs import in_pairs
from tests.simulated.work import loss, steps_of, trainer_of, watched, with_cascade

LOSSES = {
    "dice": loss("dice"),
    "cross_entropy": loss("cross_entropy"),
    "weighted": loss("cross_entropy", class_weights={"core": 2.0}),
    "focal": loss("focal", class_weights={"core": 2.0}),
    "top_k": loss("top_k"),
    "tversky": loss("tversky"),
    "generalised_dice": loss("generalised_dice"),
    "boundary": loss("boundary"),
    "hausdorff": loss("hausdorff"),
    "cldice": loss("cldice"),
}
ON_THE_HOST = {"boundary", "hausdorff"}
"""Losses whose distances are computed on the host: one download a step, part of a batch and head of full resolution."""
FACTORS = {
    "term": list(LOSSES),
    "kind": ["plain", "ignore", "regions"],
    "lies": ["device", "memory", "disk"],
    "precision": [torch.float32, torch.bfloat16, torch.float16],
    "augmentation": ["nnunet", "elastic and artefacts", "none"],
    "optimizer": ["sgd", "adamw"],
    "average_decay": [None, 0.9],
    "parts": [1, 2],
    "labelled": [None, (True, False)],
    "deterministic": [False, True],
}  # fmt: skip
AUGMENTATIONS = {
    "nnunet": AugmentationSettings(),
    "elastic and artefacts": AugmentationSettings(elastic=1.0, bias_field=1.0),
    "none": AugmentationSettings(enabled=False),
}


def named(row):
    words = [row["term"], row["kind"], row["lies"], str(row["precision"])[6:], row["augmentation"], row["optimizer"]]
    for what, there in {
        "average": row["average_decay"],
        "parts": row["parts"] > 1,
        "unlabelled": row["labelled"],
    }.items():
        words += [what] if there else []
    return "-".join(words + (["deterministic"] if row["deterministic"] else []))


def test_every_loss_is_tried():
    names = {term.model_fields["name"].default for term in get_args(get_args(LossTerm)[0])}
    assert names == {terms[0].name for terms in LOSSES.values()}


@pytest.mark.parametrize("row", in_pairs(FACTORS), ids=named)
def test_a_step_is_that_of_a_processor_and_does_not_wait(gpu, places, row):
    terms = LOSSES[row["term"]]
    settings = {key: row[key] for key in ("optimizer", "average_decay", "parts")}
    settings |= {"loss": terms, "augmentation": AUGMENTATIONS[row["augmentation"]]}
    how = {key: row[key] for key in ("lies", "precision", "deterministic")}
    trainer = trainer_of(places(row["kind"]), "cuda", **how, **settings)
    if row["term"] == "cldice" and row["deterministic"] and not MAX_POOL3D_IS_DETERMINISTIC:
        with pytest.raises(RuntimeError, match="max_pool3d_with_indices_backward does not have a deterministic"):
            steps_of(trainer, labelled=row["labelled"])
        return
    with watched(gpu) as waits:
        found = steps_of(trainer, labelled=row["labelled"])
    allowed = 2 * row["parts"] if row["term"] in ON_THE_HOST else 0
    assert sum(waits.values()) <= allowed, waits
    assert all(bool(value.isfinite()) for value in found)
    if row["precision"] == torch.float32:
        same = trainer_of(places(row["kind"]), "cpu", precision=torch.float32, **settings)
        expected = steps_of(same, n=1, labelled=row["labelled"])
        assert float(found[0]) == pytest.approx(float(expected[0]), abs=1e-4)


@pytest.mark.parametrize("removing", [0, 1])
def test_a_cascade_waits_where_a_component_is_removed_alone(gpu, places, tmp_path, monkeypatch, removing):
    monkeypatch.setattr(previous, "P_REMOVAL", removing)
    monkeypatch.setattr(previous, "P_LABEL", 1)
    place = with_cascade(places("plain"), tmp_path)
    trainer = trainer_of(place, "cuda", configuration="3d_cascade_fullres", precision=torch.float32)
    with watched(gpu) as waits:
        found = steps_of(trainer, n=3)
    assert {where.partition(":")[0].rpartition("/")[2] for where in waits} <= ({"previous.py"} if removing else set())
    assert sum(waits.values()) == 2 * 2 * 3 * removing, "one for each label of each sample"
    same = trainer_of(place, "cpu", configuration="3d_cascade_fullres", precision=torch.float32)
    assert float(found[0]) == pytest.approx(float(steps_of(same, n=1)[0]), abs=1e-4)


def test_patch_dice_needs_no_float64(simulated, places):
    """Apple's devices have none: torch refuses it there, and so does the simulation."""
    scores = []
    for runtime, there in ((Runtime(torch.device("cpu"), None), nullcontext), (None, lambda: simulated("mps"))):
        with there():
            trainer = trainer_of(places("plain"), "cpu", precision=torch.float32)
            chosen = runtime or Runtime(torch.device("mps"), None)
            network = to_device(trainer.network, chosen.device)
            dice, _ = patch_dice(network, trainer.validation, 2, trainer.labels, chosen, trainer.ranks, n_readers=1)
            scores.append(dice)
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert any(scores[0])


def test_the_best_weights_are_kept_on_the_host_in_one_wait(gpu, places, monkeypatch):
    trainer = trainer_of(places("plain"), "cuda")
    with watched(gpu) as waits:
        trainer.state.keep_best()
    assert sum(waits.values()) <= 1
    assert trainer.state.best.keys() == trainer.network.state_dict().keys()
    monkeypatch.setattr(checkpoint, "_PINNED_BYTES", 1000)
    in_many_copies = checkpoint.on_host(trainer.network.state_dict())
    assert all(torch.equal(t, trainer.state.best[name]) for name, t in in_many_copies.items())
    assert [t.stride() for t in in_many_copies.values()] == [p.stride() for p in trainer.network.state_dict().values()]
    assert all(t.device.type == "cpu" and bool(t.isfinite().all()) for t in trainer.state.best.values())


def test_what_a_cascade_is_given_is_spoilt_as_on_a_processor(gpu, places):
    spoilings = (Spoiling(((1, "dilate", 2), (2, "open", 1)), ((2, 0.5),)), Spoiling())
    labels = (
        torch.stack([torch.as_tensor(np.asarray(places("plain").segmentations[n])) for n in (0, 1)]).long().clamp_min(0)
    )
    with watched(gpu) as waits:
        there = one_hot(spoil(there_of(labels), spoilings), 2)
    here = spoil(labels, spoilings)
    assert torch.equal(there.cpu(), one_hot(here, 2))
    assert bool((labels[0] == 2).any())
    assert not bool((here[0] == 2).any()), "its only component is removed"
    assert sum(waits.values()) == 1, "a component is found on the host"


def there_of(tensor):
    return tensor.pin_memory().to("cuda", non_blocking=True)


# float16


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_overflows_of_the_first_float16_steps_spoil_nothing(simulated, places, optimizer):
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**20)
    with simulated(capability=(7, 5)), patch.object(torch.amp, "GradScaler", scaler):
        trainer = trainer_of(
            places("plain"), "cuda", optimizer=optimizer, augmentation=AugmentationSettings(enabled=False)
        )
        assert trainer.runtime.autocast == torch.float16
        steps_of(trainer, n=8)
        assert 1 < trainer.state.scaler.get_scale() < 2.0**20, "no step overflowed"
        assert all(bool(p.isfinite().all()) for p in trainer.network.parameters())


def test_momentum_begins_with_zeros_also_after_a_state_without_any(places):
    settings = places("plain").plan.training
    net = torch.nn.Linear(2, 1)
    optimizer = make_optimizer(net, settings)
    before_the_first_step = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).state_dict()
    for _ in range(2):
        assert all(not optimizer.state[p]["momentum_buffer"].any() for p in net.parameters())
        optimizer.load_state_dict(before_the_first_step)


# Whole folds


def train(place, work, **how):
    how = {"epochs": 2, "jobs": 1, "device": "auto", "tta": False} | how
    segpipe.plan(place.dataset, work=work, recipe=place.folder / "tiny.toml", jobs=1)
    return segpipe.train(place.dataset, work=work, **how)


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_a_fold_is_trained_as_on_a_processor(simulated, places, tmp_path, configuration):
    with simulated(capability=(6, 0)) as device:
        there = train(places("plain"), tmp_path / "gpu", configuration=configuration)
        waits = device.waits
    with patch("segpipe.execution.device.cpu_flags", frozenset):  # in float32, whatever the processor knows
        here = train(places("plain"), tmp_path / "cpu", device="cpu", configuration=configuration)
    scores = [done.held_out.evaluation.mean_dice for done in (there, here)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert there.record.device == "simulated cuda, float32"
    assert there.record.train_loss == pytest.approx(here.record.train_loss, abs=1e-4)
    assert there.record.mean_validation_dice == pytest.approx(here.record.mean_validation_dice, abs=1e-3)
    assert sum(n for where, n in waits.items() if "patch_dice.py" in where) == 2, "one an epoch"
    assert sum(n for where, n in waits.items() if "checkpoint.py" in where) == 1, "one a checkpoint"


@pytest.mark.parametrize("dropout", [False, True])
def test_a_resumed_fold_is_the_uninterrupted_one(simulated, places, tmp_path, dropout):
    real, taken = Trainer._after_iteration, []

    def cut(self):
        real(self)
        taken.append(self.progress.iteration)
        if len(taken) == 5:
            self._save()
            raise TrainingError("a power cut")

    build = Trainer._build

    def with_dropout(self):
        # Draws from the device's random numbers, which a checkpoint has to bring back.
        build(self)
        self.network.register_forward_pre_hook(lambda _, given: (torch.nn.functional.dropout(given[0], 0.2),))

    weights = []
    for number, stop in enumerate((real, cut)):
        with simulated() as device, patch.object(Trainer, "_build", with_dropout if dropout else build):
            with patch.object(Trainer, "_after_iteration", stop):
                try:
                    done = train(places("plain"), tmp_path / str(number))
                except TrainingError:
                    device.seed(99)  # another process
            if stop is cut:
                done = train(places("plain"), tmp_path / str(number), resume=True)
        weights.append(done.folder.weights.read_bytes())
    assert weights[0] == weights[1]


def test_nothing_of_a_training_is_on_the_device_while_its_held_out_cases_are_predicted(simulated, places, tmp_path):
    class LookedError(Exception):
        pass

    seen = []
    with simulated() as device:

        def look(*_, **__):
            seen.append(device.allocated)
            raise LookedError

        # What only the garbage collector would free stays until it happens to run.
        gc.disable()
        try:
            with patch("segpipe.inference.predictor.Predictor.load", look), pytest.raises(LookedError):
                train(places("plain"), tmp_path / "work")
        finally:
            gc.enable()
    assert seen == [0]


def test_too_large_a_batch_is_one_line(simulated, places, tmp_path):
    with simulated(total_bytes=2**20), pytest.raises(TrainingError, match=r"out of memory.*training\.parts"):
        train(places("plain"), tmp_path / "work")


def test_a_step_without_a_deterministic_form_is_one_line(simulated, places, tmp_path):
    expected = r"--deterministic: a step of this training has no deterministic form"
    with (
        simulated(),
        patch.object(MeanPool3d, "forward", torch.nn.AvgPool3d.forward),
        pytest.raises(TrainingError, match=expected),
    ):
        train(places("plain"), tmp_path / "work", network="resenc_unet", deterministic=True)


def test_a_deterministic_training_of_a_residual_encoder(simulated, places, tmp_path):
    with simulated():
        done = train(places("plain"), tmp_path / "work", network="resenc_unet", deterministic=True, epochs=1)
    assert done.record.deterministic


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_device_can_be_chosen(simulated, device):
    with simulated():
        assert choose_runtime(device).describe() == "simulated cuda, bfloat16"
