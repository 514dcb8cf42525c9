"""The files of a pack: safetensors and JSON, the same bytes for the same values, and the manifest.

The safetensors library writes metadata in a random order, so that it cannot rebuild a file byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RequestError

MANIFEST, VERSION, FORMAT = "manifest.json", 1, "numllama golden pack"
TYPES = {"<f8": "F64", "<f4": "F32", "<i4": "I32", "|u1": "U8"}


def compact_json(value: Any) -> str:
    """Return JSON without blanks, keys in their order."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def safetensors_bytes(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Return a safetensors file: metadata first, then the arrays in their order; numbers and lists are JSON texts."""
    header: dict[str, Any] = {}
    if about:
        header["__metadata__"] = {
            key: value if isinstance(value, str) else compact_json(value) for key, value in about.items()
        }
    parts: list[bytes] = []
    at = 0
    for name, x in arrays.items():
        little = np.ascontiguousarray(x, x.dtype.newbyteorder("<"))
        part = little.tobytes()
        header[name] = {"dtype": TYPES[little.dtype.str], "shape": list(x.shape), "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    head = compact_json(header).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *parts])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_any_json(path: Path) -> Any:
    """Read JSON.  Raises: RequestError"""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: cannot be read as JSON: {str(error).splitlines()[0]}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a pack and check that its files are those that were written.  Raises: RequestError"""
    path = folder / MANIFEST
    if not path.is_file():
        raise RequestError(f"{folder}: found no {MANIFEST}, expected a pack; `numllama pack {folder}` writes one")
    manifest = read_any_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RequestError(f'{path}: not the manifest of a pack, expected "format": "{FORMAT}"')
    if manifest.get("version") != VERSION:
        raise RequestError(f"{path}: version {manifest.get('version')}, expected {VERSION}")
    try:
        files = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
        for item in manifest["items"]:
            assert {"name", "operation", "input", "expected", "bits"} <= item.keys()
            assert {item["input"], item["expected"]} <= files.keys()
    except (AttributeError, KeyError, TypeError, AssertionError):
        raise RequestError(f"{path}: its items or files are malformed") from None
    for name, expected in files.items():
        try:
            found = sha256((folder / name).read_bytes())
        except OSError as error:
            raise RequestError(f"{folder / name}: cannot be read: {error.strerror or error}") from None
        if found != expected:
            raise RequestError(f"{folder / name}: sha256 {found[:12]}, expected {expected[:12]}: the pack was changed")
    return manifest
