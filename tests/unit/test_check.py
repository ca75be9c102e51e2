import gzip

import nibabel as nib
import numpy as np
import pytest

import segpipe
from segpipe.io.formats import write_volume
from tests.phantoms import axis_grid, cube_case, write_case, write_small_dataset

GRID = axis_grid((16, 20, 24))


def broken(folder, case, how):
    """A sound case with one fault."""
    image, labels = cube_case(np.random.default_rng(len(how) + 100), GRID.shape, (1, 2))
    labels = labels.astype(np.float32) if how == "float" else labels
    if how == "nan":
        image[3, 4, 5] = np.nan
    if how == "blank":
        image[:] = 0
    if how == "float":
        labels[labels == 1] = 0.4
    if how == "value 7":
        labels[0, 0, :3] = 7
    if how == "empty":
        labels[:] = 0
    write_case(folder, case, image, labels, GRID)
    if how == "two faults":
        labels[0, 0, :3] = 7
        write_case(folder, case, image, labels, GRID)
        write_volume(folder / "labels" / f"{case}.nii.gz", labels, axis_grid(GRID.shape, origin=(0, 0, 0)))
    if how == "huge":
        write_volume(folder / "labels" / f"{case}.nii.gz", labels.astype(np.uint32) * 2**31, GRID)
    if how == "negative":
        write_volume(folder / "labels" / f"{case}.nii.gz", labels.astype(np.int16) - 1, GRID)
    if how == "flipped":
        path = folder / "images" / f"{case}.nii.gz"
        stored = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine @ np.diag([-1, 1, 1, 1])), path)
    if how == "smaller":
        write_volume(folder / "labels" / f"{case}.nii.gz", labels[:-1], axis_grid((15, 20, 24)))
    if how == "truncated":
        path = folder / "images" / f"{case}.nii.gz"
        path.write_bytes(path.read_bytes()[:-2000])
    if how == "two channels":
        nib.save(
            nib.Nifti1Image(np.ones((24, 20, 16, 2), dtype=np.float32), np.eye(4)), folder / "images" / f"{case}.nii.gz"
        )


FAULTS = {
    "nan": ("non-finite voxels", r"1 voxel\(s\).*\(0, 3, 4, 5\)"),
    "blank": ("blank image", "every voxel is 0"),
    "float": ("non-integer labels", "0.4"),
    "value 7": ("undeclared labels", r"7 \(3 voxels\); declared are \[0, 1, 2\]"),
    "empty": ("empty label", "background only"),
    "negative": ("negative labels", "-1"),
    "huge": ("too large labels", "2147483648"),
    "two faults": ("undeclared labels", "7"),
    "flipped": ("different grids", r"SAR.*SAL|SAL.*SAR"),
    "smaller": ("label file", r"covers 15x20x24 of the 16x20x24 voxels of image.*at voxel \(0, 0, 0\)"),
    "truncated": ("unreadable", "truncated"),
    "two channels": ("channels", "2 channel.*expected 1"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = write_small_dataset(tmp_path_factory.mktemp("broken") / "dataset", n_cases=2)
    for how in FAULTS:
        broken(folder, how.replace(" ", "_"), how)
    return segpipe.check(folder, work=folder.parent / "work", jobs=1)


@pytest.fixture(autouse=True)
def _in_place(monkeypatch, tmp_path):
    """Workspaces are made where the caller is."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("how", FAULTS)
def test_every_fault_is_named_with_its_case_and_reason(results, how):
    import re

    rule, message = FAULTS[how]
    found = {f.rule: f.message for f in results.findings if f.case == how.replace(" ", "_")}
    assert re.search(message, found[rule]), found
    assert len(found) == ("two faults" in how) + 1 or how == "flipped"


def test_every_broken_rule_of_a_case_is_reported(results):
    assert {f.rule for f in results.findings if f.case == "two_faults"} == {"different grids", "undeclared labels"}


def test_sound_cases_have_no_finding(results):
    assert {f.case for f in results.findings} == {how.replace(" ", "_") for how in FAULTS}


def test_only_an_empty_label_and_a_part_of_one_are_warnings(results):
    assert {f.case for f in results.findings if f.severity == "warning"} == {"empty", "smaller"}


def test_integers_stored_as_float_are_labels(tmp_path):
    image, labels = cube_case(np.random.default_rng(0), GRID.shape)
    write_case(tmp_path, "a", image, labels.astype(np.float64), GRID)
    assert not segpipe.check(tmp_path, work=tmp_path.parent / f"{tmp_path.name}_work", jobs=1).findings


def test_nothing_is_written_into_the_dataset(small_dataset):
    before = sorted((p, p.stat().st_mtime_ns) for p in small_dataset.rglob("*"))
    segpipe.check(small_dataset, jobs=1)
    assert sorted((p, p.stat().st_mtime_ns) for p in small_dataset.rglob("*")) == before


@pytest.mark.data
def test_channels_on_different_grids(data, tmp_path):
    session = data / "odd" / "channels_on_different_grids"
    images = sorted((session / "rawdata").rglob("*.nii.gz"))
    (label,) = (session / "derivatives").rglob("*msk.nii.gz")
    header = ",".join(["case", "image", *(f"image_{i}" for i in range(2, len(images) + 1)), "label"])
    (tmp_path / "cases.csv").write_text(f"{header}\nstroke,{','.join(map(str, images))},{label}\n", encoding="utf-8")
    (finding,) = segpipe.check(tmp_path / "cases.csv", jobs=1).findings
    assert finding.rule == "different grids"
    assert finding.message.count("shape") >= 2


def test_gzip_of_garbage(tmp_path):
    image, labels = cube_case(np.random.default_rng(0), GRID.shape)
    write_case(tmp_path, "a", image, labels, GRID)
    (tmp_path / "images" / "a.nii.gz").write_bytes(gzip.compress(b"garbage" * 1000))
    (finding,) = segpipe.check(tmp_path, work=tmp_path.parent / f"{tmp_path.name}_work", jobs=1).findings
    assert (finding.case, finding.rule) == ("a", "unreadable")
