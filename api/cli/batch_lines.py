"""The lines of a batch: requests, checked as they are read; answers, which must be those of the requests.

A file in parquet counts as its lines (api/scale/parquet.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ...engine.errors import RequestError
from ..scale.parquet import is_parquet, read_lines

URLS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"


@dataclass(frozen=True)
class BatchRequest:
    """A line of the input; `wrong` says why it cannot be asked, or is ""."""

    number: int
    custom_id: str | None = None
    url: str = ""
    body: Any = None
    wrong: str = ""


def read_requests(source: Path, model: str = "") -> Iterator[BatchRequest]:
    """Yield the requests of a file; blank lines are none.  Raises: RequestError if it cannot be read"""
    for number, text in enumerate(lines_of(source), 1):
        yield parse_request(number, text, model)


def parse_request(number: int, text: bytes, model: str = "") -> BatchRequest:
    """Parse a line; where its body names no model, `model` answers."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BatchRequest(number, wrong=f"not JSON: {error}")
    if not isinstance(line, dict):
        return BatchRequest(number, wrong=f"found {json_kind(line)}, expected an object with custom_id, url and body")
    custom_id, url, body = line.get("custom_id"), line.get("url"), line.get("body")
    request = BatchRequest(number, custom_id if isinstance(custom_id, str) else None)
    wrong = ""
    if not isinstance(custom_id, str):
        wrong = f"custom_id is {json_kind(custom_id)}, expected text"
    elif line.get("method", "POST") != "POST":
        wrong = f"method is {line['method']!r}, expected 'POST'"
    elif url not in URLS:
        wrong = f"url is {url!r}, expected one of {', '.join(URLS)}"
    elif not isinstance(body, dict):
        wrong = f"body is {json_kind(body)}, expected an object"
    elif body.get("stream"):
        wrong = "body.stream is true, and a batch has no streams"
    elif not (body.get("model") or model):
        wrong = "body.model is missing, and --model names none"
    if wrong:
        return replace(request, wrong=wrong)
    asked: dict[str, Any] = line["body"]
    return replace(request, url=line["url"], body=asked if asked.get("model") else asked | {"model": model})


def json_kind(value: Any) -> str:
    """Return JSON's word for the type of `value`.

    >>> json_kind(None), json_kind([1]), json_kind(2.5)
    ('missing', 'a list', 'a number')
    """
    words = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return words.get(type(value), "missing")


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file that are not blank, without their ends.  Raises: RequestError if it cannot be read"""
    if is_parquet(path):
        yield from read_lines(path)
        return
    try:
        with open(path, "rb") as file:
            for line in file:
                if line.strip():
                    yield line.rstrip(b"\r\n")
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def check_custom_ids(source: Path) -> int:
    """Check that no two requests have the same custom_id.  -> the number of requests

    Raises: RequestError if they do, or if the file cannot be read or is empty
    """
    seen, n = dict[str, int](), 0
    for request in read_requests(source, "any"):
        n = request.number
        if request.custom_id is not None and (first := seen.setdefault(request.custom_id, n)) != n:
            raise RequestError(f"{source}, line {n}: custom_id {request.custom_id!r} is that of line {first}, too")
    if not n:
        raise RequestError(f"{source}: no lines, expected one request a line")
    return n


def answered(source: Path, target: Path) -> int:
    """Return how many requests `target` answers already; a last line that was cut off is removed.

    Raises: RequestError if its lines do not answer those of `source`, or it cannot be written
    """
    if is_parquet(target):
        return sum(1 for _ in _check_answers(source, target, lines_of(target)))
    try:
        with open(target, "ab+") as file:
            file.seek(0)
            whole = takewhile(lambda text: text.endswith(b"\n"), file)
            sizes = list(_check_answers(source, target, whole))
            file.truncate(sum(sizes))
    except OSError as error:
        raise RequestError(f"{target} cannot be written: {error.strerror}") from None
    return len(sizes)


def _check_answers(source: Path, target: Path, lines: Iterable[bytes]) -> Iterator[int]:
    """Check that the lines of `target` answer the requests of `source`, and yield the bytes of each.

    Raises: RequestError
    """
    requests = read_requests(source, "any")
    for n, text in enumerate(lines, 1):
        request, found = next(requests, None), _id_of(text)
        if request is None or found != {"custom_id": request.custom_id}:
            expected = repr(request.custom_id) if request else "no more lines"
            raise RequestError(
                f"{target}, line {n}: answers {found.get('custom_id')!r}, expected {expected} as in"
                f" {source}; name another file for the answers"
            )
        yield len(text)


def _id_of(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
        return {"custom_id": line["custom_id"]} if "response" in line else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
