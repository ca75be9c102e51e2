"""Plans for networks other than the U-Nets, and what is measured for them."""

import json
from math import prod

import pytest
import torch

from segpipe.core.labels import Labels, Target
from segpipe.core.workspace import Workspace
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import ArtefactError, NetworkError, PlanError
from segpipe.losses.spec import CrossEntropyTerm, DiceTerm
from segpipe.models.nnunet.plans import plan_to_nnunet
from segpipe.networks.build import build_network
from segpipe.networks.measure import macs
from segpipe.planning import make_plan
from segpipe.planning.class_weights import class_weights
from segpipe.planning.recipe import Recipe
from segpipe.planning.schema import Plan
from segpipe.planning.variant import with_network
from tests.helpers.network_plans import Attending, Counting, base, choice, fingerprint
from tests.networks import spec_of


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


@pytest.mark.parametrize("shape", [(10, 256, 237), (40, 256, 237)])
def test_an_axis_that_cannot_be_cut_leaves_the_others_to_be_cut(shape):
    """Ten slices in a network that needs multiples of 32: the patch is 32 deep, and smaller in the plane."""
    measured = fingerprint(shape=shape, spacing=(8.0, 1.4, 1.4))
    probe = Counting(per_voxel=5000, divisor=32)
    found = with_network(base(measured, budget_gb=8.0), measured, choice("monai:SwinUNETR"), probe)
    patch = found.configuration("3d_fullres").patch_size
    assert patch[0] == 32
    assert 0.5 * 8e9 < prod(patch) * 2 * 5000 <= 8e9


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
    assert len(choice("monai:DynUNet", kernel_size=[[3, 3, 3]] * 40).slug) < 50
    measured = fingerprint()
    plan, workspace, probe = base(measured), Workspace(tmp_path), Counting()
    found = variant_plan(plan, measured, one, workspace, probe)
    assert found.asked_network == one
    path = workspace.plan_of(found.recipe)
    # As if MONAI had been updated since.
    path.write_text(
        path.read_text(encoding="utf-8").replace('"package": "monai ', '"package": "monai 0.'), encoding="utf-8"
    )
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


def test_attention_is_part_of_the_work():
    convolutions, pairs = 64 * 16 * (2 + 2 + 16), 64 * 64
    assert macs(Attending(16), 16, (8, 8)) == convolutions + 8 * pairs * (2 + 2)


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


def test_a_plan_for_a_network_is_made_again_when_the_plan_changes(planned_networks):
    from segpipe.planning.run import variant_plan

    workspace = Workspace(planned_networks[1])
    measured, plan = Fingerprint.read(workspace.fingerprint), Plan.read(workspace.plan)
    probe = Counting()
    first = variant_plan(plan, measured, choice("unet3d_2016"), workspace, probe)
    asked = len(probe.asked)
    assert variant_plan(plan, measured, choice("unet3d_2016"), workspace, probe) == first
    assert len(probe.asked) == asked
    changed = plan.model_copy(update={"planner": plan.planner.model_copy(update={"max_batch": 1})})
    assert variant_plan(changed, measured, choice("unet3d_2016"), workspace, probe).derived_from == changed.digest()
    assert len(probe.asked) > asked


def test_a_plan_of_an_older_version_is_told(planned_networks):
    workspace = Workspace(planned_networks[1])
    old = Plan.read(workspace.plan).model_copy(update={"planner": None})
    with pytest.raises(PlanError, match="run `segpipe plan` again"):
        with_network(old, Fingerprint.read(workspace.fingerprint), choice("u2net"), Counting())
    broken = json.loads(workspace.plan.read_text(encoding="utf-8"))
    broken["configurations"]["2d"]["network"]["depth"] = 3
    path = planned_networks[1] / "broken.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ArtefactError, match="another version"):
        Plan.read(path)
