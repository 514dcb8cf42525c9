"""Decoding of JPEG, PNG and WebP files to pixels.

Pixels equal those of llama.cpp's stb_image.  The alpha channel is dropped and the colours under it stay.  Of 16 bits
per channel the upper 8 stay.  Grey and palettes become red, green and blue.  EXIF orientation, colour profile and gamma
are ignored.  JPEG decoders may differ by one or two of 255.  stb_image does not read WebP; of an animation, the first
frame is decoded.
"""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadImage

if TYPE_CHECKING:  # a process that sees no image does not load it
    from PIL import Image

MAX_PIXELS = 1 << 26  # 8192 x 8192, 200 MB of pixels: a file of kilobytes may decompress to that
MAX_SIDE = 1 << 16
MAX_SCANNED_PIXELS = 1 << 30  # pixels times scans of a progressive JPEG; an encoder writes about ten scans

DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode_image(data: bytes) -> np.ndarray:
    """Decode a JPEG, PNG or WebP file.  -> u8 [height, width, 3]

    Raises: BadImage for another format, a damaged file, or an image that takes too much memory or time to decode
    """
    from PIL.Image import DecompressionBombError

    try:
        image = open_image(data)
        width, height = image.size
        check_size(width, height)
        image.load()
        pixels = np.asarray(image if image.mode.startswith("I") else image.convert("RGB"))
    except (*DECODE_ERRORS, DecompressionBombError) as error:
        is_internal = isinstance(error.__cause__ or error, (struct.error, LookupError, TypeError))  # not Pillow's texts
        reason = "a part of the file is missing or damaged" if is_internal else str(error) or type(error).__name__
        raise BadImage(f"image cannot be decoded: {reason}") from None
    if pixels.ndim == 2:  # 16 bits of grey
        pixels = np.repeat((pixels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return pixels


def open_image(data: bytes) -> Image.Image:
    """Read the file's header with the Pillow plugin for its magic bytes.  Only these three plugins are ever used."""
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    if data[:3] == b"\xff\xd8\xff":
        image = JpegImagePlugin.JpegImageFile(BytesIO(data))
        check_scans(jpeg_scans(data), *image.size)
        return image
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return PngImagePlugin.PngImageFile(BytesIO(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if data[12:16] == b"VP8X":  # the plugin would allocate the canvas at once
            check_size(*(1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27)))
        return WebPImagePlugin.WebPImageFile(BytesIO(data))
    found = f"begins with {data[:12]!r}" if data else "is empty"
    raise BadImage(f"image {found}, expected a JPEG, PNG or WebP file")


_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)  # within a scan, 00 and D0 to D7 are no marker
_START_OF_SCAN, _WITHOUT_LENGTH = 0xDA, (0x01, 0xD8, 0xD9)


def jpeg_scans(data: bytes) -> int:
    """Count the scans of a JPEG: a decoder passes over all pixels for each, and an empty one takes 20 bytes."""
    n, at = 0, 0
    while marker := _JPEG_MARKER.search(data, at):
        code, at = marker[1][0], marker.end()
        n += code == _START_OF_SCAN
        at += 0 if code in _WITHOUT_LENGTH else int.from_bytes(data[at : at + 2], "big")
    return n


def check_scans(n_scans: int, width: int, height: int) -> None:
    if n_scans * width * height > MAX_SCANNED_PIXELS:
        expected = f"at most {MAX_SCANNED_PIXELS // (width * height)} of {width} x {height} pixels"
        raise BadImage(f"image has {n_scans} scans, expected {expected}")


def check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side"
        raise BadImage(f"image is {width} x {height} pixels, expected {limit}")
