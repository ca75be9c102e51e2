"""Bytes are believed after their digest: a flipped bit anywhere is noticed, and so is another file under the same name."""

import re
import zipfile

import numpy as np
import pytest
import torch

import segpipe
from segpipe.core.artefact import sha256_on_record
from segpipe.core.workspace import PreparedFiles, SoftLabelFiles, Workspace
from segpipe.distillation.soft_labels import SoftLabelRecord, Source, _is_done
from segpipe.errors import ArtefactError, TrainingError
from segpipe.io.arrays import open_array, read_array, write_array
from segpipe.models.torch_file import load_tested
from segpipe.preprocessing.previous import PreviousRecord, _is_prepared
from segpipe.preprocessing.schema import PreparedRecord
from segpipe.training.storage import open_cases
from tests.phantoms import write_small_dataset


def flip(path, at, bit=6):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999])
def test_a_flipped_bit_of_an_array_is_noticed(tmp_path, share):
    file = tmp_path / "image.b2nd"
    sha256 = write_array(file, np.arange(5000, dtype=np.float32).reshape(1, 10, 25, 20))
    assert read_array(file, sha256).shape == (1, 10, 25, 20)
    flip(file, int(share * file.stat().st_size))
    for read in (open_array, read_array):
        with pytest.raises(ArtefactError, match=r"image\.b2nd: the file is damaged, or another one"):
            read(file, sha256)


def test_an_array_under_anothers_name_is_noticed(tmp_path):
    write_array(tmp_path / "a.b2nd", np.zeros((2, 3)))
    sha256 = write_array(tmp_path / "b.b2nd", np.ones((2, 3)))
    (tmp_path / "a.b2nd").replace(tmp_path / "b.b2nd")
    with pytest.raises(ArtefactError, match=r"b\.b2nd"):
        read_array(tmp_path / "b.b2nd", sha256)


def members(path):
    """First and last byte of the content of each member of a zip."""
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for about in archive.infolist():
            at = whole.index(about.filename.encode(), about.header_offset) + len(about.filename)
            start = at + int.from_bytes(whole[about.header_offset + 28 : about.header_offset + 30], "little")
            if about.file_size:
                yield about.filename, start, start + about.file_size - 1


def saved(path):
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(20, 30), "bias": torch.randn(20), "name": "net"}, path)
    return path


def test_a_flipped_bit_in_any_member_of_what_torch_saved_is_noticed(tmp_path):
    expected = load_tested(saved(tmp_path / "w.pt"))
    assert expected["weight"].shape == (20, 30)
    places = [
        (name, at) for name, first, last in members(tmp_path / "w.pt") for at in {first, (first + last) // 2, last}
    ]
    assert len(places) > 10
    for name, at in places:
        flip(saved(tmp_path / "w.pt"), at)
        with pytest.raises(zipfile.BadZipFile, match=re.escape(name)):
            load_tested(tmp_path / "w.pt")


def test_a_flipped_bit_elsewhere_in_what_torch_saved_is_noticed_or_without_effect(tmp_path):
    """Between the members lies padding; the list of members at the end has no checksum, and what it says is compared with each member."""
    expected = load_tested(saved(tmp_path / "w.pt"))
    size = (tmp_path / "w.pt").stat().st_size
    refused = 0
    for at in range(size - 1200, size, 7):
        flip(saved(tmp_path / "w.pt"), at)
        try:
            found = load_tested(tmp_path / "w.pt")
        except Exception:  # noqa: BLE001 - torch raises many kinds
            refused += 1
        else:
            assert all(torch.equal(found[key], expected[key]) for key in ("weight", "bias"))
    assert refused > 20


def test_a_file_of_torch_that_is_cut_short_is_refused(tmp_path):
    content = saved(tmp_path / "w.pt").read_bytes()
    for length in (len(content) - 1, len(content) // 2, 10):
        (tmp_path / "w.pt").write_bytes(content[:length])
        with pytest.raises(Exception, match=r"."):
            load_tested(tmp_path / "w.pt")


@pytest.fixture
def prepared(tmp_path):
    folder = write_small_dataset(tmp_path / "d", n_cases=3)
    segpipe.preprocess(folder, work=tmp_path / "w", configuration="3d_fullres", jobs=1)
    return folder, Workspace(tmp_path / "w")


@pytest.mark.parametrize("name", ["image.b2nd", "segmentation.b2nd", "foreground.b2nd", "record.json"])
def test_a_damaged_prepared_array_is_made_anew_with_a_word(prepared, caplog, name):
    folder, workspace = prepared
    file = workspace.preprocessed("3d_fullres") / "case_1" / name
    sound = file.read_bytes()
    flip(file, len(sound) // 2)
    segpipe.preprocess(folder, work=workspace.root, configuration="3d_fullres", jobs=1)
    assert file.read_bytes() == sound
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["case case_1 is prepared again"]


@pytest.mark.parametrize("name", ["image", "segmentation", "foreground"])
def test_training_opens_no_damaged_array(prepared, name):
    _, workspace = prepared
    folder = workspace.preprocessed("3d_fullres")
    assert len(open_cases(folder, ("case_0", "case_1"))) == 2
    flip(folder / "case_1" / f"{name}.b2nd", -1)
    with pytest.raises(TrainingError, match=rf"case case_1: .*{name}\.b2nd: the file is damaged.*segpipe preprocess"):
        open_cases(folder, ("case_0", "case_1"))


def test_arrays_of_older_versions_have_no_digest_and_are_read(prepared):
    _, workspace = prepared
    files = PreparedFiles(workspace.preprocessed("3d_fullres") / "case_1")
    record = PreparedRecord.read(files.record)
    assert set(record.arrays) == {"image.b2nd", "segmentation.b2nd", "foreground.b2nd"}
    old = record.model_copy(update={"arrays": {}})
    assert '"arrays"' not in old.to_json()
    old.write(files.record)
    assert sha256_on_record(files.record) == {}
    assert open_cases(workspace.preprocessed("3d_fullres"), ("case_1",))[0].id == "case_1"


@pytest.mark.parametrize("name", ["image.b2nd", "labels.b2nd"])
def test_a_damaged_decoded_array_is_read_again_from_the_cases_own_files(prepared, caplog, name):
    folder, workspace = prepared
    expected = {p: p.read_bytes() for p in workspace.preprocessed("3d_fullres").rglob("*.b2nd")}
    file = workspace.case_folder / "case_2" / name
    sound = file.read_bytes()
    flip(file, len(sound) // 2)
    for path in expected:
        path.unlink()
    segpipe.preprocess(folder, work=workspace.root, configuration="3d_fullres", jobs=1)
    assert {p: p.read_bytes() for p in expected} == expected
    assert file.read_bytes() == sound
    assert "case case_2 is read again from its own files" in caplog.text


def test_damaged_quantiles_are_measured_again(prepared, caplog):
    folder, workspace = prepared
    fingerprint = workspace.fingerprint.read_bytes()
    flip(workspace.case("case_0").quantiles, 40)
    workspace.fingerprint.unlink()
    segpipe.plan(folder, work=workspace.root, jobs=1)
    assert workspace.fingerprint.read_bytes() == fingerprint
    assert "case case_0 is measured again" in caplog.text


@pytest.mark.parametrize("damaged", [None, "outputs.b2nd", "shares.b2nd", "record.json"])
def test_damaged_soft_labels_are_not_taken_for_done(tmp_path, damaged):
    prepared, kept = PreparedFiles(tmp_path / "prepared" / "a"), SoftLabelFiles(tmp_path / "soft" / "a")
    PreparedRecord(case="a", source_digest="x", shape=(2, 3, 4), index_voxels=(24,)).write(prepared.record)
    kept.root.mkdir(parents=True)
    arrays = {file.name: write_array(file, np.zeros((1, 2, 3, 4))) for file in (kept.outputs, kept.shares)}
    SoftLabelRecord(case="a", source_digest="x", arrays=arrays).write(kept.record)
    if damaged:
        flip(kept.root / damaged, 30)
    assert _is_done(Source("a", (), prepared), tmp_path / "soft") == (damaged is None)


@pytest.mark.parametrize("damaged", [None, "previous.b2nd", "record.json"])
def test_a_damaged_segmentation_of_the_stage_before_is_prepared_again(tmp_path, damaged):
    files = PreparedFiles(tmp_path / "a")
    files.root.mkdir()
    arrays = {files.previous.name: write_array(files.previous, np.zeros((2, 3, 4), dtype=np.int16))}
    PreviousRecord(source_digest="x", arrays=arrays).write(files.record)
    if damaged:
        flip(files.root / damaged, 30)
    assert _is_prepared(files, "x") == (damaged is None)
