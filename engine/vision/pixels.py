"""Images as they are sent, JPEG, PNG or WebP, to pixels.

Pixels are what llama.cpp's stb_image makes of the file: transparency is dropped and what lies under it kept, 16 bits a
colour become their upper 8, grey and palettes become red green blue, and neither the EXIF orientation nor a colour
profile nor gamma is looked at.  JPEG decoders may differ by a step or two; stb_image reads no WebP, an animated one
gives its first picture.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ..errors import BadImage

MAX_PIXELS = 1 << 26  # 8192 x 8192: a file of kilobytes may unfold to this much, 200 MB
MAX_SIDE = 1 << 16

BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode_image(data: bytes) -> np.ndarray:
    """The pixels of a JPEG, PNG or WebP file.  -> u8 [height, width, 3]

    Raises BadImage for another format, a broken file, and one that would unfold beyond MAX_PIXELS.
    """
    try:
        image = open_image(data)
        width, height = image.size
        check_size(width, height)
        image.load()
        pixels = np.asarray(image if image.mode.startswith("I") else image.convert("RGB"))
    except (*BROKEN, Image.DecompressionBombError) as error:
        at_a_loss = isinstance(error.__cause__ or error, (struct.error, LookupError, TypeError))  # Python's own texts
        told = "a part of the file is missing or damaged" if at_a_loss else str(error) or type(error).__name__
        raise BadImage(f"image cannot be decoded: {told}") from None
    if pixels.ndim == 2:  # 16 bits of grey
        pixels = np.repeat((pixels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return pixels


def open_image(data: bytes) -> Image.Image:
    """The file's header read, by the reader that its first bytes ask for: of Pillow's many only these three."""
    if data[:3] == b"\xff\xd8\xff":
        return JpegImagePlugin.JpegImageFile(BytesIO(data))
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return PngImagePlugin.PngImageFile(BytesIO(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if data[12:16] == b"VP8X":  # the reader would make room for the canvas at once
            check_size(*(1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27)))
        return WebPImagePlugin.WebPImageFile(BytesIO(data))
    found = f"begins with {data[:12]!r}" if data else "is empty"
    raise BadImage(f"image {found}, expected a JPEG, PNG or WebP file")


def check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side"
        raise BadImage(f"image is {width} x {height} pixels, expected {limit}")
