import json
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from segpipe.core.labels import Labels
from segpipe.dataset.grids import require_same_grid
from segpipe.dataset.load import labels_on, load_image, read_label_file
from segpipe.dataset.match import match_dataset
from segpipe.dataset.schema import FileStamp
from segpipe.errors import GeometryMismatchError, UnreadableFileError
from segpipe.io.formats import (
    content_of,
    header_notes,
    read_header,
    read_label_volume,
    read_volume,
    write_labels_like,
    write_volume,
)
from tests.tiffs import page_tags, write_tiff

STACK = np.random.default_rng(0).integers(0, 60000, (5, 6, 7)).astype(np.uint16)


def ome(path, array=STACK, axes="ZYX", **sizes):
    stated = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0} | sizes
    metadata = {"axes": axes} | {k: v for k, v in stated.items() if v is not None}
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata)
    return path


def imagej(path, array=STACK, axes="ZYX", unit="um", **more):
    metadata = {"axes": axes, "spacing": 2.0, "unit": unit} | more
    tifffile.imwrite(path, array, imagej=True, resolution=(2, 4), metadata=metadata)
    return path


def plain(path, array=STACK, spacing=None, beside=None):
    tifffile.imwrite(path, array, photometric="minisblack", ome=False)
    if spacing is not None:
        path.with_name(beside or f"{path.stem}.json").write_text(json.dumps({"spacing": spacing}), encoding="utf-8")
    return path


def require_stack(path, spacing, array=STACK):
    volume, header = read_volume(path), read_header(path)
    np.testing.assert_array_equal(volume.array[0], array)
    assert volume.grid.spacing_mm == pytest.approx(spacing)
    assert (header.grid, header.n_channels) == (volume.grid, 1)


@pytest.mark.parametrize(
    ("unit", "mm"), [(None, 1e-3), ("\u00b5m", 1e-3), ("nm", 1e-6), ("mm", 1.0), ("cm", 10.0), ("\u00c5", 1e-7)]
)
def test_ome_states_the_voxel_size(tmp_path, unit, mm):
    units = {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    require_stack(ome(tmp_path / "a.ome.tif", **units), (2 * mm, 0.25 * mm, 0.5 * mm))
    assert header_notes(tmp_path / "a.ome.tif") == []


@pytest.mark.parametrize(
    ("unit", "mm"), [("um", 1e-3), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("mm", 1.0), ("inch", 25.4)]
)
def test_imagej_states_the_voxel_size(tmp_path, unit, mm):
    require_stack(imagej(tmp_path / "a.tif", unit=unit), (2 * mm, 0.25 * mm, 0.5 * mm))
    assert header_notes(tmp_path / "a.tif") == []


@pytest.mark.parametrize(
    ("image", "beside"),
    [("c_0000.tif", "c.json"), ("c.tiff", "c.json"), ("c_0000.tif", "c_0000.json"), ("c_0000.ome.tif", "c.json")],
)
def test_the_json_of_nnunet_states_the_voxel_size(tmp_path, image, beside):
    require_stack(plain(tmp_path / image, spacing=[3, 0.5, 0.25], beside=beside), (3, 0.5, 0.25))
    before = FileStamp.of(tmp_path / image), content_of([tmp_path / image])
    (tmp_path / beside).write_text(json.dumps({"spacing": [4, 0.5, 0.25], "more": 1}), encoding="utf-8")
    assert FileStamp.of(tmp_path / image) != before[0]
    assert content_of([tmp_path / image]) != before[1]


def test_the_json_is_believed_and_a_contradiction_said(tmp_path):
    path = ome(tmp_path / "a.tif", **{f"PhysicalSize{a}Unit": "mm" for a in "XYZ"})
    (tmp_path / "a.json").write_text('{"spacing": [2, 0.25, 0.5]}', encoding="utf-8")
    assert header_notes(path) == []
    (tmp_path / "a.json").write_text('{"spacing": [2, 0.25, 0.6]}', encoding="utf-8")
    require_stack(path, (2, 0.25, 0.6))
    (note,) = header_notes(path)
    assert note.severity == "warning"
    assert "a.json states voxels of 2 x 0.25 x 0.6 mm, OME-XML in the file 2 x 0.25 x 0.5 mm" in note.message


@pytest.mark.parametrize("make", [plain, lambda p: imagej(p, unit="pixel"), lambda p: imagej(p, unit="")])
def test_where_no_size_is_stated_voxels_of_1_mm_are_assumed_with_a_warning(tmp_path, make):
    make(tmp_path / "a.tif")
    require_stack(tmp_path / "a.tif", (1, 1, 1))
    (note,) = header_notes(tmp_path / "a.tif")
    assert note.severity == "warning"
    assert "5 pages, and no voxel size is stated" in note.message


def test_another_json_beside_it_is_none_of_its(tmp_path):
    plain(tmp_path / "a.tif")
    (tmp_path / "a.json").write_text('{"shapes": []}', encoding="utf-8")
    require_stack(tmp_path / "a.tif", (1, 1, 1))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda p: ome(p, PhysicalSizeZ=None), "states no PhysicalSizeZ"),
        (lambda p: ome(p, PhysicalSizeX=-1.0), r"PhysicalSizeX is -1"),
        (lambda p: ome(p, PhysicalSizeXUnit="furlong"), "unit of PhysicalSizeX is 'furlong'"),
        (lambda p: imagej(p, spacing=-2.0), "spacing is -2"),
        (lambda p: imagej(p, axes="TYX"), "5 points in time"),
        (lambda p: ome(p, axes="TYX"), "5 points in time"),
        (lambda p: plain(p, spacing=[1, 1]), r"expected three positive numbers \[z, y, x\]"),
        (lambda p: plain(p, spacing=[1, 0, 1]), "expected three positive numbers"),
        (lambda p: plain(p, np.zeros((2, 3, 4, 5), np.uint8)), r"2 axes of slices \(Q of 2, Q of 3\)"),
    ],
)
def test_what_cannot_be_a_volume_is_refused(tmp_path, make, found):
    make(tmp_path / "a.tif")
    for read in (read_header, read_volume, read_label_volume):
        with pytest.raises(UnreadableFileError, match=found):
            read(tmp_path / "a.tif")


def test_planes_in_other_files_are_refused(tmp_path):
    for name, planes in (("a", STACK[:3]), ("b", STACK[3:])):
        parts = "".join(
            f'<TiffData IFD="0" FirstZ="{first}" PlaneCount="{n}"><UUID FileName="{file}.ome.tif">urn:uuid:{file}</UUID></TiffData>'
            for file, first, n in (("a", 0, 3), ("b", 3, 2))
        )
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{name}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
            f'SizeX="7" SizeY="6" SizeC="1" SizeZ="5" SizeT="1">{parts}</Pixels></Image></OME>'
        )
        path = tmp_path / f"{name}.ome.tif"
        tifffile.imwrite(path, planes, photometric="minisblack", description=xml, metadata=None, ome=False)
    for read in (read_header, read_volume):
        with pytest.raises(UnreadableFileError, match="OME-XML does not fit the 3 page"):
            read(tmp_path / "a.ome.tif")


def test_a_stack_of_imagej_with_one_list_of_tags(tmp_path):
    """As ImageJ writes stacks over 4 GB: the planes follow each other, and one page stands for all."""
    text = b"ImageJ=1.54f\nimages=5\nslices=5\nunit=mm\nspacing=2.0\n\0"
    tags = page_tags((6, 7), STACK.astype("<u2").tobytes(), bits=16, t270=("B", list(text)), t279=("I", [84]))
    path = write_tiff(tmp_path / "a.tif", tags)
    require_stack(path, (2, 1, 1))
    tags[273] = ("I", STACK[:3].astype("<u2").tobytes())
    with pytest.raises(UnreadableFileError, match="ImageJ's description does not fit the 1 page"):
        read_volume(write_tiff(tmp_path / "b.tif", tags))


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
@pytest.mark.parametrize("make", [ome, imagej])
def test_channels_are_told_from_slices(tmp_path, axes, make):
    channels = np.random.default_rng(0).integers(0, 255, (2, 5, 6, 7)).astype(np.uint16)
    if make is imagej and axes == "CZYX":
        pytest.skip("ImageJ has one order of axes")
    make(tmp_path / "a.tif", channels.transpose(1, 0, 2, 3) if axes == "ZCYX" else channels, axes)
    volume = read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.array, channels)
    assert read_header(tmp_path / "a.tif").n_channels == 2
    assert volume.grid.spacing_mm == pytest.approx((0.002, 0.00025, 0.0005))


def test_a_stack_of_one_page_that_is_cut_off(tmp_path):
    """tifffile can store planes one after the other behind a single page."""
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", truncate=True)
    require_stack(tmp_path / "a.tif", (1, 1, 1))
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content[:-9])
    with pytest.raises(UnreadableFileError, match="cut off"):
        read_volume(tmp_path / "b.tif")


def test_a_stack_of_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 7, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array, np.moveaxis(pixels, -1, 0))
    assert read_header(tmp_path / "a.tif").n_channels == 3


@pytest.mark.parametrize("tiles", [{"tile": (16, 16)}, {"tile": (4, 16, 16), "volumetric": True}])
def test_tiles_of_stacks(tmp_path, tiles):
    stack = np.random.default_rng(0).integers(0, 60000, (5, 33, 47)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression="zlib", **tiles)
    require_stack(tmp_path / "a.tif", (1, 1, 1), stack)


def test_pages_of_different_kinds_are_refused(tmp_path):
    page, other = page_tags((4, 8), bytes(32)), page_tags((4, 8), bytes(64), bits=16)
    write_tiff(tmp_path / "a.tif", page, page, other, page)
    with pytest.raises(UnreadableFileError, match="holds 2 images"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("make", [ome, imagej, plain, lambda p: plain(p, spacing=[3, 0.5, 0.25])])
@pytest.mark.parametrize("name", ["c_0000.tif", "c.tif"])
def test_masks_lie_on_the_grid_of_their_image(tmp_path, make, name):
    (tmp_path / "out").mkdir()
    make(tmp_path / name)
    if (tmp_path / f"{name[:-4]}.json").exists():
        (tmp_path / f"{name[:-4]}.json").rename(tmp_path / "c.json")
    labels = (STACK > 30000).astype(np.uint8) * 2
    output = tmp_path / "out" / "c.tif"
    write_labels_like(tmp_path / name, output, labels)
    image = load_image("c", [tmp_path / name], ("ct",))
    again = read_label_file("c", output, Labels.plain({"background": 0, "a": 2}))
    np.testing.assert_array_equal(labels_on("c", image, again).array, labels)
    # Other programs know as much of the mask as of the image.
    assert sitk.ReadImage(str(output)).GetSize() == (7, 6, 5)
    assert sitk.ReadImage(str(output)).GetSpacing()[:2] == pytest.approx(
        sitk.ReadImage(str(tmp_path / name)).GetSpacing()[:2]
    )
    if (tmp_path / "c.json").exists():
        assert json.loads((tmp_path / "out/c.json").read_text(encoding="utf-8")) == {"spacing": [3, 0.5, 0.25]}
        (tmp_path / "out/c.json").unlink()
        assert read_header(output).grid == image.stored_grid
    first = output.read_bytes()
    write_labels_like(tmp_path / name, output, labels)
    assert output.read_bytes() == first


def test_a_mask_without_voxel_size_has_that_of_its_image(tmp_path):
    """Viewers save labels as pages alone."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    ome(tmp_path / "images/c.ome.tif")
    plain(tmp_path / "labels/c.tif", (STACK > 30000).astype(np.uint8))
    (case,) = match_dataset(tmp_path).cases
    assert case.id == "c"
    image = load_image("c", [tmp_path / "images/c.ome.tif"], ("grey",))
    np.testing.assert_array_equal(labels_on("c", image, read_label_file("c", case.label.path)).array, STACK > 30000)
    # The other way round nobody knows the size, and a score would be in the wrong unit.
    for other in (plain(tmp_path / "d.tif", STACK[:4]), imagej(tmp_path / "d.tif", STACK)):
        with pytest.raises(GeometryMismatchError):
            require_same_grid(
                "c", "prediction", read_header(case.label.path).grid, "reference", read_header(other).grid
            )


def test_a_json_that_is_something_else_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    plain(tmp_path / "c.tif", spacing=[1, 1, 2])
    (tmp_path / "out/c.json").write_text('{"reader": "A"}', encoding="utf-8")
    with pytest.raises(UnreadableFileError, match=r"c\.json: is there already"):
        write_labels_like(tmp_path / "c.tif", tmp_path / "out/c.tif", STACK.astype(np.uint8))
    assert json.loads((tmp_path / "out/c.json").read_text(encoding="utf-8")) == {"reader": "A"}


def test_values_that_an_imagej_stack_cannot_hold_are_refused(tmp_path):
    imagej(tmp_path / "a.tif")
    with pytest.raises(UnreadableFileError, match="over 65535 do not fit into an ImageJ stack"):
        write_labels_like(tmp_path / "a.tif", tmp_path / "b.tif", STACK.astype(np.uint32))


def test_a_new_stack_keeps_its_voxel_size(tmp_path):
    grid = read_header(ome(tmp_path / "a.tif")).grid
    write_volume(tmp_path / "b.tif", STACK, grid)
    require_stack(tmp_path / "b.tif", grid.spacing_mm)


def test_models_of_nnunet_see_the_voxel_size_that_nnunet_sees(tmp_path):
    ome(tmp_path / "a_0000.tif")
    as_stored = load_image("a", [tmp_path / "a_0000.tif"], ("ct",), "as_stored")
    assert as_stored.stored_grid.spacing_mm == (1, 1, 1)
    (tmp_path / "a.json").write_text('{"spacing": [3, 0.5, 0.25]}', encoding="utf-8")
    assert load_image("a", [tmp_path / "a_0000.tif"], ("ct",), "as_stored").stored_grid.spacing_mm == (3, 0.5, 0.25)


def test_a_stack_without_a_voxel_size_is_no_label_of_an_image_that_states_its_place(tmp_path):
    affine = np.diag([1.2, 1.5, 2.0, 1.0])
    affine[:3, 3] = (30, -40, 55)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(STACK.T), affine), tmp_path / "image.nii.gz")
    tifffile.imwrite(tmp_path / "label.tif", (STACK > 30000).astype(np.uint8))
    image = load_image("a", [tmp_path / "image.nii.gz"], ("grey",))
    with pytest.raises(GeometryMismatchError):
        labels_on("a", image, read_label_file("a", tmp_path / "label.tif"))


def unlike_pages():
    """Three pages of a stack of which the middle one differs in one tag that decides how it is decoded."""
    data = bytes(range(32))
    grey, mapped = page_tags((4, 8), data), page_tags((4, 8), data, photometric=3, t320=("H", [0] * 768))
    tiled = {k: v for k, v in page_tags((16, 16), bytes(256)).items() if k not in (273, 278, 279)}
    tiled |= {322: ("I", [16]), 323: ("I", [16]), 324: ("I", bytes(256)), 325: ("I", [256])}
    return {
        "ImageLength": (grey, page_tags((8, 8), bytes(64))),
        "BitsPerSample": (grey, page_tags((4, 8), bytes(64), bits=16)),
        "SampleFormat": (grey, grey | {339: ("H", [2])}),
        "Compression": (grey, page_tags((4, 8), zlib.compress(data), t259=("H", [8]))),
        "Predictor": (
            page_tags((4, 8), zlib.compress(data), t259=("H", [8])),
            page_tags((4, 8), zlib.compress(data), t259=("H", [8]), t317=("H", [2])),
        ),
        "PhotometricInterpretation": (grey, grey | {262: ("H", [0])}),
        "FillOrder": (page_tags((4, 8), bytes(4), bits=1), page_tags((4, 8), bytes(4), bits=1, t266=("H", [2]))),
        "ColorMap": (mapped, mapped | {320: ("H", [256] * 768)}),
        "TileWidth": (page_tags((16, 16), bytes(256)), tiled),
    }


@pytest.mark.parametrize("name", list(unlike_pages()))
def test_a_page_that_is_unlike_the_first_is_refused(tmp_path, name):
    like, unlike = unlike_pages()[name]
    # tifffile compares the second, the middle and the last page.
    pages = [like] * 12
    write_tiff(tmp_path / "a.tif", *pages)
    assert read_volume(tmp_path / "a.tif").array.shape[1] == 12
    pages[4] = unlike
    write_tiff(tmp_path / "b.tif", *pages)
    for read in (read_header, read_volume, read_label_volume):
        with pytest.raises(UnreadableFileError, match=f"page 5: its {name} is"):
            read(tmp_path / "b.tif")


def test_pages_that_state_the_same_in_other_ways_are_alike(tmp_path):
    page = page_tags((4, 8), bytes(range(32)))
    other = page | {278: ("I", [2**32 - 1]), 284: ("H", [1]), 339: ("H", [1]), 317: ("H", [1])}
    write_tiff(tmp_path / "a.tif", page, page, other, page)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "a.tif").array[0], np.arange(32).reshape(1, 4, 8).repeat(4, axis=0)
    )


@pytest.mark.parametrize("shape", [(1, 5, 32, 40), (5, 1, 32, 40), (5, 32, 40, 1), (1, 1, 5, 32, 40)])
def test_axes_of_one_are_passed_over(tmp_path, shape):
    stack = np.random.default_rng(0).integers(0, 255, (5, 32, 40)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack.reshape(shape), photometric="minisblack")
    require_stack(tmp_path / "a.tif", (1, 1, 1), stack)
    np.testing.assert_array_equal(read_label_volume(tmp_path / "a.tif").array[0], stack)


OTHERS_JSON = [
    '{"x": 1}\n{"x": 2}\n',
    "notes",
    "[1, 2",
    "",
    "\udcff",
]

DAMAGED_JSON = [
    '{"spacing": [1, 2',
    '{"a": {}, "spacing": [1, 2, 3], }',
    '{"spacing": [1, 1, 1]}\n{"spacing": [1, 1, 1]}',
]


@pytest.mark.parametrize("text", [*OTHERS_JSON, *DAMAGED_JSON, '{"spacing": "wide"}'])
def test_one_page_needs_no_json(tmp_path, text):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0])
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array[0, 0], STACK[0])
    FileStamp.of(tmp_path / "a.tif")
    write_labels_like(tmp_path / "a.tif", tmp_path / "b.tif", STACK[:1])


@pytest.mark.parametrize("text", OTHERS_JSON)
def test_a_json_that_names_no_spacing_is_not_the_stacks(tmp_path, text):
    plain(tmp_path / "a.tif")
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    require_stack(tmp_path / "a.tif", (1, 1, 1))


@pytest.mark.parametrize("text", DAMAGED_JSON)
def test_a_damaged_json_with_a_spacing_is_refused(tmp_path, text):
    plain(tmp_path / "a.tif")
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    for read in (read_header, read_volume):
        with pytest.raises(UnreadableFileError, match=r"a\.json: is not JSON"):
            read(tmp_path / "a.tif")
