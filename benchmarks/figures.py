"""The figures of a run of requests, by the field's names; docs/benchmarks.md has every definition and its source.

One request is sent at `sent`; its stream carries text at the times of `chunks`, and ends at `ended`, in seconds of
the client's clock.  Of its n tokens, k came with the first text: in its chunk, or in a burst.

    ttft          first text - sent
    tpot          (last text - first text) / (n - k)
    gap           time between two chunks of text; tokens of one chunk are 0 apart
    e2e           ended - sent
    prefill       prompt tokens / ttft
    decode        1 / tpot

`_server` marks the same by the server's own clock.  Verdicts rest on the client's clock alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A figure's unit and direction.

    better   "lower", "higher" or "": no verdict
    gates    a run goes on until its verdict is known
    """

    name: str
    unit: str
    better: str = ""
    gates: bool = False

    def word(self, verdict: str) -> str:
        """Return a verdict in the words of the figure: memory and energy are less or more, times and rates are not."""
        return LESS_OR_MORE.get(verdict, verdict) if self.unit in ("MiB", "J") else verdict


LESS_OR_MORE = {"faster": "less", "slower": "more"}
FIGURES = {
    figure.name: figure
    for figure in (
        Figure("ttft_p50", "s", "lower", True),
        Figure("ttft_p90", "s"),
        Figure("ttft_p99", "s", "lower"),
        Figure("tpot_p50", "s", "lower", True),
        Figure("tpot_p90", "s"),
        Figure("tpot_p99", "s"),
        Figure("gap_p50", "s"),
        Figure("gap_p90", "s"),
        Figure("gap_p99", "s", "lower"),
        Figure("e2e_p50", "s", "lower", True),
        Figure("e2e_p90", "s"),
        Figure("e2e_p99", "s"),
        Figure("prefill_tok_s", "tok/s"),
        Figure("prefill_tok_s_server", "tok/s"),
        Figure("decode_tok_s", "tok/s"),
        Figure("decode_tok_s_server", "tok/s"),
        Figure("output_tok_s", "tok/s", "higher", True),
        Figure("total_tok_s", "tok/s"),
        Figure("requests_s", "1/s"),
        Figure("goodput_s", "1/s", "higher"),
        Figure("refused", ""),
        Figure("failed", ""),
        Figure("late_p99", "s"),
        Figure("tok_s", "tok/s", "higher", True),
        Figure("ms", "ms", "lower", True),
        Figure("us", "us", "lower", True),
        Figure("gb_s", "GB/s"),
        Figure("gflop_s", "GFLOP/s"),
        Figure("load_s", "s", "lower", True),
        Figure("memory_mib", "MiB", "lower"),
        Figure("peak_mib", "MiB"),
        Figure("joules_a_token", "J", "lower"),
    )
}
"""Every figure.  A few have verdicts: more would be the same evidence again, and cost each of them certainty."""


@dataclass(frozen=True)
class ServerCounts:
    """The counts and durations that a server tells about one request; None where it does not.

    cached   prompt tokens that it took from its cache
    """

    prompt: int | None = None
    answer: int | None = None
    cached: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    load_s: float | None = None
    reason: str = ""


TOGETHER = 0.1  # of the mean gap: what a network needs to deliver a burst


@dataclass
class TimedAnswer:
    """One request and its stream.

    outcome   "answered", "refused" (429 or 503) or "failed"
    due       when an open loop should have sent it
    chunks    (seconds, text, tokens in it if known)
    carried   tokens that the stream carried, counted by the client; None if it cannot count them

    is_complete   whether the stream had its last line
    """

    sent: float
    due: float = 0.0
    ended: float = 0.0
    outcome: str = "answered"
    error: str = ""
    chunks: list[tuple[float, str, int | None]] = field(default_factory=list)
    counts: ServerCounts = field(default_factory=ServerCounts)
    wanted: int = 0
    prompt: int = 0
    carried: int | None = None
    is_complete: bool = False

    @property
    def text(self) -> str:
        return "".join(text for _, text, _ in self.chunks)

    @property
    def n(self) -> int:
        """Tokens of the answer: the client's count, or the server's, or that of chunks."""
        return self.carried or self.counts.answer or len(self.chunks)

    @property
    def n_prompt(self) -> int:
        return self.counts.prompt or self.prompt

    @property
    def n_first(self) -> int:
        """Tokens that arrived with the first text, in one chunk or in a burst: within a tenth of the mean gap.

        They are counted, or taken as the mean number of tokens of a chunk.
        """
        began, last = self.chunks[0][0], self.chunks[-1][0]
        burst = TOGETHER * (last - began) / max(1, self.n - 1)
        first = [n for at, _, n in self.chunks if at - began <= burst]
        mean = max(1.0, self.n / len(self.chunks))
        return max(1, round(sum(mean if n is None else n for n in first)))

    @property
    def ttft(self) -> float | None:
        return self.chunks[0][0] - self.sent if self.chunks else None

    @property
    def e2e(self) -> float:
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds per token; None if more than half of the tokens came with the first text: too few are left."""
        later = self.n - self.n_first if self.chunks else 0
        return (self.chunks[-1][0] - self.chunks[0][0]) / later if later > 0 and 2 * later >= self.n else None

    @property
    def gaps(self) -> list[float]:
        """One gap for each token after the first; tokens that came with others are 0 later.

        With more chunks than tokens, it is unknown which of them ended a token: there are no gaps then.
        """
        if not 1 < len(self.chunks) <= self.n:
            return []
        times = [at for at, _, _ in self.chunks]
        between = np.diff(times).tolist()
        together = self.n - 1 - len(between)
        return between + [0.0] * max(0, together)


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of a round; of one or two values, only the median is a figure of its own."""
    which = (50, 90, 99) if len(values) > 2 else (50,)
    return {f"{name}_p{p}": float(np.percentile(values, p)) for p in which} if values else {}


def run_figures(answers: Sequence[TimedAnswer], limits: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the figures of one run.

    limits   seconds for `ttft`, `tpot` and `e2e` that an answer must meet to count for goodput
    """
    good = [a for a in answers if a.outcome == "answered" and a.chunks]
    row: dict[str, float] = {
        "refused": sum(a.outcome == "refused" for a in answers),
        "failed": sum(a.outcome == "failed" for a in answers),
    }
    if not good:
        return row
    seconds = max(a.ended for a in answers) - min(a.sent for a in answers)
    row |= percentiles("ttft", [a.ttft for a in good if a.ttft is not None])
    row |= percentiles("tpot", [a.tpot for a in good if a.tpot is not None])
    row |= percentiles("gap", [gap for a in good for gap in a.gaps])
    row |= percentiles("e2e", [a.e2e for a in good])
    row |= {
        "prefill_tok_s": median(a.n_prompt / a.ttft for a in good if a.ttft and a.n_prompt),
        "decode_tok_s": median(1 / a.tpot for a in good if a.tpot),
        "prefill_tok_s_server": median(fresh_tokens(a) / a.counts.prefill_s for a in good if a.counts.prefill_s),
        "decode_tok_s_server": median(
            decoded_tokens(a) / a.counts.decode_s for a in good if a.counts.decode_s and a.counts.answer
        ),
        "output_tok_s": sum(a.n for a in good) / seconds,
        "total_tok_s": sum(a.n + a.n_prompt for a in good) / seconds,
        "requests_s": len(good) / seconds,
    }
    if limits:
        row["goodput_s"] = sum(meets(a, limits) for a in good) / seconds
    if any(a.due for a in answers):
        row["late_p99"] = float(np.percentile([a.sent - a.due for a in answers], 99))
    return {name: value for name, value in row.items() if not np.isnan(value)}


def median(values: Any) -> float:
    found = list(values)
    return float(np.median(found)) if found else float("nan")


def fresh_tokens(a: TimedAnswer) -> int:
    """Return the prompt tokens that the server computed."""
    return max(1, a.n_prompt - (a.counts.cached or 0))


def decoded_tokens(a: TimedAnswer) -> int:
    return a.counts.answer or 0


def meets(a: TimedAnswer, limits: Mapping[str, float]) -> bool:
    """Return whether an answer meets all limits."""
    return all((value := getattr(a, name)) is None or value <= limit for name, limit in limits.items())
