"""What distillation promises: teachers that nothing moves, students that training alone would have made where nothing is taught, soft
labels that lie where the image does. The faults that public code is known for each have a test."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from segpipe.augment.apply import apply_with
from segpipe.augment.draw import draw
from segpipe.augment.spec import AugmentationSettings, default_spec
from segpipe.core.labels import Labels
from segpipe.core.seeds import stream
from segpipe.distillation.guide import DistillationGuide
from segpipe.distillation.recipe import distillation_recipe_names, load_distillation_recipe
from segpipe.distillation.response import voxel_loss
from segpipe.distillation.spec import TERM_CLASSES, Term, VoxelTerm, parse_term
from segpipe.distillation.taps import Taps
from segpipe.distillation.teacher import BesideTeacher, Teacher, output_map, why_not_beside
from segpipe.errors import DistillationError, NetworkError
from segpipe.io.arrays import read_array
from segpipe.io.formats import write_volume
from segpipe.networks.build import build_network
from segpipe.networks.spec import parse_choice
from segpipe.planning.recipe import recipe_names
from segpipe.planning.variant import with_network
from segpipe.training.sampling import Patch
from segpipe.training.storage import SoftArrays, TrainingCase
from tests.helpers.distillation import FLOAT32, TERMS, dense, distil, guided_trainer, lesson_of
from tests.helpers.nnunet_models import REGIONS, model_of
from tests.phantoms import axis_grid

TWO = Labels.plain({"cube_1": 1, "cube_2": 2})


# Terms as they are written


def test_terms_are_read_and_refused_by_name_option_and_value():
    term = parse_term("voxel:temperature=2,weight=0.5,balance=class")
    assert (term.temperature, term.weight, term.balance) == (2.0, 0.5, "class")
    assert set(TERM_CLASSES) >= {"voxel", "pair", "holistic", "channel", "dist", "mutual", "self"}
    with pytest.raises(DistillationError, match=r"no such term; there are voxel, channel"):
        parse_term("kl")
    with pytest.raises(DistillationError, match=r"option temperature: .*greater than 0"):
        parse_term("voxel:temperature=0")
    with pytest.raises(DistillationError, match=r"option at: Field required"):
        parse_term("hint")
    with pytest.raises(DistillationError, match=r"option tau: .*its options are .*temperature"):
        parse_term("voxel:tau=3")
    with pytest.raises(DistillationError, match="given twice"):
        parse_term("voxel:weight=3,weight=2")


def test_a_weight_waits_and_rises():
    term = Term(weight=2.0, delay=0.2, ramp=0.4)
    assert [term.weight_at(p) for p in (0.0, 0.19, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0, 1, 2, 2])
    assert Term(weight=2.0).weight_at(0.0) == 2


def test_recipes_of_distillation_are_no_recipes_of_plans():
    assert distillation_recipe_names() == ["distill", "distill_structured"]
    assert not {*distillation_recipe_names()} & {*recipe_names()}
    terms = {t.name: t.weight for t in load_distillation_recipe("distill_structured").terms}
    # The paper's weights: 10 for pixels and pairs, 0.1 for the critic.
    assert terms == {"voxel": 10.0, "pair": 10.0, "holistic": 0.1}
    with pytest.raises(DistillationError, match="known are distill, distill_structured"):
        load_distillation_recipe("skd")


# Students


def test_a_narrower_student_keeps_what_the_plan_is_trained_on(place):
    plan = place[2]
    theirs, ours = (
        p.configuration("3d_fullres")
        for p in (plan, with_network(plan, None, parse_choice("planned:width=2.6,norm=batch"), None))
    )
    assert (ours.patch_size, ours.batch_size, ours.network.strides) == (
        theirs.patch_size,
        theirs.batch_size,
        theirs.network.strides,
    )
    assert theirs.network.features[:2] == (4, 8)
    assert ours.network.features[:2] == (8, 24)
    assert any(isinstance(m, nn.BatchNorm3d) for m in build_network(ours.network, 1, 3).modules())
    foreign = theirs.network.model_copy(update={"features": (), "architecture": "u2net"})
    other = plan.model_copy(update={"configurations": {"3d_fullres": theirs.model_copy(update={"network": foreign})}})
    with pytest.raises(NetworkError, match="whose width the plan does not set"):
        with_network(other, None, parse_choice("planned:width=0.5"), None)


# Every term, in a training


@pytest.mark.parametrize("kd", TERMS)
def test_every_term_moves_the_student_and_only_what_it_looks_at(place, kd):
    trainer = guided_trainer(place, kd)
    lesson = lesson_of(trainer)
    guide = trainer.state.guide
    value = guide.loss(replace(lesson, progress=1.0))
    value.backward()
    moved = {name for name, p in trainer.network.named_parameters() if p.grad is not None and float(p.grad.abs().max())}
    assert moved
    modules = tuple(at.partition("|")[0] for t in (parse_term(kd),) for at in t.modules)
    if modules and not any(m.startswith("decoder") for m in modules):
        assert not any(name.startswith("decoder") for name in moved)
    else:
        assert any("seg_layers" in name for name in moved) or any(m.startswith("decoder") for m in modules)
    assert all(p.grad is None for p in guide.critics.parameters())


# The teacher


def test_a_teacher_is_frozen_and_in_nothing_of_the_student(place):
    trainer = guided_trainer(place, "voxel", "hint:at=encoder.stages.1")
    guide = trainer.state.guide
    network = guide.beside.members[0][0]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()  # As a careless caller would; its next look is in eval again.
    for number in range(2):
        trainer._step(trainer.training.read(number))
    assert not network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    theirs = {id(p) for p in network.parameters()}
    for optimizer in (trainer.state.optimizer, guide.optimizer):
        assert not theirs & {id(p) for group in optimizer.param_groups for p in group["params"]}
    kept = guide.state_dict()
    # A projector of 4 to 8 channels, and no weights of a teacher.
    assert {name: tuple(v.shape) for name, v in kept["own"].items()} == {
        "hint-project.weight": (8, 4, 1, 1, 1),
        "hint-project.bias": (8,),
    }
    assert not theirs & {id(p) for p in trainer.network.parameters()}
    assert set(trainer.network.state_dict()) == set(build_network(_spec(place), 1, 3).state_dict())


def _spec(place):
    return (
        with_network(place[2], None, parse_choice("planned:width=0.5,multiple=2"), None)
        .configuration("3d_fullres")
        .network
    )


def test_projectors_are_not_drawn_to_nothing_and_learn(place):
    trainer = guided_trainer(place, "hint:at=encoder.stages.1")
    guide = trainer.state.guide
    assert [group["weight_decay"] for group in guide.optimizer.param_groups] == [0.0]
    before = guide.own["hint-project"].weight.detach().clone()
    trainer._step(trainer.training.read(0))
    assert float((guide.own["hint-project"].weight - before).detach().abs().max()) > 0
    assert guide.own["hint-project"].weight.grad is None


def test_student_and_teacher_see_the_same_augmented_patch(place, monkeypatch):
    trainer = guided_trainer(place, "voxel")
    seen = []
    network = trainer.state.guide.beside.members[0][0]
    network.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    trainer.network.encoder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    trainer._step(trainer.training.read(0))
    ours, theirs = seen
    assert torch.equal(ours, theirs)


def test_an_ensemble_is_the_mean_of_probabilities(place):
    _, _, plan, path = place
    teacher = Teacher.load(path, fold=0, folds=("0", "1"))
    images = torch.randn(2, 1, *plan.configuration("3d_fullres").patch_size)
    both = BesideTeacher((teacher,), plan.labels, FLOAT32, ())
    logits = [network(images) for network, _ in both.members]
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    torch.testing.assert_close(both(images).softmax(1), mean, atol=1e-5, rtol=1e-4)
    sharpened = torch.stack(logits).mean(0).softmax(1)
    assert float((mean - sharpened).abs().max()) > 1e-4
    with pytest.raises(DistillationError, match="there are 2 teachers"):
        BesideTeacher((teacher,), plan.labels, FLOAT32, ("encoder.stages.1",))


def test_labels_are_matched_by_name_and_what_is_unknown_is_background():
    more = Labels.plain({"cube_2": 2, "rib": 3, "cube_1": 7})
    matrix = output_map(more, TWO, "t")
    said = torch.tensor([0.1, 0.2, 0.3, 0.4])
    # Outputs of the teacher: background, cube_2, rib, cube_1.
    assert (matrix @ said).tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert output_map(TWO, TWO, "t") is None
    with pytest.raises(DistillationError, match="does not know cube_2"):
        output_map(Labels.plain({"cube_1": 1}), TWO, "t")
    with pytest.raises(DistillationError, match="tells regions apart, the student labels"):
        output_map(REGIONS, Labels.plain({"whole": 1, "core": 2}), "t")


def test_a_teacher_with_another_plan_is_refused_beside_and_named(place):
    teacher = Teacher.load(place[3], fold=0)
    plan = place[2]
    configuration = plan.configuration("3d_fullres")
    assert why_not_beside(teacher, plan, configuration) is None
    for change, what in (
        ({"spacing_mm": (2.0, 1.5, 1.2)}, "spacing"),
        ({"normalisation": ("ct",)}, "normalisation"),
        ({"use_mask_for_norm": (True,)}, "masks"),
    ):
        assert what in why_not_beside(teacher, plan, configuration.model_copy(update=change))
    turned = plan.model_copy(update={"transpose_forward": (2, 1, 0)})
    assert "axes" in why_not_beside(teacher, turned, configuration)


# Feature maps


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2), nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


def test_taps_take_one_module_by_name_and_list_candidates():
    network = nn.Sequential(Block(), Block())
    taps = Taps(network, ("0",), "student")
    out = network[0](torch.randn(1, 1, 4, 4))
    # A block's output, as its activation left it.
    assert torch.equal(taps.taken()["0"], out)
    assert taps.taken() == {}
    with pytest.raises(DistillationError, match=r"'\*.conv' is the name of 2 modules of the teacher.*0.conv, 1.conv"):
        Taps(network, ("*.conv",), "teacher")
    with pytest.raises(DistillationError, match=r"no module of the student is called '0.con'.*0.conv"):
        Taps(network, ("0.con",), "student")
    taps.remove()
    network[0](torch.randn(1, 1, 4, 4))
    assert not taps.maps
    heads = nn.Module()
    heads.body = nn.Identity()
    Taps(heads, ("body",), "student")
    with pytest.raises(DistillationError, match="puts out tuple"):
        heads.body((torch.zeros(1), torch.zeros(1)))


def test_maps_of_a_teacher_that_does_not_see_the_patches_are_refused(place):
    for how in ({"soft_labels": True}, {"teacher_tta": True}):
        with pytest.raises(DistillationError, match=r"hint looks at feature maps, and those of the teacher are not"):
            distil(place, "hint:at=encoder.stages.1", **how)
    assert not (place[1].root / "soft_labels").exists()
    with pytest.raises(DistillationError, match=r"--no-soft-labels: .*--teacher-tta"):
        distil(place, "voxel", teacher_tta=True, soft_labels=False)
    with pytest.raises(DistillationError, match="given twice"):
        distil(place, "voxel", teacher=(place[3], place[3]))
    with pytest.raises(DistillationError, match="no --teacher"):
        distil(place, "voxel", teacher=())
    with pytest.raises(DistillationError, match="no module of the teacher is called 'bottleneck'"):
        distil(place, "hint:at=encoder.stages.1|bottleneck")


# Sizes of terms


def test_a_runaway_term_is_held_to_its_cap_with_a_warning(place):
    notes = []
    trainer = guided_trainer(place, "voxel:weight=1000", note=notes.append)
    lesson = lesson_of(trainer)
    guide = trainer.state.guide
    above = float(lesson.task) - trainer.loss.floor
    assert above > 0
    assert float(guide.loss(lesson).detach()) == pytest.approx(10 * above, rel=1e-3)
    told = guide.summary()["voxel"]
    assert told["capped"] == 1
    assert told["ratio"] > 10
    assert "is up to" in notes[-1]
    assert "10 times" in notes[-1]
    assert guide.summary() == {}
    small = guided_trainer(place, "voxel:weight=0.01")
    value = float(small.state.guide.loss(lesson_of(small)).detach())
    assert value == pytest.approx(0.01 * small.state.guide.summary()["voxel"]["value"], rel=1e-4)


def test_a_term_before_its_time_costs_and_adds_nothing(place):
    trainer = guided_trainer(place, "hint:at=encoder.stages.1,delay=0.5")
    guide = trainer.state.guide
    assert float(guide.loss(lesson_of(trainer, progress=0.4))) == 0
    assert guide.summary() == {}
    assert not guide.student_taps.maps
    assert float(guide.loss(lesson_of(trainer, progress=0.6)).detach()) > 0


def test_mutual_learning_moves_both_and_neither_through_the_other(place):
    trainer = guided_trainer(place, "mutual")
    peer = trainer.state.guide.peer
    before = [p.detach().clone() for p in peer.parameters()]
    first = [p.detach().clone() for p in trainer.network.parameters()]
    assert not torch.equal(before[0], first[0])
    trainer._step(trainer.training.read(0))
    assert any(not torch.equal(a, b) for a, b in zip(before, peer.parameters(), strict=True))
    assert all(p.grad is None for p in peer.parameters())


# Soft labels


@pytest.mark.parametrize("orientation", ["canonical", "as_stored"])
def test_a_teacher_with_other_spacing_axes_and_orientation_lies_where_the_image_does(place, tmp_path, orientation):
    """A teacher that calls bright voxels: wherever its own grid lies, its probabilities must be large where the image is bright."""
    plan = place[2]
    turned = plan.model_copy(
        update={
            "transpose_forward": (2, 0, 1),
            "transpose_backward": (1, 2, 0),
            "orientation": orientation,
            "configurations": {
                "3d_fullres": plan.configuration("3d_fullres").model_copy(
                    update={"spacing_mm": (1.3, 1.7, 1.1), "patch_size": (16, 16, 16)}
                )
            },
        }
    )
    # An image that grows along each axis by another slope, so that every shift, flip and swap shows; stored on flipped and permuted axes.
    z, y, x = np.meshgrid(*(np.arange(n) for n in (16, 20, 24)), indexing="ij")
    image = (100 + 9 * z + 5 * y + 2.5 * x).astype(np.float32)
    from segpipe.core.geometry import Orientation

    way = Orientation((1, 2, 0), (True, False, True))
    written = tmp_path / "stored.nii.gz"
    write_volume(written, np.ascontiguousarray(way.apply(image)), axis_grid(image.shape).reoriented(way))
    model = model_of(turned)
    model_path = tmp_path / "bright.segpipe"
    model.write(model_path)
    teacher = Teacher.load(model_path, fold=0)

    class Bright(nn.Module):
        def __call__(self, tiles):
            score = tiles[:, :1]
            return torch.cat((torch.zeros_like(score), score, torch.full_like(score, -30.0)), dim=1)

    from segpipe.distillation import soft_labels as module
    from segpipe.inference import predictor
    from tests.engines import FunctionEngine

    engine = FunctionEngine(Bright())
    configuration = plan.configuration("3d_fullres")
    from segpipe.distillation.unlabelled import prepare_unlabelled

    done, failed = prepare_unlabelled(
        {"stored": (written,)}, plan, configuration, tmp_path / "prepared", workers=1, bytes_each=1
    )
    assert failed == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "make_engine", lambda *_, **__: engine)
        failed = module.write_soft_labels(done, (teacher,), plan, configuration, FLOAT32, tmp_path / "soft", tta=False)
    assert failed == {}
    bright = torch.from_numpy(read_array(done[0].prepared.image))[0]
    found = dense(tmp_path / "soft", "stored", 3)[1]
    expected = torch.sigmoid(bright)

    def apart(a, b):
        """Mean difference away from the border, where resampling has to extend the image."""
        inner = tuple(slice(3, -3) for _ in range(3))
        return float((a - b)[inner].abs().mean())

    assert apart(found, expected) < 0.003
    for axis in range(3):
        assert apart(found.roll(1, axis), expected) > 0.008
        assert apart(found.flip(axis), expected) > 0.03


def test_soft_labels_move_as_labels_do():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 20, 24, 22), generator=generator).to(torch.int16)
    # Blocks, so that most voxels are inside one label.
    labels = labels[:, :, ::4, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    labels = labels[:, :, :20, :24, :22]
    soft = torch.nn.functional.one_hot(labels[:, 0].long(), 3).movedim(-1, 1).float()
    images = labels.float()
    spec = default_spec((16, 20, 18), mirror_axes=(0, 1, 2), masked_channels=(), settings=AugmentationSettings())
    moved_some = 0
    for number in range(12):
        drawn = draw(spec, 2, 1, stream(number, "test"))
        moved_some += len(drawn.moved)
        _, moved_labels, moved_soft = apply_with(images.clone(), labels.clone(), soft.clone(), spec, drawn)
        inside = moved_soft.sum(1) > 0.999
        sure = inside & (moved_soft.amax(1) > 0.6)
        assert float(sure.float().mean()) > 0.3
        assert torch.equal(moved_soft.argmax(1)[sure], moved_labels[:, 0].long()[sure])
    assert moved_some > 3


def test_soft_labels_outside_the_image_are_background():
    outputs, shares = np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 4, 4, 4), np.float16)
    outputs[0], outputs[1] = 2, 1
    shares[0], shares[1] = 0.75, 0.05
    soft = SoftArrays(outputs, shares, 3)
    box = soft.read((-2, 0, 0), (6, 4, 4))
    # What is left out of the kept ones is shared in proportion.
    assert box[:, 3, 0, 0].tolist() == pytest.approx([0, 0.0625, 0.9375], abs=1e-3)
    assert float(box[:, :2].abs().max()) == 0
    from segpipe.training.data import BatchSource
    from segpipe.training.sampling import Sampling

    case = TrainingCase(
        "a",
        np.zeros((1, 4, 4, 4), np.float32),
        np.zeros((4, 4, 4), np.int16),
        np.zeros((0, 4), np.int32),
        soft=soft,
    )
    source = BatchSource([case], Sampling((6, 4, 4), 1, 0.0), None, seed=0, name="x")
    seen = source.to_device(source.read(0), torch.device("cpu")).soft
    assert seen.shape == (1, 3, 6, 4, 4)
    torch.testing.assert_close(seen.sum(1), torch.ones(1, 6, 4, 4))
    assert float(seen[0, 0, 0].min()) == 1
    assert source._sample(Patch(0, (0, 0, 0)), (4, 4, 4))[2].shape == (3, 4, 4, 4)


# Images without labels


def test_a_sample_without_labels_moves_nothing_by_itself(place):
    trainer = guided_trainer(place, "voxel:weight=0")
    batch = trainer.training.read(0)
    seen = trainer.training.to_device(batch, torch.device("cpu"))
    heads = trainer.forward(seen.images)
    one = trainer.task_loss(heads, seen.labels, (True, False))
    wrong = seen.labels.clone()
    wrong[1] = 2 - wrong[1]
    assert float(one.detach()) == float(trainer.task_loss(heads, wrong, (True, False)).detach())
    alone = trainer.task_loss([h[:1] for h in heads], seen.labels[:1], (True,))
    assert float(one.detach()) == pytest.approx(0.5 * float(alone.detach()))
    nothing = trainer.task_loss(heads, seen.labels, (False, False))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in trainer.network.parameters() if p.grad is not None)


def test_the_guide_is_the_loss_it_is_made_of(place):
    trainer = guided_trainer(place, "voxel:weight=0.25,temperature=2")
    guide = trainer.state.guide
    assert isinstance(guide, DistillationGuide)
    lesson = lesson_of(trainer)
    by_hand = voxel_loss(lesson.heads[0], guide.beside(lesson.images), temperature=2.0, kept=lesson.inside)
    assert float(guide.loss(lesson).detach()) == pytest.approx(0.25 * float(by_hand.detach()), rel=1e-5)
    half = replace(lesson, share=0.5, task=lesson.task * 0.5)
    assert float(guide.loss(half).detach()) == pytest.approx(0.125 * float(by_hand.detach()), rel=1e-5)
    assert VoxelTerm().modules == ()
