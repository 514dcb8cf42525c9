"""Signs that a stream is not what it seems: what the client's clock and text contradict, in one line each.

A server decides when it sends what.  It can send a text before its first token, hold its answer back and send it at
once, give one answer to every prompt, or be fast only where it is measured.  It cannot complete an answer before it
has computed it: so every doubt here compares with the time of complete answers (`probe.py`), or with other answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .figures import TimedAnswer
from .results import Line, Run

MIN_TOLD = 0.8  # of the stream's time; what is less is not decode, or a wrong clock
HOLD = 5.0  # times the usual gap; a blank first text that is followed by so long a gap is suspect
CLEAR, CLEAR_S = 2.0, 0.02  # a time is doubted if it differs from another by this factor, and by so many seconds
ORDINARY, ORDINARY_S = 1.5, 0.001  # the same for the time of a token
MIN_TOKENS = 8  # of an answer whose time per token is doubted
MIN_ANSWERS = 4  # of equal texts that are no coincidence
MAX_DRIFT, MIN_SPAN = 1.2, 5  # of a contender's ratio in the course of a run, and rounds before and after a change
MAX_SLOWER = 1.5  # from the warm-up to the rounds
MOST, EARLY_SHARE = 0.9, 0.6  # of an answer's time, before its first text
OF_TTFT, OF_TPOT = ("ttft", "prefill"), ("tpot", "gap", "decode")


@dataclass(frozen=True)
class Doubt:
    """A line, the figures (by the beginnings of their names) that it makes worthless, and which doubt it is."""

    text: str
    figures: tuple[str, ...] = ()
    kind: str = ""


@dataclass
class ProbeAnswers:
    """One contender's answers to the probes.

    plain    of all tokens, to new prompts as in the rounds
    single   of one token, to new prompts of the same length
    seen     of one token, to the prompts of `single` again
    prose    to ordinary text with ordinary options
    """

    name: str
    plain: list[TimedAnswer] = field(default_factory=list)
    single: list[TimedAnswer] = field(default_factory=list)
    seen: list[TimedAnswer] = field(default_factory=list)
    prose: list[TimedAnswer] = field(default_factory=list)

    def best(self, kind: str) -> float | None:
        """Return the shortest time of the complete answers of one kind, in seconds."""
        return min((a.e2e for a in getattr(self, kind) if a.outcome == "answered"), default=None)


# --- of the check's answers


def clock_doubts(name: str, answers: Sequence[TimedAnswer]) -> list[Doubt]:
    """Return a line if the server's durations contradict the client's clock in every answer."""
    lines = [clock_contradiction(name, answer) for answer in answers if answer.chunks]
    return [Doubt(lines[0])] if lines and all(lines) else []


def clock_contradiction(name: str, a: TimedAnswer) -> str:
    """Return how a server's durations contradict the client's clock; "" if they do not."""
    told = (a.counts.prefill_s or 0) + (a.counts.decode_s or 0)
    if told > 1.05 * a.e2e + 0.002:
        return f"{name} tells {told:.3g} s of work in an answer that took {a.e2e:.3g} s: its clock is wrong"
    spent = a.chunks[-1][0] - a.chunks[0][0]
    if a.counts.decode_s and spent > 0.1 and a.counts.decode_s < MIN_TOLD * spent:
        ms = [1e3 * x for x in (a.counts.decode_s, spent)]
        return f"{name} tells {ms[0]:.0f} ms of decode where its stream took {ms[1]:.0f} ms: believe the client's"
    return ""


def stream_doubts(name: str, a: TimedAnswer) -> list[Doubt]:
    """Return a line if the stream shows no time per token, or begins with a text that may hide the real first token."""
    if a.text == "vector" or a.n < 4:
        return []
    if a.tpot is None:
        told = f"{name} sends most of its answer in one piece: it has no time per token, and its ttft is not a token's"
        return [Doubt(told, OF_TPOT)]
    gaps = np.diff([at for at, _, _ in a.chunks])
    if not a.chunks[0][1].strip() and gaps[0] > HOLD * max(float(np.median(gaps)), 1e-4):
        ms = 1e3 * gaps[0]
        return [
            Doubt(f"the first text of {name} is blank, {ms:.0f} ms before the next: not a token?", OF_TTFT, "early")
        ]
    return []


# --- of the probes


def probe_doubts(p: ProbeAnswers) -> list[Doubt]:
    """Return what the probes contradict."""
    return [*time_doubts(p), *cache_doubts(p), *prose_doubts(p)]


def time_doubts(p: ProbeAnswers) -> list[Doubt]:
    """Compare the stream with the time of an answer of one token, which is complete with its first text."""
    good = [a for a in p.plain if a.outcome == "answered" and len(a.chunks) > 1]
    one = p.best("single")
    if not good or one is None:
        return []
    ttft = min(a.chunks[0][0] - a.sent for a in good)
    if is_clearly_less(ttft, one):
        line = f"the first text of {p.name} comes after {ms(ttft)}, but an answer of one token takes {ms(one)}"
        return [Doubt(f"{line}: that text is not its first token", (*OF_TTFT, *OF_TPOT), "early")]
    if line := lone_first_text(p.name, good):
        return [Doubt(line, (*OF_TTFT, *OF_TPOT), "early")]
    a = min(good, key=lambda a: a.e2e)
    shown = a.chunks[-1][0] - a.chunks[0][0]
    rest = (a.e2e - one) * (a.n - a.n_first) / max(1, a.n - 1)
    if a.n >= MIN_TOKENS and rest > 0.1 * one and is_clearly_less(shown, rest):
        line = f"the stream of {p.name} takes {ms(shown)}, but {a.n - a.n_first} more tokens take {ms(rest)}"
        return [Doubt(f"{line}: it holds its answer back, and shows no time per token", OF_TPOT, "held")]
    return []


def lone_first_text(name: str, answers: Sequence[TimedAnswer]) -> str:
    """Return a line if the first text of every answer comes long before the second, and the others do not."""
    found = [np.diff([at for at, _, _ in a.chunks]) for a in answers if len(a.chunks) > 3]
    alone = [(gaps[0], gaps[1:].mean()) for gaps in found if gaps[0] > max(HOLD * gaps[1:].mean(), CLEAR_S)]
    if not alone or len(alone) < len(found):
        return ""
    line = f"the first text of {name} comes {ms(alone[0][0])} before the second, and the others {ms(alone[0][1])} apart"
    return f"{line}: it is a guess, or they are held back"


def cache_doubts(p: ProbeAnswers) -> list[Doubt]:
    """Compare prompts that were sent before with new ones."""
    again, one = p.best("seen"), p.best("single")
    if again is None or one is None or any(a.counts.cached for a in p.seen) or not is_clearly_less(again, one):
        return []
    line = f"{p.name} answers a prompt that it has seen in {ms(again)}, a new one in {ms(one)}"
    return [Doubt(f"{line}, and tells of no cached tokens; every timed prompt of a cold cache is new", kind="cache")]


def prose_doubts(p: ProbeAnswers) -> list[Doubt]:
    """Compare ordinary text with the prompts of a benchmark."""
    plain, prose = (
        min((a.tpot for a in found if a.outcome == "answered" and a.n >= MIN_TOKENS / 2 and a.tpot), default=None)
        for found in (p.plain, p.prose)
    )
    if plain is None or prose is None or prose < ORDINARY * plain or prose - plain < ORDINARY_S:
        return []
    line = f"{p.name} takes {ms(prose)} a token after ordinary prose, and {ms(plain)} after a benchmark's words"
    return [Doubt(f"{line}: these figures hold for a benchmark only", kind="prose")]


def gives_one_answer(p: ProbeAnswers) -> bool:
    """Return whether all answers, to words and to prose, are one text."""
    texts = [a.text for a in p.plain + p.prose if a.outcome == "answered" and a.n >= MIN_TOKENS]
    shortest = min(map(len, texts), default=0)
    return len(texts) >= MIN_ANSWERS and len({text[:shortest] for text in texts}) == 1


def canned_line(p: ProbeAnswers) -> str:
    """Return a line for a contender that gives one answer to every prompt; "" for others."""
    return f"{p.name} gives the same answer to different prompts: it computes none" if gives_one_answer(p) else ""


def is_clearly_less(a: float, b: float) -> bool:
    return a * CLEAR < b and b - a > CLEAR_S


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


# --- of the rounds


def run_doubts(run: Run, warm_s: Mapping[str, float], probed: Sequence[ProbeAnswers] = ()) -> list[str]:
    """Return what the rounds of a run of servers contradict, a line each.

    warm_s   seconds of each contender's best request in the warm-up, which those of the cell "1 client" repeat
    probed   the answers to the probes, which those of that cell resemble
    """
    lines = []
    for name in run.contenders:
        mine = [line for line in run.rounds if line["contender"] == name]
        requests = [request for line in mine for request in line.get("raw", {}).get("requests", ())]
        lines += one_answer_line(name, requests) + late_clock_line(name, requests)
    return lines + drift_lines(run) + slow_lines(run, warm_s) + [x for p in probed for x in stream_lines(run, p)]


def one_answer_line(name: str, requests: Sequence[Line]) -> list[str]:
    hashes = [request["sha256"] for request in requests if "sha256" in request]
    if len(hashes) < MIN_ANSWERS or len(set(hashes)) > 1:
        return []
    return [f"{name} gave the same answer to all {len(hashes)} timed prompts"]


def late_clock_line(name: str, requests: Sequence[Line]) -> list[str]:
    """Count the timed answers in which the server tells more time than they took."""
    told = [
        (r["told"].get("prefill_s") or 0) + (r["told"].get("decode_s") or 0) > 1.05 * r["ended"] + 0.002
        for r in requests
        if r.get("outcome") == "answered"
    ]
    n = sum(told)
    return [f"{name} tells more time than the answer took in {n} of {len(told)}: its clock is wrong"] if n > 1 else []


def drift_lines(run: Run) -> list[str]:
    """Return a line for each contender that became slower or faster than the first one in the course of the run."""
    base, *others = run.contenders
    lines = []
    for cell in run.cells:
        by_round: dict[int, dict[str, float]] = {}
        for line in run.rounds:
            if line["cell"] == cell and (value := line["figures"].get("e2e_p50")):
                by_round.setdefault(line["round"], {})[line["contender"]] = float(np.log(value))
        for other in others:
            logs = [both[other] - both[base] for _, both in sorted(by_round.items()) if {base, other} <= both.keys()]
            if change := find_change(logs):
                how = f"after {change[0]} of {len(logs)} rounds it took {change[1]:.3g} times as long beside {base}"
                lines.append(f"{cell}: {other} changes in the course of the run: {how}")
    return lines


def find_change(logs: Sequence[float]) -> tuple[int, float] | None:
    """Return where all later values are above all earlier ones, or below, and by which factor; None for no such place.

    By chance that happens in one run of 60, at 10 rounds, and ever more seldom with more.
    """
    for n in range(MIN_SPAN, len(logs) - MIN_SPAN + 1):
        early, late = logs[:n], logs[n:]
        if min(late) > max(early) or max(late) < min(early):
            ratio = float(np.exp(np.median(late) - np.median(early)))
            if not 1 / MAX_DRIFT < ratio < MAX_DRIFT:
                return n, ratio
    return None


def stream_lines(run: Run, p: ProbeAnswers) -> list[str]:
    """Return a line if the first text comes much earlier or later within an answer of a round than in the probes.

    Both are shares of one answer's time, so that a machine that is faster or slower meanwhile changes neither.
    """
    good = [a for a in p.plain if a.outcome == "answered" and a.ttft and a.e2e - a.ttft > CLEAR_S]
    before = [a.ttft / a.e2e for a in good if a.ttft]
    mine = [line for line in run.rounds if (line["contender"], line["cell"]) == (p.name, "1 client")]
    requests = [r for line in mine for r in line.get("raw", {}).get("requests", ())]
    wanted = good[0].wanted if good else 0  # other lengths have other shares
    now = [r["chunks"][0] / r["ended"] for r in requests if r.get("chunks") and r.get("wanted") == wanted]
    if len(now) < MIN_ANSWERS / 2 or not before:
        return []
    early, late = float(np.median(before)), float(np.median(now))
    if not (late > MOST > EARLY_SHARE > early or late * 3 < early):
        return []
    line = (
        f"the first text of {p.name} comes after {late:.0%} of an answer's time in the rounds, and {early:.0%} before"
    )
    return [f"{line}: its stream does not show its work"]


def slow_lines(run: Run, warm_s: Mapping[str, float]) -> list[str]:
    """Return a line for each contender that was faster in the warm-up than in the rounds, if others were not."""
    medians = {}
    for name in run.contenders:
        mine = [line for line in run.rounds if (line["contender"], line["cell"]) == (name, "1 client")]
        values = [line["figures"]["e2e_p50"] for line in mine if "e2e_p50" in line["figures"]]
        if len(values) >= MIN_ANSWERS and warm_s.get(name):
            medians[name] = float(np.median(values)) / warm_s[name]
    lines = []
    for name, ratio in medians.items():
        others = min((other for one, other in medians.items() if one != name), default=1.0)
        if ratio > MAX_SLOWER * max(1.0, others):
            lines.append(f"{name} took {ratio:.3g} times as long in the rounds as in its warm-up")
    return lines
