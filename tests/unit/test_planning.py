import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.core.labels import Labels
from segpipe.errors import PlanError, RecipeError
from segpipe.losses.compound import Loss
from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.networks.build import build_network
from segpipe.planning import make_plan
from segpipe.planning.memory import training_bytes
from segpipe.planning.recipe import Recipe, load_recipe, recipe_names
from segpipe.planning.rules import normalisation_of, target_spacing
from segpipe.planning.schema import Plan
from segpipe.planning.topology import make_topology
from tests.helpers.planning import RECIPES, mapping
from tests.networks import spec_of


def test_no_recipe_is_untested():
    assert set(recipe_names()) == set(RECIPES)


def test_the_cpu_recipe_keeps_batches_and_networks_small():
    plan = make_plan(
        read_fingerprint(mapping(spacings=[[1.0, 0.8, 0.8]] * 3, shapes_after_crop=[[300, 512, 512]] * 3)), "cpu"
    )
    for configuration in plan.configurations.values():
        assert configuration.batch_size == 2
        assert configuration.estimated_memory_gb <= 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'x'\ndescription = 'y'\n[planner]\nbase_featurs = 3", "planner.base_featurs"),
        ("name = 'x'\ndescription = 'y'\n[training]\nepochs = 0", "training.epochs.*found 0"),
        ("name = ", "not TOML"),
        ("name = '../x'\ndescription = 'y'", "name: is no name of a file or folder"),
    ],
)
def test_a_wrong_recipe_says_where(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "mine.toml")


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(RecipeError, match=r"'fast': not found; known are cpu, danet, default"):
        load_recipe("fast")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(*[st.floats(0.4, 5)] * 3), min_size=1, max_size=5),
    st.tuples(*[st.integers(1, 160)] * 3),
    st.sampled_from(["default", "resenc_l", "cpu"]),
)
def test_a_plan_is_a_function_of_its_fingerprint(spacings, shape, recipe):
    fingerprint = read_fingerprint(
        mapping(spacings=[list(s) for s in spacings], shapes_after_crop=[list(shape)] * len(spacings))
    )
    first, second = make_plan(fingerprint, recipe), make_plan(fingerprint, recipe)
    assert first.to_json() == second.to_json()
    assert Plan.model_validate_json(first.to_json()) == first
    for configuration in first.configurations.values():
        for axis, patch in enumerate(configuration.patch_size):
            assert patch % np.prod([s[axis] for s in configuration.network.strides]) == 0
        assert configuration.batch_size >= 2


def test_half_voxels_are_padded_up():
    topology = make_topology((1.0, 1.0, 1.0), (20.5, 40.0, 40.0))
    assert topology.patch_size[0] == 24


def test_an_axis_is_refined_only_when_coarse_and_short():
    def target(shape):
        return target_spacing(
            read_fingerprint(mapping(spacings=[[5.0, 1.0, 1.0], [3.5, 1.0, 1.0]], shapes_after_crop=[shape] * 2)).cases
        )

    refined, fired = target([20, 200, 200])
    assert fired
    np.testing.assert_allclose(refined, [np.percentile([5.0, 3.5], 10), 1, 1])
    kept, fired = target([100, 200, 200])
    assert not fired
    np.testing.assert_allclose(kept, [4.25, 1, 1])


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        ("noNorm", "none"),
        ("zscore", "zscore"),
        ("rescale_to_0_1", "rescale_0_1"),
        ("RGB_to_0_1", "rgb_0_1"),
        ("FLAIR", "zscore"),
    ],
)
def test_normalisation_follows_the_channel_name(name, scheme):
    assert normalisation_of(name) == scheme


def test_a_wished_spacing_is_kept():
    plan = make_plan(read_fingerprint(mapping()), spacing_mm=(2.0, 1.0, 1.0))
    assert plan.configurations["3d_fullres"].spacing_mm == (2.0, 1.0, 1.0)
    with pytest.raises(PlanError, match="positive"):
        make_plan(read_fingerprint(mapping()), spacing_mm=(0.0, 1.0, 1.0))


def test_every_decision_has_its_reason():
    plan = make_plan(read_fingerprint(mapping()))
    assert {"target spacing", "axis order", "normalisation", "3d_fullres: patch", "3d_fullres: batch"} <= {
        d.rule for d in plan.decisions
    }
    assert all(d.because for d in plan.decisions)


def test_a_missing_configuration_names_those_there():
    with pytest.raises(PlanError, match="2d, 3d_fullres"):
        make_plan(read_fingerprint(mapping())).configuration("3d_lowres")


def test_a_larger_budget_gives_no_smaller_patch():
    fingerprint = read_fingerprint(mapping(shapes_after_crop=[[200, 200, 200]] * 3))
    sizes = []
    for budget in (4.0, 8.0, 16.0):
        recipe = Recipe.model_validate(
            json.loads(json.dumps({"name": "x", "description": "y", "planner": {"budget_gb": budget}}))
        )
        sizes.append(np.prod(make_plan(fingerprint, recipe).configurations["3d_fullres"].patch_size))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def saved_bytes(network, step):
    """Bytes that torch keeps of a step until its backward pass, each storage once, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = step()
    assert value.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("recipe", ["default", "resenc_m"])
@pytest.mark.parametrize("n_channels", [1, 4])
def test_bytes_of_a_step_are_what_torch_keeps(recipe, n_channels):
    """Within a tenth, in float32."""
    patch, n_outputs = (32, 48, 48), 4
    spec = spec_of(load_recipe(recipe).network.name, patch, base_features=8)
    network = build_network(spec, n_channels, n_outputs)
    x = torch.randn(1, n_channels, *patch)
    target = torch.randint(0, n_outputs, (1, *patch))
    loss = Loss(Labels.plain({"a": 1, "b": 2, "c": 3}))

    def step():
        heads = network.supervised(x)
        return loss.over_heads(heads, target, network.head_weights(len(heads)))

    kept = saved_bytes(network, step)
    estimate = training_bytes(spec, patch, n_channels, n_outputs, 4)
    assert estimate.fixed == 12 * sum(p.numel() for p in network.parameters())
    assert estimate.kept == pytest.approx(kept, rel=0.1)


def test_input_channels_and_number_type_count_in_bytes_alone():
    few, many = (read_fingerprint(mapping(channel_names=["MR"] * n)) for n in (1, 8))
    for recipe, equal in (("resenc_l", True), ("residual_l", False)):
        a, b = (make_plan(f, recipe).configurations["3d_fullres"].estimated_memory_gb for f in (few, many))
        assert (a == b) is equal
    spec = make_plan(few, "residual_l").configurations["3d_fullres"].network
    half, full = (training_bytes(spec, (64, 64, 64), 1, 2, size).per_sample for size in (2, 4))
    assert full > 1.8 * half


HIPPOCAMPUS = {"spacings": [[1.0, 1.0, 1.0]] * 260, "shapes_after_crop": [[36, 50, 35]] * 260, "num_training": 260}


@pytest.mark.parametrize(
    ("theirs", "ours"), [("resenc_m", "residual_m"), ("resenc_l", "residual_l"), ("resenc_xl", "residual_xl")]
)
def test_batches_stay_sensible_for_small_datasets(theirs, ours):
    """nnU-Net's large presets plan batches in the thousands for 260 hippocampi."""
    fingerprint = read_fingerprint(mapping(**HIPPOCAMPUS))
    absurd, sensible = (make_plan(fingerprint, recipe).configurations for recipe in (theirs, ours))
    assert absurd["2d"].batch_size > 500
    assert all(2 <= c.batch_size <= 32 for c in sensible.values())
    assert sensible["3d_fullres"].patch_size == absurd["3d_fullres"].patch_size


def test_a_budget_that_holds_nothing_is_refused():
    recipe = load_recipe("residual_m")
    small = recipe.model_copy(update={"planner": recipe.planner.model_copy(update={"budget_gb": 1e-5})})
    with pytest.raises(PlanError, match=r"budget of 1e-05 GB: not even a patch of .* fits"):
        make_plan(read_fingerprint(mapping()), small)


def test_every_rule_says_how_it_came_to_its_choice():
    decisions = {
        d.rule: d
        for d in make_plan(read_fingerprint(mapping(shapes_after_crop=[[300, 512, 512]] * 3)), "default").decisions
    }
    assert {
        "target spacing",
        "intensity guard",
        "memory estimate",
        "3d_fullres: patch",
        "3d_fullres: network",
        "3d_fullres: batch",
    } <= set(decisions)
    tried = decisions["3d_fullres: patch"].steps
    assert any("of 560.0 million elements" in step for step in tried)
    assert tried[-1].startswith(decisions["3d_fullres: patch"].chosen)
    assert any("at most 5% of the dataset's voxels" in step for step in decisions["memory estimate"].steps)


def test_auto_takes_what_is_free(monkeypatch):
    import segpipe.execution.device as runtime

    monkeypatch.setattr(runtime, "free_bytes", lambda: 10 * 10**9)
    assert runtime.free_gb(torch.device("cpu")) == 5.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * 10**9, 80 * 10**9))
    assert runtime.free_gb(torch.device("cuda")) == 36.0
