import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segpipe.errors import UnreadableFileError
from segpipe.io.formats import header_notes, read_header, read_label_volume, read_volume, write_labels_like
from tests.tiffs import first_page_at, packed, page_tags, write_tiff

KINDS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


def numbers(kind, shape, seed=0):
    """Values over the whole range of a type: fractional, negative and large ones."""
    draw = np.random.default_rng(seed)
    if np.dtype(kind).kind == "f":
        return (draw.normal(size=shape) * 10.0 ** draw.integers(-3, 4, shape)).astype(kind)
    limits = np.iinfo(kind)
    return draw.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def require_read(path, expected):
    """An image is read with its values and type, and its header says the same shape and channels."""
    volume, header = read_volume(path), read_header(path)
    np.testing.assert_array_equal(volume.array[:, 0], expected)
    assert volume.array.dtype == expected.dtype
    assert (header.grid, header.n_channels) == (volume.grid, len(volume.array))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.sampled_from((1, 2, 3, 5)),
    tile=st.sampled_from((None, (16, 16), (32, 16))),
    separate=st.booleans(),
    order=st.sampled_from("<>"),
    big=st.booleans(),
    compression=st.sampled_from((None, "zlib", "lzw", "zstd", "packbits")),
    predictor=st.booleans(),
    rows=st.sampled_from((None, 7)),
)
def test_every_number_type_and_layout_is_read_as_it_is(
    tmp_path_factory, kind, n, tile, separate, order, big, compression, predictor, rows
):
    pixels = numbers(kind, (n, 37, 50))
    path = tmp_path_factory.mktemp("t") / "a.tif"
    layout = {"tile": tile} if tile else {"rowsperstrip": rows}
    # Floating point of 8 bytes has no predictor of LZW in every version of the library.
    predict = predictor and compression in ("zlib", "lzw") and kind not in ("f2", "u8", "i8", "f8")
    stored = pixels if separate and n > 1 else np.moveaxis(pixels, 0, -1)
    tifffile.imwrite(
        path,
        stored[..., 0] if n == 1 else stored,
        byteorder=order,
        bigtiff=big,
        compression=compression,
        predictor=predict or None,
        photometric="rgb" if n == 3 and kind[0] == "u" else "minisblack",
        planarconfig=None if n == 1 else "separate" if separate else "contig",
        metadata=None,
        **layout,
    )
    require_read(path, pixels)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 12, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_integers_of_any_bits_are_the_values(tmp_path, bits, photometric):
    values = np.random.default_rng(0).integers(0, 2**bits, (9, 13))
    stored = packed(values, bits) if bits != 16 else values.astype("<u2").tobytes()
    path = write_tiff(tmp_path / "a.tif", page_tags(values.shape, stored, bits=bits, photometric=photometric))
    kind = np.uint8 if bits <= 8 else np.uint16
    require_read(path, (values if photometric else 2**bits - 1 - values).astype(kind)[None])
    # A label's values are the stored ones; of one bit, white is 1.
    labels = values if photometric or bits > 1 else 1 - values
    np.testing.assert_array_equal(read_label_volume(path).array[0, 0], labels)


def test_a_mask_of_one_bit_is_read_as_the_declared_label(tmp_path):
    mask = np.random.default_rng(0).random((9, 13)) < 0.5
    Image.fromarray(mask).save(tmp_path / "a.tif", compression="group4")
    Image.fromarray(mask).save(tmp_path / "b.tif")
    # tifffile marks an array of booleans MINISWHITE and stores it as it is.
    tifffile.imwrite(tmp_path / "c.tif", mask)
    for name in "abc":
        path = tmp_path / f"{name}.tif"
        np.testing.assert_array_equal(read_label_volume(path).array[0, 0], mask)
        np.testing.assert_array_equal(read_label_volume(path, (0, 1)).array[0, 0], mask)
        np.testing.assert_array_equal(read_label_volume(path, (0, 255)).array[0, 0], mask * 255)
        require_read(path, mask[None].astype(np.uint8))


def test_reversed_grey_values_are_noted(tmp_path):
    pixels = numbers("u2", (5, 7))
    tifffile.imwrite(tmp_path / "a.tif", 65535 - pixels, photometric="miniswhite")
    require_read(tmp_path / "a.tif", pixels[None])
    (note,) = header_notes(tmp_path / "a.tif")
    assert "MINISWHITE" in note.message
    assert "reversed" in note.message


@pytest.mark.parametrize("coloured", [True, False])
def test_a_palette(tmp_path, coloured):
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6)
    colours = np.zeros((3, 256), dtype=np.uint16)
    colours[:] = np.arange(256)[::-1] * 256
    colours[1, 3] += 256 * 2 * coloured
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=colours)
    shown = (colours // 256).astype(np.uint8)[:, indices]
    require_read(tmp_path / "a.tif", shown if coloured else shown[:1])
    labels = read_label_volume(tmp_path / "a.tif").array[:, 0]
    np.testing.assert_array_equal(labels, indices[None] if coloured else shown[:1])


def test_transparency(tmp_path):
    for name, alpha in (("opaque", 65535), ("clear", 65534)):
        pixels = numbers("u2", (5, 7, 4))
        pixels[..., 3] = 65535
        pixels[0, 0, 3] = alpha
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    require_read(tmp_path / "opaque.tif", np.moveaxis(numbers("u2", (5, 7, 4))[..., :3], -1, 0))
    with pytest.raises(UnreadableFileError, match="1 pixel"):
        read_volume(tmp_path / "clear.tif")


def test_samples_of_unstated_meaning_are_channels(tmp_path):
    pixels = numbers("f4", (5, 7, 4))
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig", extrasamples=[0, 0, 0]
    )
    require_read(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0))
    (note,) = header_notes(tmp_path / "a.tif")
    assert "3 sample(s) of unstated meaning (ExtraSamples 0)" in note.message


def test_jpeg_is_read_as_an_image_and_refused_as_a_mask(tmp_path):
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, 16:] = 200
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="jpeg")
    volume = read_volume(tmp_path / "a.tif")
    assert volume.array.shape == (3, 1, 32, 32)
    assert np.abs(volume.array[:, 0].transpose(1, 2, 0).astype(int) - pixels).max() < 5
    with pytest.raises(UnreadableFileError, match="Compression is JPEG"):
        read_label_volume(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"photometric": 5}, "PhotometricInterpretation is SEPARATED"),
        ({"photometric": 8}, "PhotometricInterpretation is CIELAB"),
        ({"photometric": 32803}, "PhotometricInterpretation is CFA"),
        ({"photometric": 6}, "SamplesPerPixel is 1 with PhotometricInterpretation YCBCR|YCBCR with Compression NONE"),
        ({"t259": ("H", [34676])}, "Compression is SGILOG"),
        ({"t259": ("H", [60000])}, "Compression is 60000"),
        ({"t339": ("H", [5]), "bits": 64}, "SampleFormat is 5"),
        ({"t339": ("H", [3]), "bits": 8}, "BitsPerSample is 8 with SampleFormat 3"),
        ({"t339": ("H", [2]), "photometric": 0}, "MINISWHITE with SampleFormat 2"),
        ({"t279": ("I", [12])}, "12 bytes of pixels by StripByteCounts, expected"),
        ({"t279": ("I", [0])}, "strip 1 of 1 is empty"),
        ({"t279": ("I", [99999])}, "strip 1 of 1 ends at byte 1000"),
        ({"t278": ("I", [2])}, "1 strips in StripOffsets and StripByteCounts, expected 2"),
    ],
)
def test_what_is_not_read_is_refused_by_the_name_of_its_tag(tmp_path, tags, found):
    bits = tags.get("bits", 8)
    path = write_tiff(tmp_path / "a.tif", page_tags((4, 8), bytes(4 * bits), **tags))
    with pytest.raises(UnreadableFileError, match=rf"a\.tif: .*({found})"):
        read_volume(path)


@pytest.mark.parametrize("compression", ["jpeg2000", "png", "jpegxl", "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("tiles", [{}, {"tile": (32, 32)}])
def test_a_codec_that_says_otherwise_than_the_tags_is_not_believed(tmp_path, compression, tiles):
    pixels = numbers("u2", (64, 64))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression=compression, photometric="minisblack", metadata=None, **tiles)
    require_read(path, pixels[None])
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["BitsPerSample"].overwrite(8)
    with pytest.raises(UnreadableFileError, match="have 16 bits, BitsPerSample states 8"):
        read_volume(path)


def test_transparency_that_is_not_the_last_sample_is_refused(tmp_path):
    tags = page_tags((4, 8), bytes(96), t277=("H", [3]), t338=("H", [2, 0]))
    tags[258] = ("H", [8, 8, 8])
    with pytest.raises(UnreadableFileError, match=r"ExtraSamples are \[2, 0\]"):
        read_header(write_tiff(tmp_path / "a.tif", tags))


def test_a_list_of_pages_that_loops_or_leaves_the_file_is_refused(tmp_path):
    page = page_tags((4, 8), bytes(32))
    path = write_tiff(tmp_path / "a.tif", page)
    start = first_page_at(path)
    for name, pages, then, found in (
        ("one", [page], start, "loops: page 1 is followed by page 1"),
        ("two", [page, page], start, "loops: page 2 is followed by page 1"),
        ("far", [page], 5000, "page 2 is said to begin at byte 5000"),
    ):
        looped = write_tiff(tmp_path / f"{name}.tif", *pages, then=then)
        for read in (read_header, read_volume, read_label_volume):
            with pytest.raises(UnreadableFileError, match=found):
                read(looped)
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnreadableFileError, match="tags of page 1 is cut off"):
        read_header(tmp_path / "cut.tif")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "lzma", "zstd"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", numbers("u2", (64, 64)), rowsperstrip=8, compression=compression)
    content = (tmp_path / "a.tif").read_bytes()
    for kept in (len(content) - 1, len(content) - 700, len(content) // 2):
        (tmp_path / "b.tif").write_bytes(content[:kept])
        with pytest.raises(UnreadableFileError, match=r"b\.tif"):
            read_volume(tmp_path / "b.tif")


def test_small_copies_and_masks_are_passed_over_and_several_images_refused(tmp_path):
    pixels = numbers("u1", (64, 80))
    with tifffile.TiffWriter(tmp_path / "sub.tif") as file:
        file.write(pixels, subifds=1)
        file.write(pixels[::2, ::2])
    with tifffile.TiffWriter(tmp_path / "small.tif") as file:
        file.write(pixels, metadata=None)
        file.write(pixels[::2, ::2], subfiletype=1, metadata=None)
    for name in ("sub", "small"):
        require_read(tmp_path / f"{name}.tif", pixels[None])
    assert "passed over" in header_notes(tmp_path / "sub.tif")[0].message
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(pixels, metadata=None)
        file.write(numbers("u2", (7, 8)), metadata=None)
    with pytest.raises(UnreadableFileError, match="holds 2 images"):
        read_volume(tmp_path / "two.tif")


@pytest.mark.parametrize("orientation", [3, 6])
def test_pixels_are_read_as_stored_and_the_mask_gets_the_tag_of_orientation(tmp_path, orientation):
    pixels = numbers("u1", (5, 7))
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(274, "H", 1, orientation, True)], resolution=(300, 300))
    require_read(tmp_path / "a.tif", pixels[None])
    assert f"orientation tag is {orientation}" in header_notes(tmp_path / "a.tif")[0].message
    write_labels_like(tmp_path / "a.tif", tmp_path / "b.tif", (pixels[None] > 9).astype(np.uint8))
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].tags["Orientation"].value == orientation
        assert file.pages[0].tags["XResolution"].value == (300, 1)
    np.testing.assert_array_equal(read_label_volume(tmp_path / "b.tif").array[0, 0], pixels > 9)
    write_labels_like(tmp_path / "a.tif", tmp_path / "b.png", (pixels[None] > 9).astype(np.uint8))
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.getexif()[274] == orientation


@pytest.mark.data
def test_real_files(data):
    tiffs = data / "odd2/tiff"
    ramp = read_volume(tiffs / "gradient-1c-32b-float.tiff").array
    assert ramp.dtype == np.float32
    assert len(np.unique(ramp)) > 200
    tiled = read_volume(tiffs / "seq-1c-16b-tiled-68f373a0.tiff").array
    assert (tiled.dtype, tiled.shape) == (np.uint16, (1, 1, 16, 16))
    fax = read_volume(tiffs / "fax4.tiff").array
    assert (fax.dtype, fax.shape, set(np.unique(fax))) == (np.uint8, (1, 1, 671, 1080), {0, 1})
    with Image.open(tiffs / "fax4.tiff") as picture:
        np.testing.assert_array_equal(fax[0, 0], np.asarray(picture))
    with pytest.raises(UnreadableFileError, match="list of pages loops"):
        read_header(tiffs / "multipage_single_frame_loop.tiff")


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("n", [1, 3])
def test_jpeg_strips_and_tiles_that_end_before_their_last_pixel_are_refused(tmp_path, tile, n):
    pixels = numbers("u1", (3, 40, 48, n)).squeeze()
    layout = {"tile": tile} if tile else {"rowsperstrip": 16}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression="jpeg", photometric="rgb" if n == 3 else "minisblack", **layout)
    assert read_volume(path).array.shape == (n, 3, 40, 48)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page = tif.pages[1]
        offset, count = page.dataoffsets[2], page.databytecounts[2]
        tif.filehandle.seek(offset)
        half = tif.filehandle.read(count)[: count // 2] + b"\xff\xd9"
        tif.filehandle.seek(offset)
        tif.filehandle.write(half.ljust(count, b"\0"))
    with pytest.raises(
        UnreadableFileError, match=r"page 2: the JPEG stream of (strip|tile) 3 ends before its last pixel"
    ):
        read_volume(path)


def test_strips_of_jpeg_whose_counts_are_too_small_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers("u1", (40, 48)), compression="jpeg", photometric="minisblack", rowsperstrip=16)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tag = tif.pages[0].tags["StripByteCounts"]
        tag.overwrite([count // 2 for count in tag.value])
    with pytest.raises(UnreadableFileError, match="page 1: the JPEG stream of strip 1 ends before its last pixel"):
        read_volume(path)
