"""Images that a prompt names by their paths: `What is in ./cat.png?`"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ...engine.errors import BadImage, RequestError
from ...engine.vision.pixels import decode_image

MAX_BYTES = 100 * 10**6  # as in Ollama's interactive.go, fb30760
BEGIN = re.compile(r"""(?<![^\s"'(])(?:~|\.{1,2}|[A-Za-z]:)?[/\\]""")
END = re.compile(r"\.(?:jpe?g|png|webp)\b", re.IGNORECASE)


def with_images(text: str) -> tuple[str, list[bytes]]:
    """`text` without the paths of the images in it, and these.  What names no file stays.

    A path begins with / ./ ../ ~/ or a drive, ends in .jpg .jpeg .png or .webp, and may stand in quotes; a blank in it
    may be escaped by a backslash.
    Raises: RequestError for a file that is no image
    """
    rest, images, at = "", [], 0
    for begin, end, path in paths(text):
        images.append(read_image(path))
        print(f"Added image '{path}'", file=sys.stderr)
        if (quote := text[begin - 1 : begin]) in ("'", '"') and text[end : end + 1] == quote:
            begin, end = begin - 1, end + 1
        rest, at = rest + text[at:begin], end
    return (rest + text[at:]).strip() if images else text, images


def paths(text: str) -> Iterator[tuple[int, int, str]]:
    """Where the files named in `text` stand in it, and their paths."""
    at = 0
    while begin := BEGIN.search(text, at):
        start, at = begin.span()
        line = text[start:].partition("\n")[0]
        for end in END.finditer(line):
            named = line[: end.end()]
            if path := next((path for path in (named, re.sub(r"\\(.)", r"\1", named)) if file_exists(path)), None):
                at = start + len(named)
                yield start, at, path
                break


def file_exists(path: str) -> bool:
    try:
        return Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, no home, a zero byte
        return False


def read_image(path: str) -> bytes:
    """The bytes of an image.  Raises: RequestError"""
    try:
        file = Path(path).expanduser()
        if (size := file.stat().st_size) > MAX_BYTES:
            raise BadImage(f"{size} bytes, expected at most {MAX_BYTES}")
        decode_image(data := file.read_bytes())
    except OSError as error:
        raise RequestError(f"Couldn't process file '{path}': {error.strerror}") from None
    except BadImage as error:
        raise RequestError(f"Couldn't process file '{path}': {error}") from None
    return data
