"""Images given by path in a prompt: `What is in ./cat.png?`"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from ...engine.errors import BadImage, RequestError
from ...engine.go.text import one_line
from ...engine.settings import expand_home
from ...engine.vision.pixels import decode_image

MAX_IMAGE_BYTES = 100 * 10**6  # as in Ollama's interactive.go, fb30760
PATH_START = re.compile(r"""(?<![^\s"'(])(?:~|\.{1,2}|[A-Za-z]:)?[/\\]""")
PATH_END = re.compile(r"\.(?:jpe?g|png|webp)\b", re.IGNORECASE)


def extract_images(text: str) -> tuple[str, list[bytes]]:
    """Remove the paths of images from `text`; return the rest and the images.  Paths without a file stay in the text.

    A path starts with / ./ ../ ~/ or a drive, ends in .jpg .jpeg .png or .webp, and may be quoted.  Spaces in it may be
    escaped by backslashes.
    Raises: RequestError for a file that is not an image
    """
    rest, images, at = "", [], 0
    for begin, end, path in find_paths(text):
        images.append(read_image(path))
        print(f"Added image '{one_line(path)}'", file=sys.stderr)
        if (quote := text[begin - 1 : begin]) in ("'", '"') and text[end : end + 1] == quote:
            begin, end = begin - 1, end + 1
        rest, at = rest + text[at:begin], end
    return (rest + text[at:]).strip() if images else text, images


def find_paths(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and path of each existing image file named in `text`."""
    at = 0
    while begin := PATH_START.search(text, at):
        start, at = begin.span()
        line = text[start:].partition("\n")[0]
        for end in PATH_END.finditer(line):
            candidate = line[: end.end()]
            if path := next(
                (path for path in (candidate, re.sub(r"\\(.)", r"\1", candidate)) if file_exists(path)), None
            ):
                at = start + len(candidate)
                yield start, at, path
                break


def begins_with_image(text: str) -> bool:
    """Return whether `text` begins with the path of an existing image, as of one that was dragged into the terminal."""
    return next((start == 0 for start, _, _ in find_paths(text)), False)


def file_exists(path: str) -> bool:
    try:
        return expand_home(path).is_file()
    except (OSError, RuntimeError, ValueError):  # name too long, unknown home, NUL character
        return False


def read_image(path: str) -> bytes:
    """Read and check an image file.  Raises: RequestError"""
    try:
        file = expand_home(path)
        if (size := file.stat().st_size) > MAX_IMAGE_BYTES:
            raise BadImage(f"{size} bytes, expected at most {MAX_IMAGE_BYTES}")
        decode_image(data := file.read_bytes())
    except OSError as error:
        raise RequestError(f"Couldn't process file '{path}': {error.strerror}") from None
    except BadImage as error:
        raise RequestError(f"Couldn't process file '{path}': {error}") from None
    return data
