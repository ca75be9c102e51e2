"""Plans for networks other than the U-Nets, and what is measured for them."""

from math import prod

import numpy as np
import pytest
import torch

import segpipe
from segpipe.core.workspace import Workspace
from segpipe.errors import PlanError
from segpipe.networks import measure
from segpipe.networks.build import build_network
from segpipe.networks.measure import MemoryProbe, n_parameters, peak_bytes
from segpipe.planning import make_plan
from segpipe.planning.design import Channels, Design
from segpipe.planning.recipe import PlannerSettings, Recipe
from segpipe.planning.schema import Plan
from segpipe.planning.variant import with_network
from tests.helpers.network_plans import Attending, Counting, base, choice, fingerprint
from tests.networks import spec_of

CHANNELS = Channels(1, 3, 3)


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


def test_the_same_choice_gives_the_same_plan_twice():
    measured = fingerprint()
    plan = base(measured)
    one, two = (with_network(plan, measured, choice("danet", width=0.25), MemoryProbe()) for _ in range(2))
    assert one.to_json() == two.to_json()


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


# From a dataset


@pytest.mark.parametrize(
    ("network", "configuration"),
    [
        ("u2netp:width=0.25", "3d_fullres"),
        ("danet:width=0.125", "2d"),
        ("monai:SegResNet:init_filters=8", "3d_fullres"),
    ],
)
def test_a_network_is_trained_predicted_and_kept_beside_the_others(planned_networks, network, configuration, tmp_path):
    folder, work = planned_networks
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


def test_a_model_of_another_network_is_fine_tuned_with_its_plan(planned_networks, tmp_path):
    folder, work = planned_networks
    given = {"jobs": 1, "device": "cpu", "tta": False}
    model = segpipe.train(folder, work=work, network="u2netp:width=0.125", configuration="2d", **given).model
    done = segpipe.train(folder, work=tmp_path / "tuned", init_from=model, **given)
    assert done.record.configuration == "2d"
    assert done.record.variant == "tiny-u2netp_width=0.125"
    assert Plan.read(tmp_path / "tuned" / "plan.json").configuration("2d").network.architecture == "u2netp"
    assert done.held_out is not None
    assert done.held_out.pictures


def test_networks_are_listed_with_what_they_cost(planned_networks):
    folder, work = planned_networks
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
