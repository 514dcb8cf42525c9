"""Writing a pack: every item's input and expected output, and a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from .... import __version__
from ...errors import RequestError
from .blocks import block_items
from .files import FORMAT, MANIFEST, VERSION, compact_json, safetensors_bytes, sha256
from .item import Item
from .models import model_items
from .operations import operation_items
from .sampling import sampling_items
from .texts import text_items


def all_items(folder: Path) -> Iterator[Item]:
    """Yield all items; models and vocabularies are written to `folder`."""
    yield from block_items()
    yield from operation_items()
    yield from model_items(folder)
    yield from text_items(folder)
    yield from sampling_items()


def build_pack(folder: Path, progress: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Write a pack to `folder`, which may hold an older one, and return its manifest.

    progress   called with the name of each item
    Raises: RequestError if the folder holds something else or cannot be written
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
        raise RequestError(f"{folder}: not empty and not a pack; expected a new folder or an older pack")
    try:
        return _build(folder, progress)
    except OSError as error:
        raise RequestError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from None


def _build(folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # a pack without manifest is not complete
    entries, files = [], {}
    for item in all_items(folder):
        progress(item.name)
        entry = written(folder, item)
        entries.append(entry)
        for name in (entry["input"], entry["expected"]):
            files[name] = described_file(folder / name)
    for part in ("models", "vocabularies"):
        for path in sorted((folder / part).glob("*.gguf")):
            files[f"{part}/{path.name}"] = described_file(path)
    manifest = {"format": FORMAT, "version": VERSION, "made_by": f"numllama {__version__}", "items": entries}
    manifest["files"] = dict(sorted(files.items()))
    (folder / MANIFEST).write_text(compact_json(manifest).replace("},", "},\n") + "\n", encoding="utf-8")
    return manifest


def described_file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": sha256(data)}


def written(folder: Path, item: Item) -> dict[str, Any]:
    """Write the two files of an item and return its entry in the manifest."""
    about = {"operation": item.operation, "item": item.name, **item.parameters}
    if item.given:
        given, suffix = safetensors_bytes(item.given, about), "safetensors"
    else:
        given, suffix = compact_json(about).encode(), "json"
    moved = {f"{name}.moved": x for name, x in item.moved.items()}
    if item.returns_arrays:
        expected, out = safetensors_bytes({**item.expected, **moved}, {"item": item.name}), "safetensors"
    else:
        expected, out = compact_json(item.expected).encode(), "json"
    paths = {"input": f"{item.name}.in.{suffix}", "expected": f"{item.name}.out.{out}"}
    for path, data in zip(paths.values(), (given, expected), strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    shapes = {
        part: {name: list(np.shape(x)) for name, x in arrays.items()}
        for part, arrays in (("input", item.given), ("output", item.expected if item.returns_arrays else {}))
        if arrays
    }
    return {
        "name": item.name,
        "operation": item.operation,
        "how": item.how,
        **paths,
        "shapes": shapes,
        "bits": item.bits if item.returns_arrays else None,
    }


def matches(name: str, only: str) -> bool:
    """Return whether an item is one of those asked for: its name, its operation, or a pattern with * and ?.

    >>> matches("rope/yarn", "rope"), matches("rope/yarn", "rope/*"), matches("rope/yarn", "rope/base")
    (True, True, False)
    """
    return not only or name == only or name.partition("/")[0] == only or fnmatchcase(name, only)
