"""Field of view before resolution: what the recipe for CPUs plans where a patch would show a small part of the image."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.networks.spec import NetworkChoice
from segpipe.planning import make_plan
from segpipe.planning.make import MOST_COARSENING
from segpipe.planning.recipe import load_recipe
from segpipe.planning.variant import with_network
from segpipe.workflows.crossval.asked import candidates_asked
from segpipe.workflows.options import CrossvalOptions
from tests.helpers.planning import mapping


def measured(spacing, shape, n=10):
    return read_fingerprint(mapping(spacings=[spacing] * n, shapes_after_crop=[shape] * n))


HEART = measured([5.0, 1.64, 1.64], [18, 213, 186])
"""Thick slices, in numbers of a cine MR: the patch sees a fifth at full resolution."""


def view(configuration):
    seen = np.minimum(configuration.patch_size, configuration.median_shape)
    return np.prod(seen) / np.prod(configuration.median_shape)


def test_spacing_is_given_up_for_the_view_of_the_image():
    plan = make_plan(HEART, "cpu")
    wide, full = plan.configurations["3d_lowres"], plan.configurations["3d_fullres"]
    assert plan.default_configuration() == "3d_lowres"
    assert view(full) < 0.25
    assert view(wide) > 0.85
    # The slices are thick already.
    assert wide.spacing_mm[0] == 5.0
    assert 3 < wide.spacing_mm[1] <= 2 * 1.64
    assert full.spacing_mm == (5.0, 1.64, 1.64)
    assert "here 94%" in next(d.because for d in plan.decisions if d.rule == "low-resolution stage")


def test_thick_slices_are_not_made_thicker_where_the_other_axes_may_go_no_further():
    wide = make_plan(measured([10.0, 0.7, 0.7], [30, 700, 700]), "cpu").configurations["3d_lowres"]
    assert wide.spacing_mm == (10.0, 1.4, 1.4)
    assert view(wide) < 0.5


def test_isotropic_voxels_stay_isotropic():
    wide = make_plan(measured([0.8, 0.8, 0.8], [100, 116, 92]), "cpu").configurations["3d_lowres"]
    assert len(set(wide.spacing_mm)) == 1
    assert view(wide) > 0.85


@settings(deadline=None, max_examples=25)
@example((3.0, 4.0, 5.0), (12, 12, 249))
@example((3.0, 3.0, 1.0), (81, 161, 12))
@given(st.tuples(*[st.floats(0.4, 6)] * 3), st.tuples(*[st.integers(12, 400)] * 3))
def test_no_axis_is_coarsened_more_than_the_limit(spacing, shape):
    plan = make_plan(measured(list(spacing), list(shape)), "cpu")
    wide = plan.configurations.get("3d_lowres")
    if wide is None:
        return
    full = plan.configurations["3d_fullres"]
    factors = np.divide(wide.spacing_mm, full.spacing_mm)
    assert (factors >= 1 - 1e-9).all()
    assert (factors <= MOST_COARSENING + 1e-9).all()
    assert view(wide) > view(full)


def test_larger_voxels_that_show_no_more_are_not_planned():
    plan = make_plan(measured([3.0, 4.0, 5.0], [12, 12, 249]), "cpu")
    assert "3d_lowres" not in plan.configurations
    (why,) = [d.because for d in plan.decisions if d.rule == "low-resolution stage"]
    assert why == "the patch sees 90% of the median image, and no more of it with larger voxels"


def test_a_patch_that_sees_enough_stays_at_full_resolution():
    plan = make_plan(measured([1.0, 1.0, 1.0], [36, 50, 35]), "cpu")
    assert list(plan.configurations) == ["2d", "3d_fullres"]
    assert plan.default_configuration() == "3d_fullres"


def test_a_spacing_that_is_asked_for_is_kept():
    plan = make_plan(HEART, "cpu", spacing_mm=(5.0, 1.64, 1.64))
    assert plan.default_configuration() == "3d_fullres"
    assert "3d_lowres" not in plan.configurations


@pytest.mark.parametrize("recipe", ["default", "resenc_l", "u2net"])
def test_other_recipes_keep_their_rule(recipe):
    assert load_recipe(recipe).planner.least_view is None
    assert "least_view" not in load_recipe(recipe).planner.model_dump_json()


def test_another_network_of_the_plan_has_the_wide_view_too():
    varied = with_network(make_plan(HEART, "cpu"), HEART, NetworkChoice(name="resenc_unet"), None)
    assert varied.default_configuration() == "3d_lowres"
    # The share of the dataset in a batch counts voxels at full resolution there, at the coarser one here.
    assert varied.configurations["3d_fullres"].median_shape == (18.0, 213.0, 186.0)


def test_a_cross_validation_compares_the_wide_view_with_full_resolution():
    def compared(recipe):
        listed, _ = candidates_asked(CrossvalOptions(dataset="d"), HEART, load_recipe(recipe))
        return [candidate.configuration for candidate in listed]

    assert compared("cpu") == ["2d", "3d_lowres", "3d_fullres"]
    assert compared("default") == ["2d", "3d_fullres"]
