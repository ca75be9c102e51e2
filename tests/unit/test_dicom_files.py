"""Which files are DICOM, which of them are images, and which belong to one series."""

import gzip
import io
import time
import warnings
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage, generate_uid

import segpipe
from segpipe.dataset import convert as dataset_convert
from segpipe.dataset.convert import convert
from segpipe.errors import DatasetError, IrregularSeriesError, SegpipeError
from segpipe.io import formats
from segpipe.io.dicom_files import begins_with_elements, looks_like_dicom
from segpipe.io.dicom_series import find_series
from segpipe.io.formats import header_notes, read_header, read_volume
from tests.dicoms import rewrite, voxels, without_preamble, write_enhanced, write_series


@pytest.mark.parametrize("every", [1, 2])
def test_files_without_preamble_and_ending_are_found(tmp_path, every):
    write_series(tmp_path / "ct")
    for number, path in enumerate(sorted((tmp_path / "ct").iterdir())):
        if number % every == 0:
            without_preamble(path, path.with_name(f"IM{number}"))
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], voxels().astype(int) - 1024)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("first", ["SOPClassUID", "SpecificCharacterSet", "ImageType", "InstanceCreationDate"])
def test_elements_at_the_beginning_are_recognised(tmp_path, implicit, little, first):
    if implicit and not little:
        return
    image = pydicom.Dataset()
    image.SOPClassUID, image.Modality, image.PatientID = "1.2.840.10008.5.1.4.1.1.2", "CT", "P1"
    setattr(
        image,
        first,
        {"SOPClassUID": image.SOPClassUID, "ImageType": ["A", "B"], "InstanceCreationDate": "20200101"}.get(
            first, "ISO_IR 100"
        ),
    )
    written = io.BytesIO()
    pydicom.dcmwrite(written, image, implicit_vr=implicit, little_endian=little)
    assert begins_with_elements(written.getvalue()[:132])


def other_files():
    rng = np.random.default_rng(0)
    picture = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(picture, "PNG")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", "b")
    table = io.BytesIO()
    np.save(table, np.full(99, 8, np.uint16))
    return {
        "nifti": nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)).to_bytes(),
        "big endian nifti": nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4)).as_byteswapped("big").to_bytes()
        if hasattr(nib.Nifti1Image, "as_byteswapped")
        else b"\x00\x00\x01\x5c" + bytes(400),
        "gzip": gzip.compress(b"text"),
        "png": picture.getvalue(),
        "zip": packed.getvalue(),
        "npy": table.getvalue(),
        "text": b"Subject,Age\n1,2\n" * 20,
        "empty": b"",
        "short": b"\x08\x00",
        "zeros": bytes(500),
        "eights": np.full(200, 8, np.uint16).tobytes(),
        "labels": np.tile(np.array([8, 8, 8, 0, 0, 0], np.uint16), 40).tobytes(),
        "raw": b"\x08\x00\x05\x00" + rng.integers(0, 256, 400).astype(np.uint8).tobytes(),
        "counter": np.arange(8, 200, dtype=np.uint16).tobytes(),
        "words": np.arange(2, 200, dtype=np.uint32).tobytes(),
    }


@pytest.mark.parametrize("name", other_files())
def test_other_files_are_no_dicom(tmp_path, name):
    (tmp_path / "file").write_bytes(other_files()[name])
    assert not looks_like_dicom(tmp_path / "file")


def test_random_numbers_are_no_dicom():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        head = b"\x08\x00" + rng.integers(0, 24, 130).astype(np.uint8).tobytes()
        small = np.concatenate([[8], rng.integers(0, 12, 65)]).astype(np.uint16).tobytes()
        assert not begins_with_elements(head)
        assert not begins_with_elements(small)


def private_object(path, uid):
    """As Philips exports it among the images: of their series, with a matrix size, without pixels."""
    image = pydicom.dcmread(next(path.glob("*.dcm")))
    del image.PixelData
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = uid
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["private"])
    image.ImagePositionPatient = None
    image.save_as(path / "XX_0001")


@pytest.mark.parametrize(
    "uid", ["1.3.46.670589.11.0.0.12.2", "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.11.1"]
)
def test_objects_without_pixels_have_no_vote(tmp_path, uid):
    private_object(write_series(tmp_path / "mr"), uid)
    np.testing.assert_array_equal(read_volume(tmp_path / "mr").array[0], voxels().astype(int) - 1024)
    (note,) = header_notes(tmp_path / "mr")
    assert "1 object(s) of the series are no images and are passed over (XX_0001" in note.message
    (given,) = (find_series(tmp_path / "mr").given,)
    assert (given.n_given, [p.what for p in given.passed_over]) == (7, ["XX_0001"])


@pytest.mark.data
def test_a_real_private_object_has_no_vote(data):
    grid = read_header(data / "odd2" / "philips_with_private_object").grid
    assert grid.shape == (12, 112, 112)
    assert grid.spacing_mm == pytest.approx((2, 2, 2), abs=1e-3)


def test_an_image_that_lost_its_pixels_is_still_missed(tmp_path):
    write_series(tmp_path / "ct")
    rewrite(tmp_path / "ct", lambda n, s: s.__delattr__("PixelData") if n == 5 else None)
    with pytest.raises(IrregularSeriesError, match=r"ends before its pixels.*may be a slice of this series"):
        read_header(tmp_path / "ct")


def test_a_link_that_leads_nowhere_may_be_a_slice(tmp_path):
    write_series(tmp_path / "ct")
    path = tmp_path / "ct" / "5.dcm"
    path.unlink()
    path.symlink_to(tmp_path / "moved" / "5.dcm")
    with pytest.raises(
        IrregularSeriesError, match=r"5\.dcm: is a link to .*5\.dcm, which is not there.*may be a slice"
    ):
        read_header(tmp_path / "ct")


def test_one_word_as_image_type_is_one_word(tmp_path):
    write_series(tmp_path / "ct", change=lambda n, s: setattr(s, "ImageType", "ORIGINAL" if n else "IMAGE"))
    assert read_header(tmp_path / "ct").grid.shape == (6, 8, 10)


def test_a_segmentation_given_as_image_is_named(tmp_path):
    write_series(tmp_path / "seg", voxels(1), Modality="", SOPClassUID=SegmentationStorage)
    rewrite(tmp_path / "seg", lambda _, s: setattr(s.file_meta, "MediaStorageSOPClassUID", SegmentationStorage))
    with pytest.raises(
        IrregularSeriesError, match=r"0\.dcm is a DICOM segmentation \(SEG\), not an image; its masks are not read"
    ):
        read_header(tmp_path / "seg")
    with pytest.raises(DatasetError, match=r"1 file\(s\) of a DICOM segmentation \(SEG\); its masks"):
        segpipe.convert(tmp_path / "seg", tmp_path / "out")


def two_identities(name, first, second, when=lambda n: n < 3):
    return lambda n, s: setattr(s, name, first if when(n) else second)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("PatientID", "P1", "P2"), ("PatientID", "", "P2"), ("StudyInstanceUID", "1.2.3", "1.2.4"),
        ("FrameOfReferenceUID", "1.2.3", "1.2.4"), ("SeriesNumber", 3, 4), ("Modality", "CT", "PT"),
    ],
)  # fmt: skip
def test_one_series_uid_of_two_series_is_two_series(tmp_path, name, first, second):
    write_series(tmp_path / "ct", change=two_identities(name, first, second))
    with pytest.raises(IrregularSeriesError, match=rf"2 image series.*differ in {name}.*expected one a folder"):
        read_header(tmp_path / "ct")
    done = segpipe.convert(tmp_path / "ct", tmp_path / "out")
    assert [c.shape for c in done] == [(3, 8, 10), (3, 8, 10)]
    assert all(f"differ in {name}" in " ".join(c.notes) for c in done)
    assert len({c.output for c in done}) == 2


@pytest.mark.parametrize("name", ["PatientID", "FrameOfReferenceUID"])
def test_an_identity_of_its_own_in_each_file_is_refused(tmp_path, name):
    write_series(tmp_path / "ct", change=lambda n, s: setattr(s, name, f"1.2.{n}"))
    with pytest.raises(IrregularSeriesError, match=rf"stands in 6 images that differ in {name} .*identities were lost"):
        read_header(tmp_path / "ct")
    (done,) = segpipe.convert(tmp_path / "ct", tmp_path / "out")
    assert name in done.reason


def test_a_study_uid_of_its_own_in_each_file_is_a_warning(tmp_path):
    """Some programs make up a study for each file; positions and patient say that it is one series."""
    write_series(tmp_path / "ct", change=lambda n, s: setattr(s, "StudyInstanceUID", f"1.2.{n}"))
    (note,) = header_notes(tmp_path / "ct")
    assert (note.severity, "differ in StudyInstanceUID" in note.message) == ("warning", True)


def test_a_screenshot_of_the_same_series_costs_itself_alone(tmp_path):
    write_series(tmp_path / "ct")
    image = pydicom.dcmread(tmp_path / "ct" / "0.dcm")
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
    image.PhotometricInterpretation = "PALETTE COLOR"
    image.save_as(tmp_path / "ct" / "shot.dcm")
    done = segpipe.convert(tmp_path / "ct", tmp_path / "out")
    assert sorted(c.shape is None for c in done) == [False, True]
    assert "PALETTE COLOR" in next(c.reason for c in done if c.reason)


def test_one_bad_series_never_costs_the_others(tmp_path, monkeypatch):
    write_series(tmp_path / "in" / "good")
    write_series(tmp_path / "in" / "palette", PhotometricInterpretation="PALETTE COLOR")
    write_series(tmp_path / "in" / "short", change=lambda n, s: setattr(s, "PixelData", bytes(6)))
    write_series(tmp_path / "in" / "number", change=lambda n, s: s.add_new(0x00200013, "IS", f"{n + 1}"))
    done = {c.series: c.reason for c in segpipe.convert(tmp_path / "in", tmp_path / "out")}
    assert done["good"] is None
    assert done["number"] is None
    assert "PALETTE COLOR" in done["palette"]
    assert "PixelData holds 6 bytes" in done["short"]

    def fails(stack):
        raise RuntimeError("no stated error")

    monkeypatch.setattr("segpipe.dataset.convert.read_voxels", fails)
    done = {c.series: c.reason for c in segpipe.convert(tmp_path / "in", tmp_path / "again")}
    assert "RuntimeError: no stated error" in done["good"]
    assert "PALETTE COLOR" in done["palette"]


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    write_series(tmp_path / "ct")
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(SegpipeError, match="out: cannot be written: Not a directory"):
        segpipe.convert(tmp_path / "ct", tmp_path / "out")


def test_a_damaged_file_costs_its_own_series_alone(tmp_path):
    """Its series is known, though its pixels are gone: the other series of the folder is whole."""
    write_series(tmp_path / "flat", uid="1.2.3")
    write_series(tmp_path / "other", uid="1.2.4")
    for path in list((tmp_path / "other").iterdir()):
        path.rename(tmp_path / "flat" / f"b{path.name}")
    (tmp_path / "flat" / "b0.dcm").write_bytes((tmp_path / "flat" / "b0.dcm").read_bytes()[:-170])
    done = segpipe.convert(tmp_path / "flat", tmp_path / "out")
    assert [c.reason is None for c in done] == [True, False]
    assert "b0.dcm" in done[1].reason


@pytest.mark.parametrize("number", [3, None])
def test_names_of_many_series_in_one_folder_never_collide(tmp_path, number):
    for k in range(4):
        write_series(tmp_path / f"t{k}", voxels(seed=k), uid=f"1.2.{k + 3}", SeriesNumber=number)
        for path in (tmp_path / f"t{k}").iterdir():
            (tmp_path / "in").mkdir(exist_ok=True)
            path.rename(tmp_path / "in" / f"{k}_{path.name}")
    done = segpipe.convert(tmp_path / "in", tmp_path / "out")
    assert [c.reason for c in done] == [None] * 4
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4
    for k, one in enumerate(done):
        np.testing.assert_array_equal(read_volume(one.output).array[0], voxels(seed=k).astype(int) - 1024)


@pytest.mark.parametrize("uids", [("1.2.3", "1.2.4"), ("1.2.4", "1.2.3")])
def test_names_that_differ_in_capitals_alone_do_not_collide(tmp_path, uids):
    write_series(tmp_path / "in" / "a b", uid=uids[0])
    write_series(tmp_path / "in" / "A_b", voxels(seed=1), uid=uids[1])
    done = segpipe.convert(tmp_path / "in", tmp_path / "out")
    assert len({c.output.name.lower() for c in done}) == 2


@pytest.mark.filterwarnings("ignore:The value length")
def test_warnings_of_pydicom_become_one_note(tmp_path, capfd):
    write_series(tmp_path / "ct")
    long = DataElement(0x00080050, "SH", "an accession number that is too long", validation_mode=IGNORE)
    rewrite(tmp_path / "ct", lambda _, s: s.add(long))
    with warnings.catch_warnings(action="error"):
        (note,) = header_notes(tmp_path / "ct")
        read_volume(tmp_path / "ct")
    assert note.severity == "note"
    assert "exceeds the maximum length of 16" in note.message
    assert "6 file(s), such as 0.dcm" in note.message
    assert capfd.readouterr().err == ""


def test_what_is_passed_over_is_counted(tmp_path):
    write_enhanced(tmp_path / "in" / "e.dcm")
    (tmp_path / "in" / "notes.txt").write_text("text", encoding="utf-8")
    given = []
    convert(tmp_path / "in", tmp_path / "out", on_given=given.append)
    assert given[0].lines() == ["files of in: 2 given, 1 used, 1 passed over", "  not DICOM: notes.txt"]


def test_a_series_without_its_uid_is_recognised_by_its_images(tmp_path):
    def without(*names, image=""):
        def change(number, slice_):
            for name in names:
                delattr(slice_, name)
            if image:
                slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = f"{image}.{number + 1}"

        return change

    write_series(tmp_path / "ct", change=without("SeriesInstanceUID"))
    for _ in range(2):
        assert [c.reason for c in convert(tmp_path / "ct", tmp_path / "out")] == [None]
    write_series(tmp_path / "ct", change=without("SeriesInstanceUID", image="1.2.3"))
    (other,) = convert(tmp_path / "ct", tmp_path / "out")
    assert "holds other images than this series, which has no SeriesInstanceUID" in other.reason
    write_series(tmp_path / "bare" / "ct", change=without("SeriesInstanceUID", "SOPInstanceUID"))
    reasons = [convert(tmp_path / "bare" / "ct", tmp_path / "bare_out")[0].reason for _ in range(2)]
    assert reasons[0] is None
    assert "without SeriesInstanceUID and SOPInstanceUID it is not known whether it is this series" in reasons[1]


def test_a_series_that_takes_too_long_costs_itself_alone(tmp_path, monkeypatch):
    write_series(tmp_path / "in" / "slow")
    write_series(tmp_path / "in" / "sound")
    whole = dataset_convert.read_voxels

    def endless(stack):
        while stack.slices[0].file.parent.name == "slow":
            time.sleep(0.01)
        return whole(stack)

    monkeypatch.setattr(dataset_convert, "read_voxels", endless)
    monkeypatch.setattr(formats, "LEAST_LIMIT_S", 0.2)
    done = {one.series: one for one in convert(tmp_path / "in", tmp_path / "out")}
    assert "reading took over" in done["slow"].reason
    assert done["sound"].output.is_file()
