"""Checking a program: it computes each item of a pack, and its results are judged.

    COMMAND INPUT OUTPUT     reads the item INPUT and writes its result to OUTPUT, of the expected kind

An exit status of 77 says that the program does not have the operation.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ....kernels.quants import FORMATS_BY_NAME, dequantize
from ...errors import EngineError, RequestError
from ...model.load import load_model
from ..causes.formats import FORMAT_MISTAKES
from ..dumps import Dump, open_dump
from ..injection import MAX_BITS, SHAKE_BITS
from ..judge import judge
from .build import matches
from .files import read_any_json, read_manifest

SKIPPED_STATUS = 77  # as automake's tests have it
MAX_OUTPUT_BYTES = 1 << 28
MAX_STDERR_BYTES = 1 << 16
WEIGHT_ROUNDING = 2.0**-10  # of weights in float16


@dataclass(frozen=True)
class Result:
    """The judgement of one item.

    verdict   "right", "wrong" or "skipped"
    bits      the least of its rows; None for texts and tokens
    note      where it is wrong and the likely cause, or why it was skipped
    """

    name: str
    verdict: str
    bits: float | None = None
    note: str = ""


def check_pack(
    folder: Path,
    command: Sequence[str],
    only: str = "",
    timeout: float = 60.0,
    progress: Callable[[str], None] = lambda name: None,
    spread: Callable[..., Iterator[Result]] | None = None,
) -> Iterator[Result]:
    """Run `command` over the items of a pack, and yield the judgement of each.

    only       a name, an operation or a pattern
    timeout    seconds that an item may take
    progress   called with the name of each item before it is computed
    spread     computes make()(item) for all items elsewhere, in their order; progress is not called then
    Raises: RequestError if pack or command cannot be used
    """
    folder = folder.resolve()
    items = [item for item in read_manifest(folder)["items"] if matches(item["name"], only)]
    if not items:
        raise RequestError(f"no item matches '{only}'; expected a name such as dequantize/Q4_0, or rope, or gelu*")
    make = partial(partial, check_item, folder, command, timeout)
    if spread:
        yield from spread(make, items)
        return
    for item in items:
        progress(item["name"])
        yield make()(item)


def check_item(folder: Path, command: Sequence[str], timeout: float, item: Mapping[str, Any]) -> Result:
    """Run `command` over an item and judge its output.  Raises: RequestError if the command cannot start"""
    given, expected = folder / item["input"], folder / item["expected"]
    with tempfile.TemporaryDirectory(prefix="numllama-pack-") as scratch:
        out = Path(scratch) / f"out{expected.suffix}"
        failed = run_program([*command, str(given), str(out)], timeout)
        if failed is None and not out.is_file():
            failed = "wrong", "it wrote no output file"
        if failed is not None:
            verdict, note = failed
            return Result(item["name"], verdict, None, note)
        try:
            return judged_output(item, given, expected, out)
        except RequestError as error:
            return Result(item["name"], "wrong", None, str(error).removeprefix(f"{out}: "))


def run_program(command: Sequence[str], timeout: float) -> tuple[str, str] | None:
    """Run a program to its end; on a failure return the verdict and a note.  Raises: RequestError if it cannot start"""
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
        except OSError as error:
            raise RequestError(f"{command[0]}: cannot be started: {error.strerror or error}") from None
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return "wrong", f"not done after {timeout:g} seconds"
        finally:
            end_group(child)
        if status == SKIPPED_STATUS:
            return "skipped", "the program does not have it"
        if status:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - MAX_STDERR_BYTES))
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
            how = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
            return "wrong", f"{how}: {lines[-1][:200]}" if lines else how
    return None


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a program and the processes that it started."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (OSError, AttributeError):
            child.kill()
        child.wait()


def judged_output(item: Mapping[str, Any], given: Path, expected: Path, out: Path) -> Result:
    """Judge an output file.  Raises: RequestError if it cannot be read"""
    if out.stat().st_size > MAX_OUTPUT_BYTES:
        raise RequestError(f"the output has {out.stat().st_size} bytes, expected at most {MAX_OUTPUT_BYTES}")
    if item["bits"] is None:
        return judged_json(item["name"], read_any_json(expected), read_any_json(out))
    theirs = open_dump(out)
    if item["operation"] == "forward":
        return judged_values(item["name"], read_any_json(given), given, theirs)
    return judged_arrays(item, open_dump(given), open_dump(expected), theirs)


def judged_json(name: str, expected: Any, theirs: Any) -> Result:
    """Compare texts and ids, which are right or wrong."""
    if not isinstance(theirs, dict):
        raise RequestError("the output is not a JSON object")
    for key, right in expected.items():
        if key not in theirs:
            if key == "text":  # of a program that has no tokenizer
                continue
            raise RequestError(f"'{key}' is missing; found {', '.join(map(str, theirs)) or 'nothing'}"[:200])
        if theirs[key] != right:
            return Result(name, "wrong", None, first_difference(key, right, theirs[key]))
    return Result(name, "right")


def first_difference(name: str, expected: Any, found: Any) -> str:
    """Return where two JSON values differ first, in words."""
    if isinstance(expected, list) and isinstance(found, list):
        at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
        if at is not None:
            return first_difference(f"{name}[{at}]", expected[at], found[at])
        return f"{name} has {len(found)} members, expected {len(expected)}"
    return f"{name} is {repr(found)[:80]}, expected {repr(expected)[:80]}"


def judged_values(name: str, about: Mapping[str, Any], given: Path, theirs: Dump) -> Result:
    """Judge the values of a forward pass, each on the values before it."""
    try:
        model = load_model(given.parent / about["model"])
        report = judge(model, about["tokens"], theirs)
    except EngineError as error:
        return Result(name, "wrong", None, str(error).removeprefix(f"{theirs.path}: "))
    bits = min(verdict.bits for verdict in report.verdicts)
    if report.agrees:
        return Result(name, "right", bits, f"{len(report.verdicts)} values")
    labels = list(dict.fromkeys(verdict.label for verdict in report.wrong))
    note = f"{', '.join(labels[:4])}{f' and {len(labels) - 4} more' if len(labels) > 4 else ''}"
    cause = report.wrong[0].cause
    return Result(name, "wrong", bits, f"{note}: {f'as if {cause}' if cause else 'unexplained'}")


def judged_arrays(item: Mapping[str, Any], given: Dump, expected: Dump, theirs: Dump) -> Result:
    """Judge arrays row by row."""
    least, notes = MAX_BITS, []
    for name in (name for name in expected.entries if not name.endswith(".moved")):
        right = expected.entries[name].read()
        if name not in theirs.entries:
            raise RequestError(f"'{name}' is missing; found {', '.join(list(theirs.entries)[:5])}")
        shape = theirs.entries[name].shape
        if shape != right.shape:
            sizes = ["x".join(map(str, sizes)) for sizes in (shape, right.shape)]
            raise RequestError(f"'{name}' has shape {sizes[0]}, expected {sizes[1]}")
        found = theirs.entries[name].read()
        if f"{name}.moved" in expected.entries:
            bits = bits_of_rows(right, found.astype(np.float64), expected.entries[f"{name}.moved"].read())
        else:
            bits = np.where(found == right, MAX_BITS, 0.0).min(axis=-1)
        least = min(least, float(bits.min()))
        if bits.min() < item["bits"]:
            notes.append(where_wrong(name, right, found, bits, item["bits"]))
            if item["operation"] == "dequantize" and (cause := mistake(item["name"].partition("/")[2], given, found)):
                notes.append(f"as if {cause}")
    return Result(item["name"], "wrong" if notes else "right", least, "; ".join(notes))


def bits_of_rows(right: np.ndarray, found: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return the precision of inputs and outputs that would explain the error of each row.  -> f64, a number a row"""
    with np.errstate(all="ignore"):
        error = np.sqrt(np.mean((found - right) ** 2, axis=-1))
        bits = SHAKE_BITS + np.log2(np.maximum(moved.astype(np.float64), 1e-300) / error)
    bits = np.where(error == 0, MAX_BITS, np.clip(bits, -30, MAX_BITS))
    return np.where(np.isfinite(found).all(axis=-1), bits, -30.0)


def where_wrong(name: str, right: np.ndarray, found: np.ndarray, bits: np.ndarray, least: float) -> str:
    """Return the number of wrong rows and the largest difference in the first of them, in words."""
    rows = np.argwhere(bits < least)
    row = tuple(rows[0].tolist()) if bits.ndim else ()
    with np.errstate(all="ignore"):
        difference = np.abs(found[row].astype(np.float64) - right[row])
    i = int(np.argmax(np.where(np.isfinite(difference), difference, np.inf)))
    place = ", ".join(map(str, (*row, i)))
    counted = f"{len(rows)} of {bits.size} rows, " if bits.size > 1 else ""
    return f"{counted}{name}[{place}] is {found[row][i]:.7g}, expected {right[row][i]:.7g}"


def mistake(name: str, given: Dump, found: np.ndarray) -> str:
    """Return the usual mistake with the format `name` that gives these weights, "" if none of them does."""
    format = FORMATS_BY_NAME[name]
    blocks = np.ascontiguousarray(given.entries["blocks"].read()).view(format.layout)[:, 0]
    with np.errstate(all="ignore"):

        def alike(weights: np.ndarray) -> int:
            return int(np.isclose(found, weights, rtol=WEIGHT_ROUNDING, atol=0).all(axis=1).sum())

        rows = {
            usual.sentence: alike(usual.dequantize(blocks, format.dequantize))
            for usual in FORMAT_MISTAKES
            if format.name in usual.formats
        }
        best = max(rows, key=lambda sentence: rows[sentence], default="")
        explained = best and rows[best] > max(0.9 * len(found), alike(dequantize(format, blocks[:, None])))
    return best if explained else ""
