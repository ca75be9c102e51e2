import pytest
import torch

from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.networks.build import build_network
from segpipe.planning import make_plan
from segpipe.planning.memory import activation_elements
from segpipe.planning.recipe import load_recipe, recipe_names
from segpipe.workflows.planning import probe_for
from tests.helpers.planning import RECIPES, mapping


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_plans(name):
    assert name in recipe_names()
    recipe = load_recipe(name)
    assert recipe.name == name
    plan = make_plan(read_fingerprint(mapping()), recipe, probe=probe_for(recipe.network))
    assert list(plan.configurations) == ["2d", "3d_fullres"]


def _counted_outputs(network, x):
    """What nnU-Net's estimate counts: elements of every convolution's output, without deep supervision."""
    total = 0

    def count(_module, _inputs, output):
        nonlocal total
        total += output[0].numel()

    kinds = (torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    network(x)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("recipe", ["default", "resenc_m"])
@pytest.mark.parametrize(("spacing", "shape"), [((1.0, 1.0, 1.0), [24, 32, 40]), ((4.0, 1.0, 1.0), [8, 48, 40])])
def test_closed_form_memory_equals_the_network_that_is_built(recipe, spacing, shape):
    plan = make_plan(read_fingerprint(mapping(spacings=[list(spacing)] * 3, shapes_after_crop=[shape] * 3)), recipe)
    for configuration in plan.configurations.values():
        patch = configuration.patch_size
        network = build_network(configuration.network, 1, 3)
        with torch.inference_mode():
            counted = _counted_outputs(network, torch.zeros(1, 1, *patch))
        assert activation_elements(configuration.network, patch, 3) == counted
