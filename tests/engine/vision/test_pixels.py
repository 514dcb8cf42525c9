"""Decoding of images: the pixels of stb_image, from JPEG, PNG and WebP only, in bounded memory."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from numllama.benchmarks.libmtmd import LibMtmd
from numllama.engine.errors import BadImage
from numllama.engine.vision.pixels import decode_image, jpeg_scans
from tiny_llava import encoded, picture

PIXELS = picture(40, 30)


def png(width, height, depth, color, rows=b"", extra=b""):
    """Write a PNG file chunk by chunk, for formats that Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file", [encoded(PIXELS), encoded(PIXELS, "WEBP", lossless=True)], ids=["PNG", "WebP"])
def test_lossless_files_give_their_pixels(file):
    np.testing.assert_array_equal(decode_image(file), PIXELS)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_files_give_about_their_pixels(format):
    got = decode_image(encoded(PIXELS, format, quality=95)).astype(int)
    assert np.abs(got - PIXELS).mean() < 10  # they lose the noise, whose mean size is 10


def test_alpha_is_dropped_and_the_colours_under_it_kept():
    rgba = np.dstack([PIXELS, np.zeros((30, 40), np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(rgba)), PIXELS)


def test_grey_becomes_three_equal_colours():
    grey = PIXELS[:, :, 0]
    np.testing.assert_array_equal(decode_image(encoded(grey)), np.dstack([grey] * 3))


def test_a_palette_is_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([1, 0])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0)
    np.testing.assert_array_equal(decode_image(file.getvalue()), [[[200, 100, 0], [10, 20, 30]]])


@pytest.mark.parametrize(
    "color, values, expected",
    [
        (0, [0x1234, 0xFF00], [[0x12] * 3, [0xFF] * 3]),
        (2, [0x0180, 0x7FFF, 0xFE80, 0x1234, 0xAB00, 0x00FF], [[1, 0x7F, 0xFE], [0x12, 0xAB, 0]]),
        (4, [0x1234, 0xFFFF, 0xFF00, 0], [[0x12] * 3, [0xFF] * 3]),
    ],
    ids=["grey", "rgb", "grey and alpha"],
)
def test_16_bits_are_reduced_to_the_upper_8(color, values, expected):
    rows = b"\0" + struct.pack(f">{len(values)}H", *values)
    np.testing.assert_array_equal(decode_image(png(2, 1, 16, color, rows)), [expected])


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_image(encoded(PIXELS, "JPEG", exif=exif)).shape == (30, 40, 3)


def test_an_animation_gives_its_first_frame():
    file, frames = io.BytesIO(), [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode_image(file.getvalue()), PIXELS)


@pytest.mark.parametrize("data", [b"", b"hello", encoded(PIXELS, "GIF"), encoded(PIXELS, "BMP"), b"<svg/>"])
def test_other_formats_are_refused(data):
    with pytest.raises(BadImage, match="expected a JPEG, PNG or WebP file"):
        decode_image(data)


@pytest.mark.parametrize(("format", "n"), [("JPEG", 4), ("PNG", 33)])
def test_a_file_that_ends_within_its_header_is_reported_as_damaged(format, n):
    with pytest.raises(BadImage, match="image cannot be decoded: a part of the file is missing or damaged"):
        decode_image(encoded(PIXELS, format)[:n])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_an_error_and_a_wrong_byte_gives_an_error_or_an_image(format):
    file = encoded(PIXELS, format)
    for n in range(12, len(file) - 12, len(file) // 40):
        with pytest.raises(BadImage):
            decode_image(file[:n])
        broken = bytearray(file)
        broken[n] ^= 0x55
        try:
            assert decode_image(bytes(broken)).ndim == 3
        except BadImage:
            pass


@pytest.mark.parametrize(
    "width, height", [(1 << 20, 1 << 11), (1 << 17, 1), (1 << 14, 1 << 13)], ids=["area", "side", "just too large"]
)
def test_too_large_an_image_is_refused_before_it_is_decompressed(width, height):
    with pytest.raises(BadImage, match=rf"image is {width} x {height} pixels"):
        decode_image(png(width, height, 8, 2))


def test_a_webp_canvas_is_checked_before_it_is_allocated():
    size = (1 << 24) - 1
    canvas = b"WEBPVP8X" + struct.pack("<IBBBB", 10, 0, 0, 0, 0) + size.to_bytes(3, "little") * 2
    with pytest.raises(BadImage, match="16777216 x 16777216"):
        decode_image(b"RIFF" + struct.pack("<I", len(canvas)) + canvas)


def test_an_image_as_large_as_allowed_is_decoded(monkeypatch):
    monkeypatch.setattr("numllama.engine.vision.pixels.MAX_PIXELS", 40 * 30)
    assert decode_image(encoded(PIXELS)).shape == PIXELS.shape
    with pytest.raises(BadImage, match="at most 1200 pixels"):
        decode_image(encoded(picture(41, 30)))


# --- against stb_image


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def kinds():
    """Make a file of every kind, by name."""
    random, image = np.random.default_rng(0), Image.fromarray(PIXELS)
    alpha = Image.fromarray(random.integers(0, 256, (30, 40), dtype=np.uint8))
    with_alpha = image.copy()
    with_alpha.putalpha(alpha)
    files = {f"PNG {mode}": saved(image.convert(mode)) for mode in ("1", "L", "P", "LA", "RGB")}
    files |= {
        "PNG RGBA": saved(with_alpha),
        "PNG 16 colours": saved(image.quantize(16)),
        "PNG palette with a transparent entry": saved(image.quantize(64), transparency=3),
        "PNG transparent colour": saved(image, transparency=(1, 2, 3)),
    }
    for depth, color, n_byte in ((2, 0, 2), (4, 0, 4), (16, 0, 16), (16, 2, 48), (16, 4, 32), (16, 6, 64)):
        rows = b"".join(b"\0" + random.bytes(n_byte) for _ in range(4))
        files[f"PNG {depth} bits, kind {color}"] = png(8, 4, depth, color, rows)
    for name, options in (("", {}), (" 4:4:4", {"subsampling": 0}), (" progressive", {"progressive": True})):
        files[f"JPEG{name}"] = saved(image, "JPEG", **options)
    return files | {f"JPEG {mode}": saved(image.convert(mode), "JPEG") for mode in ("L", "CMYK")}


@pytest.mark.peer
@pytest.mark.parametrize("name, file", list(kinds().items()), ids=list(kinds()))
def test_pixels_equal_those_of_stb_image(name, file):
    mtmd = LibMtmd.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libmtmd.so")
    tolerance = 2 if name.startswith("JPEG") else 0  # two inverse cosine transforms, two ways to upsample colour
    np.testing.assert_allclose(decode_image(file).astype(int), mtmd.decoded(file).astype(int), rtol=0, atol=tolerance)


def progressive(n_more, side=64):
    """Write a progressive JPEG whose last scan is repeated `n_more` times."""
    file = encoded(picture(side, side), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:-2] + file[last:-2] * n_more + file[-2:]


def test_scans_are_counted_as_pillow_reads_them():
    assert jpeg_scans(progressive(0)) == 10 and jpeg_scans(progressive(7)) == 17
    assert jpeg_scans(encoded(PIXELS, "JPEG")) == 1
    thumbnail = b"\xff\xe1" + (2 + len(progressive(0))).to_bytes(2, "big") + progressive(0)
    assert jpeg_scans(progressive(0)[:2] + thumbnail + progressive(0)[2:]) == 10


def test_a_jpeg_of_very_many_scans_is_refused(monkeypatch):
    """0.9 MB of empty scans took 84 s."""
    monkeypatch.setattr("numllama.engine.vision.pixels.MAX_SCANNED_PIXELS", 64 * 64 * 50)
    assert decode_image(progressive(40)).shape == (64, 64, 3)
    with pytest.raises(BadImage, match=r"^image has 51 scans, expected at most 50 of 64 x 64 pixels$"):
        decode_image(progressive(41))
