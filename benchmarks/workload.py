"""The requests of a round: prompts of words, their lengths, what they share, and when they are sent.

Every prompt is new, since servers cache the beginnings of earlier ones; only the share that `shared` names is
common.  The contenders of a round get the same prompts.  Contenders at one address share a cache, so there each gets
the same words in another order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.errors import RequestError
from .wires import Prompted

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work number night point home water room mother area money"
    " story fact month lot right study book eye job word business issue side kind head house service friend father"
).split()
ARRIVALS = ("poisson", "constant", "burst")
BURST = 4  # requests that a bursty load sends together
MIN_RAMP, MAX_RAMP = {int: 1, float: 0.001}, 1e6  # clients, or requests a second
ROUNDS_WANTED = 40  # in a budget: a difference of a tenth shows in far fewer, if nothing disturbs
SCALES = (0.5, 1.0, 2.0)  # of mixed lengths


@dataclass(frozen=True)
class Load:
    """A load: `clients` at once, `rate` requests a second, or the moments of a `trace`.

    requests   per round
    prompt     words of a prompt
    answer     tokens of an answer
    shared     share of each prompt that is common to all
    mixed      lengths vary: half, once, twice
    turns      messages of a conversation, each sent with the answers so far
    trace      (seconds, prompt words, answer tokens) of each request
    """

    requests: int
    prompt: int
    answer: int
    clients: int = 0
    rate: float = 0.0
    arrivals: str = "poisson"
    shared: float = 0.0
    mixed: bool = False
    turns: int = 1
    trace: tuple[tuple[float, int, int], ...] = ()

    @property
    def fewest(self) -> int:
        """The fewest requests that make a round: one of each client, or two seconds of an open loop."""
        return self.clients or max(BURST, int(2 * self.rate))

    @property
    def usual(self) -> int:
        """The requests of a round for which there is time."""
        return max(4, 2 * self.clients, int(4 * self.rate))

    def seconds(self, n: int, a_request: float) -> float:
        """Estimate how long `n` requests take, if one takes `a_request` and several are no faster together."""
        return max(n * a_request, n / self.rate if self.rate else 0.0, self.trace[-1][0] if self.trace else 0.0)

    @property
    def name(self) -> str:
        if self.trace:
            return f"trace of {len(self.trace)}"
        if self.clients:
            return f"{self.clients} client{'s' * (self.clients > 1)}"
        return f"{self.rate:g}/s {self.arrivals}"

    def sizes(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return (words, tokens) of each request."""
        if self.trace:
            return [(max(1, words), max(1, n)) for _, words, n in self.trace]
        scales = rng.choice(SCALES, self.requests) if self.mixed else np.ones(self.requests)
        return [(max(1, round(self.prompt * s)), max(1, round(self.answer * s))) for s in scales]

    def questions(self, seed: Sequence[int], twin: int = 0) -> list[tuple[str, int]]:
        """Return (prompt, tokens) of each request; `twin` > 0 gives the same words in another order."""
        rng = np.random.default_rng(list(seed))
        sizes = self.sizes(rng)
        n_shared = int(self.prompt * self.shared)
        prefix = draw_words(rng, n_shared)
        made = []
        for number, (n_word, n) in enumerate(sizes):
            own = draw_words(rng, max(1, n_word - n_shared))
            if twin:  # the first word stays, as a text's first word is often another token than elsewhere
                order = np.random.default_rng([*seed, number, twin]).permutation(len(own) - 1) + 1
                own = own[:1] + [own[i] for i in order]
            made.append((" ".join(prefix + own), n))
        return made

    def moments(self, seed: Sequence[int]) -> list[float] | None:
        """Return the seconds from the start at which an open loop sends its requests; None for a closed loop."""
        if self.trace:
            return [at for at, _, _ in self.trace]
        if not self.rate:
            return None
        if self.arrivals == "constant":
            return [i / self.rate for i in range(self.requests)]
        rng = np.random.default_rng([*seed, 1])
        if self.arrivals == "burst":
            n = math.ceil(self.requests / BURST)
            starts = np.cumsum(rng.exponential(BURST / self.rate, n)) - BURST / self.rate / 2
            return [float(at) for at in np.repeat(np.maximum(0, starts), BURST)[: self.requests]]
        return [float(at) for at in np.cumsum(rng.exponential(1 / self.rate, self.requests))]


def draw_words(rng: np.random.Generator, n: int) -> list[str]:
    return [WORDS[i] for i in rng.integers(0, len(WORDS), n)]


def size_rounds(loads: Sequence[Load], seconds: Sequence[float], budget_s: float) -> tuple[list[int], float]:
    """Return the requests of a round of each load, so that ROUNDS_WANTED fit into the budget, and a round's seconds.

    seconds   of one request, of each contender
    """

    def round_s(sizes: Sequence[int]) -> float:
        return sum(load.seconds(n, s) for load, n in zip(loads, sizes, strict=True) for s in seconds)

    usual = [load.usual for load in loads]
    share = min(1.0, budget_s / ROUNDS_WANTED / max(1e-9, round_s(usual)))
    sizes = [max(min(load.fewest, n), round(share * n)) for load, n in zip(loads, usual, strict=True)]
    return sizes, round_s(sizes)


def scale_prompts(load: Load, words_per_token: float) -> Load:
    """Return the load with prompt lengths in words, given in tokens."""

    def words(n_token: int) -> int:
        return max(1, round(n_token * words_per_token))

    trace = tuple((at, words(n), answer) for at, n, answer in load.trace)
    return Load(**{**vars(load), "prompt": words(load.prompt), "trace": trace})


def read_trace(path: Path) -> tuple[tuple[float, int, int], ...]:
    """Read a trace: JSON lines with `timestamp` (ms), `input_length` and `output_length`, as Mooncake publishes them.

    Raises: RequestError, which names the line
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            at, n, answer = float(row["timestamp"]) / 1e3, int(row["input_length"]), int(row["output_length"])
        except (ValueError, KeyError, TypeError):
            fields = '{"timestamp": ms, "input_length": tokens, "output_length": tokens}'
            raise RequestError(f"{path}:{number}: expected {fields}, found {line[:60]!r}") from None
        found.append((at, n, answer))
    if not found:
        raise RequestError(f"{path} has no requests")
    first = min(at for at, _, _ in found)
    return tuple((at - first, n, answer) for at, n, answer in sorted(found))


def powers_of_two(text: str, kind: type = int) -> list[float]:
    """Parse a ramp `1..64` to 1, 2, 4, ..., 64.  Raises: ValueError"""
    first, dots, last = text.partition("..")
    low, high = kind(first), kind(last)
    if not dots or not MIN_RAMP[kind] <= low <= high < MAX_RAMP:
        raise ValueError(text)
    steps = [low]
    while steps[-1] * 2 <= high:
        steps.append(steps[-1] * 2)
    return steps if steps[-1] == high else [*steps, high]


def as_prompted(question: tuple[str, int], like: Prompted) -> Prompted:
    """Return a request for a question, with everything else as in `like`."""
    return Prompted(**{**vars(like), "prompt": question[0], "n": question[1]})
