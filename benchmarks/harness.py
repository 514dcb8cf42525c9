"""`bench self`: the harness measured, on comparisons and servers whose truth is known.

simulated    equals with several kinds of noise: how many false verdicts; known differences: how many are found
real         a server compared with itself under two names, and with one that is slower by a known share
figures      known token times, replayed on every wire, plainly, in coarse chunks and in bursts: right to 1 %
lies         servers that count wrongly, tell wrong durations, fake a stream, or work less: named

All but the first go over sockets, to servers in processes of their own.  That takes about ten minutes; each row is
printed when it is known.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from ..engine.errors import RequestError
from . import disturbance, report, serve
from .client import new_client, send_request
from .command import plan_from
from .fake import Fake, fake_server
from .figures import TimedAnswer, run_figures
from .flags import build_parser
from .invocation import Invocation
from .results import Line, ResultsFile, Run
from .rounds import verdicts_of
from .show import budget_bar
from .verdict import FASTER, SLOWER, is_look, judge_rounds
from .wires import WIRES, Prompted, parse_contender

MAX_FALSE = 0.05  # share of comparisons of equals
MIN_FOUND = 0.9  # share of comparisons with a known difference
MAX_ERROR = 0.01  # of each figure
MAX_SIMULATED_ROUNDS = 57
N_TOKEN, N_REQUEST = 40, 5  # of the replays
REAL = Fake("ollama", first=0.01, step=0.002, jitter=0.02)
REAL_FLAGS = "--prompt 32 --answer 12 --requests 2 --busy".split()
EQUAL_S, DIFFERENT_S = 15, 40  # budgets of a comparison
HONEST = Fake("openai", first=0.04, step=0.005)

Noise = Callable[[np.random.Generator], float]
NOISES: dict[str, Noise] = {
    "quiet, 1 %": lambda rng: float(0.01 * rng.standard_normal()),
    "noisy, 10 %": lambda rng: float(0.1 * rng.standard_normal()),
    "heavy tails": lambda rng: float(0.02 * rng.standard_t(1.5)),
    "spikes": lambda rng: float(0.01 * rng.standard_normal() + (rng.random() < 0.2) * rng.exponential(0.5)),
}


@dataclass(frozen=True)
class Claim:
    """A line of the report.  `holds` is None if the machine was too busy to tell."""

    what: str
    expected: str
    got: str
    holds: bool | None

    @property
    def result(self) -> str:
        return {True: "pass", False: "FAIL", None: "cannot tell: the machine is busy"}[self.holds]

    def line(self) -> str:
        """Return a row of the table."""
        return f"| {self.what:<{WIDTH}} | {self.expected:<12} | {self.got:<42} | {self.result} |"


WIDTH = 58  # of the first column
HEAD = f"| {'claim':<{WIDTH}} | {'expected':<12} | {'measured':<42} | result |"


def bench_self(options: argparse.Namespace) -> int:
    """Print the claims and whether they hold, each when it is known.  -> exit status: 1 if one does not"""
    n_real = 2 if options.quick else options.real
    steps = [
        lambda: simulated_claims(options.simulated, options.seed),
        lambda: figure_claims(2 if options.quick else N_REQUEST),
        lie_claims,
        lambda: real_claims(n_real, options.seed),
    ]
    claims: list[Claim] = []
    began = perf_counter()
    print(f"about {2 if options.quick else 10} minutes\n\n{HEAD}\n{re.sub('[^|]', '-', HEAD)}", flush=True)
    with budget_bar() as progress:
        try:
            for i, step in enumerate(steps):
                progress(i / len(steps), "")
                for claim in step():
                    claims.append(claim)
                    print(claim.line(), flush=True)
        except KeyboardInterrupt:
            print("interrupted: the claims so far")
    failed = sum(claim.holds is False for claim in claims)
    unknown = sum(claim.holds is None for claim in claims)
    holding, minutes = len(claims) - failed - unknown, (perf_counter() - began) / 60
    known = f"{holding} of {len(claims)} claims hold, {failed} do not, {unknown} cannot be told here"
    print(f"\n{known}; {minutes:.1f} minutes")
    return int(failed > 0)


# --- simulated


def simulated_claims(n: int, seed: int) -> Iterator[Claim]:
    """Simulate comparisons of equals, and of contenders that differ by 5 % and 20 %."""
    for name, noise in NOISES.items() if n else ():
        rng = np.random.default_rng([seed, 1])
        words = [simulated_verdict(noise, 0.0, rng) for _ in range(n)]
        false = sum(word in (FASTER, SLOWER) for word in words)
        limit = math.floor(MAX_FALSE * n)
        yield Claim(f"{n} simulated equals, {name}: false verdicts", f"at most {limit}", str(false), false <= limit)
    for name, share in (("quiet, 1 %", 0.05), ("quiet, 1 %", 0.2), ("noisy, 10 %", 0.2)) if n else ():
        rng = np.random.default_rng([seed, 2])
        words = [simulated_verdict(NOISES[name], share, rng) for _ in range(n)]
        found = words.count(SLOWER)
        least = math.ceil(MIN_FOUND * n)
        holds = found >= least and FASTER not in words
        yield Claim(f"{n} simulated, slower by {share:.0%}, {name}: found", f"at least {least}", str(found), holds)


def simulated_verdict(noise: Noise, slower: float, rng: np.random.Generator) -> str:
    """Compare two times as a run does: look, stop at a verdict, go on otherwise."""
    ratios: list[float] = []
    while len(ratios) < MAX_SIMULATED_ROUNDS:
        ratios.append(math.log1p(slower) + noise(rng) - noise(rng))
        if is_look(len(ratios)) and (found := judge_rounds(ratios, lower_is_better=True)).is_known:
            return found.word
    return judge_rounds(ratios, lower_is_better=True).word


# --- real servers


def compare_fakes(fakes: dict[str, Fake], flags: Sequence[str], one_server: bool = False) -> Run:
    """Run `bench serve` on fakes; `one_server`: the first one under all names.  Raises: RequestError"""
    with ExitStack() as stack:
        if one_server:
            url = stack.enter_context(fake_server(next(iter(fakes.values()))))
            servers = [f"{name}={url}" for name in fakes]
        else:
            servers = [f"{name}={stack.enter_context(fake_server(fake))}" for name, fake in fakes.items()]
        options = build_parser("bench").parse_args(["serve", *servers, *flags])
        plan = plan_from(options)

        def open_results(header: Line) -> ResultsFile:
            return ResultsFile(None, header | {"plan": {"within": plan.within, "busy": plan.busy}})

        return serve.bench_serve(Invocation(options, plan, open_results)).run


def verdict_words(run: Run) -> list[str]:
    """Return the verdicts of a run, of all its figures."""
    options = build_parser("bench").parse_args(["serve", "x", *REAL_FLAGS])
    return [v.judgement.word for v in verdicts_of(run.rounds, run.contenders, plan_from(options))]


def real_claims(n: int, seed: int) -> Iterator[Claim]:
    """Compare a server with itself, and with one that is slower by a known share."""
    false = 0
    for i in range(n):
        flags = [*REAL_FLAGS, "--budget", f"{EQUAL_S}s", "--seed", str(seed + i)]
        run = compare_fakes({"a": REAL, "b": REAL}, flags, one_server=True)
        false += any(word in (FASTER, SLOWER) for word in verdict_words(run))
    if n:
        limit = max(1, math.floor(MAX_FALSE * n))
        what = f"{n} comparisons of a server with itself: with a false verdict"
        yield Claim(what, f"at most {limit}", str(false), false <= limit)
    for share in (0.05, 0.2) if n else ():
        slow = replace(REAL, first=REAL.first * (1 + share), step=REAL.step * (1 + share), seed=1)
        with undisturbed() as quiet:
            flags = [*REAL_FLAGS, "--budget", f"{DIFFERENT_S}s", "--seed", str(seed)]
            words = verdict_words(compare_fakes({"a": REAL, "b": slow}, flags))
        holds = SLOWER in words and FASTER not in words
        got = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        yield Claim(f"a server slower by {share:.0%} is found", SLOWER, got, judged_unless_busy(holds, quiet()))


# --- figures and lies


def figure_claims(n_request: int) -> Iterator[Claim]:
    """Replay known token times on every wire, and compare with the times at which the fake really sent them."""
    shapes: dict[str, dict[str, Any]] = {"plain": {}, "chunks of 4": {"per_chunk": 4}, "bursts of 4": {"burst": 4}}
    for wire in WIRES:
        for shape, behaviour in shapes.items():
            fake = Fake(wire, first=0.5, step=0.03, **behaviour)
            with undisturbed() as quiet:
                answers, sent = ask_fake(fake, n_request)
            got, expected = run_figures(answers), sent_figures(fake, sent)
            errors = {name: got.get(name, 0) / value - 1 for name, value in expected.items()}
            worst = max(errors, key=lambda name: abs(errors[name]))
            holds = abs(errors[worst]) <= MAX_ERROR
            what = f"{wire}, {shape}: {len(expected)} figures"
            yield Claim(what, "within 1 %", f"worst {worst} {errors[worst]:+.2%}", judged_unless_busy(holds, quiet()))


def sent_figures(fake: Fake, sent: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the figures of what a fake sent, by NumPy alone.  The lines of an answer are chunks, then counts."""
    n_chunk = math.ceil(N_TOKEN / fake.per_chunk)
    held = fake.per_chunk * fake.burst  # tokens that are sent together
    chunks = np.array([lines[:n_chunk] for lines in sent])
    tpots = (chunks[:, -1] - chunks[:, 0]) / (N_TOKEN - held)
    groups = chunks[:, :: fake.burst]
    return {
        "ttft_p50": float(np.median(chunks[:, 0])),
        "tpot_p50": float(np.median(tpots)),
        "decode_tok_s": float(np.median(1 / tpots)),
        "gap_p99": float(np.percentile(np.diff(groups, axis=1), 100 - (1 if held == 1 else 50))),
        "e2e_p50": float(np.median([lines[-1] for lines in sent])),
    }


def ask_fake(fake: Fake, n_request: int) -> tuple[list[TimedAnswer], list[list[float]]]:
    """Send requests to a fake, one after the other.  -> the answers, and what the fake recorded"""

    async def all_of_them(url: str) -> tuple[list[TimedAnswer], list[list[float]]]:
        contender = parse_contender(f"fake={url}", {}, 30)
        async with new_client(contender) as http:
            asked = Prompted("one two three", N_TOKEN)
            await send_request(http, contender, replace(asked, n=8))
            answers = [await send_request(http, contender, asked) for _ in range(n_request)]
            return answers, (await http.get(f"{contender.url}/sent")).json()[1:]

    with fake_server(fake) as url:
        return asyncio.run(all_of_them(url))


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "counts twice its tokens": ({"counts": 2}, "its count is wrong"),
    "counts half of its tokens": ({"counts": 0.5}, "its count is wrong"),
    "counts no tokens": ({"counts": 0}, "its count is wrong"),
    "tells no counts": ({"tells": False}, "does not tell"),
    "tells more tokens than it sends": ({"after": 0, "carries": 0.5}, "tells 12 tokens, its stream carried 6"),
    "splits a token in three": ({"splits": 3}, "its stream carried 36"),
    "stops after 5 tokens": ({"stops_at": 5}, "answered 5 of 12 tokens"),
    "sends 6 tokens too many": ({"overshoots": 6}, "does not obey the limit"),
    "does not stop": ({"overshoots": 500}, "it does not stop"),
    "adds a template": ({"template": 9}, "adds 9 to each"),
    "tells half of its time": ({"wire": "ollama", "clock": 0.5, "step": 0.02}, "believe the client's"),
    "tells twice its time": ({"wire": "ollama", "clock": 2.0}, "its clock is wrong"),
    "holds its answer back": ({"is_held": True}, "it holds its answer back"),
    "sends its answer in one piece": ({"per_chunk": 99}, "in one piece"),
    "sends a blank before its first token": ({"early": 0.001}, "is blank"),
    "guesses its first token": ({"early": 0.001, "early_text": "I"}, "it is a guess"),
    "caches silently": ({"remembers": True}, "tells of no cached tokens"),
    "is slower with prose": ({"on_prose": 3.0}, "for a benchmark only"),
    "has one answer to everything": ({"is_canned": True}, "it computes none"),
    "drops every second answer": ({"after": 13, "empty_every": 2}, "the answer has no text"),
    "slows down after the warm-up": ({"after": 13, "later": 2.0}, "as long in the rounds as in its warm-up"),
}
"""Behaviours of a fake, and a part of the line that names each."""


def lie_claims() -> Iterator[Claim]:
    """Compare an honest server with one that lies or works less."""
    for what, (behaviour, expected) in LIES.items():
        flags = "--prompt 32 --answer 12 --rounds 4 --requests 1 --busy".split()
        with undisturbed() as quiet:
            try:
                run = compare_fakes({"a": HONEST, "b": replace(HONEST, **behaviour)}, flags)
                said = report.to_text(run)
            except RequestError as error:
                said = str(error)
        lines = [part for line in said.splitlines() for part in line.split("; ") if expected in part]
        got = lines[0][lines[0].index(expected) :] if lines else "nothing"
        yield Claim(f"a server that {what}", "named", got[:42], judged_unless_busy(bool(lines), quiet()))


def judged_unless_busy(holds: bool, is_quiet: bool) -> bool | None:
    return holds if holds or is_quiet else None


@contextmanager
def undisturbed() -> Iterator[Callable[[], bool]]:
    """Provide a function that tells, after the block, whether the machine was quiet during it."""
    with disturbance.watch() as found:
        yield lambda: not found.reasons
