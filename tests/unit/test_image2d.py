import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from segpipe.dataset.load import labels_on, load_image, read_label_file
from segpipe.dataset.match import match_dataset
from segpipe.errors import GeometryMismatchError, UnreadableFileError
from segpipe.io.formats import (
    header_notes,
    output_ending,
    read_header,
    read_label_volume,
    read_volume,
    write_labels_like,
)
from tests.tiffs import packed


@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_grey_and_colour_of_8_and_16_bit(tmp_path, ending, kind, n_channels):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (5, 7, n_channels)).astype(kind)
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(
        sitk.GetImageFromArray(pixels, isVector=n_channels > 1)
        if n_channels > 1
        else sitk.GetImageFromArray(pixels[..., 0]),
        str(path),
    )
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, pixels.transpose(2, 0, 1)[:, None])
    assert volume.array.dtype == kind
    assert volume.grid.spacing_mm == (1, 1, 1)
    header = read_header(path)
    assert (header.grid, header.n_channels) == (volume.grid, n_channels)


def test_dots_per_inch_are_no_voxel_size(tmp_path):
    Image.fromarray(np.ones((4, 6), dtype=np.uint8)).save(tmp_path / "a.tif", dpi=(72, 72))
    assert read_header(tmp_path / "a.tif").grid.spacing_mm == (1, 1, 1)


def palette_png(path, indices, colours):
    image = Image.new("P", indices.shape[::-1])
    image.putdata(indices.ravel().tolist())
    image.putpalette(np.asarray(colours).ravel().tolist())
    image.save(path)
    return path


INDICES = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)


def test_a_coloured_palette_gives_colours_in_an_image_and_indices_in_a_label(tmp_path):
    colours = np.array([[0, 0, 0], [200, 10, 10], [10, 200, 10]], dtype=np.uint8)
    path = palette_png(tmp_path / "a.png", INDICES, colours)
    np.testing.assert_array_equal(read_volume(path).array[:, 0], colours[INDICES].transpose(2, 0, 1))
    assert read_header(path).n_channels == 3
    np.testing.assert_array_equal(read_label_volume(path).array[0, 0], INDICES)
    (note,) = header_notes(path)
    assert "palette: its colours are read" in note.message


@pytest.mark.parametrize("levels", [(10, 90, 200), (2, 1, 0), (0, 255, 255)])
def test_a_palette_of_greys_gives_grey_values(tmp_path, levels):
    path = palette_png(tmp_path / "a.png", INDICES, [[v] * 3 for v in levels])
    shown = np.array(levels, dtype=np.uint8)[INDICES]
    for read in (read_volume, read_label_volume):
        np.testing.assert_array_equal(read(path).array[0, 0], shown)
    assert read_header(path).n_channels == 1
    # Values that are declared do not turn a mask over: what is bright in the palette is not made the background.
    np.testing.assert_array_equal(read_label_volume(path, (0, 1)).array[0, 0], shown)


def test_the_declared_values_decide_for_a_palette_that_only_brightens_the_indices(tmp_path):
    path = palette_png(tmp_path / "a.png", INDICES, [[v] * 3 for v in (0, 120, 255)])
    np.testing.assert_array_equal(read_label_volume(path, (0, 1, 2)).array[0, 0], INDICES)
    np.testing.assert_array_equal(
        read_label_volume(path, (0, 120, 255)).array[0, 0], INDICES * 120 + (INDICES == 2) * 15
    )


def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array[:, 0], pixels[..., :3].transpose(2, 0, 1))
    assert read_header(tmp_path / "a.png").n_channels == 3
    pixels[0, 0, 3] = 100
    Image.fromarray(pixels).save(tmp_path / "b.png")
    with pytest.raises(UnreadableFileError, match="transparent"):
        read_volume(tmp_path / "b.png")


def test_damage_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 90)).astype(np.uint8)
    for name, picture in (
        ("a.png", Image.fromarray(pixels)),
        ("b.png", Image.fromarray(pixels.astype(np.uint16) * 200)),
        ("c.jpg", Image.fromarray(pixels)),
        ("d.bmp", Image.fromarray(pixels)),
    ):
        path = tmp_path / name
        picture.save(path)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(UnreadableFileError, match=rf"{name}: (the pixels cannot be read|ends before its last)"):
            read_volume(path)
    for name in ("e.png", "e.jpg", "e.tif"):
        (tmp_path / name).write_text("no image", encoding="utf-8")
        for read in (read_header, read_volume, read_label_volume):
            with pytest.raises(UnreadableFileError, match=rf"{name}: not a readable image"):
                read(tmp_path / name)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_flipped_bit_of_a_png_is_found(tmp_path, kind):
    mask = (np.random.default_rng(0).random((40, 40)) < 0.2).astype(kind)
    Image.fromarray(mask).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for place in range(content.index(b"IDAT") + 4, len(content) - 12, 29):
        broken = bytearray(content)
        broken[place] ^= 1
        (tmp_path / "b.png").write_bytes(broken)
        with pytest.raises(UnreadableFileError, match=r"b\.png"):
            read_label_volume(tmp_path / "b.png")


def test_labels_are_written_as_grey(tmp_path):
    Image.fromarray(np.ones((4, 6, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    labels = np.arange(24, dtype=np.uint16).reshape(1, 4, 6) * 100
    write_labels_like(tmp_path / "a.png", tmp_path / "b.png", labels)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.png").array[0], labels)
    with pytest.raises(UnreadableFileError, match="over 65535"):
        write_labels_like(tmp_path / "a.png", tmp_path / "c.png", labels.astype(np.uint32))
    with pytest.raises(UnreadableFileError, match="3 slices do not fit into a PNG"):
        write_labels_like(tmp_path / "a.png", tmp_path / "c.png", np.zeros((3, 4, 6), np.uint8))


def png(path, rows, bits, colour=0, *more, n_kept=None):
    """A PNG whose rows are packed here; other chunks come before the pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = np.atleast_2d(rows)
    header = struct.pack(">IIBBBBB", rows.shape[1], len(rows), bits, colour, 0, 0, 0)
    data = b"".join(b"\0" + packed(row[None], bits) for row in rows)
    chunks = (
        chunk(b"IHDR", header),
        *(chunk(k, v) for k, v in more),
        chunk(b"IDAT", zlib.compress(data[:n_kept])),
        chunk(b"IEND", b""),
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_are_spread_in_an_image_and_the_values_of_a_label(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 9))
    white = 255 // (2**bits - 1)
    path = png(tmp_path / "a.png", values, bits)
    np.testing.assert_array_equal(read_volume(path).array[0, 0], values * white)
    np.testing.assert_array_equal(read_label_volume(path).array[0, 0], values)
    np.testing.assert_array_equal(read_label_volume(path, tuple(range(2**bits))).array[0, 0], values)
    # A mask of 0 and 255 that an optimiser packed into one bit is still one of 0 and 255.
    spread_values = tuple(range(0, 256, white))
    np.testing.assert_array_equal(read_label_volume(path, spread_values).array[0, 0], values * white)
    assert read_header(path).n_channels == 1


def test_a_mask_of_booleans_has_the_label_1(tmp_path):
    mask = np.random.default_rng(0).random((5, 9)) < 0.5
    for name in ("a.png", "a.bmp"):
        Image.fromarray(mask).save(tmp_path / name)
        np.testing.assert_array_equal(read_label_volume(tmp_path / name).array[0, 0], mask)
        np.testing.assert_array_equal(read_label_volume(tmp_path / name, (0, 1)).array[0, 0], mask)


def test_a_mask_whose_palette_was_reversed_by_an_optimiser_is_not_turned_over(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (5, 9))
    path = png(tmp_path / "a.png", 1 - mask, 1, 3, (b"PLTE", bytes([1, 1, 1, 0, 0, 0])))
    for accepted in (None, (0, 1)):
        np.testing.assert_array_equal(read_label_volume(path, accepted).array[0, 0], mask)
    np.testing.assert_array_equal(read_volume(path).array[0, 0], mask)


def test_an_index_outside_of_the_palette_is_refused(tmp_path):
    path = png(tmp_path / "a.png", [[0, 1, 2, 3]], 2, 3, (b"PLTE", bytes(6)))
    with pytest.raises(UnreadableFileError, match="colour 3 of a palette of 2"):
        read_volume(path)


def test_transparency_of_palettes_and_of_one_colour(tmp_path):
    plte = (b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    path = png(tmp_path / "a.png", [[1, 1, 0]], 1, 3, plte, (b"tRNS", b"\x00\xff"))
    with pytest.raises(UnreadableFileError, match="1 pixel"):
        read_volume(path)
    # The background of a mask is often shown transparent; its index is what counts.
    assert read_label_volume(path).array.ravel().tolist() == [1, 1, 0]
    with pytest.raises(UnreadableFileError, match="2 pixel"):
        read_volume(png(tmp_path / "b.png", [[7, 7, 9]], 8, 0, (b"tRNS", b"\x00\x07")))
    assert read_volume(png(tmp_path / "c.png", [[7, 7, 9]], 8, 0, (b"tRNS", b"\x00\x08"))).array.ravel().tolist() == [
        7,
        7,
        9,
    ]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("n_colours", [1, 3])
def test_opaque_transparency_is_dropped(tmp_path, kind, n_colours):
    opaque = np.iinfo(kind).max
    pixels = np.random.default_rng(0).integers(0, opaque, (6, 7, n_colours + 1)).astype(kind)
    pixels[..., -1] = opaque
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    for read in (read_volume, read_label_volume):
        np.testing.assert_array_equal(read(tmp_path / "a.png").array[:, 0], np.moveaxis(pixels[..., :-1], -1, 0))
    assert read_header(tmp_path / "a.png").n_channels == n_colours
    pixels[2, 3, -1] = 0
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    with pytest.raises(UnreadableFileError, match="1 pixel"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".bmp"])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_photographs(tmp_path, ending, n_channels):
    pixels = np.full((24, 40, n_channels), 30, dtype=np.uint8)
    pixels[8:] = 200
    path = tmp_path / f"a{ending}"
    Image.fromarray(pixels.squeeze()).save(path)
    volume, header = read_volume(path), read_header(path)
    assert np.abs(volume.array[:, 0].astype(int) - np.moveaxis(pixels, -1, 0)).max() <= (0 if ending == ".bmp" else 3)
    assert (header.grid, header.n_channels) == (volume.grid, n_channels)
    assert output_ending(path) == ".png"
    write_labels_like(path, tmp_path / "b.png", np.ones((1, 24, 40), dtype=np.uint8))
    assert read_label_volume(tmp_path / "b.png").array.tolist() == np.ones((1, 1, 24, 40)).tolist()
    with pytest.raises(UnreadableFileError, match="written as PNG or TIFF"):
        write_labels_like(path, tmp_path / f"c{ending}", np.ones((1, 24, 40), dtype=np.uint8))


def test_jpeg_is_refused_as_a_mask_whatever_it_is_called(tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / name, "JPEG")
        assert read_volume(tmp_path / name).array.shape == (1, 1, 8, 8)
        with pytest.raises(UnreadableFileError, match=rf"{name}: is a JPEG picture, which changes the values"):
            read_label_volume(tmp_path / name)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_grey_mask_that_was_saved_in_colour_has_one_channel(tmp_path, ending):
    mask = np.eye(6, dtype=np.uint8) * 2
    path = tmp_path / f"a{ending}"
    Image.fromarray(np.dstack([mask] * 3)).save(path)
    np.testing.assert_array_equal(read_label_volume(path).array, mask[None, None])
    Image.fromarray(np.dstack([mask, mask, mask * 2])).save(path)
    assert len(read_label_volume(path).array) == 3


def test_what_a_file_contains_counts_not_its_ending(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 9)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", "PNG")
    Image.fromarray(pixels).save(tmp_path / "b.png", "TIFF")
    for name in ("a.tif", "b.png"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array[0, 0], pixels)


def test_colours_of_four_inks_and_animations_are_refused(tmp_path):
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(UnreadableFileError, match="colours are CMYK"):
        read_header(tmp_path / "a.jpg")
    frames = [Image.new("L", (8, 8), n) for n in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableFileError, match="holds 3 frames"):
        read_header(tmp_path / "a.png")


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_pixels_are_read_as_stored_and_the_mask_gets_the_tag_of_orientation(tmp_path, ending):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((8, 16), dtype=np.uint8)).save(tmp_path / f"a{ending}", exif=exif)
    assert read_header(tmp_path / f"a{ending}").grid.shape == (1, 8, 16)
    (note,) = header_notes(tmp_path / f"a{ending}")
    assert "orientation tag is 6 (shown turned by 90 degrees)" in note.message
    for name in ("b.png", "b.tif"):
        write_labels_like(tmp_path / f"a{ending}", tmp_path / name, np.ones((1, 8, 16), dtype=np.uint8))
        with Image.open(tmp_path / name) as written:
            assert written.getexif()[274] == 6


def test_large_pictures_are_read(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((30, 30), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_volume(tmp_path / "a.png").array.shape == (1, 1, 30, 30)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(("image", "label"), [("c0.jpg", "c0.png"), ("c0.tif", "c0.png"), ("c0.bmp", "c0.tif")])
def test_an_image_and_its_mask_are_matched_by_their_names(tmp_path, image, label):
    for folder, name in (("images", image), ("labels", label)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / folder / name)
    (case,) = match_dataset(tmp_path).cases
    assert case.id == "c0"
    loaded = load_image("c0", [i.path for i in case.images], ("grey",))
    np.testing.assert_array_equal(labels_on("c0", loaded, read_label_file("c0", case.label.path)).array[0], np.eye(16))


def test_a_mask_of_another_size_is_not_placed_in_a_corner_of_its_image(tmp_path):
    for size, folder in ((128, "images"), (64, "labels")):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(size, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    image = load_image("a", [tmp_path / "images" / "a.png"], ("grey",))
    with pytest.raises(GeometryMismatchError, match=r"1x128x128.* but .*1x64x64"):
        labels_on("a", image, read_label_file("a", tmp_path / "labels" / "a.png"))


JPEG_KINDS = ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"optimize": True})


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_jpeg_that_ends_before_its_last_pixel_is_refused(tmp_path, mode, kind):
    pixels = np.random.default_rng(0).integers(0, 255, (33, 50, 3)).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).convert(mode).save(path, quality=90, **kind)
    whole = path.read_bytes()
    assert read_volume(path).array.shape == (len(mode), 1, 33, 50)
    # Cameras put bytes between the pixels and the end, and others behind it.
    path.write_bytes(whole[:-2] + bytes(9) + b"\xff\xd9" + b"thumbnail")
    assert read_volume(path).array.shape == (len(mode), 1, 33, 50)
    scan = whole.index(b"\xff\xda")
    for cut in np.linspace(scan + 20, len(whole) - 8, 12).astype(int):
        path.write_bytes(whole[:cut] + b"\xff\xd9")
        with pytest.raises(UnreadableFileError, match=r"a\.jpg: "):
            read_volume(path)


def test_a_progressive_jpeg_without_its_last_scans_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (33, 50)).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, progressive=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\xff\xda")] + b"\xff\xd9")
    with pytest.raises(UnreadableFileError, match="ends before its last pixel"):
        read_volume(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_png_with_fewer_rows_than_its_header_states_is_refused(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 9))
    # A whole row, and one byte.
    for n_missing in (1 + -(-9 * bits // 8), 1):
        path = png(tmp_path / "a.png", values, bits, n_kept=-n_missing)
        for read in (read_volume, read_label_volume):
            with pytest.raises(UnreadableFileError, match=r"a\.png: "):
                read(path)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (8, 8), (17, 4)])
def test_interlaced_png_has_the_bytes_of_its_seven_passes(tmp_path, size):
    """All pixels are 0: filter and values are zeros, and only their number counts."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = [np.zeros(size)[y::dy, x::dx].shape for y, x, dy, dx in starts]
    n = sum(rows * (1 + columns) for rows, columns in passes if columns)
    whole = png(tmp_path / "a.png", np.zeros(size, np.uint8), 8).read_bytes()
    header = whole[12:28] + b"\1"

    def chunk(content):
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    def interlaced(n_bytes):
        (tmp_path / "b.png").write_bytes(
            whole[:8] + chunk(header) + chunk(b"IDAT" + zlib.compress(bytes(n_bytes))) + chunk(b"IEND")
        )
        return read_volume(tmp_path / "b.png")

    assert interlaced(n).array.shape == (1, 1, *size)
    with pytest.raises(UnreadableFileError, match="1 bytes less than its header states"):
        interlaced(n - 1)


def bmp(path, indices, greys, bits):
    """A BMP with a palette of greys; its rows are stored from the bottom."""
    rows = [packed(row[None], bits) for row in indices[::-1]]
    data = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
    palette = b"".join(bytes((g, g, g, 0)) for g in greys)
    start, (height, width) = 54 + len(palette), indices.shape
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(data), 0, 0, len(greys), 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data)
    return path


@pytest.mark.parametrize("width", [1, 3, 4, 9])
@pytest.mark.parametrize(
    ("bits", "greys"),
    [
        (4, range(16)),
        (4, range(3)),
        (4, (0, 255)),
        (8, (0, 255)),
        (8, range(256)),
        (1, (0, 255)),
        (4, range(0, 256, 17)),
    ],
)
def test_a_bmp_with_a_palette_of_greys_has_its_own_number_of_bits(tmp_path, width, bits, greys):
    indices = np.random.default_rng(0).integers(0, len(greys), (5, width)).astype(np.uint8)
    path = bmp(tmp_path / "a.bmp", indices, greys, bits)
    np.testing.assert_array_equal(read_volume(path).array[0, 0], np.array(greys, np.uint8)[indices])
    white = max(greys) if len(greys) > 2 else 1
    assert read_label_volume(path).array.max() <= white


def test_an_index_of_a_bmp_outside_of_black_and_white_is_refused(tmp_path):
    path = bmp(tmp_path / "a.bmp", np.array([[0, 1, 5, 0]]), (0, 255), 4)
    with pytest.raises(UnreadableFileError, match="colour 5 of a palette of 2"):
        read_volume(path)


@pytest.mark.parametrize("greys", [(0, 255), (255, 0)])
def test_white_of_a_mask_of_one_bit_is_1_whatever_the_order_of_its_palette(tmp_path, greys):
    white = np.random.default_rng(0).integers(0, 2, (5, 9)).astype(np.uint8)
    stored = white if greys[0] == 0 else 1 - white
    path = bmp(tmp_path / "a.bmp", stored, greys, 1)
    np.testing.assert_array_equal(read_volume(path).array[0, 0], white * 255)
    for accepted, value in ((None, 1), ((0, 1), 1), ((0, 255), 255)):
        np.testing.assert_array_equal(read_label_volume(path, accepted).array[0, 0], white * value)
    path = png(tmp_path / "a.png", stored, 1, 3, (b"PLTE", bytes(g for g in greys for _ in range(3))))
    for accepted, value in ((None, 255), ((0, 1), 1), ((0, 255), 255)):
        np.testing.assert_array_equal(read_label_volume(path, accepted).array[0, 0], white * value)
