"""`bench compare A.jsonl B.jsonl`: what changed between two files of results, and whether they may be compared.

A contender that both files measured with the same version is a bridge: its rounds were interleaved with those of the
others on both days, so the ratio to it cancels what the machine did.  Without a bridge, seconds of two days are
compared; such an interval is widened by `--drift` on both sides, since a machine is not the same from run to run, and
disturbed rounds never count.  Seconds of two machines, of different settings or of different work have no verdict.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..engine.errors import RequestError
from .figures import FIGURES, Figure
from .report import figure_label
from .results import Line, Run, json_form, read_runs
from .rounds import family_size, plan_of
from .table import NamedTable
from .verdict import ALPHA, CANNOT_TELL, SAME, Interval, percent_text, verdict_word

COLUMNS = ["part", "cell", "contender", "figure", "before", "after", "ratio", "95 % interval", "after is", "why"]


def bench_compare(options: argparse.Namespace) -> int:
    """Print the comparison of two files.  Raises: RequestError if they have nothing in common"""
    before, after = read_runs([options.before]), read_runs([options.after])
    rows = [
        row
        for x in before
        for y in after
        if x.header["part"] == y.header["part"] and x.id != y.id
        for row in compare_runs(x, y, options.within, options.drift)
    ]
    if not rows:
        raise RequestError(
            f"{options.before} and {options.after} have no cell and contender in common: nothing to compare"
        )
    print(NamedTable(f"{options.before.name}, then {options.after.name}", COLUMNS, rows).to_markdown())
    return 0


def compare_runs(x: Run, y: Run, within: float, drift: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each cell, contender and figure that both runs have."""
    reasons = obstacles(x, y)
    bridge = bridge_of(x, y)
    for cell in (cell for cell in x.cells if cell in y.cells):
        for name in (name for name in x.contenders if name in y.contenders and name != bridge):
            for figure in (f for f in FIGURES.values() if f.better):
                a, b = (logs(run, cell, name, figure) for run in (x, y))
                if not (a and b):
                    if any(figure.name in line["figures"] for line in x.rounds + y.rounds if line["cell"] == cell):
                        row = {
                            "part": x.header["part"],
                            "cell": cell,
                            "contender": name,
                            "figure": figure_label(figure),
                        }
                        yield row | {"after is": CANNOT_TELL, "why": "every round was disturbed"}
                    continue
                row = {"part": x.header["part"], "cell": cell, "contender": name, "figure": figure_label(figure)}
                row |= {"before": median_of(a, figure), "after": median_of(b, figure)}
                yield row | judged_row(x, y, cell, name, figure, reasons, bridge, within, drift)


def judged_row(
    x: Run,
    y: Run,
    cell: str,
    name: str,
    figure: Figure,
    reasons: Sequence[str],
    bridge: str | None,
    within: float,
    drift: float,
) -> dict[str, Any]:
    """Return the columns of one comparison."""
    a, b, widen, why = (
        *(logs(run, cell, name, figure) for run in (x, y)),
        drift,
        f"not interleaved: {percent_text(drift)} for drift",
    )
    if bridge is not None:
        over = [against(run, cell, name, bridge, figure) for run in (x, y)]
        if all(over):
            (a, b), widen, why = over, 0.0, f"relative to {bridge}, which both measured"
    family = family_size([line for line in x.rounds if line["cell"] == cell])
    interval = shift_interval(a, b, ALPHA / family)
    if interval.low is not None and interval.high is not None:
        interval = Interval(interval.ratio, interval.low / (1 + widen), interval.high * (1 + widen))
    word = verdict_word(interval, within, figure.better == "lower")
    if reasons and not (widen == 0.0 and all(reason.startswith("machine") for reason in reasons)):
        word, why = CANNOT_TELL, "; ".join(reasons)
    elif interval.low is None:
        why = f"{len(a)} and {len(b)} undisturbed rounds are too few"
    ends = "" if interval.low is None else f"{interval.low:.3g} .. {interval.high:.3g}"
    word = f"the same within {percent_text(within)}" if word == SAME else figure.word(word)
    return {"ratio": interval.ratio, "95 % interval": ends, "after is": word, "why": why}


def obstacles(x: Run, y: Run) -> list[str]:
    """Return why seconds of two runs may not be compared."""
    found = []
    for key, value in x.header["machine"].items():
        other = y.header["machine"].get(key)
        if key in ("cpu", "cores", "simd") and json_form(value) != json_form(other):
            found.append(f"machine: {key} {value}, then {other}")
    for key in sorted({*x.header["settings"], *y.header["settings"]} - {"seed"}):
        value, other = (run.header["settings"].get(key) for run in (x, y))
        if json_form(value) != json_form(other):
            found.append(f"settings: {key} {value}, then {other}")
    return found


def bridge_of(x: Run, y: Run) -> str | None:
    """Return the contender that both runs measured with the same version, if there are others to relate to it."""
    for name in x.contenders:
        a, b = (run.header["contenders"].get(name) for run in (x, y))
        known = {key: value for key, value in (a or {}).items() if key in ("version", "commit") and value}
        others = [other for other in x.contenders if other != name and other in y.contenders]
        if a and b and known and all(b.get(key) == value for key, value in known.items()) and others:
            return name
    return None


def clean_lines(run: Run, cell: str, busy: bool = False) -> list[Line]:
    """Return the rounds of a cell that count; `busy` includes disturbed ones."""
    return [
        line
        for line in run.rounds
        if line["cell"] == cell and (busy or not line["disturbed"]) and not line.get("unequal")
    ]


def logs(run: Run, cell: str, name: str, figure: Figure) -> list[float]:
    """Return the logarithms of a contender's figure in the undisturbed rounds."""
    values = [line["figures"].get(figure.name) for line in clean_lines(run, cell) if line["contender"] == name]
    return [math.log(value) for value in values if isinstance(value, int | float) and value > 0]


def against(run: Run, cell: str, name: str, bridge: str, figure: Figure) -> list[float]:
    """Return log(contender / bridge) of each undisturbed round."""
    rounds: dict[int, dict[str, float]] = {}
    for line in clean_lines(run, cell, plan_of(run).busy):
        if (value := line["figures"].get(figure.name, 0)) > 0:
            rounds.setdefault(line["round"], {})[line["contender"]] = math.log(value)
    return [both[name] - both[bridge] for both in rounds.values() if name in both and bridge in both]


def median_of(values: Sequence[float], figure: Figure) -> float:
    scale = 1e3 if figure.unit == "s" and figure.name != "load_s" else 1.0
    return scale * float(np.exp(np.median(values)))


@lru_cache(maxsize=256)
def u_cut(n: int, m: int, level: float) -> int:
    """Return the largest k with 2 P(U < k) <= level, U being Mann and Whitney's count; 0 without one."""
    if n * m > 2500:  # the normal approximation is within a thousandth there
        from statistics import NormalDist

        spread = math.sqrt(n * m * (n + m + 1) / 12)
        return max(0, math.floor(n * m / 2 + NormalDist().inv_cdf(level / 2) * spread))
    table: dict[tuple[int, int], np.ndarray] = {}
    for i in range(n + 1):
        for j in range(m + 1):
            if not i or not j:
                table[i, j] = np.ones(1)
                continue
            one, other = table[i - 1, j], table[i, j - 1]  # the largest of all is in the first sample, or in the second
            counts = np.zeros(i * j + 1)
            counts[j : j + len(one)] += one
            counts[: len(other)] += other
            table[i, j] = counts
    below = np.cumsum(table[n, m]) / table[n, m].sum()
    return int(np.searchsorted(2 * below, level * (1 + 1e-9), side="right"))


def shift_interval(a: Sequence[float], b: Sequence[float], level: float) -> Interval:
    """Return exp of the shift from a to b, with the exact interval of the Mann-Whitney test."""
    shifts = np.sort(np.subtract.outer(np.asarray(b), np.asarray(a)).ravel())
    ratio, cut = float(np.exp(np.median(shifts))), u_cut(len(a), len(b), level)
    if not cut:
        return Interval(ratio, None, None)
    return Interval(ratio, float(np.exp(shifts[cut - 1])), float(np.exp(shifts[-cut])))
