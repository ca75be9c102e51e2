import gzip
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.core.geometry import largest_displacement_mm
from segpipe.core.labels import smallest_dtype
from segpipe.errors import UnreadableFileError
from segpipe.io.formats import (
    files_behind,
    header_notes,
    read_header,
    read_volume,
    write_labels_like,
    write_volume,
)
from tests.phantoms import axis_grid
from tests.strategies import grids


@settings(deadline=None, max_examples=25)
@given(grids(), st.sampled_from([".nii.gz", ".nii", ".nrrd", ".mha"]))
def test_what_is_written_is_read(tmp_path_factory, grid, ending):
    path = tmp_path_factory.mktemp("io") / f"case{ending}"
    array = np.arange(np.prod(grid.shape), dtype=np.int16).reshape(grid.shape)
    write_volume(path, array, grid)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], array)
    assert largest_displacement_mm(volume.grid, grid) < 1e-3
    header = read_header(path)
    assert header.n_channels == 1
    assert header.grid == volume.grid


def test_both_readers_see_one_world(tmp_path):
    """nibabel's RAS and ITK's LPS are brought to the same positions."""
    grid = axis_grid((4, 5, 6))
    array = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", array, grid)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / "a.nrrd"))
    nifti, nrrd = read_volume(tmp_path / "a.nii.gz"), read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(nifti.array, nrrd.array)
    assert largest_displacement_mm(nifti.grid, nrrd.grid) < 1e-4


def test_four_dimensions_are_channels(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(5, 4, 3, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.array.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(volume.array[1], voxels[..., 1].T)
    assert read_header(tmp_path / "a.nii.gz").n_channels == 2


def test_header_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2, -1024)
    nib.save(image, tmp_path / "ct.nii")
    written = nib.load(tmp_path / "ct.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "ct.nii").array[0], np.asarray(written.dataobj).T)


@pytest.mark.parametrize("klass", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_a_nifti_header_is_kept(tmp_path, klass, endian):
    affine = np.array([[-1.0, 0.1, 0, 7], [0, 2, 0.2, 8], [0, 0, 3, 9], [0, 0, 0, 1]])
    header = klass.header_class(endianness=endian)
    image = klass(np.zeros((4, 5, 6), dtype=np.float32), affine, header)
    image.set_sform(affine, code=2)
    image.set_qform(np.diag([1.0, 2, 3, 1]), code=1)
    image.header["descrip"] = b"a scan"
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "image.nii.gz")
    labels = np.random.default_rng(0).integers(0, 300, (6, 5, 4)).astype(np.uint16)
    write_labels_like(tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz", labels)
    before, after = nib.load(tmp_path / "image.nii.gz"), nib.load(tmp_path / "labels.nii.gz")
    # SimpleITK opens no NIfTI-2.
    assert type(after) is nib.Nifti1Image
    assert after.shape == before.shape
    assert after.get_data_dtype() == np.dtype("uint16").newbyteorder(endian)
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-7)
    np.testing.assert_allclose(after.get_qform(), before.get_qform(), atol=1e-7)
    assert [int(after.header[k]) for k in ("sform_code", "qform_code")] == [2, 1]
    assert after.header["descrip"] == before.header["descrip"]
    assert after.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(np.asarray(after.dataobj), labels.T)


def test_an_nrrd_header_is_kept(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((6, 5, 4), dtype=np.float32))
    image.SetSpacing((0.5, 0.6, 2.0))
    image.SetOrigin((1, 2, 3))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, -1))
    image.SetMetaData("scanner", "one")
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    labels = np.random.default_rng(0).integers(0, 2, (6, 5, 4)).astype(np.uint8)
    write_labels_like(tmp_path / "image.nrrd", tmp_path / "labels.nrrd", labels)
    after = sitk.ReadImage(str(tmp_path / "labels.nrrd"))
    assert after.GetSpacing() == image.GetSpacing()
    assert after.GetOrigin() == image.GetOrigin()
    assert after.GetDirection() == image.GetDirection()
    assert after.GetMetaData("scanner") == "one"
    assert after.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), labels)


def test_two_dimensional_files_keep_their_shape(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((7, 5), dtype=np.float32), np.eye(4)), tmp_path / "flat.nii.gz")
    assert read_volume(tmp_path / "flat.nii.gz").array.shape == (1, 1, 5, 7)
    write_labels_like(tmp_path / "flat.nii.gz", tmp_path / "out.nii.gz", np.ones((1, 5, 7), dtype=np.uint8))
    assert nib.load(tmp_path / "out.nii.gz").shape == (7, 5)


def test_the_same_labels_give_the_same_bytes(tmp_path):
    grid = axis_grid((4, 5, 6))
    write_volume(tmp_path / "image.nii.gz", np.zeros(grid.shape, dtype=np.float32), grid)
    for name in ("a", "b"):
        write_labels_like(tmp_path / "image.nii.gz", tmp_path / f"{name}.nii.gz", np.ones(grid.shape, dtype=np.uint8))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    grid = axis_grid((4, 5, 6))
    write_volume(tmp_path / "image.nii.gz", np.zeros(grid.shape, dtype=np.float32), grid)
    monkeypatch.setattr(gzip.GzipFile, "write", lambda self, content: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_labels_like(tmp_path / "image.nii.gz", tmp_path / "out.nii.gz", np.ones(grid.shape, dtype=np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["image.nii.gz"]


@pytest.mark.parametrize(
    ("largest", "kind"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16"), (65536, "uint32")]
)
def test_smallest_type_that_holds_the_labels(largest, kind):
    assert smallest_dtype(largest) == np.dtype(kind)


def _truncated_gzip(path):
    whole = gzip.compress(np.random.default_rng(0).bytes(400_000))
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(30, 30, 30)), np.eye(4)), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return whole


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("gone.nii.gz", lambda p: None, "no such file"),
        ("empty.nii.gz", lambda p: p.write_bytes(b""), "0 bytes"),
        ("text.nii", lambda p: p.write_text("not an image" * 100, encoding="utf-8"), "not a readable NIfTI"),
        ("cut.nii.gz", _truncated_gzip, "truncated"),
        ("text.nrrd", lambda p: p.write_text("not an image", encoding="utf-8"), "not a readable image"),
        ("scan.gif", lambda p: p.write_bytes(b"x"), "ending is not one of"),
    ],
)
def test_unreadable_files_say_why(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(UnreadableFileError, match=message):
        read_volume(tmp_path / name)


def test_a_truncated_nrrd_is_refused(tmp_path):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(20, 20, 20)))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), useCompression=True)
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFileError, match="the file is truncated: its gzip stream ends before its checksum"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty_file.nii.gz", "0 bytes"),
        ("header_without_data.nii", "truncated"),
        ("not_nifti.nii", "not a readable NIfTI"),
        ("rgb24.nii.gz", "colour"),
    ],
)
def test_odd_files_are_refused_with_their_reason(data, name, message):
    with pytest.raises(UnreadableFileError, match=message):
        read_volume(data / "odd" / name)


@pytest.mark.data
@pytest.mark.parametrize("name", ["big_endian.nii.gz", "little_endian_4d_last_1.nii.gz"])
def test_odd_but_sound_files_are_read(data, name):
    volume = read_volume(data / "odd" / name)
    image = nib.load(data / "odd" / name)
    np.testing.assert_array_equal(volume.array[0], np.asarray(image.dataobj).reshape(image.shape[:3]).T)


@pytest.mark.data
def test_nifti_2_with_two_channels(data):
    volume = read_volume(data / "odd" / "nifti2.nii.gz")
    assert volume.array.shape == (2, 12, 20, 32)


def test_where_sform_and_pixdim_disagree_pixdim_is_believed(tmp_path):
    """Directions and origin stay the sform's; ITK reads the same grid."""
    image = nib.Nifti1Image(np.zeros((6, 5, 4), dtype=np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header["pixdim"][1:4] = (1.5, 1.5, 10)
    image.header["qform_code"] = 0
    nib.save(image, tmp_path / "a.nii.gz")
    grid = read_volume(tmp_path / "a.nii.gz").grid
    assert grid.spacing_mm == (10, 1.5, 1.5)
    assert grid.axis_codes == "SPL"
    note = header_notes(tmp_path / "a.nii.gz")[0]
    assert note.severity == "warning"
    assert "1 x 1 x 1 mm" in note.message
    assert "1.5 x 1.5 x 10 mm" in note.message
    write_labels_like(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", np.zeros((4, 5, 6), dtype=np.uint8))
    before, after = nib.load(tmp_path / "a.nii.gz").header, nib.load(tmp_path / "b.nii.gz").header
    np.testing.assert_array_equal(after["pixdim"][1:4], before["pixdim"][1:4])
    np.testing.assert_array_equal(after.get_sform(), before.get_sform())


def nifti_header(path, sform=None, qform=None, pixdim=None, units=2, shape=(6, 5, 4)):
    """A NIfTI file whose header says what it is told to, byte for byte."""
    image = nib.Nifti1Image(np.ones(shape, dtype=np.int16), np.eye(4))
    image.set_sform(sform, code=0 if sform is None else 1)
    image.set_qform(qform, code=0 if qform is None else 1)
    content = bytearray(image.to_bytes())
    content[123] = units
    if pixdim is not None:
        content[80:92] = np.array(pixdim, dtype="<f4").tobytes()
    path.write_bytes(content)
    return path


MM2 = np.diag([-2.0, -2.0, 2.0, 1.0])
SHEARED = np.array([[2, 0.1, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
MOVED = MM2 + np.array([[0, 0, 0, 5.0]] + [[0, 0, 0, 0]] * 3)


@pytest.mark.parametrize(
    ("header", "severity", "message", "spacing"),
    [
        ({"sform": MM2, "qform": MOVED}, "warning", "up to 5 mm apart; the sform is believed", (2, 2, 2)),
        (
            {"sform": np.eye(4), "qform": MM2, "pixdim": (2, 2, 2)},
            "warning",
            "sform and qform put .* mm apart",
            (2, 2, 2),
        ),
        ({"sform": MM2, "pixdim": (2, -2, 2)}, "warning", "2 x -2 x 2 mm.*2 x 2 x 2 mm are believed", (2, 2, 2)),
        ({"sform": MM2, "pixdim": (2, 0, 2)}, "warning", "2 x 0 x 2 mm", (2, 2, 2)),
        (
            {"sform": SHEARED, "pixdim": (2, 2, 2)},
            "warning",
            r"axes y and x are 87\.14 degrees apart, not 90",
            (2, 2, 2),
        ),
        ({"pixdim": (1, 2, 3)}, "note", "neither sform nor qform: where left and right are", (3, 2, 1)),
        ({"qform": MM2, "units": 0}, "note", "unit .* not stated; millimetres are assumed", (2, 2, 2)),
        ({"qform": MM2, "units": 1}, "note", "stated in meters; they are multiplied by 1000", (2000, 2000, 2000)),
        ({"qform": MM2, "units": 3}, "note", "stated in microns; they are multiplied by 0.001", (0.002, 0.002, 0.002)),
    ],
)
def test_what_is_odd_about_a_nifti_header_is_said_with_its_numbers(tmp_path, header, severity, message, spacing):
    path = nifti_header(tmp_path / "a.nii", **header)
    assert read_header(path).grid.spacing_mm == pytest.approx(spacing, rel=2e-3)
    assert [n for n in header_notes(path) if n.severity == severity and re.search(message, n.message)]


def test_a_sound_nifti_header_needs_no_note(tmp_path):
    assert header_notes(nifti_header(tmp_path / "a.nii", sform=MM2, qform=MM2)) == []
    turned = np.array([[1.999, 0.06, 0, 0], [-0.06, 1.999, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    assert header_notes(nifti_header(tmp_path / "b.nii", sform=turned, qform=turned)) == []


def test_a_flat_file_needs_no_distance_of_slices(tmp_path):
    sform = np.diag([-2.0, -2.0, 5.0, 1.0])
    path = nifti_header(tmp_path / "a.nii", sform=sform, qform=sform, pixdim=(2, 2, 0), shape=(6, 5))
    assert header_notes(path) == []
    assert read_header(path).grid.spacing_mm == (5, 2, 2)


@pytest.mark.parametrize("pixdim", [(2, 0, 2), (2, -1, 2), (np.nan, 1, 1)])
def test_a_size_that_is_not_positive_is_refused_where_nothing_else_says_it(tmp_path, pixdim):
    with pytest.raises(UnreadableFileError, match=f"{pixdim[0]:.4g} x {pixdim[1]:.4g}.*expected positive sizes"):
        read_header(nifti_header(tmp_path / "a.nii", pixdim=pixdim))


@pytest.mark.parametrize("spacing", ["-1 1 1", "0 1 1"])
def test_a_metaimage_whose_spacing_is_not_positive_is_refused(tmp_path, spacing):
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "CompressedData = False",
        f"ElementSpacing = {spacing}",
    ]
    lines += ["DimSize = 2 2 2", "ElementType = MET_UCHAR", "ElementDataFile = LOCAL", ""]
    (tmp_path / "a.mha").write_bytes("\n".join(lines).encode() + bytes(8))
    with pytest.raises(UnreadableFileError, match=f"spacing is {' x '.join(spacing.split())} mm.*expected positive"):
        read_header(tmp_path / "a.mha")


def test_an_nrrd_without_a_space_is_noted(tmp_path):
    header = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    space, size = header_notes(tmp_path / "a.nrrd")
    assert "no 'space' is stated" in space.message
    assert "no voxel size is stated; 1 mm is assumed" in size.message


def test_a_scaled_file_is_read_in_single_precision(tmp_path):
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -1000)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([0.5, -1000], dtype="<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    array = read_volume(tmp_path / "a.nii").array
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[0], np.asarray(nib.load(tmp_path / "a.nii").dataobj).T)


def test_a_detached_file_belongs_to_its_header(tmp_path):
    grid = axis_grid((3, 4, 5))
    for ending in (".mhd", ".nhdr"):
        write_volume(tmp_path / f"a{ending}", np.ones(grid.shape, dtype=np.int16), grid)
        assert len(files_behind(tmp_path / f"a{ending}")) == 2


@pytest.mark.data
@pytest.mark.parametrize("folder", ["hippocampus", "cardiac_cine", "fetal_brain"])
def test_real_nifti_files_have_itks_spacing(data, folder):
    for path in sorted((data / folder / "imagesTr").glob("*.nii.gz"))[:6]:
        header = sitk.ImageFileReader()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        np.testing.assert_allclose(sorted(read_header(path).grid.spacing_mm), sorted(header.GetSpacing()), rtol=1e-5)
