"""The knee of a ramp: the highest load with which a server keeps up.

clients   the last number of clients that raised throughput by a tenth
rates     the last rate at which nine of ten answers meet the limits of --goodput; without limits, the last at which
          the median answer takes at most twice as long as at the lowest rate
"""

from __future__ import annotations

from collections.abc import Sequence

from .medians import medians
from .results import Run
from .rounds import plan_of

MIN_GROWTH = 1.1  # of throughput, from one step to the next
MAX_SLOWDOWN = 2.0  # of the median answer
MIN_GOOD = 0.9  # of the answers
MIN_STEPS = 3


def knee_lines(run: Run) -> list[str]:
    """Return a line for each contender and ramp."""
    clients = [cell for cell in run.cells if cell.endswith(("client", "clients"))]
    rates = sorted((cell for cell in run.cells if "/s " in cell), key=lambda cell: float(cell.partition("/s")[0]))
    lines = []
    for name in run.contenders:
        lines += [knee_of_clients(run, name, clients)] if len(clients) >= MIN_STEPS else []
        lines += [knee_of_rates(run, name, rates)] if len(rates) >= MIN_STEPS else []
    return lines


def knee_of_clients(run: Run, name: str, cells: Sequence[str]) -> str:
    """Return the line of a ramp of clients."""
    rates = [medians(run, cell, plan_of(run))[name].get("output_tok_s", 0.0) for cell in cells]
    n = next((i for i in range(1, len(rates)) if rates[i] < MIN_GROWTH * rates[i - 1]), None)
    if n is None:
        return f"{name}: no knee up to {cells[-1]}: {rates[-1]:.3g} tok/s still grows"
    return f"{name}: the knee is at {cells[n - 1]}: {rates[n - 1]:.3g} tok/s, then {rates[n]:.3g}"


def knee_of_rates(run: Run, name: str, cells: Sequence[str]) -> str:
    """Return the line of a ramp of arrival rates."""
    steps = [medians(run, cell, plan_of(run))[name] for cell in cells]
    rates = [cell.split()[0] for cell in cells]
    if any("goodput_s" in step for step in steps):
        what = "answers within the limits"
        values = [f"{step.get('goodput_s', 0) / max(1e-9, step.get('requests_s', 0)):.0%}" for step in steps]
        keeps_up = [step.get("goodput_s", 0) >= MIN_GOOD * step.get("requests_s", 1) for step in steps]
    else:
        what = "of the median answer"
        values = [f"{step['e2e_p50']:.3g} s" if "e2e_p50" in step else "none" for step in steps]
        keeps_up = [step.get("e2e_p50", 1e9) <= MAX_SLOWDOWN * steps[0].get("e2e_p50", 0) for step in steps]
    n = keeps_up.index(False) if False in keeps_up else len(steps)
    if n == len(steps):
        return f"{name}: no knee up to {rates[-1]}: {values[0]} {what}, then {values[-1]}"
    if n == 0:
        return f"{name}: it keeps up with no rate from {rates[0]} on: {values[0]} {what}"
    return f"{name}: the knee is at {rates[n - 1]}: {values[n - 1]} {what}, and {values[n]} at {rates[n]}"
