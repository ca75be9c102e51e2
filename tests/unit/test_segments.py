"""Segmentations as 3D Slicer saves them: names, numbers, layers, and the part of the image around the labels."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

import segpipe
from segpipe.core.labels import Labels, Target
from segpipe.core.volume import Volume
from segpipe.dataset.grids import LabelFile, labels_exactly_on, onto_axes_of
from segpipe.dataset.load import read_label_file
from segpipe.dataset.segments import segments_of
from segpipe.errors import CaseError, GeometryMismatchError
from segpipe.io.formats import write_volume
from tests.phantoms import axis_grid

GRID = axis_grid((4, 5, 6))


def seg_nrrd(path, layers, segments, grid=GRID):
    """A file as Slicer writes it: layers (C, Z, Y, X); segments as (name, layer, value)."""
    matrix = grid.affine[:3, :3] * np.array([[-1], [-1], [1]])
    directions = " ".join(f"({','.join(map(str, matrix[:, axis]))})" for axis in (2, 1, 0))
    origin = np.array(grid.origin_mm) * [-1, -1, 1]
    n = len(layers)
    kind = {1: "unsigned char", 2: "unsigned short"}[layers.dtype.itemsize]
    sizes = [*([n] if n > 1 else []), *layers.shape[:0:-1]]
    lines = [
        "NRRD0004", f"type: {kind}", f"dimension: {len(sizes)}", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}", f"space directions: {'none ' if n > 1 else ''}{directions}",
        f"kinds: {'list ' if n > 1 else ''}domain domain domain", "endian: little", "encoding: raw",
        f"space origin: ({','.join(map(str, origin))})",
    ]  # fmt: skip
    for number, segment in enumerate(segments):
        name, *where = segment
        lines += [f"Segment{number}_ID:=Segment_{number}", f"Segment{number}_Name:={name}"]
        lines += [f"Segment{number}_{key}:={v}" for key, v in zip(("Layer", "LabelValue"), where, strict=False)]
    voxels = (np.moveaxis(layers, 0, -1) if n > 1 else layers[0]).tobytes()
    path.write_bytes(("\n".join([*lines, "", ""])).encode() + voxels)
    return path


def layers_of(*boxes):
    """Layers, each of ((slices, value), ...)."""
    layers = np.zeros((len(boxes), *GRID.shape), dtype=np.uint8)
    for layer, parts in zip(layers, boxes, strict=True):
        for where, value in parts:
            layer[where] = value
    return layers


LOW, HIGH = np.s_[:2], np.s_[2:]
PLAIN = Labels.plain({"background": 0, "Left lung": 3, "tumour": 7})


def test_the_file_is_read_as_itk_reads_it(tmp_path):
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers_of([(LOW, 1)], [(HIGH, 1)]), [("a", 0, 1), ("b", 1, 1)])
    image = sitk.ReadImage(str(path))
    assert image.GetNumberOfComponentsPerPixel() == 2
    assert sitk.GetArrayFromImage(image)[0, 0, 0].tolist() == [1, 0]


def test_a_declared_name_decides_whatever_the_number(tmp_path):
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers_of([(LOW, 1), (HIGH, 2)]), [("tumour", 0, 1), ("left_lung", 0, 2)])
    label = read_label_file("a", path, PLAIN)
    assert label.volume.array[0, 0, 0, 0] == 7
    assert label.volume.array[0, 3, 0, 0] == 3
    (note,) = label.notes
    assert "tumour = 7" in note.message


def test_without_declared_names_the_numbers_are_the_labels(tmp_path):
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers_of([(LOW, 2), (HIGH, 9)]), [("x", 0, 2)])
    for declared in (None, PLAIN):
        label = read_label_file("a", path, declared)
        assert np.unique(label.volume.array).tolist() == [2, 9]
        assert "x = 2" in label.notes[0].message


def test_layers_without_an_overlap_are_one_label_map(tmp_path):
    path = seg_nrrd(
        tmp_path / "a.seg.nrrd", layers_of([(np.s_[0], 1)], [(np.s_[3], 1)]), [("tumour", 0, 1), ("left lung", 1, 1)]
    )
    assert read_label_file("a", path, PLAIN).volume.array[0, :, 0, 0].tolist() == [7, 0, 0, 3]


def test_files_without_layers_and_values_have_a_layer_for_each_segment(tmp_path):
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers_of([(np.s_[0], 1)], [(np.s_[3], 1)]), [("tumour",), ("left lung",)])
    assert read_label_file("a", path, PLAIN).volume.array[0, :, 0, 0].tolist() == [7, 0, 0, 3]


def test_segments_of_what_is_set_aside_need_no_declared_structure(tmp_path):
    segments = [("tumour", 0, 1), ("Background", 0, 2), ("ignore", 0, 3)]
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers_of([(np.s_[0], 1), (np.s_[1], 2), (np.s_[2], 3)]), segments)
    declared = Labels.plain({"tumour": 7}, ignore=9)
    assert read_label_file("a", path, declared).volume.array[0, :, 0, 0].tolist() == [7, 0, 9, 0]


def test_more_segments_than_a_number_has_bits(tmp_path):
    n = 100
    layers = np.arange(120, dtype=np.uint8).reshape(1, *GRID.shape) % (n + 1)
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers, [(f"s{i}", 0, i) for i in range(1, n + 1)])
    declared = Labels.plain({"background": 0, **{f"s{i}": n + 1 - i for i in range(1, n + 1)}})
    expected = np.where(layers == 0, 0, n + 1 - layers.astype(int))
    np.testing.assert_array_equal(read_label_file("a", path, declared).volume.array, expected)


REGIONS = Labels(
    targets=(
        Target(name="whole", values=(1, 2, 3), paint=1),
        Target(name="core", values=(2, 3), paint=2),
        Target(name="active", values=(3,), paint=3),
    ),
    regions=True,
    background=0,
    ignore=None,
    n_entries=4,
)


def test_overlapping_segments_take_the_value_that_belongs_to_all_their_regions(tmp_path):
    layers = layers_of([(np.s_[:3], 1)], [(np.s_[:2], 1)], [(np.s_[:1], 1)])
    path = seg_nrrd(tmp_path / "a.seg.nrrd", layers, [("Whole", 0, 1), ("Core", 1, 1), ("Active", 2, 1)])
    assert read_label_file("a", path, REGIONS).volume.array[0, :, 0, 0].tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("layers", "segments", "declared", "message"),
    [
        (layers_of([(LOW, 1)], [(np.s_[1:3], 1)]), [("tumour", 0, 1), ("left lung", 1, 1)], PLAIN,
         r"'left lung', 'tumour' overlap in 30 voxel\(s\).*declare regions"),
        (layers_of([(LOW, 1)], [(np.s_[1:3], 2)]), [("a", 0, 1), ("b", 1, 2)], None, r"'a', 'b' overlap in 30 voxel"),
        (layers_of([(LOW, 1)], [(HIGH, 1)]), [("a", 0, 1), ("b", 1, 1)], None, "a = 1 in layer 0, b = 1 in layer 1"),
        (layers_of([(LOW, 1)]), [("tumour", 0, 1), ("bone", 0, 2)], PLAIN, "'tumour', 'bone'; declared are"),
        (layers_of([(LOW, 5)]), [("tumour", 0, 1)], PLAIN, r"value\(s\) \[5\] in layer 0, which no segment"),
        (layers_of([(LOW, 1)]), [("tumour", 1, 1)], PLAIN, r"in layer 1, the file has 1 layer"),
        (layers_of([(LOW, 1)]), [("Core", 0, 1)], REGIONS, r"60 voxel\(s\) belong to 'Core' alone"),
    ],
)  # fmt: skip
def test_what_one_value_cannot_express_is_refused(tmp_path, layers, segments, declared, message):
    with pytest.raises(CaseError, match=message):
        read_label_file("a", seg_nrrd(tmp_path / "a.seg.nrrd", layers, segments), declared)


def test_a_part_of_the_lattice_is_placed(tmp_path):
    part = np.ones((2, 2, 3), dtype=np.uint8)
    grid = GRID.cropped((slice(1, 3), slice(2, 4), slice(0, 3)))
    seg_nrrd(tmp_path / "a.seg.nrrd", part[None], [("x", 0, 1)], grid)
    placed = onto_axes_of("a", "image", GRID, "label", read_label_file("a", tmp_path / "a.seg.nrrd"))
    expected = np.zeros(GRID.shape, dtype=np.uint8)
    expected[1:3, 2:4, 0:3] = 1
    np.testing.assert_array_equal(placed.array, expected)
    (note,) = placed.notes
    assert note.severity == "note"
    assert "2x2x3 of the 4x5x6" in note.message
    # The same in a file that holds the whole image as a rule.
    write_volume(tmp_path / "a.nii", part, grid)
    plain = read_label_file("a", tmp_path / "a.nii")
    assert onto_axes_of("a", "image", GRID, "label", plain).notes[0].severity == "warning"
    with pytest.raises(GeometryMismatchError, match=r"covers 2x2x3 .*expected the whole grid"):
        labels_exactly_on("a", "prediction", GRID, "reference", plain)


@pytest.mark.parametrize("shift", [0.5, 3])
def test_a_part_that_would_lose_labels_is_another_grid(shift):
    grid = GRID.cropped((slice(1, 3), slice(2, 4), slice(0, 3)))
    moved = axis_grid(grid.shape, origin=(*grid.origin_mm[:2], grid.origin_mm[2] + 2 * shift))
    label = LabelFile(Volume(np.ones((1, *moved.shape), dtype=np.uint8), moved), may_be_part=True)
    with pytest.raises(GeometryMismatchError, match="expected the same grid"):
        onto_axes_of("a", "image", GRID, "label", label)


def test_a_label_of_slicer_belongs_to_the_image_of_its_name(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    write_volume(tmp_path / "images" / "CT.nrrd", np.arange(120, dtype=np.int16).reshape(GRID.shape), GRID)
    seg_nrrd(tmp_path / "labels" / "CT.seg.nrrd", layers_of([(LOW, 1)]), [("tumour", 0, 1)])
    declared = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 7}}
    (tmp_path / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    found = segpipe.check(tmp_path, work=tmp_path.parent / f"{tmp_path.name}_work", jobs=1)
    assert [c.id for c in found.dataset.cases] == ["CT"]
    assert [(f.severity, f.rule) for f in found.findings] == [("note", "label file")]


@pytest.mark.data
def test_a_real_segmentation_of_two_layers(data):
    path = data / "odd2" / "slicer" / "SegmentationOverlapping.seg.nrrd"
    with pytest.raises(CaseError, match="overlapping sphere = 1 in layer 1"):
        read_label_file("a", path)
    names = [
        "ribs",
        "cervical vertebral column",
        "thoracic vertebral column",
        "lumbar vertebral column",
        "right lung",
        "left lung",
        "tissue",
    ]
    declared = Labels.plain({"background": 0, **{n: i + 1 for i, n in enumerate(names)}, "overlapping sphere": 8})
    with pytest.raises(CaseError, match=r"'overlapping sphere', .* overlap in \d+ voxel"):
        read_label_file("a", path, declared)


@pytest.mark.parametrize("value", ["", "x", "1.5", "-1"])
def test_a_value_that_is_no_number_is_named(value):
    with pytest.raises(CaseError, match=r"label a\.seg\.nrrd: Segment0_LabelValue is .*expected a number"):
        segments_of("a.seg.nrrd", {"Segment0_Name": "liver", "Segment0_LabelValue": value})
