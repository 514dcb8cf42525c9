"""`numllama diff`: which operation of another engine is wrong, and why, from a dump of its values."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ...engine.errors import EngineError, RequestError
from ...engine.go.text import one_line
from ...engine.model.load import load_model
from ...engine.oracle.dumps import open_dump
from ...engine.oracle.heatmap import heatmap
from ...engine.oracle.injection import Advance, no_advance
from ...engine.oracle.judge import judge
from ...engine.oracle.report import Report, Verdict, arithmetic_of
from .backend import local_model

PLURALS = {"elementwise": "elementwise values", "attention": "attention", "product": "products"}
CANNOT_COMPARE = 2


def diff_model(
    model: str,
    dump: Path,
    *,
    prompt: str | None = None,
    ids: str | None = None,
    n_decode: int = 0,
    names: str = "",
    map_file: Path | None = None,
    as_json: bool = False,
    html: Path | None = None,
    verbose: bool = False,
) -> int:
    """Judge the dump and print the report.  -> exit status: 0 agrees, 1 something is wrong, 2 cannot compare"""
    try:
        with judgement_bar() as advance:
            report = judged(model, dump, prompt, ids, n_decode, names, map_file, advance)
        if html is not None:
            save_heatmap(html, heatmap(report, dump.name))
    except EngineError as error:
        print(f"Error: {one_line(str(error))}", file=sys.stderr)
        return CANNOT_COMPARE
    except KeyboardInterrupt:
        print("interrupted: nothing is judged; the dump is as it was", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(report_json(report), indent=2))
    else:
        print_report(report, verbose)
    return 0 if report.agrees else 1


def judged(
    model: str,
    path: Path,
    prompt: str | None,
    ids: str | None,
    n_decode: int,
    names: str,
    map_file: Path | None,
    advance: Advance = no_advance,
) -> Report:
    """Open dump and model, and judge.  Raises: EngineError"""
    if prompt is not None and ids is not None:
        raise RequestError("--prompt and --ids exclude each other")
    files = local_model(model)
    dump = open_dump(path, names, map_file)
    loaded = load_model(files.weights, dict.fromkeys(files.adapters, 1.0))
    if ids is not None:
        tokens = parse_ids(ids)
    elif prompt is not None:
        tokens = loaded.tokenizer.encode(prompt, add_special=True, parse_special=True)
    elif dump.tokens is not None:
        tokens = dump.tokens
    else:
        raise RequestError(f"{path}: the dump has no token ids; give the prompt by --prompt or the ids by --ids")
    return judge(loaded, tokens, dump, n_decode, advance=advance)


@contextmanager
def judgement_bar() -> Iterator[Advance]:
    """Show a bar on standard error while a dump is judged, if that is a terminal; yields what advances it."""
    if not sys.stderr.isatty():
        yield no_advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading the model", total=None)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)


def parse_ids(text: str) -> list[int]:
    """Parse "1,5,9".  Raises: RequestError"""
    try:
        return [int(id) for id in text.replace(" ", "").strip("[]").split(",")]
    except ValueError:
        raise RequestError(f"--ids is '{text[:60]}', expected numbers such as 1,5,9") from None


def save_heatmap(path: Path, page: str) -> None:
    """Write an HTML page.  Raises: RequestError"""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from None


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    wrong = [
        {
            "name": verdict.label,
            "layer": None if verdict.layer < 0 else verdict.layer,
            "kind": verdict.kind,
            "rows": list(verdict.rows),
            "heads": list(verdict.heads),
            "bits": round(verdict.bits, 1),
            "cause": verdict.cause or None,
            "cause_bits": round(verdict.cause_bits, 1) if verdict.cause else None,
            "enters": list(verdict.enters),
        }
        for verdict in report.wrong
    ]
    values = [{"name": v.label, "kind": v.kind, "bits": round(v.bits, 1), "note": v.note} for v in report.verdicts]
    profile = {kind: {"bits": round(bits, 1), "like": arithmetic_of(bits)} for kind, bits in report.profile.items()}
    skipped = [{"name": name, "reason": reason} for name, reason in report.not_compared.items()]
    return {
        "agrees": report.agrees,
        "tokens": report.ids,
        "profile": profile,
        "notes": report.notes,
        "wrong": wrong,
        "values": values,
        "not_compared": skipped,
    }


def print_report(report: Report, verbose: bool) -> None:
    """Print the report: the profile, wrong operations, what was not compared; `verbose`: every value."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    kinds = [f"{PLURALS[kind]} {bits:.1f} bits: {arithmetic_of(bits)}" for kind, bits in report.profile.items()]
    say("; ".join(kinds) or "all values compared are wrong: the arithmetic is not known")
    for note in report.notes:
        say(note)
    if report.agrees:
        say(f"no operation is wrong ({len(report.verdicts)} values compared)")
    else:
        console.print(wrong_table(report))
        say_causes(report, say)
    if verbose:
        console.print(value_table(report))
    shown = list(report.not_compared.items())
    for name, reason in shown if verbose else shown[:5]:
        say(f"not compared: {name[:80]!r}: {reason}")
    if len(shown) > 5 and not verbose:
        say(f"not compared: {len(shown) - 5} more; -v lists them")


def say_causes(report: Report, say: Any) -> None:
    """Say the cause of each wrong name once."""
    wrong = sorted(report.wrong, key=lambda v: (v.cause, v.label.rpartition("-")[0] or v.label))
    for cause, group in groupby(wrong, key=lambda v: v.cause):
        verdicts = list(group)
        names = ", ".join(dict.fromkeys(v.label.rpartition("-")[0] or v.label for v in verdicts))
        if cause:
            least = min(v.cause_bits for v in verdicts)
            say(f"{names}: as if {cause}: {least:.1f} bits")
        else:
            kinds = " and ".join(dict.fromkeys(v.kind for v in verdicts))
            say(f"{names}: unexplained; look at the operation that makes it ({kinds})")


def wrong_table(report: Report) -> Table:
    """Build the table of wrong operations."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("wrong", "layer", "bits", "rows", "heads", "enters"):
        table.add_column(heading, overflow="fold")
    for verdict in report.wrong:
        name = verdict.label.rpartition("-")[0] if verdict.layer >= 0 else verdict.label
        cells = [
            name,
            "" if verdict.layer < 0 else str(verdict.layer),
            f"{verdict.bits:.1f}",
            ranges(verdict.rows, len(verdict.cells)),
            ranges(verdict.heads, verdict.cells.shape[1]) if verdict.heads else "",
            " ".join(verdict.enters),
        ]
        table.add_row(*cells)
    return table


def value_table(report: Report) -> Table:
    """Build the table of all values."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("value", "kind", "bits", "note"):
        table.add_column(heading, overflow="fold")
    for verdict in report.verdicts:
        table.add_row(verdict.label, verdict.kind, f"{verdict.bits:.1f}", status_note(verdict))
    return table


def status_note(verdict: Verdict) -> str:
    return "; ".join(part for part in ("WRONG" if verdict.wrong else "", verdict.note) if part)


def ranges(numbers: tuple[int, ...], n: int) -> str:
    """Write sorted numbers below `n` as ranges.

    >>> ranges((1, 2, 3), 4), ranges((0, 2), 4), ranges((0, 1), 2)
    ('1.., 0 agrees', '0, 2', 'all')
    """
    if len(numbers) == n:
        return "all"
    if numbers and numbers == tuple(range(numbers[0], n)):
        before = "0 agrees" if numbers[0] == 1 else f"0..{numbers[0] - 1} agree"
        return f"{numbers[0]}.., {before}"
    parts = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
    return ", ".join(parts)
