"""The values of a table: the median of each figure over the rounds that count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .results import Line, Run
from .rounds import Plan


def medians(run: Run, cell: str, plan: Plan) -> dict[str, dict[str, float]]:
    """Return each contender's median of each figure, over undisturbed rounds if there are any; the sum of failures."""
    lines = [line for line in run.rounds if line["cell"] == cell]
    marked = set() if plan.busy else {line["round"] for line in lines if line["disturbed"]}
    kept = [line for line in lines if line["round"] not in marked] or lines
    found: dict[str, dict[str, float]] = {name: {} for name in run.contenders}
    for name in run.contenders:
        mine = [line["figures"] for line in kept if line["contender"] == name]
        for key in dict.fromkeys(key for figures in mine for key in figures):
            numbers = [f[key] for f in mine if isinstance(f.get(key), int | float)]
            if numbers:
                found[name][key] = float(sum(numbers) if key in ("refused", "failed") else np.median(numbers))
        found[name] |= pooled_percentiles([line for line in kept if line["contender"] == name], found[name])
    return found


def pooled_percentiles(lines: Sequence[Line], known: Mapping[str, float]) -> dict[str, float]:
    """Return the percentiles over all rounds of what single rounds were too short for."""
    found: dict[str, float] = {}
    answered = [r for line in lines for r in line.get("raw", {}).get("requests", ()) if r.get("outcome") == "answered"]
    for name, values in (
        ("ttft", [r["chunks"][0] for r in answered if r.get("chunks")]),
        ("e2e", [r["ended"] for r in answered]),
    ):
        if f"{name}_p50" in known and f"{name}_p99" not in known and len(values) > 2:
            found |= {f"{name}_p{p}": float(np.percentile(values, p)) for p in (90, 99)}
    return found
