import json

import numpy as np
import pytest

from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.models.nnunet.plans import plan_to_nnunet
from segpipe.planning import make_plan

CASES = [
    "abdomen_ct_16", "brain_mr_4ch", "cardiac_cine_aniso", "cardiac_mr", "em_stack", "hippocampus_mr", "liver_ct",
    "nuclei_2d_rgb", "prostate_mr_2ch", "retina_2d", "spleen_ct", "whole_body_ct_104",
]  # fmt: skip
PRESETS = ["default", "resenc_m", "resenc_l", "resenc_xl"]


@pytest.mark.golden
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", CASES)
def test_plan_equals_nnunets_own(golden, case, preset):
    recorded = json.loads((golden / "planner" / f"{case}.json").read_text(encoding="utf-8"))
    expected = recorded["plans"][preset]
    made = plan_to_nnunet(make_plan(read_fingerprint(recorded["fingerprint"]), preset))
    assert made["transpose_forward"] == expected["transpose_forward"]
    assert made["transpose_backward"] == expected["transpose_backward"]
    assert list(made["configurations"]) == list(expected["configurations"])
    for name, configuration in expected["configurations"].items():
        if "inherits_from" in configuration:
            assert made["configurations"][name] == configuration
        else:
            _compare(made["configurations"][name], configuration)


def _compare(made, expected):
    kwargs = made["architecture"]["arch_kwargs"]
    np.testing.assert_allclose(made["spacing"], expected["spacing"], rtol=1e-6)
    found = {
        "batch_size": made["batch_size"],
        "patch_size": made["patch_size"],
        "median_shape": made["median_image_size_in_voxels"],
        "normalization": made["normalization_schemes"],
        "use_mask_for_norm": made["use_mask_for_norm"],
        "batch_dice": made["batch_dice"],
        "n_stages": kwargs["n_stages"],
        "features_per_stage": kwargs["features_per_stage"],
        "kernel_sizes": kwargs["kernel_sizes"],
        "strides": kwargs["strides"],
        "blocks_encoder": kwargs.get("n_conv_per_stage", kwargs.get("n_blocks_per_stage")),
        "blocks_decoder": kwargs["n_conv_per_stage_decoder"],
        "architecture": made["architecture"]["network_class_name"].split(".")[-1],
    }
    assert found == {k: expected[k] for k in found}
