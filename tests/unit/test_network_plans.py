"""Plans for networks other than the U-Nets, and what is measured for them."""

import json
from math import prod

import numpy as np
import pytest
import torch

import segpipe
from segpipe.core.labels import Labels, Target
from segpipe.core.workspace import Workspace
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import ArtefactError, NetworkError, PlanError
from segpipe.losses.spec import CrossEntropyTerm, DiceTerm
from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.models.nnunet.plans import plan_to_nnunet
from segpipe.networks import measure
from segpipe.networks.build import build_network
from segpipe.networks.danet import PositionAttention
from segpipe.networks.measure import MemoryProbe, macs, n_parameters, peak_bytes
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkChoice
from segpipe.planning import make_plan
from segpipe.planning.class_weights import class_weights
from segpipe.planning.design import Channels, Design
from segpipe.planning.recipe import PlannerSettings, Recipe
from segpipe.planning.schema import Plan
from segpipe.planning.variant import with_network
from tests.networks import spec_of

CHANNELS = Channels(1, 3, 3)


def fingerprint(shape=(40, 48, 56), spacing=(1.0, 1.0, 1.0), n=20):
    return read_fingerprint(
        {
            "num_training": n, "channel_names": ["T1"], "num_labels_with_background": 3, "spacings": [list(spacing)] * 3,
            "shapes_after_crop": [list(shape)] * 3, "median_relative_size_after_cropping": 1.0,
        }
    )  # fmt: skip


def base(measured, **planner):
    return make_plan(measured, Recipe(name="tiny", description="", planner=PlannerSettings(base_features=4, **planner)))


def choice(name, **options):
    return NetworkChoice(name=name, options=options)


class Counting:
    """A probe without torch: so many bytes a voxel, and edges of multiples of a number."""

    def __init__(self, per_voxel=1000, fixed=0, divisor=16, only_dims=None):
        self.per_voxel, self.fixed, self.divisor, self.only_dims, self.asked = per_voxel, fixed, divisor, only_dims, []

    def step_bytes(self, network, patch, channels, activation_bytes):
        self.asked.append(patch)
        probe = self

        class Need:
            fixed = probe.fixed
            per_sample = probe.per_voxel * prod(patch)

        return Need

    def problem(self, network, patch, channels):
        if self.only_dims and len(patch) != self.only_dims:
            return f"knows {self.only_dims} axes only"
        return None if all(n % self.divisor == 0 for n in patch) else "does not divide"


def test_patch_and_batch_follow_the_networks_own_memory():
    measured = fingerprint(shape=(96, 96, 96))
    plan = base(measured, budget_gb=1.0, max_batch=64)
    roomy = with_network(plan, measured, choice("monai:SegResNet"), Counting(per_voxel=100)).configuration("3d_fullres")
    tight = with_network(plan, measured, choice("monai:SegResNet"), Counting(per_voxel=2000)).configuration(
        "3d_fullres"
    )
    assert roomy.patch_size == (96, 96, 96)
    assert prod(tight.patch_size) * 2 * 2000 <= 1e9 < prod(roomy.patch_size) * 2 * 2000
    assert all(n % 16 == 0 for n in tight.patch_size)
    assert tight.estimated_memory_gb == pytest.approx(prod(tight.patch_size) * tight.batch_size * 2000 / 1e9)
    assert tight.network.divisors == (16, 16, 16)
    # Parameters are in the budget too.
    heavy = with_network(plan, measured, choice("monai:SegResNet"), Counting(per_voxel=100, fixed=900_000_000))
    assert prod(heavy.configuration("3d_fullres").patch_size) < 96**3


def test_a_patch_is_the_largest_that_fits_though_not_every_one_is_measured():
    """The patches that are passed over are those that one by one would not have fitted either."""
    for shape in ((512, 512, 512), (130, 96, 200), (20, 400, 300)):
        spacing = (5.0, 1.0, 1.0) if shape[0] == 20 else (1.0, 1.0, 1.0)
        measured = fingerprint(shape=shape, spacing=spacing)
        plan = base(measured, budget_gb=2.0)
        for network in ("u2net", "ternausnet", "monai:SegResNet"):
            probe = Counting(per_voxel=700)
            skipping = with_network(plan, measured, choice(network), probe)
            one_by_one = with_network(plan, measured, choice(network), OneByOne(per_voxel=700))
            assert set(skipping.configurations) == set(plan.configurations)
            for name in skipping.configurations:
                assert skipping.configuration(name).patch_size == one_by_one.configuration(name).patch_size
            assert len(probe.asked) < 20


@pytest.mark.parametrize("shape", [(10, 256, 237), (40, 256, 237)])
def test_an_axis_that_cannot_be_cut_leaves_the_others_to_be_cut(shape):
    """Ten slices in a network that needs multiples of 32: the patch is 32 deep, and smaller in the plane."""
    measured = fingerprint(shape=shape, spacing=(8.0, 1.4, 1.4))
    probe = Counting(per_voxel=5000, divisor=32)
    found = with_network(base(measured, budget_gb=8.0), measured, choice("monai:SwinUNETR"), probe)
    patch = found.configuration("3d_fullres").patch_size
    assert patch[0] == 32
    assert 0.5 * 8e9 < prod(patch) * 2 * 5000 <= 8e9


class OneByOne(Counting):
    """Every patch nearly fits, as far as the planner can tell: none is passed over."""

    def step_bytes(self, network, patch, channels, activation_bytes):
        need = super().step_bytes(network, patch, channels, activation_bytes)
        if need.per_sample * 2 > 2e9:
            need.fixed, need.per_sample = int(2e9 - 2e9 * 0.9999), 1_000_000_001
        return need


def test_poolings_follow_the_spacing_and_the_networks_depth():
    spec = spec_of("unet3d_2016", (16, 128, 128), spacing=(4.0, 1.0, 1.0))
    assert spec.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    # A network that always pools five times does so along no axis where none is left.
    spec = spec_of("ternausnet", (16, 64, 64))
    assert spec.strides[1:] == ((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 1))
    network = build_network(spec, 1, 2).eval()
    assert network(torch.zeros(1, 1, 16, 64, 64)).shape == (1, 2, 16, 64, 64)
    # DANet's heads are as coarse as its bottleneck: of 40 voxels 10 are left, not 5.
    assert spec_of("danet", (40, 40, 40)).strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1))


def test_spacings_arrays_and_all_else_stay():
    measured = fingerprint()
    plan = base(measured)
    other = with_network(plan, measured, choice("u2netp", width=0.5), Counting())
    assert other.recipe == "tiny+u2netp_width=0.5"
    assert other.derived_from == plan.digest()
    for name, mine in other.configurations.items():
        theirs = plan.configuration(name)
        assert (mine.spacing_mm, mine.normalisation, mine.batch_dice) == (
            theirs.spacing_mm,
            theirs.normalisation,
            theirs.batch_dice,
        )
        assert mine.network.architecture == "u2netp"
        assert mine.network.options == {"width": 0.5, "norm": "batch"}
    assert other.training == plan.training
    assert [d.chosen for d in other.decisions if d.rule == "3d_fullres: network"][-1] == "u2netp, 5 poolings"
    assert Plan.model_validate_json(other.to_json()) == other


def test_the_same_choice_gives_the_same_plan_twice():
    measured = fingerprint()
    plan = base(measured)
    one, two = (with_network(plan, measured, choice("danet", width=0.25), MemoryProbe()) for _ in range(2))
    assert one.to_json() == two.to_json()


def test_the_plans_own_network_gives_the_plans_own_sizes():
    measured = fingerprint(shape=(300, 300, 300))
    plan = make_plan(measured)
    assert "3d_cascade_fullres" in plan.configurations
    same = with_network(plan, measured, choice("plain_unet"), None)
    for name, configuration in same.configurations.items():
        assert configuration.model_dump(exclude={"network"}) == plan.configuration(name).model_dump(exclude={"network"})
        assert configuration.network == plan.configuration(name).network
    narrow = with_network(plan, measured, choice("plain_unet", width=0.25), None)
    assert narrow.configuration("3d_fullres").network.features[:2] == (8, 16)
    assert prod(narrow.configuration("3d_fullres").patch_size) > prod(plan.configuration("3d_fullres").patch_size)


def test_a_configuration_that_a_network_cannot_do_is_left_out_with_the_reason():
    measured = fingerprint(shape=(300, 300, 300))
    plan = make_plan(measured)
    flat = with_network(plan, measured, choice("monai:SegResNet"), Counting(per_voxel=10, only_dims=2))
    assert list(flat.configurations) == ["2d"]
    reasons = {d.rule: d.because for d in flat.decisions if d.chosen == "none"}
    assert set(reasons) >= {"3d_lowres", "3d_fullres"}
    assert "knows 2 axes only" in reasons["3d_fullres"]
    with pytest.raises(PlanError, match="this plan has 2d"):
        flat.configuration("3d_fullres")
    with pytest.raises(PlanError, match="knows 4 axes only"):
        with_network(plan, measured, choice("monai:SegResNet"), Counting(only_dims=4))


def test_a_network_too_large_for_the_budget_is_refused():
    measured = fingerprint()
    with pytest.raises(PlanError, match=r"not even a patch.*--budget-gb"):
        with_network(base(measured, budget_gb=1.0), measured, choice("u2net"), Counting(fixed=2_000_000_000))


def test_a_plan_is_never_taken_for_that_of_another_choice(tmp_path):
    from segpipe.planning.run import variant_plan

    one, other = choice("monai:SegResNet", act="a/b"), choice("monai:SegResNet", act="a-b")
    assert one.slug != other.slug
    assert len(choice("monai:DynUNet", kernel_size=[[3, 3, 3]] * 40).slug) < 120
    measured = fingerprint()
    plan, workspace, probe = base(measured), Workspace(tmp_path), Counting()
    found = variant_plan(plan, measured, one, workspace, probe)
    assert found.asked_network == one
    path = workspace.plan_of(found.recipe)
    # As if MONAI had been updated since.
    path.write_text(path.read_text().replace('"package": "monai ', '"package": "monai 0.'))
    asked = len(probe.asked)
    assert variant_plan(plan, measured, one, workspace, probe) == found
    assert len(probe.asked) > asked


def test_a_cascade_is_planned_with_the_labels_of_its_first_stage():
    class OneChannel(Counting):
        def problem(self, network, patch, channels):
            return "takes one channel" if channels.inputs != 1 else super().problem(network, patch, channels)

    measured = fingerprint(shape=(300, 300, 300))
    found = with_network(make_plan(measured), measured, choice("monai:SegResNet"), OneChannel(per_voxel=10))
    assert "3d_cascade_fullres" not in found.configurations
    assert any("takes one channel" in d.because for d in found.decisions)


def test_recipes_name_networks_and_need_a_probe_for_them():
    measured = fingerprint()
    recipe = Recipe(name="mine", description="", network=choice("u2netp", width=0.25))
    plan = make_plan(measured, recipe, probe=Counting())
    assert {c.network.architecture for c in plan.configurations.values()} == {"u2netp"}
    flat = make_plan(
        measured, Recipe(name="mine", description="", network=choice("monai:UNETR")), probe=Counting(only_dims=2)
    )
    assert list(flat.configurations) == ["2d"]
    assert flat.default_configuration() == "2d"
    assert any("knows 2 axes only" in d.because for d in flat.decisions if d.chosen == "none")
    with pytest.raises(PlanError, match="has to be measured"):
        make_plan(measured, recipe)
    with pytest.raises(NetworkError, match="not known"):
        make_plan(measured, Recipe(name="mine", description="", network=choice("u3net")), probe=Counting())
    with pytest.raises(PlanError, match="knows 4 axes only"):
        make_plan(
            measured, Recipe(name="mine", description="", network=choice("monai:UNETR")), probe=Counting(only_dims=4)
        )
    with pytest.raises(PlanError, match="nnU-Net has none like it"):
        plan_to_nnunet(plan)
    group = make_plan(measured, Recipe(name="mine", description="", network=choice("plain_unet", norm="group")))
    with pytest.raises(PlanError, match="norm group"):
        plan_to_nnunet(group)


# What is measured


@pytest.mark.parametrize("name", ["plain_unet", "u2netp", "danet", "monai:SegResNet"])
def test_memory_is_what_a_real_step_holds(name):
    """The same count on tensors with content: every allocation of a real step."""
    options = {"width": 0.125} if name in ("u2netp", "danet") else {}
    spec = spec_of(name, (32, 32, 32), **options)
    network = build_network(spec, 1, 3).train()
    forecast = peak_bytes(network, 1, (32, 32, 32), 2)
    assert all(type(p) is torch.nn.Parameter and p.grad is None for p in network.parameters())
    images = torch.randn(2, 1, 32, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    with measure._Live() as live:
        measure._stand_in_loss(network.supervised(images)).backward()
    assert forecast == pytest.approx(live.peak + images.nbytes, rel=0.1)


def test_memory_grows_with_the_batch_and_shrinks_with_the_number_type():
    probe, spec = MemoryProbe(), spec_of("unet3d_2016", (32, 32, 32), width=0.25)
    full, half = (probe.step_bytes(spec, (32, 32, 32), CHANNELS, n) for n in (4, 2))
    network = build_network(spec, 1, 3)
    assert full.fixed >= 12 * n_parameters(network)
    assert half.per_sample < 0.7 * full.per_sample
    four = peak_bytes(network, 1, (32, 32, 32), 4)
    assert full.fixed - 8 * n_parameters(network) + 4 * full.per_sample == pytest.approx(four, rel=0.05)


def test_work_is_counted():
    """By hand: two 3x3 convolutions, a 1x1, and attention between 4 windows' worth of positions."""
    network = build_network(spec_of("plain_unet", (32, 32)), 2, 3)
    expected, size = 0, {}
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            module.register_forward_hook(lambda m, x, y, n=name: size.__setitem__(n, (m, x[0], y)))
    with torch.no_grad():
        network(torch.zeros(1, 2, 32, 32))
    for module, x, y in size.values():
        per_output = prod(module.kernel_size) * module.in_channels
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        expected += x.numel() * prod(module.kernel_size) * module.out_channels if transposed else y.numel() * per_output
    assert macs(network, 2, (32, 32)) == expected


class Attending(Segmenter):
    """Position attention alone."""

    def __init__(self, channels):
        super().__init__(2, (1, 1))
        self.attention = PositionAttention(channels, 2)

    def logits(self, x, *, every):
        return [self.attention(x)]


def test_attention_is_part_of_the_work():
    convolutions, pairs = 64 * 16 * (2 + 2 + 16), 64 * 64
    assert macs(Attending(16), 16, (8, 8)) == convolutions + 8 * pairs * (2 + 2)


def test_attention_holds_as_much_as_there_are_positions():
    """Not as there are pairs of them; on tensors with content, whose layout decides on the kernel that is taken."""
    held = []
    for edge in (32, 64):
        x = torch.randn(1, 128, edge, edge, requires_grad=True)
        with measure._Live() as live:
            Attending(128)(x).sum().backward()
        held.append(live.peak)
    assert held[1] < 4.5 * held[0]


@pytest.mark.parametrize(("name", "divisor"), [("monai:SegResNet", 8), ("monai:BasicUNet", 1), ("monai:SwinUNETR", 32)])
def test_what_edges_must_divide_is_found_by_trying(name, divisor):
    options = {"feature_size": 12} if "Swin" in name else {}
    design = Design(choice(name, **options), PlannerSettings(), CHANNELS, (1.0, 1.0), MemoryProbe())
    topology = design.topology((51.0, 70.5))
    assert topology.divisors == (divisor, divisor)
    assert topology.patch_size == tuple(int(np.ceil(n / divisor)) * divisor for n in (51, 70.5))


def test_a_network_built_for_one_size_is_built_for_the_patch():
    design = Design(
        choice("monai:UNETR", hidden_size=24, mlp_dim=48, num_heads=2),
        PlannerSettings(),
        CHANNELS,
        (1.0,) * 2,
        MemoryProbe(),
    )
    topology = design.topology((40.0, 40.0))
    network = build_network(design.network(topology), 1, 3)
    assert network(torch.zeros(1, 1, *topology.patch_size)).shape == (1, 3, *topology.patch_size)


def test_danets_attention_at_the_largest_planned_patch_holds_little():
    """Under 2 GiB of activations; the explicit matrix of the same positions would take many times that."""
    largest = []
    for shape, spacing in (((500, 512, 512), (1.0, 0.8, 0.8)), ((1, 2048, 2048), (999.0, 1.0, 1.0))):
        recipe = Recipe(name="xl", description="", network=choice("danet"), planner=PlannerSettings(budget_gb=80.0))
        plan = make_plan(fingerprint(shape=shape, spacing=spacing), recipe, probe=MemoryProbe())
        largest += plan.configurations.values()
    positions = max(prod(c.patch_size) // prod(map(prod, c.network.strides)) for c in largest)
    assert positions > 64 * 64
    edge = int(np.ceil(positions**0.5))
    held = peak_bytes(Attending(512), 512, (edge, edge), 1)
    assert held < 2 * 2**30
    assert 4 * edge**4 > 4 * held


# Class weights


def counted(voxels, shape=(10, 10, 10), ignored=0, labels=None):
    measured = fingerprint(shape=shape)
    cases = tuple(
        c.model_copy(update={"label_voxels": v, "ignored_voxels": ignored})
        for c, v in zip(measured.cases, voxels, strict=True)
    )
    return measured.model_copy(update={"cases": cases} | ({"labels": labels} if labels else {}))


def test_balanced_weights_by_hand():
    measured = counted([{1: 100, 2: 10}, {1: 100}, {1: 100}])
    # 3000 voxels: 2690 of background, 300, 10.
    found = class_weights(measured, "balanced")
    assert found == pytest.approx({"background": 3000 / 3 / 2690, "label_1": 3000 / 900, "label_2": 100}, rel=1e-5)
    # Every class then counts the same in all.
    totals = [found["background"] * 2690, found["label_1"] * 300, found["label_2"] * 10]
    assert totals == pytest.approx([1000] * 3, rel=1e-4)


def test_median_frequency_weights_by_hand():
    """A class's frequency is among the cases that hold it (Eigen and Fergus)."""
    measured = counted([{1: 100, 2: 10}, {1: 100}, {1: 100}])
    shares = {"background": 2690 / 3000, "label_1": 0.1, "label_2": 10 / 1000}
    expected = {name: 0.1 / share for name, share in shares.items()}
    assert class_weights(measured, "median_frequency") == pytest.approx(expected, rel=1e-5)


def test_ignored_voxels_are_no_background():
    sparse = counted([{1: 100, 2: 10}, {1: 100, 2: 10}, {1: 100, 2: 10}], ignored=800)
    assert class_weights(sparse, "balanced")["background"] == pytest.approx(200 / 3 / 90, rel=1e-5)


def test_weights_of_regions_are_of_their_union():
    regions = Labels(
        targets=(Target(name="whole", values=(1, 2), paint=1), Target(name="core", values=(2,), paint=2)),
        regions=True, n_entries=3,
    )  # fmt: skip
    found = class_weights(counted([{1: 90, 2: 10}] * 3, labels=regions), "balanced")
    assert found == pytest.approx({"whole": 1000 / 2 / 100, "core": 1000 / 2 / 10})


def test_a_plan_holds_weights_as_numbers():
    measured = counted([{1: 100, 2: 10}, {1: 100}, {1: 100}])
    loss = (DiceTerm(), CrossEntropyTerm(class_weights="balanced"))
    recipe = Recipe.model_validate(
        {"name": "w", "description": "", "training": {"loss": [t.model_dump() for t in loss]}}
    )
    plan = make_plan(measured, recipe)
    assert plan.training.loss[1].class_weights == class_weights(measured, "balanced")
    assert [d.rule for d in plan.decisions if "weights" in d.rule] == ["class weights of cross_entropy"]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("balanced", "no case has label_2"),
        ({"kidney": 2.0}, "names kidney; the dataset has background, label_1, label_2"),
        ({"background": 0.0, "label_1": 0.0, "label_2": 0.0}, "0 for every label"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights, reason):
    recipe = Recipe.model_validate(
        {"name": "w", "description": "", "training": {"loss": [{"name": "focal", "class_weights": weights}]}}
    )
    with pytest.raises(PlanError, match=reason):
        make_plan(counted([{1: 100}] * 3), recipe)


# From a dataset


@pytest.fixture(scope="module")
def planned(small_dataset, tmp_path_factory):
    work = tmp_path_factory.mktemp("networks") / "work"
    recipe = work.parent / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\ndescription = ""\n[planner]\nbase_features = 4\nmax_batch = 2\n'
        "[training]\nlearning_rate = 0.01\nmomentum = 0.9\nepochs = 1\niterations_per_epoch = 6\nvalidation_batches = 1\n"
    )
    segpipe.plan(small_dataset, work=work, recipe=recipe, jobs=1)
    return small_dataset, work


@pytest.mark.parametrize(
    ("network", "configuration"),
    [
        ("u2netp:width=0.25", "3d_fullres"),
        ("danet:width=0.125", "2d"),
        ("monai:SegResNet:init_filters=8", "3d_fullres"),
    ],
)
def test_a_network_is_trained_predicted_and_kept_beside_the_others(planned, network, configuration, tmp_path):
    folder, work = planned
    before = Workspace(work).plan.read_bytes()
    done = segpipe.train(
        folder, work=work, network=network, configuration=configuration, jobs=1, device="cpu", tta=False
    )
    assert Workspace(work).plan.read_bytes() == before
    assert done.held_out is not None
    assert not done.held_out.failed
    plan = Plan.read(Workspace(work).plan_of(done.record.variant))
    assert done.record.plan_digest == plan.digest()
    assert plan.configuration(configuration).network.architecture == ":".join(
        network.split(":")[: 1 + network.startswith("monai")]
    )
    assert done.model.parent.name == done.record.variant == plan.recipe
    assert done.model.parent.parent.name == configuration
    # The model needs nothing but itself; a finished fold is kept.
    image = next((folder / "images").iterdir())
    assert [r.status for r in segpipe.predict(image, tmp_path, model=done.model, device="cpu", tta=False)] == ["done"]
    again = segpipe.train(
        folder, work=work, network=network, configuration=configuration, jobs=1, device="cpu", resume=True, tta=False
    )
    assert again.record == done.record


def test_a_model_of_another_network_is_fine_tuned_with_its_plan(planned, tmp_path):
    folder, work = planned
    given = {"jobs": 1, "device": "cpu", "tta": False}
    model = segpipe.train(folder, work=work, network="u2netp:width=0.125", configuration="2d", **given).model
    done = segpipe.train(folder, work=tmp_path / "tuned", init_from=model, **given)
    assert done.record.configuration == "2d"
    assert done.record.variant == "tiny-u2netp_width=0.125"
    assert Plan.read(tmp_path / "tuned" / "plan.json").configuration("2d").network.architecture == "u2netp"
    assert done.held_out is not None
    assert done.held_out.pictures


def test_a_plan_for_a_network_is_made_again_when_the_plan_changes(planned):
    from segpipe.planning.run import variant_plan

    workspace = Workspace(planned[1])
    measured, plan = Fingerprint.read(workspace.fingerprint), Plan.read(workspace.plan)
    probe = Counting()
    first = variant_plan(plan, measured, choice("unet3d_2016"), workspace, probe)
    asked = len(probe.asked)
    assert variant_plan(plan, measured, choice("unet3d_2016"), workspace, probe) == first
    assert len(probe.asked) == asked
    changed = plan.model_copy(update={"planner": plan.planner.model_copy(update={"max_batch": 1})})
    assert variant_plan(changed, measured, choice("unet3d_2016"), workspace, probe).derived_from == changed.digest()
    assert len(probe.asked) > asked


def test_a_plan_of_an_older_version_is_told(planned):
    workspace = Workspace(planned[1])
    old = Plan.read(workspace.plan).model_copy(update={"planner": None})
    with pytest.raises(PlanError, match="run `segpipe plan` again"):
        with_network(old, Fingerprint.read(workspace.fingerprint), choice("u2net"), Counting())
    broken = json.loads(workspace.plan.read_text())
    broken["configurations"]["2d"]["network"]["depth"] = 3
    path = planned[1] / "broken.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(ArtefactError, match="another version"):
        Plan.read(path)


def test_networks_are_listed_with_what_they_cost(planned):
    folder, work = planned
    names = ("plain_unet", "u2netp:width=0.25", "monai:SegResNet:init_filters=8", "monai:SegResNet:filters=8", "u9net")
    rows = {r.network: r for r in segpipe.list_networks(folder, names=names, work=work, device="cpu", jobs=1)}
    assert list(rows) == list(names)
    for name in names[:3]:
        row = rows[name]
        assert row.patch_size
        assert row.step_s > 0
        assert min(row.parameters, row.macs, row.memory_gb) > 0
        assert not row.problem
    plan = Plan.read(Workspace(work).plan).configuration("3d_fullres")
    assert rows["plain_unet"].patch_size == plan.patch_size
    assert rows["plain_unet"].parameters == n_parameters(build_network(plan.network, 1, 3))
    assert rows["u9net"].parameters is None
    with pytest.raises(PlanError, match="3d_lowres"):
        segpipe.list_networks(folder, names=("u2net",), work=work, configuration="3d_lowres", device="cpu", jobs=1)
    named = segpipe.list_networks(names=("u2net:width=zero", "u2net"))
    assert [bool(r.problem) for r in named] == [True, False]
    assert "no option filters" in rows["monai:SegResNet:filters=8"].problem
    assert "not known" in rows["u9net"].problem
    assert not (work / "plans" / "tiny+u9net.json").exists()
