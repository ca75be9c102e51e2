"""What distillation promises: teachers that nothing moves, students that training alone would have made where nothing is taught, soft
labels that lie where the image does. The faults that public code is known for each have a test."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import segpipe
from segpipe.augment.apply import apply_with
from segpipe.augment.draw import draw
from segpipe.augment.spec import AugmentationSettings, default_spec
from segpipe.core.labels import Labels
from segpipe.core.seeds import stream
from segpipe.core.workspace import PreparedFiles, SoftLabelFiles, Workspace
from segpipe.dataset.load import load_image
from segpipe.dataset.schema import Dataset
from segpipe.distillation.guidance import Distillation
from segpipe.distillation.guide import DistillationGuide
from segpipe.distillation.recipe import distillation_recipe_names, load_distillation_recipe
from segpipe.distillation.response import voxel_loss
from segpipe.distillation.soft_labels import Source, soft_label_key, write_soft_labels
from segpipe.distillation.spec import TERM_CLASSES, Term, VoxelTerm, parse_term
from segpipe.distillation.taps import Taps
from segpipe.distillation.teacher import BesideTeacher, Teacher, output_map, why_not_beside
from segpipe.errors import DistillationError, NetworkError, TrainingError
from segpipe.execution.device import Runtime
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.io.arrays import read_array
from segpipe.io.formats import write_volume
from segpipe.models.file import ModelFile
from segpipe.networks.build import build_network
from segpipe.networks.measure import n_parameters
from segpipe.networks.spec import parse_choice
from segpipe.planning.recipe import recipe_names
from segpipe.planning.schema import Plan
from segpipe.planning.variant import with_network
from segpipe.training.fold import make_trainer
from segpipe.training.guide import StepContext
from segpipe.training.job import Listener
from segpipe.training.sampling import Patch
from segpipe.training.settings import FoldSettings
from segpipe.training.storage import SoftArrays, TrainingCase
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.fold import FoldWork, job_of
from segpipe.workflows.project import Project
from tests.phantoms import axis_grid, cube_case, write_small_dataset
from tests.unit.test_engine import RECIPE, Notes, workplace  # noqa: F401 - a fixture
from tests.unit.test_nnunet_models import REGIONS, model_of

FLOAT32 = Runtime(torch.device("cpu"), None)
TWO = Labels.plain({"cube_1": 1, "cube_2": 2})
TERMS = [
    "voxel:balance=class",
    "channel",
    "channel:at=encoder.stages.1",
    "dist",
    "pair:range=8",
    "holistic:width=8",
    "hint:at=encoder.stages.1",
    "attention:at=encoder.stages.1",
    "fsp:at=encoder.stages.0,to=encoder.stages.1",
    "relational:at=encoder.stages.1",
    "similarity:at=encoder.stages.1",
    "region:at=decoder.stages.0",
    "masked:at=encoder.stages.1",
    "mutual",
]
# Of networks with heads at lower resolution.
DEEP = ["self", "voxel:lower_heads=true"]


@pytest.fixture
def place(workplace, tmp_path):  # noqa: F811 - the fixture
    """A planned small dataset, and a model of its plan with random weights."""
    folder, workspace = workplace(batch=2)
    plan = Plan.read(workspace.plan)
    teacher = tmp_path / "teacher.segpipe"
    model_of(plan, folds=("0", "1")).write(teacher)
    return folder, workspace, plan, teacher


def distil(place, *kd, student="width=0.5,multiple=2", epochs=1, **options):
    folder, workspace, _, teacher = place
    given = {"teacher": teacher, "kd": kd, "compare": False, "tta": False, "jobs": 1, "device": "cpu"}
    return segpipe.distill(folder, student=student, epochs=epochs, work=workspace.root, **(given | options))


def fold_of(done):
    return done.model.parent / "fold_0"


def prepared_job(place, guidance=None, student="planned:width=0.5,multiple=2", **settings):
    _, workspace, plan, _ = place
    chosen = with_network(plan, None, parse_choice(student), None)
    project = Project(workspace.root, workspace, workers=1)
    index = prepare_arrays(project, plan, "3d_fullres")
    job = job_of(FoldWork(project, chosen, "3d_fullres", FoldSettings(epochs=1, **settings), index))
    return replace(job, guidance=guidance and guidance(chosen, chosen.configuration("3d_fullres")))


def guided_trainer(place, *kd, folds=("0",), note=lambda _: None, cap=10.0):
    """A trainer that is ready to step, with its guide."""
    teacher = Teacher.load(place[3], fold=0, folds=folds)
    terms = tuple(parse_term(text) for text in kd)
    job = prepared_job(place, lambda plan, c: Distillation(terms, cap, (teacher,), plan, c, seed=0))
    return make_trainer(job, FLOAT32, Listener(note=note))


def lesson_of(trainer, soft=None, progress=0.5):
    batch = trainer.training.read(0)
    seen = trainer.training.to_device(batch, torch.device("cpu"))
    heads = trainer.forward(seen.images)
    task = trainer.task_loss(heads, seen.labels, batch.labelled)
    return StepContext(
        images=seen.images,
        labels=seen.labels,
        inside=seen.inside,
        soft=soft,
        heads=heads,
        task=task.detach(),
        share=1.0,
        iteration=0,
        progress=progress,
        labelled=batch.labelled,
    )


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


def test_a_student_of_the_teachers_shape_begins_with_its_weights(place):
    same = distil(place, "voxel", student="width=1,multiple=1", name="same")
    assert "teacher.segpipe fold 0" in same.students[0].record.begun_with
    fresh = distil(place, "voxel", student="width=1,multiple=1", name="fresh", fresh=True)
    assert fresh.students[0].record.begun_with is None
    narrow = distil(place, "voxel", name="narrow")
    assert narrow.students[0].record.begun_with is None


# What is taught nothing is what training alone would have made


def test_weight_nothing_trains_the_same_bytes_as_training_alone(place):
    folder, workspace, _, _ = place
    network = "planned:width=0.5,multiple=2"
    how = {"epochs": 2, "deterministic": True, "device": "cpu", "jobs": 1, "tta": False, "work": workspace.root}
    alone = segpipe.train(folder, network=network, **how)
    off = "voxel:weight=0", "holistic:weight=0", "hint:at=encoder.stages.1,weight=0", "mutual:weight=0"
    taught = distil(place, *off, name="zero", epochs=2, deterministic=True).students[0]
    assert (fold_of(taught) / "weights.safetensors").read_bytes() == alone.folder.weights.read_bytes()
    # Soft labels that are read and moved along, for a term that never begins, change nothing either.
    late = distil(place, "voxel:delay=0.99999", name="late", epochs=2, deterministic=True, soft_labels=True).students[0]
    assert late.record.guidance["soft_labels"]
    assert (fold_of(late) / "weights.safetensors").read_bytes() == alone.folder.weights.read_bytes()
    something = distil(place, "voxel", name="more", epochs=2, deterministic=True).students[0]
    assert (fold_of(something) / "weights.safetensors").read_bytes() != alone.folder.weights.read_bytes()


def test_the_baseline_is_that_training_and_of_as_many_epochs(place):
    done = distil(place, "voxel", baseline=True, deterministic=True, epochs=2)
    assert done.alone.record.epochs == done.students[0].record.epochs == 2
    assert done.alone.record.guidance is None
    assert done.alone.record.seed == done.students[0].record.seed
    folder, workspace, _, _ = place
    alone = segpipe.train(
        folder, network="planned:width=0.5,multiple=2", epochs=2, deterministic=True, device="cpu", jobs=1, tta=False,
        work=workspace.root,
    )  # fmt: skip
    assert (fold_of(done.alone) / "weights.safetensors").read_bytes() == alone.folder.weights.read_bytes()


# Every term, in a training


@pytest.fixture
def deep(tmp_path):
    """As ``place``, of images that are large enough for two heads."""
    folder = write_small_dataset(tmp_path / "larger", n_cases=3, shape=(32, 36, 40))
    recipe = tmp_path / "deep.toml"
    recipe.write_text(RECIPE.replace("_batch = 4", "_batch = 2"))
    segpipe.plan(folder, work=tmp_path / "deep", recipe=recipe, jobs=1)
    workspace = Workspace(tmp_path / "deep")
    plan = Plan.read(workspace.plan)
    model_of(plan).write(tmp_path / "deep.segpipe")
    return folder, workspace, plan, tmp_path / "deep.segpipe"


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


@pytest.mark.parametrize("kd", DEEP)
def test_terms_of_lower_heads_teach_them_and_are_refused_without(place, deep, kd):
    student = distil(deep, kd).students[0]
    line = json.loads((fold_of(student) / "log.jsonl").read_text().splitlines()[-1])
    assert line["guide"][kd.partition(":")[0]]["value"] > 0
    trainer = guided_trainer(deep, kd)
    trainer.state.guide.loss(lesson_of(trainer)).backward()
    heads = trainer.network.decoder.seg_layers
    assert float(heads[-2].weight.grad.abs().max()) > 0
    with pytest.raises(DistillationError, match="this student has one head only"):
        distil(place, kd)


@pytest.mark.parametrize("kd", TERMS)
def test_every_term_teaches_and_its_ratio_is_logged(place, kd):
    student = distil(place, kd, epochs=2).students[0]
    lines = [json.loads(line) for line in (fold_of(student) / "log.jsonl").read_text().splitlines()]
    name = kd.partition(":")[0]
    assert all(np.isfinite(line["guide"][name]["value"]) and line["guide"][name]["ratio"] >= 0 for line in lines)
    assert student.record.guidance["terms"][0]["name"] == name
    # The model that is kept is the student and nothing else.
    plan = Plan.model_validate_json(ModelFile.read(student.model).plan_json)
    network = build_network(plan.configuration("3d_fullres").network, 1, 3)
    assert set(ModelFile.read(student.model).folds["0"]) == set(network.state_dict())


@pytest.mark.parametrize("kd", ["holistic:width=8", "masked:at=encoder.stages.1", "mutual", "hint:at=encoder.stages.1"])
def test_what_terms_learn_themselves_is_resumed(place, kd, monkeypatch):
    whole = distil(place, kd, name="whole", epochs=3, deterministic=True, soft_labels=False).students[0]

    steps_taken = 0
    from segpipe.training.loop import Trainer

    real = Trainer._after_iteration

    def stop_after(self):
        nonlocal steps_taken
        real(self)
        steps_taken += 1
        if steps_taken == 6:
            self._save()
            raise TrainingError("a power cut")

    monkeypatch.setattr(Trainer, "_after_iteration", stop_after)
    with pytest.raises(TrainingError, match="power cut"):
        distil(place, kd, name="cut", epochs=3, deterministic=True, soft_labels=False)
    monkeypatch.setattr(Trainer, "_after_iteration", real)
    resumed = distil(place, kd, name="cut", epochs=3, deterministic=True, soft_labels=False, resume=True).students[0]
    assert steps_taken == 6
    assert (fold_of(resumed) / "weights.safetensors").read_bytes() == (
        fold_of(whole) / "weights.safetensors"
    ).read_bytes()
    logs = [(fold_of(s) / "log.jsonl").read_text().splitlines()[1] for s in (whole, resumed)]
    values = [json.loads(line)["guide"] for line in logs]
    assert values[0] == values[1]


def test_a_fold_is_not_continued_under_other_terms(place):
    distil(place, "voxel")
    with pytest.raises(TrainingError, match="was taught in another way"):
        distil(place, "dist", resume=True)
    # The teacher's file may have moved; it is known by what is in it.
    moved = place[3].rename(place[3].with_name("moved.segpipe"))
    again = distil(place, "voxel", teacher=moved, resume=True).students[0]
    assert again.record.epochs == 1
    (fold_of(again) / "record.json").unlink()
    with pytest.raises(TrainingError, match=r"trained with guidance .*terms of distillation"):
        distil(place, "dist", teacher=moved, resume=True)


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


def test_the_fold_that_held_out_the_same_cases_teaches_unless_told_otherwise(place):
    assert Teacher.load(place[3], fold=1).folds == ("1",)
    assert Teacher.load(place[3], fold=4).folds == ("0", "1")
    assert Teacher.load(place[3], fold=1, folds=("0",)).folds == ("0",)
    with pytest.raises(DistillationError, match="--teacher-fold 7"):
        Teacher.load(place[3], fold=0, folds=("7",))
    notes = Notes()
    distil(place, "voxel", fold=2, watch=notes)
    assert any("may have seen the cases that fold 2 holds out" in note for note in notes.notes)
    notes = Notes()
    distil(place, "voxel", name="b", watch=notes)
    assert any("is taken for the one that held out the same cases" in note for note in notes.notes)
    notes = Notes()
    distil(place, "voxel", name="c", teacher_folds=("0", "1"), watch=notes)
    assert any("fold(s) 0, 1: may have seen" in note for note in notes.notes)


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


def test_only_the_highest_head_is_taught_unless_asked(deep):
    values = []
    for options in ("", ":lower_heads=true"):
        trainer = guided_trainer(deep, f"voxel{options}")
        lesson = lesson_of(trainer)
        shape = [n // 2 for n in lesson.heads[0].shape[2:]]
        for seed in range(2):
            coarse = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed))
            values.append(float(trainer.state.guide.loss(replace(lesson, heads=[lesson.heads[0], coarse])).detach()))
    assert values[0] == values[1]
    assert values[2] != pytest.approx(values[3])
    # The student's own coarse head learns the mean of what the teacher says in its voxels, at half the weight.
    guide = trainer.state.guide
    said = guide.beside(lesson.images).softmax(1)
    coarse = torch.nn.functional.avg_pool3d(said, 2).clamp_min(1e-7).log()
    exact = float(guide.loss(replace(lesson, heads=[lesson.heads[0], coarse])).detach())
    assert exact == pytest.approx(values[0], rel=1e-3)


def test_mutual_learning_moves_both_and_neither_through_the_other(place):
    trainer = guided_trainer(place, "mutual")
    peer = trainer.state.guide.peer
    before = [p.detach().clone() for p in peer.parameters()]
    first = [p.detach().clone() for p in trainer.network.parameters()]
    assert not torch.equal(before[0], first[0])
    trainer._step(trainer.training.read(0))
    assert any(not torch.equal(a, b) for a, b in zip(before, peer.parameters(), strict=True))
    assert all(p.grad is None for p in peer.parameters())


def test_students_need_no_teacher_for_what_they_teach_themselves(place):
    done = distil(place, "mutual", teacher=())
    assert done.students[0].record.guidance["teachers"] == []


# Chains


def test_a_teaching_assistant_is_taught_and_teaches(place):
    done = distil(place, "voxel", student=("width=1,multiple=4", "width=0.5,multiple=2"))
    assistant, student = done.students
    assert "teacher.segpipe" in assistant.record.guidance["teachers"][0]
    assert str(assistant.model) in student.record.guidance["teachers"][0]
    sizes = [
        n_parameters(build_network(Plan.model_validate_json(ModelFile.read(s.model).plan_json).configuration("3d_fullres").network, 1, 3))
        for s in done.students
    ]  # fmt: skip
    assert sizes[1] < 0.5 * sizes[0]


def test_born_again_networks_have_names_of_their_own(place):
    done = distil(place, "voxel", student=("width=1,multiple=1", "width=1,multiple=1"))
    first, second = done.students
    assert first.model != second.model
    assert str(first.model) in second.record.guidance["teachers"][0]


# Soft labels


def sources_of(place, plan):
    _, workspace, base, _ = place
    prepare_arrays(Project(workspace.root, workspace, workers=1), base, "3d_fullres")
    return [
        Source(c.id, tuple(i.path for i in c.images), PreparedFiles(workspace.preprocessed("3d_fullres") / c.id))
        for c in Dataset.read(workspace.dataset).cases
    ]


def dense(folder, case, n_outputs):
    files = SoftLabelFiles(folder / case)
    shape = read_array(files.shares).shape[1:]
    arrays = SoftArrays(read_array(files.outputs), read_array(files.shares), n_outputs)
    return arrays.read((0, 0, 0), shape)


def test_soft_labels_are_what_prediction_says_on_the_students_grid(place, tmp_path):
    _, _, plan, path = place
    teacher = Teacher.load(path, fold=0)
    configuration = plan.configuration("3d_fullres")
    sources = sources_of(place, plan)
    failed = write_soft_labels(sources, (teacher,), plan, configuration, FLOAT32, tmp_path / "soft", tta=False)
    assert failed == {}
    stage = Predictor.load(path, FLOAT32, PredictorOptions(folds=("0",), tta=False)).stages[0]
    from segpipe.inference.stage import CaseTrace

    for source in sources[:2]:
        image = load_image(source.id, list(source.images), plan.channel_names)
        _, voxels = stage.ready(image.volume, None, CaseTrace())
        said = torch.cat(list(stage.logits(voxels, CaseTrace())), dim=1).softmax(0)
        found = dense(tmp_path / "soft", source.id, 3)
        assert found.shape == said.shape
        # Rounded when stored, and where the processor has float16, computed in it.
        assert float((found - said).abs().max()) < 4e-3
        assert float((found.sum(0) - 1).abs().max()) < 1e-5


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


def test_soft_labels_are_keyed_by_all_that_they_follow_from(place, tmp_path):
    plan, teacher = place[2], Teacher.load(place[3], fold=0)
    configuration = plan.configuration("3d_fullres")

    def key(t=teacher, p=plan, c=configuration, tta=False):
        return soft_label_key((t,), p, c, tta=tta)

    keys = {
        key(),
        key(t=Teacher.load(place[3], fold=1)),
        key(tta=True),
        key(c=configuration.model_copy(update={"spacing_mm": (1.0, 1.0, 1.0)})),
        key(c=configuration.model_copy(update={"normalisation": ("none",)})),
        key(p=plan.model_copy(update={"transpose_forward": (1, 0, 2)})),
        key(p=plan.model_copy(update={"labels": Labels.plain({"cube_2": 2, "cube_1": 7})})),
    }
    assert len(keys) == 7
    # The student's patch, width and batch change nothing of them.
    assert key(c=configuration.model_copy(update={"patch_size": (8, 8, 8), "batch_size": 9})) == key()
    sources = sources_of(place, plan)
    folder = tmp_path / "soft"
    write_soft_labels(sources, (teacher,), plan, configuration, FLOAT32, folder, tta=False)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*.b2nd")}
    # A case whose arrays were made again is labelled again; the others are kept.
    first = sources[0].prepared.record
    first.write_text(first.read_text().replace('"source_digest": "', '"source_digest": "0'))
    write_soft_labels(sources, (teacher,), plan, configuration, FLOAT32, folder, tta=False)
    changed = {f.parent.name for f, at in before.items() if f.stat().st_mtime_ns != at}
    assert changed == {sources[0].id}


def test_a_case_that_a_teacher_cannot_label_is_told_and_the_others_teach(place):
    notes = Notes()
    distil(place, "voxel", soft_labels=True, watch=Notes())
    # Its images are gone after they were read into the workspace.
    from segpipe.distillation import soft_labels as module

    real, spoilt = module.load_image, []

    def load(case, *args, **options):
        if not spoilt or case == spoilt[0]:
            spoilt.append(case)
            raise module.CaseError(f"{case}: gone")
        return real(case, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_image", load)
        done = distil(place, "voxel", soft_labels=True, teacher_tta=True, name="other", watch=notes)
    assert any(f"soft labels: {spoilt[0]}" in note for note in notes.notes)
    assert spoilt[0] not in done.students[0].index.cases
    assert f"{spoilt[0]}: gone" in done.failed[spoilt[0]]


def test_soft_labels_and_a_teacher_beside_teach_alike(place):
    """Without augmentation and on whole cases, both ways show the student the same probabilities."""
    _, workspace, plan, path = place
    teacher = Teacher.load(path, fold=0)
    configuration = plan.configuration("3d_fullres")
    sources = sources_of(place, plan)
    soft_folder = workspace.root / "soft"
    write_soft_labels(sources, (teacher,), plan, configuration, FLOAT32, soft_folder, tta=False)
    source = sources[0]
    image = torch.from_numpy(read_array(source.prepared.image))[None]
    beside = BesideTeacher((teacher,), plan.labels, FLOAT32, ())
    sizes = list(zip(image.shape[2:], configuration.patch_size, strict=True))
    assert all(n <= p for n, p in sizes), "the small cases are meant to fit a patch"
    before = [(p - n) // 2 for n, p in sizes]
    margins = [(b, p - n - b) for b, (n, p) in zip(before, sizes, strict=True)]
    seen = beside(torch.nn.functional.pad(image, [side for both in reversed(margins) for side in both]))
    for axis, (start, (n, _)) in enumerate(zip(before, sizes, strict=True)):
        seen = seen.narrow(2 + axis, start, n)
    assert float((seen.softmax(1)[0] - dense(soft_folder, source.id, 3)).abs().max()) < 2e-3


# Images without labels


def test_images_without_labels_teach_and_never_count_as_labelled(place, tmp_path):
    more = tmp_path / "more"
    for number in range(2):
        image, _ = cube_case(np.random.default_rng(50 + number), (16, 20, 24), (1, 2))
        write_volume(more / f"new_{number}.nii.gz", image, axis_grid(image.shape))
    (more / "broken.nii.gz").write_bytes(b"")
    write_volume(more / "case_0.nii.gz", image, axis_grid(image.shape))
    notes = Notes()
    student = distil(place, "voxel", unlabelled=more, watch=notes).students[0]
    assert student.record.guidance["unlabelled"] == ["new_0", "new_1"]
    assert any(note.startswith("broken: unlabelled: ") for note in notes.notes)
    assert any(note.startswith("case_0: unlabelled: ") and "of this name" in note for note in notes.notes)
    assert set(student.failed) == {"broken", "case_0"}
    with pytest.raises(DistillationError, match="--unlabelled"):
        distil(place, "mutual", teacher=(), unlabelled=more, name="x")


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


# Other kinds of trainings


@pytest.mark.parametrize("soft", [True, False])
def test_regions_in_parts_with_averaged_weights_are_taught(workplace, tmp_path, soft):  # noqa: F811
    folder = write_small_dataset(tmp_path / "dataset")
    declared = json.loads((folder / "dataset.json").read_text())
    declared["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
    (folder / "dataset.json").write_text(json.dumps(declared | {"regions_class_order": [1, 2]}))
    folder, workspace = workplace(extra="parts = 2\naverage_decay = 0.9\n", batch=2)
    plan = Plan.read(workspace.plan)
    assert plan.labels.regions
    model_of(plan).write(tmp_path / "teacher.segpipe")
    place = folder, workspace, plan, tmp_path / "teacher.segpipe"
    terms = ["voxel:balance=class,temperature=2", "dist", "channel", "pair", "holistic:width=8"]
    terms += [] if soft else ["region:at=decoder.stages.0"]
    student = distil(place, *terms, soft_labels=soft, deterministic=True).students[0]
    line = json.loads((fold_of(student) / "log.jsonl").read_text().splitlines()[-1])
    assert set(line["guide"]) == {t.partition(":")[0] for t in terms}
    assert all(np.isfinite(told["value"]) for told in line["guide"].values())


def test_slices_are_taught_and_a_fold_of_all_cases(place):
    plan = place[2]
    flat = place[3].with_name("flat.segpipe")
    model_of(plan, "2d", axes=(0, 1)).write(flat)
    for number, soft in enumerate((True, False)):
        done = distil(
            place,
            "voxel:balance=class",
            "pair",
            "channel",
            teacher=flat,
            fold="all",
            soft_labels=soft,
            name=f"n{number}",
        )
        assert done.students[0].held_out is None
        assert "/2d/" in str(done.students[0].model)
        assert done.students[0].record.iterations == 4
