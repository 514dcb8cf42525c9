"""`numllama pack`: write a golden pack, or check a program by one."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...engine.distributed.spread import spread
from ...engine.errors import EngineError
from ...engine.go.text import one_line
from ...engine.oracle.pack.build import build_pack
from ...engine.oracle.pack.check import Result, check_pack
from .format import format_size

CANNOT_CHECK, INTERRUPTED = 2, 130


def write_pack(folder: Path) -> int:
    """Write a pack and print its size.  -> exit status"""
    try:
        with item_line() as show:
            manifest = build_pack(folder, show)
    except EngineError as error:
        print(f"Error: {one_line(str(error))}", file=sys.stderr)
        return CANNOT_CHECK
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(f"{folder}: {len(manifest['items'])} items, {len(manifest['files'])} files, {format_size(size)}")
    return 0


def check_program(
    folder: Path, command: Sequence[str], only: str, timeout: float, as_json: bool, ray: str | None = None
) -> int:
    """Run a program over a pack and print a line an item.

    ray   address of a Ray cluster on whose nodes the program runs; "" starts one on this machine
    -> exit status: 0 all right, 1 something is wrong, 2 nothing could be checked, 130 if Ctrl-C ended it
    """
    results: list[Result] = []
    status = 0
    try:
        with item_line() as show:
            elsewhere = None if ray is None else partial(spread, ray)
            for result in check_pack(folder, command, only, timeout, show, elsewhere):
                results.append(result)
                if not as_json:
                    show("")
                    print(result_line(result), flush=True)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except EngineError as error:
        print(f"Error: {one_line(str(error))}", file=sys.stderr)
        return CANNOT_CHECK
    counts = Counter(result.verdict for result in results)
    if as_json:
        print(json.dumps({"counts": counts, "items": [vars(result) for result in results]}, indent=2))
    else:
        print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("right", "wrong", "skipped")))
    if status:
        return status
    return 1 if counts["wrong"] else 0 if counts["right"] else CANNOT_CHECK


def result_line(result: Result) -> str:
    """Write a result in a line."""
    bits = "" if result.bits is None else f"{result.bits:.1f} bits"
    return f"{result.name:<36} {result.verdict:<8} {bits:<10} {one_line(result.note)}".rstrip()


@contextmanager
def item_line() -> Iterator[Callable[[str], None]]:
    """Show the item that is being computed on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return

    def show(name: str) -> None:
        print(f"\r\x1b[K{one_line(name)}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        show("")
