"""Files are read to their last byte, and what is decoded is what the header says."""

import bz2
import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from segpipe.errors import UnreadableFileError
from segpipe.io import itk
from segpipe.io.formats import header_notes, read_header, read_volume, write_labels_like
from tests.geometry import nifti

VOXELS = np.random.default_rng(0).integers(0, 1000, (12, 10, 8)).astype("<i2")
RAW = VOXELS.tobytes(order="F")
AFFINE = np.diag([-0.8, -1.2, 2.5, 1])


def nii(path):
    """Bytes of a NIfTI file."""
    return nifti(path / "source.nii", VOXELS, AFFINE).read_bytes()


def assert_whole(path):
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS.T)


@pytest.mark.parametrize(
    "stored",
    [
        gzip.compress,
        lambda c: gzip.compress(c[:1000]) + gzip.compress(c[1000:]),
        lambda c: gzip.compress(c[:1000]) + bytes(512) + gzip.compress(c[1000:]),
        lambda c: gzip.compress(c) + bytes(512),
        lambda c: gzip.compress(c) + b"\0" * 3 + gzip.compress(b"") + b"rest",
        lambda c: gzip.compress(c) + b"\x1fno member",
        lambda c: gzip.compress(c + bytes(4096)),
        lambda c: gzip.compress(c + bytes(len(RAW))),
        lambda c: gzip.compress(c + b"a few more bytes"),
        lambda c: c,
    ],
    ids=[
        "plain",
        "members",
        "padded members",
        "zeros",
        "empty member",
        "garbage",
        "padded",
        "zero volume",
        "more bytes",
        "not compressed",
    ],
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_whole_streams_are_read(tmp_path, stored, name):
    (tmp_path / name).write_bytes(stored(nii(tmp_path)))
    assert_whole(tmp_path / name)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (lambda c: gzip.compress(c)[:-8] + b"\1\2\3\4" + gzip.compress(c)[-4:], "its checksum does not fit"),
        (lambda c: gzip.compress(c)[:-4] + b"\1\2\3\4", "its checksum does not fit"),
        # In a stored block a flipped bit changes a voxel and nothing else.
        (lambda c: flipped(gzip.compress(c, 0), 1200), "its checksum does not fit"),
        (lambda c: gzip.compress(c)[:-8], "ends before its checksum"),
        (lambda c: gzip.compress(c)[:-1], "ends before its checksum"),
        (lambda c: gzip.compress(c)[:900], "ends before its checksum"),
        (lambda c: gzip.compress(c) + gzip.compress(b"more")[:-3], "ends before its checksum"),
        (lambda c: gzip.compress(c[:-1]), r"holds 1919 bytes of voxels, by its header expected 1920"),
        (lambda c: c[:-1], r"holds 1919 bytes of voxels, by its header expected 1920"),
        (lambda c: c + RAW, "2 times the voxels"),
        (lambda c: gzip.compress(c + RAW + RAW), "3 times the voxels"),
    ],
)
def test_streams_that_are_not_whole_are_refused(tmp_path, stored, message):
    (tmp_path / "a.nii.gz").write_bytes(stored(nii(tmp_path)))
    with pytest.raises(UnreadableFileError, match=message):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("offset", [np.nan, -1, np.inf])
def test_an_offset_that_is_none_is_refused(tmp_path, offset):
    content = bytearray(nii(tmp_path))
    content[108:112] = np.float32(offset).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(UnreadableFileError, match="vox_offset is"):
        read_volume(tmp_path / "a.nii")


def test_a_damaged_size_takes_no_memory(tmp_path):
    content = bytearray(nii(tmp_path))
    content[42:48] = np.array([32767] * 3, dtype="<i2").tobytes()
    for name, stored in (("a.nii", bytes(content)), ("b.nii.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(UnreadableFileError, match=r"truncated: it holds at most \d+ bytes"):
            read_volume(tmp_path / name)


def test_a_name_that_hides_the_compression_is_noted(tmp_path):
    (tmp_path / "a.nii").write_bytes(gzip.compress(nii(tmp_path)))
    (tmp_path / "a.nii.gz").write_bytes(nii(tmp_path))
    assert "is compressed by gzip" in header_notes(tmp_path / "a.nii")[0].message
    assert "is not compressed, although" in header_notes(tmp_path / "a.nii.gz")[0].message


SPACE = "space: left-posterior-superior\nspace directions: (0.8,0,0) (0,1.2,0) (0,0,2.5)\nspace origin: (0,0,0)\n"


def nrrd(path, fields=SPACE, data=RAW, **changed):
    header = {"type": "int16", "dimension": 3, "sizes": "12 10 8", "encoding": "raw", "endian": "little"} | changed
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in header.items() if value is not None) + fields
    (path / "a.nrrd").write_bytes(text.encode() + b"\n" + data)
    return path / "a.nrrd"


FLAT = "space: left-posterior-superior\nspace directions: (0.8,0,0) (0,1.2,0)\nspace origin: (0,0,0)\n"
FOUR = SPACE.replace("(0,0,2.5)", "(0,0,2.5) none")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"data": RAW[:-2]}, "truncated: it holds 1918 bytes of voxels, by its header expected 1920"),
        ({"data": RAW * 2}, "2 times the voxels"),
        ({"encoding": "gzip", "data": gzip.compress(RAW[:-2])}, "truncated: it holds 1918 bytes"),
        ({"encoding": "gzip", "data": gzip.compress(RAW * 2)}, "2 times the voxels"),
        ({"encoding": "gzip", "data": gzip.compress(RAW) + gzip.compress(RAW)}, "2 times the voxels"),
        ({"encoding": "gzip", "data": flipped(gzip.compress(RAW, 0), 900)}, "checksum does not fit"),
        ({"encoding": "gzip", "data": gzip.compress(RAW)[:-8]}, "ends before its checksum"),
        ({"encoding": "ascii", "type": "uint8", "data": b" ".join(b"%d" % v for v in VOXELS.ravel(order="F"))},
         "run from 0 to 998; expected whole numbers of type uint8"),
        ({"encoding": "ascii", "data": b"1.5 " * 960}, "run from 1.5 to 1.5; expected whole numbers"),
        ({"encoding": "ascii", "data": b"1 " * 900}, "holds 900 numbers, by its header expected 960"),
        ({"encoding": "ascii", "data": b"1 " * 970}, "holds 970 numbers, by its header expected 960"),
        ({"encoding": "bzip2", "data": bz2.compress(RAW)}, "its encoding is bzip2.*expected raw or gzip"),
        ({"type": "float16"}, "its type is float16"),
        ({"type": "block"}, "its type is block"),
        ({"type": None}, "field 'type' is missing"),
        ({"dimension": 1, "sizes": "12", "fields": ""}, "dimension is 1, sizes are 12; expected two to four axes"),
        ({"dimension": 5, "sizes": "12 10 8 1 1", "fields": ""}, "dimension is 5"),
        ({"dimension": 2, "sizes": "12 10", "fields": FLAT}, "2 of its 2 axes lie in a space of 3"),
        ({"dimension": 4, "sizes": "12 10 8 1", "fields": FOUR}, "has four axes, and the header has no 'kinds'"),
        ({"fields": SPACE + "data file: gone.raw\n"}, r"its voxels should be in .*gone.raw, which is not there"),
        ({"fields": "spacings: 0.8 1.2 2.5\nkinds: complex domain domain\n"}, "complex"),
    ],
)  # fmt: skip
def test_nrrd_files_that_are_not_what_they_say_are_refused_in_plain_words(tmp_path, how, message):
    with pytest.raises(UnreadableFileError, match=message) as refused:
        read_volume(nrrd(tmp_path, **how))
    assert "NrrdImageIO" not in str(refused.value)


def test_a_few_bytes_behind_the_voxels_are_passed_over(tmp_path):
    assert_whole(nrrd(tmp_path, data=RAW + b"end\n"))


def test_voxels_in_other_files_are_counted(tmp_path):
    for k in range(8):
        (tmp_path / f"s{k}.raw").write_bytes(VOXELS[:, :, k].tobytes(order="F"))
    header = nrrd(tmp_path, SPACE + "data file: s%d.raw 0 7 1\n", b"").rename(tmp_path / "a.nhdr")
    assert_whole(header)
    (tmp_path / "s3.raw").write_bytes(b"short")
    with pytest.raises(UnreadableFileError, match="holds 1685 bytes of voxels"):
        read_volume(header)


def test_a_detached_file_that_is_longer_must_state_where_its_voxels_begin(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(range(100)) + RAW)
    header = mha(tmp_path, b"")
    text = header.read_text(encoding="ascii").replace("LOCAL", "a.raw")
    (tmp_path / "a.mhd").write_text(text, encoding="ascii")
    with pytest.raises(
        UnreadableFileError, match=r"a\.raw holds 2020 bytes, by the header expected 1920, and it is not stated where"
    ):
        read_volume(tmp_path / "a.mhd")
    (tmp_path / "a.mhd").write_text(
        text.replace("ElementDataFile", "HeaderSize = 100\nElementDataFile"), encoding="ascii"
    )
    assert_whole(tmp_path / "a.mhd")


def test_padding_behind_a_gzip_member_is_read(tmp_path):
    assert_whole(nrrd(tmp_path, encoding="gzip", data=gzip.compress(RAW) + bytes(16)))
    assert_whole(nrrd(tmp_path, encoding="gzip", data=gzip.compress(RAW[:900]) + gzip.compress(RAW[900:])))


def test_a_mask_of_a_flat_image_in_microns_opens(tmp_path):
    fields = 'space dimension: 2\nspace directions: (500,0) (0,700)\nspace units: "um" "um"\n'
    flat = nrrd(tmp_path, fields, VOXELS[:, :, 0].tobytes(order="F"), dimension=2, sizes="12 10")
    mask = tmp_path / "mask.nrrd"
    write_labels_like(flat, mask, np.ones((1, 10, 12), dtype=np.uint8))
    assert sitk.ReadImage(str(mask)).GetSpacing() == (500, 700)
    assert read_header(mask).grid == read_header(flat).grid


UM = "space: left-posterior-superior\nspace directions: (800,0,0) (0,1200,0) (0,0,2500)\nspace origin: (-1000,0,0)\n"


@pytest.mark.parametrize(
    ("fields", "spacing", "severity", "message"),
    [
        (UM + 'space units: "um" "um" "um"\n', (2.5, 1.2, 0.8), "note", "stated in 'um'; they are multiplied by 0.001"),
        (UM + 'space units: "µm" "µm" "µm"\n', (2.5, 1.2, 0.8), "note", "multiplied by 0.001"),
        ('spacings: 800 1200 2500\nunits: "um" "um" "um"\n', (2.5, 1.2, 0.8), "note", "multiplied by 0.001"),
        ('spacings: 0.08 0.12 0.25\nunits: "cm" "cm" "cm"\n', (2.5, 1.2, 0.8), "note", "multiplied by 10"),
        (SPACE + 'space units: "furlong" "furlong" "furlong"\n', (2.5, 1.2, 0.8), "warning", "stated in 'furlong'"),
        (SPACE + 'space units: "mm" "mm" "um"\n', (2.5, 1.2, 0.8), "warning", "'mm', 'um', expected one unit"),
        (
            UM,
            (2500, 1200, 800),
            "warning",
            r"voxels are 2500 x 1200 x 800 mm.*the unit of the file is probably another",
        ),
        ("", (1, 1, 1), "note", "no voxel size is stated; 1 mm is assumed"),
        ("spacings: NaN NaN NaN\n", (1, 1, 1), "note", "no voxel size is stated"),
        ("spacings: 0.8 1.2 NaN\n", (1, 1.2, 0.8), "note", "1 mm is assumed where there is none"),
        ("axis mins: 0 0 0\naxis maxs: 9 9 9\n", (1, 1, 1), "note", "no voxel size is stated"),
        (SPACE.replace("space: left-posterior-superior", "space dimension: 3"), (2.5, 1.2, 0.8), "note", "no 'space'"),
    ],
)
def test_units_and_assumed_sizes_of_nrrd_are_noted(tmp_path, fields, spacing, severity, message):
    import re

    path = nrrd(tmp_path, fields)
    assert read_volume(path).grid.spacing_mm == pytest.approx(spacing)
    assert [n for n in header_notes(path) if n.severity == severity and re.search(message, n.message)]


def test_sound_files_have_no_note(tmp_path):
    listed = {"sizes": "2 12 10 8", "dimension": 4, "data": RAW * 2}
    fields = SPACE.replace("directions: ", "directions: none ") + "kinds: list domain domain domain\n"
    assert header_notes(nrrd(tmp_path, fields, **listed)) == []
    fields = "spacings: NaN 0.8 1.2 2.5\nkinds: list domain domain domain\n"
    assert ["no 'space'" in n.message for n in header_notes(nrrd(tmp_path, fields, **listed))] == [True]
    assert header_notes(nrrd(tmp_path, SPACE + 'space units: "mm" "mm" "mm"\n')) == []
    assert header_notes(mha(tmp_path)) == []


META = {
    "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False, "CompressedData": False,
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "CenterOfRotation": "0 0 0", "ElementSpacing": "0.8 1.2 2.5",
    "DimSize": "12 10 8", "ElementType": "MET_SHORT",
}  # fmt: skip


def mha(path, data=RAW, **changed):
    fields = META | changed | {"ElementDataFile": "LOCAL"}
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    (path / "a.mha").write_bytes(text.encode() + data)
    return path / "a.mha"


PACKED = zlib.compress(RAW)
STORED = zlib.compress(RAW, 0)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"data": RAW + b"end\n"},
        {"CompressedData": True, "CompressedDataSize": len(PACKED), "data": PACKED},
        {"CompressedData": True, "data": PACKED},
        {"BinaryDataByteOrderMSB": True, "data": VOXELS.astype(">i2").tobytes(order="F")},
        {"CompressedData": True, "BinaryDataByteOrderMSB": True, "data": zlib.compress(VOXELS.astype(">i2").tobytes(order="F"))},
    ],
)  # fmt: skip
def test_metaimages_are_read_whole(tmp_path, how):
    assert_whole(mha(tmp_path, **how))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"data": RAW[:-2]}, "truncated: it holds 1918 bytes of voxels, by its header expected 1920"),
        ({"data": RAW * 3}, "3 times the voxels"),
        ({"CompressedData": True, "CompressedDataSize": len(STORED), "data": flipped(STORED, 900)}, "checksum does not fit"),
        ({"CompressedData": True, "CompressedDataSize": len(PACKED), "data": PACKED[:-4] + b"abcd"}, "checksum does not fit"),
        ({"CompressedData": True, "CompressedDataSize": len(PACKED), "data": PACKED[:-50]}, "end before their checksum"),
        ({"CompressedData": True, "data": zlib.compress(RAW[:-2])}, "holds 1918 bytes"),
        ({"CompressedData": True, "data": zlib.compress(RAW * 2)}, "2 times the voxels"),
        ({"BinaryData": False, "data": b"1 2 3"}, "stored as text"),
        ({"DimSize": None}, "field 'DimSize' is missing"),
        ({"DimSize": "12 10"}, "DimSize is 12 10"),
        ({"ElementType": "MET_FOO"}, "its ElementType is MET_FOO"),
        ({"ElementSpacing": "0.8 1.2"}, "its spacing is 0.8 1.2; expected 3 numbers"),
        ({"ElementSpacing": "nan 1 1"}, "its spacing is nan 1 1"),
        ({"HeaderSize": 100, "data": bytes(100) + RAW}, "HeaderSize is 100"),
        ({"NDims": 4, "DimSize": "12 10 8 1", "ElementSpacing": "0.8 1.2 2.5 1", "Offset": "0 0 0 0",
          "TransformMatrix": "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"}, "states a spacing of 0.8 x 1.2 x 2.5 x 1, but 1 x 1 x 1 is decoded"),
    ],
)  # fmt: skip
def test_metaimages_that_are_not_what_they_say_are_refused_in_plain_words(tmp_path, how, message):
    with pytest.raises(UnreadableFileError, match=message) as refused:
        read_volume(mha(tmp_path, **how))
    assert "MetaImageIO" not in str(refused.value)
    assert "No such file" not in str(refused.value)


def test_units_and_assumed_sizes_of_metaimage_are_noted(tmp_path):
    (note,) = header_notes(mha(tmp_path, ElementSpacing=None))
    assert "no voxel size is stated" in note.message
    path = mha(tmp_path, ElementSpacing="800 1200 2500", DistanceUnits="um")
    assert read_header(path).grid.spacing_mm == pytest.approx((2.5, 1.2, 0.8))
    assert "multiplied by 0.001" in header_notes(path)[0].message


def test_what_is_decoded_otherwise_is_refused(tmp_path, monkeypatch):
    path = nrrd(tmp_path)
    stated = itk.stated_in(path)
    monkeypatch.setattr(itk, "stated_in", lambda _: type(stated)(**{**vars(stated), "number": "uint8"}))
    with pytest.raises(UnreadableFileError, match="960 numbers of type uint8, but it is decoded as 960 of type int16"):
        read_volume(path)


def pair(path, ending, klass=nib.Nifti1Pair):
    nib.save(klass(VOXELS, AFFINE), path / f"a.img{ending}")
    return path / f"a.hdr{ending}"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_pair_is_read(tmp_path, ending):
    header = pair(tmp_path, ending)
    assert_whole(header)
    np.testing.assert_allclose(read_header(header).grid.spacing_mm, (2.5, 1.2, 0.8), rtol=1e-6)
    voxels = tmp_path / f"a.img{ending}"
    voxels.write_bytes(voxels.read_bytes()[:-100])
    with pytest.raises(UnreadableFileError, match="truncated"):
        read_volume(header)
    voxels.unlink()
    with pytest.raises(UnreadableFileError, match=r"its voxels, a\.img, are not beside it"):
        read_volume(header)


def test_analyze_is_refused_with_its_reason(tmp_path):
    with pytest.raises(UnreadableFileError, match=r"is Analyze 7\.5.*does not say where left and right are"):
        read_volume(pair(tmp_path, "", nib.AnalyzeImage))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("ending", [".mgz", ".mgh"])
def test_freesurfer_files_are_read(tmp_path, kind, ending):
    affine = np.array([[-1.0, 0, 0, 40], [0, 0, 1.1, -30], [0, -1.2, 0, 20], [0, 0, 0, 1]])
    voxels = np.stack([VOXELS // 8, VOXELS // 9], axis=-1).astype(kind)
    nib.save(nib.MGHImage(voxels, affine), tmp_path / f"a{ending}")
    volume = read_volume(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(volume.array, voxels.T)
    np.testing.assert_allclose(volume.grid.affine[:, [2, 1, 0, 3]], affine, atol=1e-4)
    assert read_header(tmp_path / f"a{ending}").n_channels == 2


def test_a_freesurfer_file_without_a_position_says_so(tmp_path):
    nib.save(nib.MGHImage(VOXELS.astype(np.int16), None), tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(content)
    assert "states no position" in header_notes(tmp_path / "a.mgh")[0].message
    (tmp_path / "a.mgh").write_bytes(bytes(content)[:1000])
    with pytest.raises(UnreadableFileError, match="truncated"):
        read_volume(tmp_path / "a.mgh")


@pytest.mark.parametrize(("shape", "n"), [((1, 3), 3), ((3, 1), 3), ((1, 1), 1), ((3,), 3), ((1, 3, 1), 3)])
def test_channels_of_a_fourth_or_fifth_axis(tmp_path, shape, n):
    voxels = np.random.default_rng(0).integers(0, 99, (5, 4, 3, *shape)).astype(np.int16)
    volume = read_volume(nifti(tmp_path / "a.nii", voxels, AFFINE))
    np.testing.assert_array_equal(volume.array, voxels.reshape(5, 4, 3, n).T)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 3)])
def test_more_axes_than_channels_are_refused(tmp_path, shape):
    with pytest.raises(UnreadableFileError, match="axes; expected three, or four"):
        read_volume(nifti(tmp_path / "a.nii", np.zeros((5, 4, 3, *shape), dtype=np.int16), AFFINE))


@pytest.mark.data
def test_a_real_vector_image_is_read(data):
    assert read_volume(data / "odd" / "five_dimensional.nii").array.shape[0] == 3
