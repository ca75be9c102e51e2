"""Values of a DICOM image: what is stored, by slope and intercept or lookup table, and compared with the file's own tags."""

import os

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_rescale
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from segpipe.errors import UnreadableFileError
from segpipe.io.dicom_streams import Numbers, numbers_of
from segpipe.io.formats import header_notes, read_volume
from tests.dicoms import item, rewrite, voxels, write_enhanced, write_series


def signed12(n, s):
    values = np.frombuffer(s.PixelData, np.uint16).astype(np.int32) - 1000
    s.PixelData = (values.astype(np.int16).view(np.uint16) & 0xFFF).tobytes()
    s.BitsStored, s.HighBit, s.PixelRepresentation = 12, 11, 1


def overlay_bits(n, s):
    values = np.frombuffer(s.PixelData, np.uint16)
    s.PixelData = (values | (np.arange(values.size, dtype=np.uint16) % 7 == 0).astype(np.uint16) << 13).tobytes()
    s.BitsStored, s.HighBit = 12, 11


def bits32(n, s):
    s.PixelData = (np.frombuffer(s.PixelData, np.uint16).astype(np.int32) * 1000 - 7).tobytes()
    s.BitsAllocated, s.BitsStored, s.HighBit, s.PixelRepresentation = 32, 32, 31, 1


def bits8(n, s):
    s.PixelData = (np.frombuffer(s.PixelData, np.uint16) % 256).astype(np.uint8).tobytes()
    s.BitsAllocated, s.BitsStored, s.HighBit = 8, 8, 7


def of(**values):
    def change(n, s):
        for name, value in values.items():
            setattr(s, name, value(n) if callable(value) else value)

    return change


def no_slope(n, s):
    del s.RescaleSlope, s.RescaleIntercept


def inverted_signed12(n, s):
    signed12(n, s)
    s.PhotometricInterpretation = "MONOCHROME1"


def upper_bits(n, s):
    s.PixelData = (voxels()[n] << 4).tobytes()
    s.BitsStored = 12


KINDS = {
    "plain": lambda n, s: None,
    "no slope": no_slope,
    "signed 12 bit": signed12,
    "overlay bits": overlay_bits,
    "32 bit": bits32,
    "8 bit": bits8,
    "fraction": of(RescaleSlope="1.5", RescaleIntercept="-1024.5"),
    "negative": of(RescaleSlope="-1", RescaleIntercept="3000"),
    "slice by slice": of(RescaleSlope=lambda n: str(1 + n / 4)),
    "shown inverted": of(PhotometricInterpretation="MONOCHROME1"),
    "shown inverted, signed 12 bit": inverted_signed12,
    "high bit misstated": of(BitsStored=12, HighBit=15),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_values_are_pydicoms(tmp_path, name):
    write_series(tmp_path / "ct", change=KINDS[name])
    images = sorted((pydicom.dcmread(f) for f in (tmp_path / "ct").iterdir()), key=lambda i: i.InstanceNumber)
    expected = np.stack([apply_rescale(i.pixel_array, i) for i in images]).astype(float)
    array = read_volume(tmp_path / "ct").array[0]
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert (array.dtype == np.int16) == bool(
        (expected == expected.round()).all()
        and np.abs(expected).max() < 32768
        and name not in ("fraction", "slice by slice")
    )


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_every_uncompressed_transfer_syntax_gives_the_same_values(tmp_path, syntax):
    write_series(tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        image = pydicom.dcmread(path)
        if syntax == RLELossless:
            image.compress(RLELossless)
            image.save_as(path)
        elif syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, np.uint16).byteswap().tobytes()
            image.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(path, image, implicit_vr=False, little_endian=False, force_encoding=True)
        else:
            image.file_meta.TransferSyntaxUID = syntax
            image.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], voxels().astype(int) - 1024)


def jpeg(path, values, compressor="JPEG"):
    """Write values as a compressed file by ITK, and return its pixel element and transfer syntax."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.SetFileName(str(path))
    writer.Execute(sitk.GetImageFromArray(values))
    made = pydicom.dcmread(path)
    return made["PixelData"], made.file_meta.TransferSyntaxUID


def compressed(tmp_path, compressor="JPEG", **attributes):
    array = voxels()
    write_series(tmp_path / "ct", array, **attributes)

    def compress(number, image):
        element, syntax = jpeg(tmp_path / "one.dcm", array[number], compressor)
        image.add(element)
        image.file_meta.TransferSyntaxUID = syntax

    rewrite(tmp_path / "ct", compress)
    return tmp_path / "ct"


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("shown", ["MONOCHROME1", "MONOCHROME2"])
def test_compressed_values_are_those_that_were_compressed(tmp_path, capfd, compressor, shown):
    folder = compressed(tmp_path, compressor, PhotometricInterpretation=shown, RescaleSlope=2)
    np.testing.assert_array_equal(read_volume(folder).array[0], 2 * voxels().astype(int) - 1024)
    assert capfd.readouterr().err == ""


def test_a_compressed_slice_that_was_cut_and_saved_again_is_refused(tmp_path):
    folder = compressed(tmp_path)
    image = pydicom.dcmread(folder / "0.dcm")
    stream = image.PixelData[16:]
    image.PixelData = encapsulate([stream[: len(stream) // 2]])
    image.save_as(folder / "0.dcm")
    with pytest.raises(UnreadableFileError, match=r"0\.dcm: PixelData of frame 1 has no end"):
        read_volume(folder)


def replace_stream(path, change):
    """Alter the only compressed frame of a file."""
    image = pydicom.dcmread(path)
    image.PixelData = encapsulate([change(next(generate_frames(image.PixelData, number_of_frames=1)))])
    image.save_as(path)


def test_what_the_decoder_calls_corrupt_is_refused_in_its_words(tmp_path, capfd):
    """Half a stream that ends as a whole one does: the decoder fills up the rest and only writes that it did."""
    folder = compressed(tmp_path)
    replace_stream(folder / "0.dcm", lambda stream: stream[: len(stream) // 2] + b"\xff\xd9")
    with pytest.raises(
        UnreadableFileError, match=r"0\.dcm: .*Corrupt JPEG data: premature end of data segment.*export it"
    ):
        read_volume(folder)
    assert capfd.readouterr().err == ""


def test_a_decoder_is_heard_without_standard_error(tmp_path):
    folder = compressed(tmp_path)
    kept = os.dup(2)
    os.close(2)
    try:
        np.testing.assert_array_equal(read_volume(folder).array[0], voxels().astype(int) - 1024)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(2)
        replace_stream(folder / "0.dcm", lambda stream: stream[: len(stream) // 2] + b"\xff\xd9")
        with pytest.raises(UnreadableFileError, match="premature end of data segment"):
            read_volume(folder)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_words_of_a_decoders_attempts_are_passed_over(tmp_path, capfd):
    """Twelve bits of JPEG Extended: GDCM asks its decoder of eight bits first, which says that it cannot."""
    values = np.full((8, 10), 1500, np.uint16)
    stream = imagecodecs.jpeg_encode(values, level=100, bitspersample=12)
    folder = encoded(tmp_path / "ct", [stream] * 6, JPEGExtended12Bit, BitsStored=12, HighBit=11)
    np.testing.assert_allclose(read_volume(folder).array[0], np.broadcast_to(values, (6, 8, 10)), atol=2)
    assert capfd.readouterr().err == ""


def encoded(folder, streams, syntax, **tags):
    """Put a compressed stream into each file of a folder."""

    def compress(number, image):
        image.PixelData = encapsulate([streams[number]])
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = syntax
        for name, value in tags.items():
            setattr(image, name, value)

    rewrite(write_series(folder, RescaleIntercept=0), compress)
    return folder


def jpeg2000(values, wrapped="j2k", bits=None):
    """Compress without loss; the numbers of the stream are signed where those of the array are."""
    return [imagecodecs.jpeg2k_encode(v, level=0, codecformat=wrapped, bitspersample=bits) for v in values]


SIGNED = voxels().astype(np.int16) - 1000


@pytest.mark.parametrize("wrapped", ["j2k", "jp2"])
@pytest.mark.parametrize(
    ("array", "stated", "message"),
    [
        (SIGNED, 0, r"PixelRepresentation is 0, but .* frame 1 are signed \(16 bits, JPEG 2000.*expected 1"),
        (voxels(), 1, r"PixelRepresentation is 1, but .* frame 1 are unsigned \(16 bits, JPEG 2000.*expected 0"),
    ],
)  # fmt: skip
def test_a_stream_of_another_sign_than_its_tag_is_refused(tmp_path, wrapped, array, stated, message):
    folder = encoded(tmp_path / "ct", jpeg2000(array, wrapped), JPEG2000Lossless, PixelRepresentation=stated)
    with pytest.raises(UnreadableFileError, match=message):
        read_volume(folder)


@pytest.mark.parametrize(
    ("array", "stored"), [(SIGNED, 16), (SIGNED, 12), (voxels(), 16), (voxels(), 12)], ids=["s16", "s12", "u16", "u12"]
)
def test_a_stream_of_the_sign_of_its_tag_is_read(tmp_path, array, stored):
    signed = int(array.dtype == np.int16)
    streams = jpeg2000(array, bits=None if signed else stored)
    tags = {"PixelRepresentation": signed, "BitsStored": stored, "HighBit": stored - 1}
    np.testing.assert_array_equal(
        read_volume(encoded(tmp_path / "ct", streams, JPEG2000Lossless, **tags)).array[0], array
    )


def test_negative_numbers_of_fewer_bits_than_are_stated_are_refused(tmp_path):
    """GDCM takes the twelfth bit of the stream for the sign; numbers up to 4095 that were compressed so would be negative."""

    def folder(name, array, **tags):
        streams = [imagecodecs.ljpeg_encode(v.astype(np.uint16) & 0xFFF, bitspersample=12) for v in array]
        return encoded(tmp_path / name, streams, JPEGLosslessSV1, PixelRepresentation=1, **tags)

    twelve = folder("12", SIGNED, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_volume(twelve).array[0], SIGNED)
    for name, array in (("negative", SIGNED), ("large", voxels() + 2000)):
        with pytest.raises(UnreadableFileError, match=r"BitsStored is 16 with PixelRepresentation 1, but 12 bits were"):
            read_volume(folder(name, array))
    # The twelfth bit of none is set: 12 bits and 16 mean the same.
    np.testing.assert_array_equal(read_volume(folder("small", voxels())).array[0], voxels())


def test_a_stream_of_jpeg_ls_says_its_bits():
    assert numbers_of(imagecodecs.jpegls_encode(voxels()[0])) == Numbers(16, None)
    assert numbers_of(imagecodecs.jpegls_encode(voxels()[0].astype(np.uint8))) == Numbers(8, None)


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x02", b"\xff\x4f\xff\x51\x00", b"RIFF"])
def test_a_stream_that_says_nothing_of_its_numbers(stream):
    assert numbers_of(stream) is None


def test_decoded_values_beyond_the_stored_bits_are_refused(tmp_path):
    with pytest.raises(UnreadableFileError, match=r"expected 0 to 255 for BitsStored 8 and PixelRepresentation 0"):
        read_volume(compressed(tmp_path, BitsStored=8, HighBit=7))


def pixels(change):
    return lambda n, s: setattr(s, "PixelData", change(s.PixelData)) if n == 2 else None


def first_of_two_frames(n, s):
    s.Rows = 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pixels(lambda p: p[:-2]), r"PixelData holds 158 bytes; expected 160 for Rows 8, Columns 10, BitsAllocated 16"),
        (pixels(lambda p: p[:2]), "PixelData holds 2 bytes; expected 160"),
        (pixels(lambda p: p + p), "PixelData holds 320 bytes; expected 160"),
        (pixels(lambda p: p + b"\x01\x00"), "PixelData holds 162 bytes; expected 160"),
        (first_of_two_frames, "PixelData holds 160 bytes; expected 80 for Rows 4"),
        (lambda n, s: setattr(s, "BitsAllocated", 8), "PixelData holds 160 bytes; expected 80"),
        (upper_bits, "HighBit is 15 with BitsStored 12, expected 11"),
    ],
)  # fmt: skip
def test_pixels_that_contradict_their_tags_are_refused(tmp_path, change, message):
    write_series(tmp_path / "ct", change=change)
    with pytest.raises(UnreadableFileError, match=message):
        read_volume(tmp_path / "ct")


def test_padding_after_the_pixels_is_passed_over(tmp_path):
    array = voxels(rows=7, columns=9)
    eight_bits = (array % 256).astype(np.uint8)
    write_series(tmp_path / "odd", eight_bits, BitsAllocated=8, BitsStored=8, HighBit=7, RescaleIntercept=0)
    rewrite(tmp_path / "odd", lambda n, s: setattr(s, "PixelData", eight_bits[n].tobytes() + b"\x00"))
    np.testing.assert_array_equal(read_volume(tmp_path / "odd").array[0], eight_bits)
    write_series(tmp_path / "long", change=lambda n, s: setattr(s, "PixelData", s.PixelData + bytes(20)))
    np.testing.assert_array_equal(read_volume(tmp_path / "long").array[0], voxels().astype(int) - 1024)


@pytest.mark.parametrize("colours", ["PALETTE COLOR", "RGB", "YBR_FULL"])
def test_colours_are_named(tmp_path, colours):
    write_series(tmp_path / "ct", PhotometricInterpretation=colours)
    with pytest.raises(UnreadableFileError, match=f"PhotometricInterpretation is {colours}"):
        read_volume(tmp_path / "ct")


def test_a_modality_lookup_table_is_applied(tmp_path):
    table = np.arange(2048, dtype=np.uint16) * 3 + 10

    def change(_, s):
        del s.RescaleSlope, s.RescaleIntercept
        s.ModalityLUTSequence = [item(LUTDescriptor=[2048, 0, 16], ModalityLUTType="US")]
        s.ModalityLUTSequence[0].add_new(0x00283006, "OW", table.tobytes())

    write_series(tmp_path / "ct", change=change)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], table[voxels()])


def test_a_slope_of_zero_is_said(tmp_path):
    write_series(tmp_path / "ct", RescaleSlope=0)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], voxels().astype(int) - 1024)
    (note,) = header_notes(tmp_path / "ct")
    assert note.severity == "warning"
    assert note.message.startswith("RescaleSlope is 0 in 6 image(s)")


def test_slopes_that_differ_from_frame_to_frame_are_applied_frame_by_frame(tmp_path):
    def scale(number, frame):
        frame.PixelValueTransformationSequence[0].RescaleSlope = 0.5 + number
        frame.PixelValueTransformationSequence[0].RescaleIntercept = -number

    path = write_enhanced(tmp_path / "e.dcm", change=scale)
    steps = np.arange(6)[:, None, None]
    np.testing.assert_allclose(read_volume(path).array[0], voxels() * (0.5 + steps) - steps)


def test_packed_twelve_bits_are_unpacked(tmp_path):
    """Two values in three bytes, as old devices wrote them: ab, c1, 23 are 0x1ab... the lower half first."""
    array = voxels()

    def pack(number, image):
        even, odd = array[number].ravel()[::2], array[number].ravel()[1::2]
        packed = np.stack([even & 0xFF, (even >> 8) | (odd & 0xF) << 4, odd >> 4], axis=1).astype(np.uint8)
        image.PixelData = packed.tobytes()
        image.BitsAllocated, image.BitsStored, image.HighBit = 12, 12, 11

    write_series(tmp_path / "ct", array, change=pack)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], array.astype(int) - 1024)
