"""A case is read once: what is not read again, and what is."""

import os
import shutil

import numpy as np
import pytest

import segpipe
from segpipe.core.workspace import Workspace
from segpipe.dataset import store
from segpipe.dataset.schema import FileStamp
from segpipe.errors import ArtefactError
from segpipe.io.formats import read_volume, write_volume
from tests.dicoms import write_series
from tests.phantoms import axis_grid, cube_case, write_small_dataset


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A small dataset, and the cases that were decoded."""
    read = []

    def counted(case, expected):
        read.append(case.id)
        return original(case, expected)

    original = store.check_case
    monkeypatch.setattr(store, "check_case", counted)
    return write_small_dataset(tmp_path / "d", n_cases=3), tmp_path / "w", read


def everything(folder, work):
    segpipe.check(folder, work=work, jobs=1)
    segpipe.plan(folder, work=work, jobs=1)
    segpipe.preprocess(folder, work=work, jobs=1)
    segpipe.preprocess(folder, work=work, configuration="2d", jobs=1)


def test_check_plan_and_every_configuration_share_one_read(watched):
    folder, work, read = watched
    everything(folder, work)
    assert sorted(read) == ["case_0", "case_1", "case_2"]


def test_a_touched_file_is_not_decoded_again_and_a_changed_one_is_alone(watched):
    folder, work, read = watched
    everything(folder, work)
    read.clear()
    for path in (folder / "images").iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    everything(folder, work)
    assert read == []
    plan = Workspace(work).plan.read_bytes()
    assert segpipe.preprocess(folder, work=work, jobs=1).cases == ("case_0", "case_1", "case_2")
    assert Workspace(work).plan.read_bytes() == plan
    image, _ = cube_case(np.random.default_rng(9), values=(1, 2))
    write_volume(folder / "images" / "case_0.nii.gz", image, axis_grid(image.shape))
    with pytest.raises(ArtefactError, match="made from another fingerprint"):
        segpipe.preprocess(folder, work=work, jobs=1)
    everything(folder, work)
    assert read == ["case_0"]
    arrays = store.read_array(Workspace(work).case("case_0").image)
    np.testing.assert_array_equal(arrays, read_volume(folder / "images" / "case_0.nii.gz").array)


def test_a_deleted_or_damaged_store_is_read_again(watched):
    folder, work, read = watched
    everything(folder, work)
    read.clear()
    shutil.rmtree(Workspace(work).case("case_0").root)
    Workspace(work).case("case_1").record.write_text("{", encoding="utf-8")
    Workspace(work).case("case_2").image.unlink()
    Workspace(work).fingerprint.unlink()
    everything(folder, work)
    assert sorted(read) == ["case_0", "case_1", "case_2"]


def test_another_declaration_reads_again(watched):
    folder, work, read = watched
    everything(folder, work)
    read.clear()
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(text.replace('"cube_2": 2', '"ignore": 2'), encoding="utf-8")
    segpipe.plan(folder, work=work, jobs=1)
    assert len(read) == 3


def test_a_file_that_could_not_be_read_is_tried_again(watched):
    folder, work, read = watched
    whole = (folder / "images" / "case_0.nii.gz").read_bytes()
    (folder / "images" / "case_0.nii.gz").write_bytes(whole[:-500])
    findings = segpipe.check(folder, work=work, jobs=1).findings
    assert [f.rule for f in findings] == ["unreadable"]
    segpipe.check(folder, work=work, jobs=1)
    assert read.count("case_0") == 2
    (folder / "images" / "case_0.nii.gz").write_bytes(whole)
    assert segpipe.check(folder, work=work, jobs=1).findings == ()


def test_labels_where_there_is_no_image_are_told(tmp_path):
    image, labels = cube_case(np.random.default_rng(0))
    image[:4] = 0
    labels[0, :2, :2] = 1
    grid = axis_grid(image.shape)
    write_volume(tmp_path / "d/images/a.nii.gz", image, grid)
    write_volume(tmp_path / "d/labels/a.nii.gz", labels, grid)
    (finding,) = segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1).findings
    assert (finding.rule, finding.severity) == ("labels outside", "warning")
    assert finding.message.startswith("4 labelled voxel(s)")


def test_arrays_that_were_cut_are_made_again(watched):
    folder, work, read = watched
    segpipe.plan(folder, work=work, jobs=1)
    read.clear()
    stored = Workspace(work).case("case_1").image
    stored.write_bytes(stored.read_bytes()[:-2000])
    assert segpipe.preprocess(folder, work=work, jobs=1).failed == {}
    assert read == ["case_1"]


def test_a_slice_that_was_put_back_with_its_old_time_is_noticed(tmp_path):
    folder = write_series(tmp_path / "ct")
    before = FileStamp.of(folder)
    path = folder / "3.dcm"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)
    assert FileStamp.of(folder) != before


def read_by_an_earlier_version(work, case, image=None):
    """Make a stored case one that an earlier version read, with other voxels where they are given."""
    files = Workspace(work).case(case)
    record = store.StoredCase.read(files.record)
    record.model_copy(update={"read_as_of": ""}).write(files.record)
    if image is not None:
        store.write_array(files.image, image)
    (Workspace(work).case_folder / "read_as_of").unlink(missing_ok=True)
    return record.content_digest()


def test_cases_that_an_earlier_version_read_are_read_again_and_stay_valid(watched):
    folder, work, read = watched
    everything(folder, work)
    plan = Workspace(work).plan.read_bytes()
    before = [read_by_an_earlier_version(work, f"case_{n}") for n in range(3)]
    read.clear()
    everything(folder, work)
    assert sorted(read) == ["case_0", "case_1", "case_2"]
    assert [
        store.StoredCase.read(Workspace(work).case(f"case_{n}").record).content_digest() for n in range(3)
    ] == before
    assert Workspace(work).plan.read_bytes() == plan
    read.clear()
    everything(folder, work)
    assert read == []


def test_voxels_that_an_earlier_version_misread_make_stale_what_was_made_of_them(watched):
    folder, work, _ = watched
    everything(folder, work)
    files = Workspace(work).case("case_1")
    right = store.read_array(files.image)
    before = read_by_an_earlier_version(work, "case_1", image=right + 1)
    with pytest.raises(ArtefactError, match="made from another fingerprint"):
        segpipe.preprocess(folder, work=work, jobs=1)
    np.testing.assert_array_equal(store.read_array(files.image), right)
    record = store.StoredCase.read(files.record)
    assert record.content_digest() != before
    everything(folder, work)
    assert store.StoredCase.read(files.record).content_digest() == record.content_digest()
