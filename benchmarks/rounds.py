"""The loop of every comparison: contenders take turns, round after round, until each verdict is known.

A cell is one thing to measure: a load, a task, a format.  In a round each contender is measured once in each cell.  The
order of two rounds is drawn by lot together, the second being the reverse of the first, so that being first favours
no contender.  A round in which the machine was disturbed is repeated; if most are, no verdict is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from . import disturbance
from .figures import FIGURES
from .results import Line, ResultsFile, Run
from .show import Progress, silent
from .verdict import CANNOT_TELL, Ruling, is_look, judge_rounds

MAX_WARM_UP, STEADY = 10, 0.9  # a measurement that takes this share of the best so far still gets better
ROUNDS_ALONE = 5  # of a contender without a rival
MAX_UNEQUAL = 0.1  # share of rounds whose work was not equal; with more, the work of the rest is in doubt too
MAX_DISTURBED = 0.5  # share of rounds; with more, no verdict rests on the rest


@dataclass(frozen=True)
class Plan:
    """When to stop, and what counts as the same.

    rounds   a fixed number of rounds; None: as many as verdicts need
    busy     count disturbed rounds like others
    began    when the budget began, by perf_counter; 0: when the rounds do
    """

    budget_s: float = 300.0
    within: float = 0.02
    rounds: int | None = None
    busy: bool = False
    seed: int = 0
    began: float = 0.0


def plan_of(run: Run) -> Plan:
    """Return the plan with which a run was measured."""
    known = run.header.get("plan") or {}
    return Plan(**{name: known[name] for name in ("within", "rounds", "busy") if name in known})


@dataclass
class RoundResult:
    """One contender's figures in one round of one cell.

    raw       values behind the figures, for the results file
    n_token   tokens generated, for the energy of one; 0 if unknown
    unequal   why its work was not that of the others; "" if it was
    """

    figures: dict[str, float]
    raw: Mapping[str, Any] = field(default_factory=dict)
    unequal: str = ""
    n_token: int = 0


@dataclass(frozen=True)
class FigureVerdict:
    """The judgement of one figure of one contender in one cell, relative to the first contender."""

    cell: str
    contender: str
    base: str
    figure: str
    judgement: Ruling

    def to_json(self) -> Line:
        j = self.judgement
        ends = {"low": j.interval.low, "high": j.interval.high}
        line = {"cell": self.cell, "contender": self.contender, "base": self.base, "figure": self.figure}
        return (
            line
            | {"verdict": FIGURES[self.figure].word(j.word), "ratio": j.interval.ratio}
            | ends
            | {"rounds": j.n, "note": j.note}
        )


@dataclass(frozen=True)
class Subject:
    """A contender: its name, how it is measured, and the processes whose CPU time belongs to it.

    measure   (cell, round) -> RoundResult
    visible   False if it runs on this machine and its processes cannot be seen
    """

    name: str
    measure: Callable[[str, int], RoundResult]
    pids: Callable[[], Sequence[int]] = tuple
    visible: bool = True


def run_rounds(
    subjects: Sequence[Subject],
    cells: Sequence[str],
    plan: Plan,
    results: ResultsFile,
    gates: Sequence[str] | None = None,
    progress: Progress = silent,
) -> str:
    """Measure until every verdict is known, the rounds are done, the budget is spent, or Ctrl-C.  -> the reason

    gates   figures whose verdicts must be known; by default those that FIGURES marks
    """
    began, done = plan.began or perf_counter(), set[str]()
    first = 1 + max((line["round"] for line in results.run.rounds), default=-1)
    for number in range(first, 1_000_000):
        for cell in cells:
            if cell not in done and cell_is_done(results.run.rounds, cell, subjects, plan, gates):
                done.add(cell)
        if len(done) == len(cells):
            return "the rounds are done" if plan.rounds or len(subjects) == 1 else "every verdict is known"
        try:
            for cell in cells:
                if cell in done:
                    continue
                passed = perf_counter() - began
                if number > first and passed > plan.budget_s:  # at least one round, however long the warm-up took
                    return "the budget is spent"
                progress(passed / plan.budget_s, f"round {number + 1}: {cell}")
                measure_round(subjects, cell, number, plan, results)
        except KeyboardInterrupt:
            return "interrupted"
    raise AssertionError("unreachable")


def finish_run(results: ResultsFile, reason: str, plan: Plan) -> None:
    """Write the end of a run with its verdicts; an interrupted run has none, so that it can be resumed."""
    if reason != "interrupted":
        found = verdicts_of(results.run.rounds, results.run.contenders, plan)
        results.finish({"reason": reason, "verdicts": [verdict.to_json() for verdict in found]})


def warm_up(subjects: Sequence[Subject], cells: Sequence[str], progress: Progress = silent) -> str:
    """Measure each contender in each cell until it gets no better.  -> how often that was, at most"""
    most = 0
    for cell in cells:
        for subject in subjects:
            progress(0.0, f"warm-up: {cell}")
            best = math.inf
            for n in range(1, MAX_WARM_UP + 1):
                figures = subject.measure(cell, -n).figures
                cost = next(
                    (v if FIGURES[k].better == "lower" else 1 / v for k, v in figures.items() if FIGURES[k].gates), 0.0
                )
                most = max(most, n)
                if cost >= STEADY * best or not cost:
                    break
                best = min(best, cost)
    return f"warm-up: {most} times at most"


def warm_and_run(
    subjects: Sequence[Subject], cells: Sequence[str], plan: Plan, results: ResultsFile, progress: Progress
) -> str:
    """Warm up, then run rounds.  -> the reason why they ended"""
    try:
        results.say(warm_up(subjects, cells, progress))
    except KeyboardInterrupt:
        return "interrupted"
    return run_rounds(subjects, cells, plan, results, progress=progress)


def measure_round(subjects: Sequence[Subject], cell: str, number: int, plan: Plan, results: ResultsFile) -> None:
    """Measure each contender once, in an order drawn by lot; record the round only if it is complete."""
    lines = []
    order = draw_order(len(subjects), plan.seed, cell, number)
    for place, i in enumerate(order):
        subject = subjects[i]
        energy = disturbance.energy_joules()
        with disturbance.watch(subject.pids, subject.visible) as found:
            measured = subject.measure(cell, number)
        if (
            energy is not None
            and measured.n_token
            and (after := disturbance.energy_joules()) is not None
            and after > energy
        ):
            measured.figures["joules_a_token"] = (after - energy) / max(1, measured.n_token)
        line: Line = {"cell": cell, "round": number, "order": place, "contender": subject.name}
        line |= {"figures": measured.figures, "disturbance": found.to_json(), "disturbed": found.reasons}
        line |= {"unequal": measured.unequal} if measured.unequal else {}
        lines.append(line | ({"raw": measured.raw} if measured.raw else {}))
    for line in lines:
        results.add_round(line)


def draw_order(n: int, seed: int, cell: str, number: int) -> list[int]:
    """Return the order of `n` contenders in a round; every second round reverses the one before."""
    lot = np.random.default_rng([seed, number // 2, *cell.encode()])
    order: list[int] = lot.permutation(n).tolist()
    return order[::-1] if number % 2 else order


def cell_is_done(
    lines: Sequence[Line], cell: str, subjects: Sequence[Subject], plan: Plan, gates: Sequence[str] | None
) -> bool:
    """Return whether a cell needs no further round."""
    clean, all_rounds = count_rounds(lines, cell, plan)
    unequal = {line["round"] for line in lines if line["cell"] == cell and line.get("unequal")}
    if not plan.rounds and all_rounds >= ROUNDS_ALONE and len(unequal) > MAX_UNEQUAL * all_rounds:
        return True  # more rounds cannot give a verdict
    if plan.rounds:
        return clean >= plan.rounds or all_rounds >= 2 * plan.rounds
    if len(subjects) == 1:  # without a comparison: enough for medians
        return clean >= ROUNDS_ALONE or all_rounds >= 2 * ROUNDS_ALONE
    mine = [line for line in lines if line["cell"] == cell]
    if not is_look(clean, family_size(mine)):
        return False
    found = verdicts_of(mine, [s.name for s in subjects], plan)
    gated = [v for v in found if (v.figure in gates if gates is not None else FIGURES[v.figure].gates)]
    return bool(gated) and all(v.judgement.is_known for v in gated)


def count_rounds(lines: Sequence[Line], cell: str, plan: Plan) -> tuple[int, int]:
    """Return the number of rounds of a cell that count, and of all."""
    every = {line["round"] for line in lines if line["cell"] == cell}
    mine = [line for line in lines if line["cell"] == cell]
    marked = {line["round"] for line in mine if line.get("unequal") or (line["disturbed"] and not plan.busy)}
    return len(every - marked), len(every)


def verdicts_of(lines: Sequence[Line], contenders: Sequence[str], plan: Plan) -> list[FigureVerdict]:
    """Judge every figure of every contender relative to the first, cell by cell."""
    if len(contenders) < 2:
        return []
    base = contenders[0]
    rounds: dict[tuple[str, int], dict[str, Line]] = {}
    for line in lines:
        rounds.setdefault((line["cell"], line["round"]), {})[line["contender"]] = line
    found = []
    for cell in dict.fromkeys(line["cell"] for line in lines):
        mine = [both for (name, _), both in rounds.items() if name == cell]
        family = family_size([line for both in mine for line in both.values()])
        for other in contenders[1:]:
            pairs = [(both[base], both[other]) for both in mine if base in both and other in both]
            for figure in FIGURES.values():
                if figure.better and (ratios := figure_ratios(pairs, figure.name, plan.busy)):
                    judgement = judge_pairs(ratios, pairs, plan, figure.better == "lower", family)
                    found.append(FigureVerdict(cell, other, base, figure.name, judgement))
    return found


def family_size(lines: Sequence[Line]) -> int:
    """Return the number of figures that are judged together in a cell."""
    return max(1, sum(any(name in line["figures"] for line in lines) for name, f in FIGURES.items() if f.better))


def figure_ratios(pairs: Sequence[tuple[Line, Line]], figure: str, busy: bool) -> list[tuple[float, bool]]:
    """Return (log of the ratio, whether the round is left out) for each round in which both have the figure."""
    found = []
    for a, b in pairs:
        x, y = a["figures"].get(figure), b["figures"].get(figure)
        if isinstance(x, int | float) and isinstance(y, int | float) and x > 0 and y > 0:
            is_disturbed = not busy and bool(a["disturbed"] or b["disturbed"])
            found.append((math.log(y / x), is_disturbed or bool(a.get("unequal") or b.get("unequal"))))
    return found


def judge_pairs(
    ratios: Sequence[tuple[float, bool]],
    pairs: Sequence[tuple[Line, Line]],
    plan: Plan,
    lower_is_better: bool,
    family: int,
) -> Ruling:
    """Judge one figure; the reasons for which there can be no verdict come first."""
    clean = [ratio for ratio, is_marked in ratios if not is_marked]
    complaints = [next((line["unequal"] for line in pair if line.get("unequal")), "") for pair in pairs]
    unequal = next(filter(None, complaints), "")
    n_unequal = len([c for c in complaints if c])
    is_unequal = n_unequal > MAX_UNEQUAL * len(pairs)
    is_busy = len(clean) + n_unequal < (1 - MAX_DISTURBED) * len(ratios)
    judged = judge_rounds(
        [ratio for ratio, _ in ratios] if is_unequal or is_busy else clean,
        plan.within,
        lower_is_better=lower_is_better,
        family=family,
        fixed=plan.rounds is not None and len(clean) >= plan.rounds,
    )
    if is_unequal:
        return replace(judged, word=CANNOT_TELL, more=None, note=f"the work was not equal: {unequal}")
    if is_busy:
        n = len(ratios) - len(clean)
        return replace(judged, word=CANNOT_TELL, more=None, note=f"{n} of {len(ratios)} rounds were disturbed")
    return judged
