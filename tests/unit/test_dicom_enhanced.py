"""Enhanced (multi-frame) images: each attribute from its own macro, and one file as an image."""

import shutil

import numpy as np
import pydicom
import pytest

import segpipe
from segpipe.errors import SegpipeError, UnreadableFileError
from segpipe.inference.inputs import find_inputs
from segpipe.io.formats import output_ending, read_header, read_volume, write_labels_like, write_volume
from tests.dicoms import item, voxels, write_enhanced, write_series


def private(number, frame):
    """As Philips writes them: half a pixel away, with an echo time and a slope of its own."""
    frame.add_new((0x2005, 0x0014), "LO", "Philips MR Imaging DD 005")
    place = [-21.25, -31.25, 100.0 + 2.5 * number]
    frame.add_new(
        (0x2005, 0x140F),
        "SQ",
        [
            item(
                ImagePositionPatient=place,
                EchoTime=9 + number,
                RescaleSlope=7,
                PixelSpacing=[9, 9],
                DiffusionBValue=float(number),
            )
        ],
    )


def later(number, frame):
    """A public sequence that comes after the macros and holds attributes of the same names."""
    frame.ReferencedImageSequence = [item(ImagePositionPatient=[1, 2, 3 * number], PixelSpacing=[9, 9], RescaleSlope=7)]
    frame.UnassignedPerFrameConvertedAttributesSequence = [
        item(ImagePositionPatient=[1, 2, 3 * number], PixelSpacing=[9, 9])
    ]


@pytest.mark.parametrize("change", [None, private, later])
def test_geometry_and_slope_come_from_their_macros(tmp_path, change):
    volume = read_volume(write_enhanced(tmp_path / "e.dcm", change=change))
    assert volume.grid.origin_mm == (20, 30, 100)
    assert volume.grid.spacing_mm == pytest.approx((2.5, 0.8, 0.5))
    np.testing.assert_array_equal(volume.array[0], voxels())


def test_a_macro_of_the_frame_stands_before_the_shared_one(tmp_path):
    def change(_, frame):
        frame.PixelMeasuresSequence = [item(PixelSpacing=[0.7, 0.6])]

    assert read_header(write_enhanced(tmp_path / "e.dcm", change=change)).grid.spacing_mm == pytest.approx(
        (2.5, 0.7, 0.6)
    )


def test_a_position_in_a_private_sequence_alone_is_none(tmp_path):
    def change(number, frame):
        private(number, frame)
        del frame.PlanePositionSequence

    with pytest.raises(UnreadableFileError, match=r"6 of 6 image\(s\) have no usable position"):
        read_header(write_enhanced(tmp_path / "e.dcm", change=change))


def test_frames_that_are_not_described_are_missed(tmp_path):
    with pytest.raises(UnreadableFileError, match="NumberOfFrames is 5, but 6 frames are described"):
        read_header(write_enhanced(tmp_path / "e.dcm", NumberOfFrames=5))


@pytest.mark.data
def test_a_real_philips_image_lies_where_its_planes_say(data):
    (path,) = (data / "odd2" / "philips_enhanced").iterdir()
    image = pydicom.dcmread(path)
    frames = image.PerFrameFunctionalGroupsSequence
    first = min(frames, key=lambda f: f.FrameContentSequence[0].InStackPositionNumber)
    x, y, z = (float(v) for v in first.PlanePositionSequence[0].ImagePositionPatient)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.grid.origin_mm, (-x, -y, z), atol=1e-6)
    np.testing.assert_allclose(volume.grid.origin_mm, (109.645, 126.079, -53.042), atol=1e-3)
    slope = float(first.PixelValueTransformationSequence[0].RescaleSlope)
    np.testing.assert_allclose(volume.array[0], image.pixel_array * slope, rtol=1e-6)


@pytest.mark.parametrize("name", ["a.dcm", "a.IMA", "a", "IM_0001"])
def test_one_file_is_an_image(tmp_path, name):
    path = write_enhanced(tmp_path / "in" / name)
    np.testing.assert_array_equal(read_volume(path).array[0], voxels())
    assert output_ending(path) == ".nii.gz"
    write_labels_like(path, tmp_path / "mask.nii.gz", np.ones((6, 8, 10), np.uint8))
    assert read_header(tmp_path / "mask.nii.gz").grid.origin_mm == pytest.approx((20, 30, 100))
    (case,) = find_inputs(path, tmp_path / "out", 1)
    assert case.output == tmp_path / "out" / f"{name.split('.')[0]}.nii.gz"
    (done,) = segpipe.convert(path, tmp_path / "converted")
    np.testing.assert_array_equal(read_volume(done.output).array[0], voxels())
    assert done.output.name == f"{name.split('.')[0]}.nii.gz"


def test_a_folder_of_such_files_holds_a_case_each(tmp_path):
    for name in ("a.dcm", "b.dcm", "c"):
        write_enhanced(tmp_path / "many" / name)
    (tmp_path / "mixed").mkdir()
    write_labels_like(
        write_enhanced(tmp_path / "mixed" / "a.dcm"), tmp_path / "mixed" / "b.nii.gz", np.ones((6, 8, 10), np.uint8)
    )
    write_enhanced(tmp_path / "one" / "a.dcm")
    write_series(tmp_path / "slices")
    assert [c.id for c in find_inputs(tmp_path / "many", tmp_path / "out", 1)] == ["a", "b", "c"]
    assert [c.id for c in find_inputs(tmp_path / "mixed", tmp_path / "out", 1)] == ["a", "b"]
    assert [c.id for c in find_inputs(tmp_path / "one", tmp_path / "out", 1)] == ["one"]
    assert [c.id for c in find_inputs(tmp_path / "slices", tmp_path / "out", 1)] == ["slices"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Modality": "DX"}, r"a single two-dimensional DICOM picture \(DX, 8 x 10 pixels\)"),
        ({}, r"is one slice \(CT, 8 x 10 pixels\), not a volume; give the folder"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "Siemens mosaic"),
        ({"Modality": "SEG"}, r"a DICOM segmentation \(SEG\), not an image; its masks"),
        ({"Modality": "RTSTRUCT"}, r"a DICOM structure set \(RTSTRUCT\), not an image; its contours"),
    ],
)
def test_a_file_that_is_no_volume_is_refused_by_its_name(tmp_path, attributes, message):
    write_series(tmp_path, voxels(1), **attributes)
    with pytest.raises(UnreadableFileError, match=message):
        read_header(tmp_path / "0.dcm")
    shutil.move(tmp_path / "0.dcm", tmp_path / "no ending")
    with pytest.raises(UnreadableFileError, match=message):
        segpipe.convert(tmp_path / "no ending", tmp_path / "out")


def test_archives_and_lists_of_media_are_named(tmp_path):
    shutil.make_archive(str(tmp_path / "study"), "zip", write_series(tmp_path / "ct"))
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UnreadableFileError, match="is a zip archive; unpack it"):
        read_header(tmp_path / "study.zip")
    with pytest.raises(UnreadableFileError, match="is the list of a DICOM medium"):
        read_header(tmp_path / "DICOMDIR")


def test_dicom_is_not_written(tmp_path):
    grid = read_header(write_enhanced(tmp_path / "e.dcm")).grid
    with pytest.raises(UnreadableFileError, match="DICOM is not written"):
        write_volume(tmp_path / "out.dcm", np.zeros(grid.shape, np.uint8), grid)
    with pytest.raises(SegpipeError, match="DICOM is not written; give a folder"):
        find_inputs(tmp_path / "e.dcm", tmp_path / "out.dcm", 1)
