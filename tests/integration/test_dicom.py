import numpy as np
import pytest
import SimpleITK as sitk

import segpipe
from segpipe.io.formats import write_labels_like
from tests.dicoms import voxels, write_enhanced


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "hippocampus_crop_study1", "hippocampus_crop_study2", "hippocampus_crop_study3", "ct_torso_20_slices",
        "ct_3_slices_with_seg/segmentations/ct-3slice", "ct_with_rtstruct/oriented_data",
    ],
)  # fmt: skip
def test_real_series_have_simpleitks_voxels(data, tmp_path, name):
    (done,) = segpipe.convert(data / "dicom" / name, tmp_path)
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(data / "dicom" / name))
    theirs = sitk.ReadImage(files)
    ours = sitk.ReadImage(str(done.output))
    np.testing.assert_allclose(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs), rtol=1e-6)
    for index in ((0, 0, 0), tuple(n - 1 for n in theirs.GetSize())):
        np.testing.assert_allclose(
            ours.TransformIndexToPhysicalPoint(index), theirs.TransformIndexToPhysicalPoint(index), atol=1e-3
        )


def test_such_files_are_images_of_a_dataset(tmp_path):
    for case in ("a", "b"):
        path = write_enhanced(tmp_path / "ds" / "images" / f"{case}.dcm")
        write_labels_like(path, tmp_path / "ds" / "labels" / f"{case}.nii.gz", (voxels() > 1000).astype(np.uint8))
    checked = segpipe.check(tmp_path / "ds", work=tmp_path / "work")
    assert [f.message for f in checked.findings if f.severity == "error"] == []
    assert [c.id for c in checked.dataset.cases] == ["a", "b"]
