"""What terms of distillation do on a device: no wait, the value of a processor, a deterministic form."""

import pytest
import torch

from segpipe.distillation.recipe import load_distillation_recipe
from segpipe.distillation.spec import TERM_CLASSES, parse_term
from tests.simulated.work import steps_of, trainer_of, watched

TERMS = (
    "voxel", "voxel:balance=class", "voxel:lower_heads=true", "channel", "channel:at=encoder.stages.1", "dist", "pair", "pair:range=8",
    "pair:at=encoder.stages.1", "holistic:width=8", "hint:at=encoder.stages.1", "attention:at=encoder.stages.1",
    "fsp:at=encoder.stages.0,to=encoder.stages.1", "relational:at=encoder.stages.1", "similarity:at=encoder.stages.1",
    "region:at=decoder.stages.0", "masked:at=encoder.stages.1", "mutual", "self",
)  # fmt: skip
WITH_REGIONS = ("voxel:balance=class", "channel", "dist", "pair:range=8", "region:at=decoder.stages.0")
NEEDS_HEADS = ("self", "voxel:lower_heads=true")
ALL = [
    *(("plain", kd) for kd in TERMS),
    *(("regions", kd) for kd in WITH_REGIONS),
    ("ignore", "voxel:balance=class"),
]


def test_every_term_is_tried():
    assert {parse_term(text).name for text in TERMS} == set(TERM_CLASSES)


def tried(places, device, kind, kd, **how):
    place = places("deep" if kd in NEEDS_HEADS else kind)
    return trainer_of(place, device, kd=(kd,) if isinstance(kd, str) else kd, **how)


@pytest.mark.parametrize(("kind", "kd"), ALL)
def test_a_step_does_not_wait_and_is_that_of_a_processor(gpu, places, kind, kd):
    trainer = tried(places, "cuda", kind, kd, precision=torch.float32)
    with watched(gpu) as waits:
        steps_of(trainer, n=1)
    assert not waits
    same = tried(places, "cpu", kind, kd, precision=torch.float32)
    steps_of(same, n=1)
    (there,), (here,) = trainer.state.guide.summary().values(), same.state.guide.summary().values()
    assert there["value"] == pytest.approx(here["value"], rel=2e-3, abs=1e-5)
    # A further step has a deterministic form: an operation without one is an error.
    torch.use_deterministic_algorithms(True)
    with watched(gpu) as waits:
        steps_of(trainer, n=1)
    assert not waits


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_wait_either(gpu, places, precision):
    trainer = trainer_of(
        places("plain"), "cuda", kd=("voxel", "masked:at=encoder.stages.1", "mutual"), precision=precision
    )
    with watched(gpu) as waits:
        steps_of(trainer, n=2)
    assert not waits


def test_the_shipped_recipe_of_structured_distillation_has_a_deterministic_form(gpu, places):
    terms = load_distillation_recipe("distill_structured").terms
    texts = [f"{t.name}:width=8" if t.name == "holistic" else t.name for t in terms]
    trainer = trainer_of(places("plain"), "cuda", kd=texts, deterministic=True)
    with watched(gpu) as waits:
        steps_of(trainer, n=2)
    assert not waits


def test_what_terms_came_to_is_brought_home_in_one_wait(gpu, places):
    trainer = trainer_of(places("plain"), "cuda", kd=("voxel", "channel", "pair"))
    steps_of(trainer, n=2)
    with watched(gpu) as waits:
        told = trainer.state.guide.summary()
    assert set(told) == {"voxel", "channel", "pair"}
    assert sum(waits.values()) == 1
