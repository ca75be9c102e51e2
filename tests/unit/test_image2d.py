import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from segpipe.errors import UnreadableFileError
from segpipe.io.formats import header_notes, read_header, read_volume, write_labels_like


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


def test_indices_of_a_colour_table_are_the_values(tmp_path):
    indices = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array[0, 0], indices)
    assert read_header(tmp_path / "a.png").n_channels == 1
    (note,) = header_notes(tmp_path / "a.png")
    assert "colour table" in note.message


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


def test_pages_and_damage_are_refused(tmp_path):
    pages = [Image.fromarray(np.ones((4, 6), dtype=np.uint8))] * 3
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UnreadableFileError, match="holds 3 pages"):
        read_volume(tmp_path / "a.tif")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90)).astype(np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-3000])
    with pytest.raises(UnreadableFileError, match=r"b\.png"):
        read_volume(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(UnreadableFileError, match=r"c\.png: not a readable image"):
        read_header(tmp_path / "c.png")


def test_labels_are_written_as_grey(tmp_path):
    Image.fromarray(np.ones((4, 6, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    labels = np.arange(24, dtype=np.uint16).reshape(1, 4, 6) * 100
    write_labels_like(tmp_path / "a.png", tmp_path / "b.png", labels)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.png").array[0], labels)
    with pytest.raises(UnreadableFileError, match="over 65535"):
        write_labels_like(tmp_path / "a.png", tmp_path / "c.png", labels.astype(np.uint32))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_values_of_few_bits_are_as_they_are_in_the_file(tmp_path, bits):
    values = [0, 1, 2, 3]
    row = int("".join(f"{v:0{bits}b}" for v in values), 2).to_bytes(len(values) * bits // 8, "big")

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert read_volume(tmp_path / "a.png").array.ravel().tolist() == values
