"""Several regular volumes in one series: told apart and written one by one, or refused with what is stated."""

import numpy as np
import pytest

import segpipe
from segpipe.dataset.convert import Sidecar
from segpipe.errors import IrregularSeriesError
from segpipe.io.dicom_times import acquired
from segpipe.io.formats import header_notes, read_header, read_volume
from tests.dicoms import item, voxels, write_enhanced, write_series

N, SLICES = 3, 4


def series(tmp_path, tell, *, n=N, array=None, interleaved=False, **attributes):
    """Write ``n`` volumes as one series, ``tell(volume, slice_number, dataset)`` telling them apart."""
    array = voxels(n * SLICES) if array is None else array

    def place(number, image):
        volume, z = (number % n, number // n) if interleaved else divmod(number, SLICES)
        image.ImagePositionPatient = [-20.0, -30.0, 100.0 + 2.5 * z]
        return tell(volume, z, image)

    write_series(tmp_path / "mr", array, change=place, Modality="MR", RescaleIntercept=0, **attributes)
    return array.reshape(SLICES, n, 8, 10).swapaxes(0, 1) if interleaved else array.reshape(n, SLICES, 8, 10)


def stated(name, values):
    return lambda volume, _z, image: setattr(image, name, values[volume])


def siemens_b(volume, _z, image):
    image.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", str((0, 500, 1000)[volume]))


def canon_b(volume, _z, image):
    """No b-value where it is 0."""
    if volume:
        image.add_new((0x0018, 0x9087), "FD", (0.0, 500.0, 1000.0)[volume])


def directions(volume, _z, image):
    image.add_new((0x0018, 0x9087), "FD", 1000.0 if volume else 0.0)
    if volume:
        image.add_new((0x0018, 0x9089), "FD", [0.0, 0.6, 0.8] if volume == 1 else [1.0, 0.0, 0.0])


def cine(volume, z, image):
    """The heart beats faster or slower from slice to slice."""
    image.TriggerTime = volume * (30 + z)


def dynamic(volume, z, image):
    image.AcquisitionTime = f"1200{volume * 20 + 2 * z:02d}.5"


def two_things(volume, _z, image):
    image.EchoTime = (4.6, 7.0, 7.0)[volume]
    image.ImageType = ["ORIGINAL", "PRIMARY", "MMP"[volume], "ND"]


TOLD_APART = {
    "time": (stated("TemporalPositionIdentifier", [1, 2, 3]), ["t1", "t2", "t3"]),
    "echo": (stated("EchoTime", [2.3, 4.6, 6.9]), ["e1", "e2", "e3"]),
    "close echoes": (stated("EchoTime", [30.0, 30.4, 30.8]), ["e1", "e2", "e3"]),
    "b-value": (siemens_b, ["b0", "b500", "b1000"]),
    "b-value, none for 0": (canon_b, ["b0", "b500", "b1000"]),
    "directions": (directions, ["b0", "b1000_d1", "b1000_d2"]),
    "cine": (cine, ["t1", "t2", "t3"]),
    "acquisition": (stated("AcquisitionNumber", [4, 5, 6]), ["a1", "a2", "a3"]),
    "dynamic": (dynamic, ["t1", "t2", "t3"]),
    "gates": (stated("TriggerTime", [0, 250, 500]), ["t1", "t2", "t3"]),
    "part": (stated("ImageType", [["O", "P", "M"], ["O", "P", "P"], ["O", "P", "R"]]), ["magnitude", "phase", "real"]),
    "water and fat": (
        stated("ImageType", [["O", "P", "WATER"], ["O", "P", "FAT"], ["O", "P", "IN_PHASE"]]), ["water", "fat", "in_phase"]
    ),
    "echo and part": (two_things, ["e1", "e2_magnitude", "e2_phase"]),
    "kernel": (stated("ConvolutionKernel", ["B30f", "B60f", "I70f\\3"]), ["b30f", "b60f", "i70f_3"]),
    "inversion": (stated("InversionTime", [100, 500, 900]), ["ti1", "ti2", "ti3"]),
}  # fmt: skip


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", TOLD_APART)
def test_each_volume_of_a_series_is_written(tmp_path, name, interleaved):
    tell, suffixes = TOLD_APART[name]
    expected = series(tmp_path, tell, interleaved=interleaved)
    done = segpipe.convert(tmp_path / "mr", tmp_path / "out")
    assert [c.reason for c in done] == [None] * N
    assert sorted(c.output.name for c in done) == sorted(f"mr_{suffix}.nii.gz" for suffix in suffixes)
    for volume, suffix in enumerate(suffixes):
        written = read_volume(tmp_path / "out" / f"mr_{suffix}.nii.gz")
        np.testing.assert_array_equal(written.array[0], expected[volume])
        assert written.grid.spacing_mm == pytest.approx((2.5, 0.8, 0.5))
        sidecar = Sidecar.read(tmp_path / "out" / f"mr_{suffix}.json")
        assert len(sidecar.slices) == SLICES
        assert f"one of {N} volumes of its series" in sidecar.notes[0]
        assert not any("missing" in note for note in sidecar.notes)
    # A second run meets its own files.
    assert [c.reason for c in segpipe.convert(tmp_path / "mr", tmp_path / "out")] == [None] * N


def test_such_a_folder_is_no_image_and_the_way_out_is_said(tmp_path):
    series(tmp_path, stated("TemporalPositionIdentifier", [1, 2, 3]))
    with pytest.raises(
        IrregularSeriesError,
        match=r"TemporalPositionIdentifier \(1, 2, 3\).*these are 3 volumes of 4 slices \(t1, t2, t3\); `segpipe convert` writes each",
    ):
        read_header(tmp_path / "mr")


LATE = (("20260101", "235950"), ("20260101", "235955"), ("20260102", "000006"))


def over_midnight(**names):
    """Three volumes, each slice a second later; date and time under the given names, ``{d}`` and ``{t}`` in them."""

    def tell(volume, z, image):
        day, begin = LATE[volume]
        for name, value in names.items():
            setattr(image, name, value.format(d=day, t=f"{int(begin) + z:06d}.25"))

    return tell


MIDNIGHTS = {
    "date": over_midnight(AcquisitionDate="{d}", AcquisitionTime="{t}"),
    "date and time": over_midnight(AcquisitionDateTime="{d}{t}"),
    "with the difference to UTC": over_midnight(AcquisitionDateTime="{d}{t}+0100", AcquisitionTime="{t}"),
    "content": over_midnight(ContentDate="{d}", ContentTime="{t}", AcquisitionTime="{t}"),
    "content of the next day": over_midnight(ContentDate="20260102", ContentTime="000100", AcquisitionTime="{t}"),
    "content of the day before": over_midnight(ContentDate="20260101", ContentTime="235900", AcquisitionTime="{t}"),
}


@pytest.mark.parametrize("name", MIDNIGHTS)
def test_times_over_midnight_are_in_the_order_of_their_dates(tmp_path, name):
    expected = series(tmp_path, MIDNIGHTS[name])
    done = segpipe.convert(tmp_path / "mr", tmp_path / "out")
    assert [(c.reason, c.output.name) for c in done] == [(None, f"mr_t{n}.nii.gz") for n in (1, 2, 3)]
    for number, converted in enumerate(done):
        np.testing.assert_array_equal(read_volume(converted.output).array[0], expected[number])


@pytest.mark.parametrize(
    "tell",
    [
        over_midnight(AcquisitionTime="{t}"),
        over_midnight(AcquisitionDate="20000101", AcquisitionTime="{t}"),
        lambda v, z, i: over_midnight(**({"AcquisitionDate": "{d}"} if z else {}), AcquisitionTime="{t}")(v, z, i),
    ],
    ids=["no date", "one date for all", "some dates"],
)
def test_times_over_midnight_without_their_dates_have_no_order(tmp_path, tell):
    series(tmp_path, tell)
    (converted,) = segpipe.convert(tmp_path / "mr", tmp_path / "out")
    assert "AcquisitionTime" in converted.reason
    assert "no attribute separates them into whole volumes" in converted.reason


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"AcquisitionTime": "1201"}, {"AcquisitionTime": 120100.0}),
        ({"AcquisitionTime": "12:01:02.5", "AcquisitionDate": "2026.01.02"}, {"AcquisitionTime": 120102.5, "AcquisitionDate": 20260102.0}),
        ({"AcquisitionTime": ["120102", "130102"], "AcquisitionDate": "20261399"}, {"AcquisitionTime": 120102.0}),
        ({"AcquisitionDateTime": "20260102", "AcquisitionTime": "120102"}, {"AcquisitionTime": 120102.0}),
        ({"AcquisitionTime": b"12"}, {}),
        ({"AcquisitionTime": "noon", "AcquisitionDate": "20260102"}, {}),
        ({"FrameAcquisitionDateTime": "20260102120102-0500"}, {"AcquisitionTime": 120102.0, "AcquisitionDate": 20260102.0}),
    ],
)  # fmt: skip
def test_dates_and_times_as_files_state_them(stated, expected):
    assert acquired(stated.get) == expected


def nothing(_volume, _z, _image):
    return None


def one_lost(volume, z, image):
    image.TemporalPositionIdentifier = volume + 1
    return (volume, z) != (1, 2)


def only_instance_numbers(volume, z, image):
    image.InstanceNumber = 100 * volume + z


def slices_own(volume, z, image):
    """Varies from slice to slice as well, so that no value is at every position."""
    image.TemporalPositionIdentifier = 10 * z + volume


@pytest.mark.parametrize(
    ("tell", "message"),
    [
        (nothing, "3 images at position 100.000 mm.*no attribute separates them into whole volumes"),
        (only_instance_numbers, r"they differ in InstanceNumber.*no attribute separates"),
        (one_lost, r"they differ in TemporalPositionIdentifier \(1, 2, 3\).*no attribute separates"),
        (slices_own, "they differ in TemporalPositionIdentifier.*no attribute separates"),
    ],
)
def test_volumes_that_nothing_separates_are_refused(tmp_path, tell, message):
    series(tmp_path, tell)
    (done,) = segpipe.convert(tmp_path / "mr", tmp_path / "out")
    assert done.output is None
    with pytest.raises(IrregularSeriesError, match=message):
        read_header(tmp_path / "mr")


def test_each_volume_must_be_regular(tmp_path):
    def gap(volume, z, image):
        image.TemporalPositionIdentifier = volume + 1
        return z != 2

    array = voxels(3 * 5)

    def place(number, image):
        image.ImagePositionPatient = [-20.0, -30.0, 100.0 + 2.5 * (number % 5)]
        return gap(number // 5, number % 5, image)

    write_series(tmp_path / "mr", array, change=place)
    (done,) = segpipe.convert(tmp_path / "mr", tmp_path / "out")
    assert "missing slice(s): 1 between 102.500 and 107.500" in done.reason


def test_names_of_volumes_and_series_never_collide(tmp_path):
    series(tmp_path / "in", stated("TemporalPositionIdentifier", [1, 2, 3]))
    write_series(tmp_path / "in" / "mr_t1")
    done = segpipe.convert(tmp_path / "in", tmp_path / "out")
    assert [c.reason for c in done] == [None] * 4
    assert len({c.output for c in done}) == len(list((tmp_path / "out").glob("*.nii.gz"))) == 4


def enhanced(tmp_path, tell, n=2):
    array = voxels(n * SLICES)

    def change(number, frame):
        volume, z = number % n, number // n
        frame.PlanePositionSequence = [item(ImagePositionPatient=[-20.0, -30.0, 100.0 + 2.5 * z])]
        tell(volume, z, frame)

    return write_enhanced(tmp_path / "e.dcm", array, change), array.reshape(SLICES, n, 8, 10).swapaxes(0, 1)


def magnitude_and_phase(volume, _z, frame):
    """As Philips writes field maps: each part with a slope of its own."""
    part = ("MAGNITUDE", "PHASE")[volume]
    frame.MRImageFrameTypeSequence = [item(FrameType=["ORIGINAL", "PRIMARY", "X", "NONE"], ComplexImageComponent=part)]
    frame.PixelValueTransformationSequence[0].RescaleSlope = 1 + volume
    frame.PixelValueTransformationSequence[0].RescaleIntercept = -100 * volume


def in_macro(macro, **values):
    def tell(volume, _z, frame):
        setattr(frame, macro, [item(**{k: v[volume] for k, v in values.items()})])

    return tell


ENHANCED = {
    "part": (magnitude_and_phase, ["magnitude", "phase"]),
    "echo": (in_macro("MREchoSequence", EffectiveEchoTime=[5.0, 10.0]), ["e1", "e2"]),
    "b-value": (in_macro("MRDiffusionSequence", DiffusionBValue=[0.0, 800.0]), ["b0", "b800"]),
    "time": (in_macro("FrameContentSequence", TemporalPositionIndex=[1, 2]), ["t1", "t2"]),
    "heart": (in_macro("CardiacSynchronizationSequence", NominalCardiacTriggerDelayTime=[0.0, 40.0]), ["t1", "t2"]),
    "label": (in_macro("MRArterialSpinLabelingSequence", ASLContext=["LABEL", "CONTROL"]), ["label", "control"]),
}


@pytest.mark.parametrize("name", ENHANCED)
def test_each_volume_of_an_enhanced_image_is_written(tmp_path, name):
    tell, suffixes = ENHANCED[name]
    path, expected = enhanced(tmp_path, tell)
    done = segpipe.convert(path, tmp_path / "out")
    assert sorted(c.output.name for c in done if c.output) == sorted(f"e_{suffix}.nii.gz" for suffix in suffixes)
    for volume, suffix in enumerate(suffixes):
        wanted = expected[volume].astype(int) * 2 - 100 if suffix == "phase" else expected[volume]
        np.testing.assert_array_equal(read_volume(tmp_path / "out" / f"e_{suffix}.nii.gz").array[0], wanted)


def test_what_a_private_sequence_says_tells_nothing_apart(tmp_path):
    def tell(volume, _z, frame):
        frame.add_new((0x2005, 0x0014), "LO", "Philips MR Imaging DD 005")
        frame.add_new((0x2005, 0x140F), "SQ", [item(EchoTime=float(volume + 1))])

    path, _ = enhanced(tmp_path, tell)
    with pytest.raises(IrregularSeriesError, match="no attribute separates them"):
        read_header(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("EchoTime", ["2.249", "2.251"]), ("EchoTime", ["9.4", "9.5"]),
        ("PixelSpacing", [[0.80004999, 0.5], [0.80005001, 0.5]]),
        ("ImageOrientationPatient", [[1, 0, 0, 0, 1, 0], [1, 1e-6, 0, -1e-6, 1, 0]]),
    ],
)  # fmt: skip
def test_differences_of_rounding_do_not_cost_a_volume(tmp_path, name, values):
    write_series(tmp_path / "mr", change=lambda n, s: setattr(s, name, values[n % 2]))
    assert read_header(tmp_path / "mr").grid.shape == (6, 8, 10)
    assert header_notes(tmp_path / "mr") == []


def test_numbers_in_steps_of_two_without_a_stated_distance_are_a_warning(tmp_path):
    write_series(tmp_path / "ct", change=lambda n, s: n % 2 == 0)
    (note,) = header_notes(tmp_path / "ct")
    assert note.severity == "warning"
    assert "numbered in steps of 2 (1, 3, ...)" in note.message
    write_series(tmp_path / "known", change=lambda n, s: n % 2 == 0, SpacingBetweenSlices=5)
    assert header_notes(tmp_path / "known") == []


def test_a_lean_that_moves_the_stack_by_more_than_a_pixel_is_said(tmp_path):
    def lean(per_slice):
        return lambda n, s: setattr(s, "ImagePositionPatient", [per_slice * n, 0, 2.5 * n])

    write_series(tmp_path / "much", voxels(30), change=lean(0.02))
    assert "leans by 0.458 degrees: its last slice lies 0.58 mm beside" in header_notes(tmp_path / "much")[0].message
    write_series(tmp_path / "little", voxels(30), change=lean(0.002))
    assert header_notes(tmp_path / "little") == []
