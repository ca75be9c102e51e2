"""Parity with nnU-Net on the phantoms of the repository, by the files of nnunet_phantoms. No shared files are needed."""

import json
from pathlib import Path

import numpy as np
import pytest

import segpipe
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.io.formats import read_volume
from segpipe.models.nnunet.plans import plan_to_nnunet
from segpipe.planning import make_plan

FOLDER = Path(__file__).parent / "nnunet_phantoms"
PHANTOMS = Path(__file__).parents[2] / "data" / "phantoms"
PLANNERS = {
    "default": "ExperimentPlanner",
    "resenc_m": "nnUNetPlannerResEncM",
    "resenc_l": "nnUNetPlannerResEncL",
    "resenc_xl": "nnUNetPlannerResEncXL",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Fingerprint:
    work = tmp_path_factory.mktemp("golden") / "work"
    segpipe.plan(PHANTOMS, work=work, recipe="default", jobs=1)
    return Fingerprint.read(work / "fingerprint.json")


def test_the_measurements_are_nnunets(measured):
    theirs = json.loads((FOLDER / "dataset_fingerprint.json").read_text(encoding="utf-8"))
    assert [list(c.shape_after_crop) for c in measured.cases] == theirs["shapes_after_crop"]
    np.testing.assert_allclose([c.spacing_mm for c in measured.cases], theirs["spacings"], rtol=1e-6)
    expected = theirs["foreground_intensity_properties_per_channel"]["0"]
    # nnU-Net draws voxels of each case, segpipe takes all of them: the extremes may be cut off, the mean hardly moves.
    assert measured.intensities[0].mean == pytest.approx(expected["mean"], rel=0.01)
    assert measured.intensities[0].std == pytest.approx(expected["std"], rel=0.01)


@pytest.mark.parametrize("recipe", PLANNERS)
def test_the_plan_is_nnunets(measured, recipe):
    theirs = json.loads((FOLDER / "plans" / f"{PLANNERS[recipe]}.json").read_text(encoding="utf-8"))
    made = plan_to_nnunet(make_plan(measured, recipe))
    assert made["plans_name"] == theirs["plans_name"]
    assert made["transpose_forward"] == theirs["transpose_forward"]
    assert made["original_median_shape_after_transp"] == theirs["original_median_shape_after_transp"]
    np.testing.assert_allclose(
        made["original_median_spacing_after_transp"], theirs["original_median_spacing_after_transp"], rtol=1e-6
    )
    assert list(made["configurations"]) == list(theirs["configurations"])
    for name, expected in theirs["configurations"].items():
        found = made["configurations"][name]
        # The folder of nnU-Net's prepared arrays, which some of its planners share: a name and no choice.
        del found["data_identifier"], expected["data_identifier"]
        np.testing.assert_allclose(found.pop("spacing"), expected.pop("spacing"), rtol=1e-6)
        assert found == expected


@pytest.mark.parametrize(("tta", "folder"), [(False, "predicted"), (True, "predicted_mirrored")])
def test_the_masks_are_nnunets(tmp_path, tta, folder):
    """At most 2e-4 of a case's voxels differ, that is 4 to 6: nnU-Net adds up in half precision, so ties fall either way."""
    rows = segpipe.predict(
        PHANTOMS / "images",
        tmp_path / "out",
        model=FOLDER / "model",
        device="cpu",
        tta=tta,
        engine="torch",
        precision="float32",
    )
    assert [row.status for row in rows] == ["done"] * 12
    for row in rows:
        ours = read_volume(row.output).array
        theirs = read_volume(FOLDER / folder / f"{row.case}.nii.gz").array
        assert set(np.unique(theirs)) >= {0, 1, 2}
        assert (ours != theirs).mean() <= 2e-4, row.case


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 1_000_000
