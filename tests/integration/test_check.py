import shutil

import nibabel as nib
import numpy as np
import pytest

import segpipe
from segpipe.io.formats import read_volume, write_volume


@pytest.mark.data
def test_copies_of_real_cases_that_were_broken(data, tmp_path):
    source, target = data / "hippocampus", tmp_path / "hippocampus"
    names = [f"hippocampus_{n}" for n in ("006", "007", "014", "017", "024", "025", "033")]
    for kind, ours in (("imagesTr", "images"), ("labelsTr", "labels")):
        (target / ours).mkdir(parents=True)
        for name in names:
            shutil.copy(source / kind / f"{name}.nii.gz", target / ours)
    (target / "dataset.json").write_text(
        '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2}}', encoding="utf-8"
    )
    cut, flipped, nan, floats, seven, lost, _ = names

    path = target / "images" / f"{cut}.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    image = nib.load(target / "images" / f"{flipped}.nii.gz")
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([-1, 1, 1, 1])),
        target / "images" / f"{flipped}.nii.gz",
    )
    volume = read_volume(target / "images" / f"{nan}.nii.gz")
    voxels = volume.array[0].astype(np.float32)
    voxels[10, 10, 10] = np.inf
    write_volume(target / "images" / f"{nan}.nii.gz", voxels, volume.grid)
    for name, change in ((floats, lambda a: a * 0.75), (seven, lambda a: np.where(a == 2, 7, a))):
        volume = read_volume(target / "labels" / f"{name}.nii.gz")
        write_volume(target / "labels" / f"{name}.nii.gz", change(volume.array[0]), volume.grid)
    (target / "labels" / f"{lost}.nii.gz").unlink()

    found = segpipe.check(target, work=tmp_path / "work", jobs=1)
    assert {f.case: f.rule for f in found.findings} == {
        cut: "unreadable", flipped: "different grids", nan: "non-finite voxels", floats: "non-integer labels",
        seven: "undeclared labels", lost: "missing pair",
    }  # fmt: skip


@pytest.mark.data
def test_odd_files_each_have_a_finding(data, tmp_path):
    """Loose files as a manifest; the label of each is its own image, so the image rules speak."""
    odd = data / "odd"
    names = ["empty_file.nii.gz", "header_without_data.nii", "not_nifti.nii", "five_dimensional.nii", "rgb24.nii.gz",
             "four_dimensional.nii.gz", "nan_voxels_big_endian.nii", "non_finite_voxels.nii.gz"]  # fmt: skip
    rows = [f"{n.split('.')[0]},{odd / n},{odd / n}" for n in names]
    rows.append(
        f"float_label,{odd / 'interpolated_float_label_image.nii.gz'},{odd / 'interpolated_float_label.nii.gz'}"
    )
    (tmp_path / "cases.csv").write_text("case,image,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "MR"}}', encoding="utf-8")
    found = segpipe.check(tmp_path / "cases.csv", work=tmp_path / "work", jobs=1)
    rules = {}
    for finding in found.findings:
        rules.setdefault(finding.case, set()).add(finding.rule)
    for name in ("empty_file", "header_without_data", "not_nifti", "rgb24"):
        assert rules[name] == {"unreadable"}
    # A vector image as ITK writes it: three channels.
    assert "channels" in rules["five_dimensional"]
    assert "channels" in rules["four_dimensional"]
    assert "non-finite voxels" in rules["nan_voxels_big_endian"]
    assert "non-finite voxels" in rules["non_finite_voxels"]
    assert "non-integer labels" in rules["float_label"]
