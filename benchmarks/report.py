"""The report of runs: a table for each cell with the figures of every contender and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .figures import FIGURES, Figure
from .knee import knee_lines
from .medians import medians
from .results import Run
from .rounds import FigureVerdict, Plan, count_rounds, plan_of, verdicts_of
from .table import NamedTable
from .verdict import CANNOT_TELL, SAME, percent_text

HIDDEN = {"requests_s", "late_p99", "refused", "failed"}  # shown only if something is worth telling
MAX_LATE_S = 0.005  # a client that is later than this disturbs an open loop


def tables_of(run: Run) -> list[NamedTable]:
    """Return the tables of a run: one for each load of servers, else one for all cells."""
    plan = plan_of(run)
    verdicts = verdicts_of(run.rounds, run.contenders, plan)
    columns = verdict_headings(run, verdicts)
    if run.header["part"] == "kernels":
        return [kernels_table(run, plan)]
    if run.header["part"] != "serve":
        rows = [row for cell in run.cells for row in cell_rows(run, cell, verdicts, plan)]
        texts = dict.fromkeys(rounds_text(run, cell, plan) for cell in run.cells)
        remarks = [f"{cell}: {line}" for cell in run.cells for line in cell_remarks(run, cell, verdicts)]
        tables = [NamedTable(", ".join(texts), ["cell", *columns], rows, remarks)]
        return [formats_table(run, verdicts, plan), *tables] if run.header["part"] == "formats" else tables
    return [
        NamedTable(
            f"{cell} ({rounds_text(run, cell, plan)})",
            columns,
            cell_rows(run, cell, verdicts, plan),
            cell_remarks(run, cell, verdicts),
        )
        for cell in run.cells
    ]


def verdict_headings(run: Run, verdicts: Sequence[FigureVerdict]) -> list[str]:
    """Return the columns: a figure, the contenders, and for each but the first its ratio, interval and verdict."""
    base, others = run.contenders[0], dict.fromkeys(v.contender for v in verdicts)
    what = (f" / {base}", ": 95 % interval", " is") if len(others) == 1 else (f" / {base}", " is")
    columns = [f"{other}{heading}" for other in others for heading in what]
    return ["figure", *run.contenders, *columns]


def cell_rows(run: Run, cell: str, verdicts: Sequence[FigureVerdict], plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each figure of a cell: medians of the rounds, and verdicts on all but the first contender."""
    values, rows = medians(run, cell, plan), list[dict[str, Any]]()
    for figure in FIGURES.values():
        row = {n: shown_value(figure, values[n][figure.name]) for n in run.contenders if figure.name in values[n]}
        if not row or not worth_showing(figure, row):
            continue
        rows.append({"cell": cell, "figure": figure_label(figure)} | row)
        for verdict in verdicts:
            if (verdict.cell, verdict.figure) == (cell, figure.name):
                rows[-1] |= verdict_columns(verdict, plan, len(run.contenders) == 2)
    return rows


def verdict_columns(verdict: FigureVerdict, plan: Plan, with_column: bool = True) -> dict[str, Any]:
    """Return the ratio, its interval, in a column of its own or behind the ratio, and the verdict."""
    interval, name = verdict.judgement.interval, verdict.contender
    ends = "" if interval.low is None or interval.high is None else f"{interval.low:.3g} .. {interval.high:.3g}"
    word = FIGURES[verdict.figure].word(verdict.judgement.word)
    word = f"the same within {percent_text(plan.within)}" if word == SAME else word
    ratio = None if np.isnan(interval.ratio) else interval.ratio
    if not with_column:
        return {f"{name} / {verdict.base}": f"{ratio:.3g} ({ends})" if ends else ratio, f"{name} is": word}
    return {f"{name} / {verdict.base}": ratio, f"{name}: 95 % interval": ends, f"{name} is": word}


def kernels_table(run: Run, plan: Plan) -> NamedTable:
    """Return the table of `bench kernels`: a row for each cell."""
    rows = []
    for cell in run.cells:
        (values,) = medians(run, cell, plan).values()
        line = next(line for line in run.rounds if line["cell"] == cell)
        others = line["disturbance"].get("others")
        row = line["raw"] | {"us": values["us"], "GB/s": values["gb_s"], "GFLOP/s": values.get("gflop_s")}
        rows.append(row | {"others": others})
    return NamedTable("kernels", ["kernel", "format", "tokens", "threads", "us", "GB/s", "GFLOP/s", "others"], rows)


# --- formats


@dataclass(frozen=True)
class FormatPoint:
    """A format's place in the picture: decode speed in tok/s, mean KL divergence in nats, size."""

    name: str
    speed: float
    kl: float
    size_mib: float


def format_points(run: Run) -> list[FormatPoint]:
    """Return the formats of a run of `bench formats` that were timed."""
    speeds = medians(run, "decode", plan_of(run))
    return [
        FormatPoint(name, speeds[name]["tok_s"], side["kl"], side["size_mib"])
        for name, side in run.header["contenders"].items()
        if "tok_s" in speeds[name]
    ]


def on_front(point: FormatPoint, points: Sequence[FormatPoint]) -> bool:
    """Return whether no other format is at least as fast and as near, and better in one of them."""

    def beats(p: FormatPoint) -> bool:
        return p.speed >= point.speed and p.kl <= point.kl and (p.speed, p.kl) != (point.speed, point.kl)

    return not any(beats(p) for p in points)


def formats_table(run: Run, verdicts: Sequence[FigureVerdict], plan: Plan) -> NamedTable:
    """Return the table that answers which format to use."""
    points = format_points(run)
    prefill = next((cell for cell in run.cells if cell.startswith("prefill")), "")
    speeds = medians(run, prefill, plan)
    words = {v.contender: verdict_columns(v, plan)[f"{v.contender} is"] for v in verdicts if v.cell == "decode"}
    weights = run.header.get("model", {}).get("parameters")
    rows = []
    for p in points:
        side = run.header["contenders"][p.name]
        row: dict[str, Any] = {"format": p.name, "size, MiB": p.size_mib, "memory, MiB": side.get("memory_mib")}
        row |= {"bits a weight": 8 * 2**20 * p.size_mib / weights if weights else None}
        row |= {f"{prefill}, tok/s": speeds[p.name].get("tok_s"), "decode, tok/s": p.speed}
        row |= {"decode is": words.get(p.name, ""), "KL, nats": p.kl, "+-": side["kl_error"]}
        row |= {"same top": f"{side['same_top']:.1%}", "on the front": "yes" if on_front(p, points) else ""}
        rows.append(row)
    return NamedTable("formats", list(rows[0]) if rows else ["format"], rows)


def shown_value(figure: Figure, value: float) -> float:
    """Return a value in the unit of the table: seconds in milliseconds."""
    return 1e3 * value if figure.unit == "s" and figure.name != "load_s" else value


LABELS = {
    "tok_s": "speed",
    "ms": "time",
    "us": "time",
    "load_s": "load",
    "memory_mib": "memory",
    "peak_mib": "peak memory",
    "joules_a_token": "energy of a token",
    "late_p99": "lateness of the client p99",
}


def figure_label(figure: Figure) -> str:
    """Return a figure's heading with its unit.

    >>> figure_label(FIGURES["decode_tok_s_server"]), figure_label(FIGURES["ttft_p50"])
    ("decode by the server's clock, tok/s", 'ttft p50, ms')
    """
    unit = "ms" if figure.unit == "s" and figure.name != "load_s" else figure.unit
    name, by_server = figure.name.removesuffix("_server"), figure.name.endswith("_server")
    name = LABELS.get(figure.name) or name.removesuffix("_s").removesuffix("_tok").replace("_", " ")
    return f"{name}{' by the server' * by_server}{chr(39) + 's clock' if by_server else ''}{', ' * bool(unit)}{unit}"


def worth_showing(figure: Figure, row: Mapping[str, float]) -> bool:
    if figure.name == "late_p99":
        return any(value > 1e3 * MAX_LATE_S for value in row.values())
    return figure.name not in HIDDEN or (figure.name != "requests_s" and any(row.values()))


def rounds_text(run: Run, cell: str, plan: Plan) -> str:
    clean, every = count_rounds(run.rounds, cell, plan)
    text = f"{every} round{'s' * (every != 1)}"
    return f"{text}, {every - clean} left out" if every > clean else text


def cell_remarks(run: Run, cell: str, verdicts: Sequence[FigureVerdict]) -> list[str]:
    """Return what explains the verdicts of a cell: why it cannot tell, and what disturbed."""
    lines = []
    notes: dict[str, list[str]] = {}
    for v in (v for v in verdicts if v.cell == cell):
        if v.judgement.word == CANNOT_TELL and v.judgement.note:
            notes.setdefault(v.judgement.note, []).append(figure_label(FIGURES[v.figure]).split(",")[0])
    lines += [f"cannot tell: {', '.join(dict.fromkeys(figures))}: {note}" for note, figures in notes.items()]
    lines += failure_lines(run, cell)
    reasons = [r for line in run.rounds if line["cell"] == cell for r in line["disturbed"]]
    if reasons:
        lines.append(f"disturbed: {len(reasons)} times, for example: {reasons[-1]}")
    hashes = output_hashes(run, cell)
    if hashes:
        lines.append(hashes)
    return lines


def failure_lines(run: Run, cell: str) -> list[str]:
    """Return for each contender how many of its requests failed, in all rounds, and why the last one did."""
    lines = []
    for name in run.contenders:
        mine = [line for line in run.rounds if (line["cell"], line["contender"]) == (cell, name)]
        requests = [request for line in mine for request in line.get("raw", {}).get("requests", ())]
        if bad := [request for request in requests if request.get("outcome") != "answered"]:
            why = f"{bad[-1]['outcome']}: {bad[-1].get('error', '')}"
            lines.append(f"{name}: {len(bad)} of {len(requests)} requests were not answered, for example {why}")
    return lines


def output_hashes(run: Run, cell: str) -> str:
    """Return how many of the timed answers were equal; "" if the prompts were not the same."""
    same = total = 0
    by_round: dict[int, list[list[str]]] = {}
    for line in run.rounds:
        if line["cell"] == cell and line.get("raw", {}).get("requests"):
            texts = [str(r.get("sha256")) for r in line["raw"]["requests"]]
            by_round.setdefault(line["round"], []).append(sorted(texts))
    if run.header.get("settings", {}).get("twins") or len(run.contenders) < 2:
        return ""
    for sides in by_round.values():
        if len(sides) == len(run.contenders):
            total += len(sides[0])
            same += sum(all(text in side for side in sides[1:]) for text in sides[0])
    return f"timed answers: {same} of {total} equal" if total else ""


def run_title(run: Run) -> str:
    """Return one line about the machine and both sides."""
    machine = ", ".join(f"{key} {value}" for key, value in run.header.get("machine", {}).items())
    sides = [f"{name}: {text}" for name, side in run.header["contenders"].items() if (text := describe_side(side))]
    return "\n".join([machine, *sides])


def describe_side(side: Mapping[str, Any]) -> str:
    names = ("wire", "url", "model", "version", "commit", "features", "settings")
    return ", ".join(str(side[name]) for name in names if side.get(name))


def to_text(run: Run) -> str:
    """Return the whole report of a run as Markdown."""
    parts = [run_title(run), *(table.to_markdown() for table in tables_of(run))]
    below = [*knee_lines(run), *run.notes]
    if run.end:
        below.append(f"stopped: {run.end['reason']}")
    return "\n\n".join([*parts, "\n".join(below)] if below else parts)
