import json
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

import segpipe
from segpipe.dataset.convert import Sidecar
from segpipe.errors import DatasetError, IrregularSeriesError, UnreadableFileError
from segpipe.io.formats import header_notes, read_header, read_volume
from segpipe.io.series import regular_stack
from segpipe.io.slices import Slice
from tests.dicoms import voxels, write_series


def test_slices_are_ordered_by_position_and_rescaled(tmp_path):
    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array[0], voxels().astype(int) - 1024)
    assert volume.array.dtype == np.int16
    assert volume.grid.spacing_mm == pytest.approx((2.5, 0.8, 0.5))
    assert volume.grid.origin_mm == (20, 30, 100)
    assert volume.grid.axis_codes == "SPL"
    assert read_header(tmp_path / "ct").grid == volume.grid
    assert header_notes(tmp_path / "ct") == []


def test_the_world_is_itks(tmp_path):
    turned = [0.9541666, -0.2080757, 0.2151061, 0.2785886, 0.880128, -0.3843997]
    normal = np.cross(turned[:3], turned[3:])

    def place(number, slice_):
        slice_.ImageOrientationPatient = turned
        slice_.ImagePositionPatient = [round(float(v), 6) for v in np.array([5, 6, 7]) + 3 * number * normal]

    write_series(tmp_path / "ct", change=place)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    volume = read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    x, y, z = image.TransformIndexToPhysicalPoint((9, 7, 5))
    np.testing.assert_allclose(volume.grid.position_mm((5, 7, 9)), (-x, -y, z), atol=1e-4)


def fault(attribute, value, when=lambda n: n == 2):
    def change(number, slice_):
        if when(number):
            setattr(slice_, attribute, value(number) if callable(value) else value)

    return change


def position(of):
    return lambda number, slice_: setattr(slice_, "ImagePositionPatient", [float(v) for v in of(number)])


def every_second(number, slice_):
    slice_.SpacingBetweenSlices = 1.25
    slice_.InstanceNumber = 1 + 2 * number


def two_phases(number, slice_):
    slice_.ImagePositionPatient = [0, 0, 2.5 * (number // 2)]
    slice_.TemporalPositionIdentifier = number % 2 + 1


FAULTS = {
    "missing": (lambda n, _: n != 2, r"missing slice\(s\): 1 between 102\.500 and 107\.500 mm, where slices are 2\.500 mm apart"),
    "two missing": (lambda n, _: n not in (2, 3), "missing.*2 between 102.500 and 110.000"),
    "uneven": (position(lambda n: (0, 0, 2.5 * n + (n == 3))), r"uneven slices: distances from 1\.500 to 3\.500.*2\.500 is usual"),
    "widening": (position(lambda n: (0, 0, n**1.15)), "uneven slices"),
    "orientation": (fault("ImageOrientationPatient", [0, 1, 0, 0, 0, -1]), r"mixed orientations: 5 image\(s\) .*1 image"),
    "b-value": (lambda n, s: s.add_new((0x0018, 0x9087), "FD", 0.0 if n < 3 else 800.0), r"b-value is 0 \(3 images\), 800 \(3"),
    "echo": (fault("EchoTime", lambda n: 10 + 20 * (n % 2), lambda _: True), r"EchoTime is 10\.0 \(3 images\), 30\.0 \(3 images\)"),
    "phases": (two_phases, r"2 images at position 0\.000 mm.*TemporalPositionIdentifier \(1, 2\)"),
    "one place": (position(lambda _: (0, 0, 5)), r"6 images at position 5\.000 mm and no two at different ones"),
    "sideways": (position(lambda n: (15.0 * (n == 3), 0, 2.5 * n)), r"at \(15\.000, 0\.000, 7\.500\) mm, 15\.000 mm beside"),
    "zigzag": (position(lambda n: (10.0 * (n % 2), 0, 2.5 * n)), "slices do not lie above each other|gantry tilt"),
    "one of three": (lambda n, _: n != 1, r"missing slice\(s\): 1 between 100\.000 and 105\.000"),
    "every second": (every_second, "only one of 2 slices is here"),
    "lost identities": (lambda n, s: setattr(s, "SOPInstanceUID", f"1.2.{n // 2}"), "have one SOPInstanceUID"),
    "not a number": (lambda n, s: setattr(s, "ImagePositionPatient", [0, 0, float("nan") if n == 2 else n]), "1 of 6 .* no usable"),
    "frames": (fault("NumberOfFrames", 2, lambda _: True), "2 frames without positions"),
    "tilt": (position(lambda n: (0, 0.6 * n, 2.5 * n)), r"gantry tilt: the stack leans by 13\.50 degrees"),
    "localiser": (fault("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], lambda _: True), "6 of 6 .* localisers"),
    "spacing": (fault("PixelSpacing", [0.9, 0.5]), "differ in pixel spacing.*1 image.* 0.9 x 0.5"),
    "no position": (lambda _, s: delattr(s, "ImagePositionPatient"), "6 of 6 .* no usable position"),
    "two slices": (lambda n, _: n < 2, r"2 slice\(s\), at 100\.000, 102\.500 mm; expected at least 3"),
    "colour": (fault("SamplesPerPixel", 3, lambda _: True), "3 samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_series_that_is_no_regular_volume_is_refused_with_the_reason(tmp_path, name):
    change, message = FAULTS[name]
    write_series(tmp_path / "ct", change=change)
    with pytest.raises(IrregularSeriesError, match=message):
        read_volume(tmp_path / "ct")
    with pytest.raises(IrregularSeriesError, match=message):
        read_header(tmp_path / "ct")


def test_two_slices_are_a_volume_when_the_header_states_their_distance(tmp_path):
    write_series(tmp_path / "ct", change=lambda n, _: n < 2, SpacingBetweenSlices=2.5)
    assert read_header(tmp_path / "ct").grid.shape == (2, 8, 10)
    write_series(tmp_path / "wrong", change=lambda n, _: n < 2, SpacingBetweenSlices=1.25)
    with pytest.raises(IrregularSeriesError, match="2 slice"):
        read_header(tmp_path / "wrong")


def test_rounded_positions_are_regular():
    """A scanner that writes tenths of a millimetre gives distances of 0.6 and 0.7 mm for 0.65."""
    slices = [Slice(None, str(i), (0, 0, round(0.65 * i, 1)), (1, 0, 0, 0, 1, 0), (1, 1), (4, 4)) for i in range(200)]
    assert regular_stack(slices).grid.spacing_mm[0] == pytest.approx(0.65, abs=1e-3)


def test_a_stated_distance_that_the_positions_contradict_is_noted(tmp_path):
    write_series(tmp_path / "ct", SpacingBetweenSlices=5)
    (note,) = header_notes(tmp_path / "ct")
    assert "SpacingBetweenSlices says 5 mm, the positions 2.5 mm; the positions are believed" in note.message
    write_series(tmp_path / "half", SpacingBetweenSlices=1.25)
    (warning,) = header_notes(tmp_path / "half")
    assert warning.severity == "warning"
    assert "2 times as much" in warning.message


def test_copies_of_a_slice_and_other_objects_are_passed_over(tmp_path):
    write_series(tmp_path / "ct")
    shutil.copy(tmp_path / "ct" / "0.dcm", tmp_path / "ct" / "0 copy.dcm")
    (tmp_path / "ct" / "LICENSE").write_text("text", encoding="utf-8")
    write_series(tmp_path / "ct" / "seg", uid="1.2.3", Modality="SEG")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], voxels().astype(int) - 1024)


@pytest.mark.parametrize("kept", [0, 60, 132, 200, 300, 400, 500, 600, 800])
@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_damaged_slice_is_never_passed_over(tmp_path, kept, number):
    """Wherever it is cut, and also when it is the first or the last, whose absence leaves no gap."""
    write_series(tmp_path / "ct")
    (path,) = [f for f in (tmp_path / "ct").iterdir() if pydicom.dcmread(f).InstanceNumber == number + 1]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        UnreadableFileError, match=rf"{path.name}.*(damaged|not a readable|cannot be|no usable)|no usable.*{path.name}"
    ):
        read_volume(tmp_path / "ct")


def test_pixels_that_are_cut_are_named(tmp_path):
    write_series(tmp_path / "ct")
    path = tmp_path / "ct" / "5.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableFileError, match=r"5\.dcm: the pixels cannot be decoded"):
        read_volume(tmp_path / "ct")


def test_one_malformed_attribute_costs_its_series_alone(tmp_path):
    write_series(tmp_path / "in" / "good")
    write_series(tmp_path / "in" / "bad")
    path = tmp_path / "in" / "bad" / "2.dcm"
    path.write_bytes(path.read_bytes().replace(b"0.8\\0.5", b"0,8\\0,5"))
    done = {c.series: c.reason for c in segpipe.convert(tmp_path / "in", tmp_path / "out")}
    assert done["good"] is None
    assert "2.dcm: an attribute cannot be read" in done["bad"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("echo", lambda n, s: setattr(s, "EchoTime", ["4.602", "4.603", "4.60"][n % 3])),
        ("position", lambda n, s: setattr(s, "ImagePositionPatient", [0, 0, round(0.3125 * n, 1)])),
        ("private", lambda n, s: s.private_block(0x0019, "OTHER MAKER", create=True).add_new(0x0C, "DS", str(n))),
        ("ge", lambda n, s: s.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", [0, n, 0, 0])),
    ],
)
def test_rounding_and_foreign_attributes_do_not_cost_a_good_series(tmp_path, name, change):
    write_series(tmp_path / "ct", change=change)
    assert read_header(tmp_path / "ct").grid.shape == (6, 8, 10)


def test_a_makers_own_b_value_counts(tmp_path):
    write_series(
        tmp_path / "mr",
        change=lambda n, s: s.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(
            0x39, "IS", [1000000000 + 800 * (n > 2), 0]
        ),
    )
    with pytest.raises(IrregularSeriesError, match=r"b-value is 0 \(3 images\), 800 \(3"):
        read_header(tmp_path / "mr")


def test_two_series_in_a_folder_are_two_volumes(tmp_path):
    write_series(tmp_path / "ct" / "a")
    write_series(tmp_path / "ct" / "b", voxels(7))
    with pytest.raises(
        IrregularSeriesError, match=r"2 image series: series 3 'thorax' \(\d images\); series 3.*segpipe convert"
    ):
        read_volume(tmp_path / "ct")


def test_slopes_that_are_not_whole_give_single_precision(tmp_path):
    write_series(tmp_path / "pet", change=lambda n, s: setattr(s, "RescaleSlope", str(0.5 + n / 4)), RescaleIntercept=0)
    volume = read_volume(tmp_path / "pet")
    assert volume.array.dtype == np.float32
    expected = voxels() * (0.5 + np.arange(6) / 4)[:, None, None]
    np.testing.assert_allclose(volume.array[0], expected, rtol=1e-6)


def test_convert_writes_what_is_regular_and_names_the_rest(tmp_path):
    write_series(tmp_path / "in" / "p1" / "ct")
    write_series(tmp_path / "in" / "p2" / "ct", change=FAULTS["missing"][0])
    write_series(tmp_path / "in" / "p3", uid="1.2.3.1")
    write_series(tmp_path / "in" / "p3b", uid="1.2.3.2", change=FAULTS["tilt"][0])
    done = {c.series: c for c in segpipe.convert(tmp_path / "in", tmp_path / "out")}
    assert set(done) == {"p1_ct", "p2_ct", "p3", "p3b"}
    assert "missing slice" in done["p2_ct"].reason
    assert "gantry tilt" in done["p3b"].reason
    volume = read_volume(tmp_path / "out" / "p1_ct.nii.gz")
    np.testing.assert_array_equal(volume.array[0], voxels().astype(int) - 1024)
    sidecar = Sidecar.read(done["p1_ct"].sidecar)
    assert (sidecar.patient["PatientID"], sidecar.series["SeriesNumber"]) == ("P1", "3")
    assert [s.position_mm[2] for s in sidecar.slices] == [100 + 2.5 * i for i in range(6)]
    assert all((tmp_path / "in" / s.file).is_file() for s in sidecar.slices)
    assert len({s.sop_instance_uid for s in sidecar.slices}) == 6
    # What a second run meets is its own; a file of somebody else's is not overwritten.
    assert sum(c.reason is None for c in segpipe.convert(tmp_path / "in", tmp_path / "out")) == 2
    (tmp_path / "out" / "p1_ct.json").write_text(json.dumps({"mine": 1}), encoding="utf-8")
    again = {c.series: c for c in segpipe.convert(tmp_path / "in", tmp_path / "out")}
    assert "is there already and is not this series" in again["p1_ct"].reason
    with pytest.raises(DatasetError, match="no DICOM image"):
        segpipe.convert(tmp_path / "out", tmp_path / "x")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken_gantrytilting", r"leans by 14\.00 degrees"),
        ("broken_missing_slice", r"missing slice\(s\): 1 between -15\.876 and -9\.876 mm, where slices are 3\.000 mm"),
        ("broken_notavolume", r"4 images at position 61\.500 mm.*AcquisitionNumber \(12, 13, 14, 15\)"),
        ("broken_slicecount", r"2 slice\(s\), at 102\.794, 103\.794 mm"),
        ("broken_sliceorientation", "mixed orientations: 2 image.*2 image"),
    ],
)
def test_broken_series_of_real_scanners(data, name, message):
    with pytest.raises(IrregularSeriesError, match=message):
        read_volume(data / "dicom" / name)


@pytest.mark.data
@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
def test_an_enhanced_image_is_its_classic_series(data, size):
    folder = data / "dicom/ct_3_slices_with_seg/segmentations" / size
    classic, enhanced = read_volume(folder / "image"), read_volume(folder / "multiframe")
    np.testing.assert_array_equal(enhanced.array, classic.array)
    assert enhanced.grid == classic.grid
