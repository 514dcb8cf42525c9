"""`bench serve`: servers compared over their wires, in turns, with equal work."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from ..engine.errors import RequestError
from . import disturbance, machine
from .arguments import read_contenders, read_loads, read_request, tokenizer_count
from .client import new_client, send_request
from .doubts import ProbeAnswers, canned_line, probe_doubts, run_doubts
from .equality import Examined, check_prompts, differences, examine_all, outputs_line, remarks
from .figures import TimedAnswer, run_figures
from .invocation import Invocation
from .launch import reload_model, servers_to_start
from .load import run_load
from .probe import N_PROBE, probe_server, share_a_cache
from .results import ResultsFile
from .rounds import MAX_WARM_UP, STEADY, Plan, RoundResult, Subject, finish_run, run_rounds
from .show import Progress
from .verdict import looks
from .wires import Contender, Prompted
from .workload import Load, scale_prompts, size_rounds

MAX_CACHED_SHARE, MAX_CACHED_TOKENS = 0.1, 48  # of a new prompt; a template's tokens may come from a cache
MAX_TWIN_DIFFERENCE = 0.02  # tokens of the same words in another order, as a share
PROBE_WORDS = 64
LOAD_CELL = "load"
USUAL_FIGURES = 6  # with verdicts in a cell
N_DOUBTED = 3  # times in a row that a probe must raise a doubt


class ServeBench:
    """The servers of a comparison, what they were found to have in common, and their loads."""

    def __init__(
        self, contenders: Sequence[Contender], loads: Sequence[Load], like: Prompted, options: argparse.Namespace
    ):
        self.contenders, self.like, self.options = contenders, like, options
        self.seed = int(options.seed if options.seed is not None else secrets.randbits(31))
        self.loads = {load.name: load for load in loads}
        self.found: list[Examined] = []
        self.prompts: dict[tuple[str, int], tuple[str, list[int]]] = {}
        self.processes: dict[str, list[int]] = {}
        self.notes: list[str] = []
        self.count = tokenizer_count(options.tokenizer)
        self.shared: set[tuple[str, str]] = set()  # contenders that were found to share a cache
        self.started = servers_to_start(contenders, options.start, options.load)
        self.warm_s: dict[str, float] = {}
        self.probed: list[ProbeAnswers] = []

    def prepare(self, progress: Progress) -> None:
        """Examine all servers, warm them up, and scale prompts to tokens.  Raises: RequestError if they differ"""
        options, count = self.options, self.count
        progress(0.0, "are the servers equal?")
        like = replace(self.like, n=options.answer)
        probe = examine_all(self.contenders[:1], check_prompts(PROBE_WORDS, self.seed), replace(like, n=1), count)[0]
        per_word = words_per_token(probe)
        self.loads = {name: scale_prompts(load, per_word) for name, load in self.loads.items()}
        n_word = max(2, round(options.prompt * per_word))
        self.found = examine_all(self.contenders, check_prompts(n_word, self.seed), like, count)
        self.require_equal(differences(self.found, like) if len(self.found) > 1 else [])
        warm = []
        for contender in self.contenders:
            progress(0.0, f"warm-up of {contender.name}")
            warm.append(self.warm_up_server(contender))
        self.notes.append("warm-up: " + "; ".join(warm))
        if like.kind != "embed":
            progress(0.0, "do the servers show their work?")
            self.probe(like)
        self.notes += remarks(self.found)
        if like.kind != "embed":
            self.notes += [outputs_line(self.found[0], other) for other in self.found[1:]]

    def require_equal(self, different: Sequence[str]) -> None:
        """Raise RequestError with the differences, or note them with --unequal."""
        if different and not self.options.unequal:
            raise RequestError(f"the work is not equal: {'; '.join(different)}; --unequal measures without verdicts")
        self.notes += different

    def probe(self, like: Prompted) -> None:
        """Find what the streams do not show: see probe.py and doubts.py.  Raises: RequestError for canned answers"""
        one, probed = replace(self.one_request, shared=0.0), self.probed
        for i, (contender, found) in enumerate(zip(self.contenders, self.found, strict=True)):
            asked, rng = replace(like, forced=found.forced), np.random.default_rng([self.seed, 98, i])
            kinds: set[str] | None = None
            for again in range(
                N_DOUBTED
            ):  # a disturbance of the machine raises doubts, too, but not each time the same
                prompts = self.new_prompts(one, 2 * N_PROBE, 98, i, again)
                now = asyncio.run(probe_server(contender, prompts, asked, rng))
                doubts = [doubt for doubt in probe_doubts(now) if kinds is None or doubt.kind in kinds]
                kinds = {doubt.kind for doubt in doubts}
                if not kinds:
                    break
            probed.append(now)
            known = {doubt.kind for doubt in found.doubts}
            found.doubts += [doubt for doubt in doubts if doubt.kind not in known]
        for examined, answers in zip(self.found, probed, strict=True):
            if line := canned_line(answers):  # a small model may do so, too: then others with that model do
                texts = [a.text for a in examined.answers]
                alike = [other for other in self.found if [a.text for a in other.answers] == texts]
                if len(alike) == 1 < len(self.found):
                    self.require_equal([line])
                else:
                    self.notes.append(line)
        for i, other in enumerate(self.contenders):
            for j, first in enumerate(self.contenders[:i]):
                new_s = probed[i].best("single")
                if new_s is None or self.may_be_one(first, other):
                    continue
                prompts = self.new_prompts(one, N_PROBE, 97, i, j)
                if asyncio.run(share_a_cache(first, other, prompts, replace(like, forced=""), new_s)):
                    self.shared.add((first.name, other.name))
                    line = f"{other.name} answers at once where {first.name} was asked before: they share a cache"
                    self.notes.append(f"{line}, so each gets other prompts")

    def new_prompts(self, load: Load, n: int, *seed: int) -> list[str]:
        """Return `n` prompts that occur nowhere else in the run."""
        return [load.questions([self.seed, k, *seed])[0][0] for k in range(n)]

    def twin(self, contender: Contender) -> int:
        """Return the number of contenders before this one that may be the same server."""
        before = self.contenders[: list(self.contenders).index(contender)]
        return sum(self.may_be_one(one, contender) for one in before)

    def may_be_one(self, a: Contender, b: Contender) -> bool:
        """Return whether two contenders may be one server: one address, or one version of one model behind two."""
        if real_address(a) == real_address(b) or (a.name, b.name) in self.shared:
            return True
        x, y = (next((e for e in self.found if e.name == one.name), None) for one in (a, b))
        return bool(x and y and x.version and x.version == y.version and a.model == b.model)

    def examined(self, name: str) -> Examined:
        return next(one for one in self.found if one.name == name)

    def measure(self, contender: Contender, cell: str, number: int) -> RoundResult:
        """Run one load on one server once."""
        if cell == LOAD_CELL:
            return self.measure_load(contender)
        found = self.examined(contender.name)
        load, like = self.loads[cell], replace(self.like, forced=found.forced)
        seed = [self.seed, number, *cell.encode()]
        questions = load.questions(seed, self.twin(contender))
        if self.like.kind == "embed":
            return self.measure_embed(contender, questions, like)
        if self.has_twins:  # others may have displaced its model
            asyncio.run(run_load(contender, Load(1, 1, 1, clients=1), [("hello", 1)], None, like))
        if self.options.cache == "warm":
            asyncio.run(
                run_load(contender, replace(load, clients=1, turns=1), [(q, 1) for q, _ in questions], None, like)
            )
        answers = asyncio.run(run_load(contender, load, questions, load.moments(seed), like))
        for answer in answers:
            found.count_again(answer, self.count)
        figures = run_figures(answers, self.options.goodput)
        for doubt in found.doubts:
            figures = {name: value for name, value in figures.items() if not name.startswith(doubt.figures)}
        figures |= self.memory(contender)
        unequal = self.unequal(contender, load, cell, number, answers)
        n_token = sum(a.n for a in answers if a.outcome == "answered")
        return RoundResult(figures, {"requests": [raw_answer(a) for a in answers]}, unequal, n_token)

    def measure_load(self, contender: Contender) -> RoundResult:
        """Measure the time until a model answers that is not loaded, then warm it up again."""
        server = self.started.get(contender.name)
        figures = {"load_s": server.restart() if server else reload_model(contender)}
        figures |= self.memory(contender)
        one, like = self.one_request, replace(self.like, forced=self.examined(contender.name).forced)
        asyncio.run(run_load(contender, one, one.questions([self.seed, 96]), None, like))
        return RoundResult(figures)

    def memory(self, contender: Contender) -> dict[str, float]:
        found = disturbance.resident_mib(self.pids(contender), peak=False)
        return {"memory_mib": found} if found else {}

    @property
    def one_request(self) -> Load:
        """A request as the first load has them, alone."""
        first = next(iter(self.loads.values()))
        return replace(first, requests=1, clients=1, rate=0.0, trace=(), mixed=False, turns=1)

    def measure_embed(self, contender: Contender, questions: Sequence[tuple[str, int]], like: Prompted) -> RoundResult:
        """Embed all texts of a round in one request."""
        asked = replace(like, texts=tuple(text for text, _ in questions))

        async def send() -> TimedAnswer:
            async with new_client(contender) as http:
                return await send_request(http, contender, asked)

        answer = asyncio.run(send())
        if answer.outcome != "answered":
            return RoundResult({"failed": 1.0}, {"requests": [raw_answer(answer)]}, answer.error)
        n = answer.counts.prompt or sum(len(text.split()) for text, _ in questions)
        figures = {"tok_s": n / answer.e2e, "requests_s": len(questions) / answer.e2e, "e2e_p50": answer.e2e}
        return RoundResult(figures, {"requests": [raw_answer(answer)]})

    def unequal(self, contender: Contender, load: Load, cell: str, number: int, answers: Sequence[TimedAnswer]) -> str:
        """Return why the work of a round was not that of the others; "" if it was."""
        if self.options.unequal:
            return "--unequal"
        good = [a for a in answers if a.outcome == "answered"]
        if len(good) < len(answers):
            first = next(a for a in answers if a.outcome != "answered")
            n = len(answers) - len(good)
            return f"{contender.name}: {n} of {len(answers)} requests {first.outcome}: {first.error}"
        found = self.examined(contender.name)
        if line := found.stream_shrinks(good):
            return line
        for a in good:
            if a.counts.answer is not None and a.counts.answer != a.wanted:
                return f"{contender.name} answered {a.counts.answer} of {a.wanted} tokens"
            if a.counts.answer is not None and a.counts.answer < len(a.chunks) and not found.splits:
                return f"{contender.name} tells {a.counts.answer} tokens in {len(a.chunks)} chunks"
            limit = max(MAX_CACHED_TOKENS, MAX_CACHED_SHARE * a.n_prompt)
            if self.is_cold(load) and (a.counts.cached or 0) > limit:
                return f"{contender.name} had {a.counts.cached} of {a.n_prompt} tokens of a new prompt cached"
        told = sorted(a.counts.prompt or 0 for a in good)
        name, expected = self.prompts.setdefault((cell, number), (contender.name, told))
        tolerance = MAX_TWIN_DIFFERENCE * sum(expected) if self.has_twins or load.turns > 1 else 0
        if abs(sum(told) - sum(expected)) > tolerance:
            return f"the prompts have {sum(expected)} tokens for {name} and {sum(told)} for {contender.name}"
        return ""

    def is_cold(self, load: Load) -> bool:
        return bool(self.options.cache == "cold" and not load.shared and load.turns == 1)

    @property
    def has_twins(self) -> bool:
        return any(self.twin(one) for one in self.contenders)

    def pids(self, contender: Contender) -> list[int]:
        """Return the server's processes, if it runs on this machine and can be seen."""
        if server := self.started.get(contender.name):
            return server.pids
        known = self.processes.get(contender.name, [])
        if not known or not all(disturbance.is_running(pid) for pid in known):  # finding them takes milliseconds
            known = disturbance.listening_pids(contender.address[1]) if is_local(contender) else []
            self.processes[contender.name] = known
        return known

    def warm_up_server(self, contender: Contender) -> str:
        """Send requests until they get no faster, and return how many that took."""
        one, found = self.one_request, self.examined(contender.name)
        like, times = replace(self.like, forced=found.forced), [found.answers[0].e2e]  # of the check
        while len(times) < MAX_WARM_UP:
            seed = [self.seed, len(times), 99]
            questions = one.questions(seed, self.twin(contender))
            began = perf_counter()
            if like.kind == "embed":
                self.measure_embed(contender, questions, like)
            else:
                asyncio.run(run_load(contender, one, questions, None, like))
            times.append(perf_counter() - began)
            if len(times) > 2 and times[-1] > STEADY * min(times[:-1]):
                break
        self.warm_s[contender.name] = min(times)
        return f"{contender.name} {len(times)} requests, {times[0]:.3g} s to {min(times):.3g} s"

    def size_rounds(self, plan: Plan) -> dict[str, int]:
        """Return the requests of a round of each load; say so at once if too few rounds fit into the budget."""
        loads, seconds = list(self.loads.values()), list(self.warm_s.values())
        if self.options.requests or plan.rounds or self.like.kind == "embed":
            return {load.name: load.requests for load in loads}
        left = plan.budget_s - (perf_counter() - plan.began)
        sizes, round_s = size_rounds(loads, seconds, left)
        least, _ = next(looks(USUAL_FIGURES))
        if len(seconds) > 1 and left < least * round_s:
            minutes = math.ceil((plan.budget_s - left + 1.2 * least * round_s) / 60)
            how = f"--budget {minutes}m, a shorter --prompt or --answer, or fewer loads"
            line = f"a round takes {round_s:.3g} s and {max(0.0, left):.3g} s of the budget are left"
            self.notes.append(f"{line}; {least} rounds are the fewest that allow a verdict: {how}")
            print(self.notes[-1], flush=True)
        return {load.name: n for load, n in zip(loads, sizes, strict=True)}

    def set_requests(self, requests: Mapping[str, int]) -> None:
        self.loads = {name: replace(load, requests=requests[name]) for name, load in self.loads.items()}

    def subjects(self) -> list[Subject]:
        found = []
        for one in self.contenders:

            def measure(cell: str, number: int, one: Contender = one) -> RoundResult:
                return self.measure(one, cell, number)

            visible = not is_local(one) or bool(self.pids(one))
            found.append(Subject(one.name, measure, lambda one=one: self.pids(one), visible))
        return found


def bench_serve(call: Invocation) -> ResultsFile:
    """Run `bench serve`.  Raises: RequestError"""
    options = call.options
    like = read_request(options)
    bench = ServeBench(read_contenders(options), read_loads(options), like, options)
    try:
        for name, server in bench.started.items():
            call.progress(0.0, f"starting {name}")
            server.start()
        return compare_servers(bench, call)
    finally:
        for server in bench.started.values():
            server.stop()


def compare_servers(bench: ServeBench, call: Invocation) -> ResultsFile:
    """Examine the servers, and compare them round after round.  Raises: RequestError"""
    options, plan, progress, like = call.options, call.plan, call.progress, bench.like
    bench.prepare(progress)
    results = call.open_results(header_of(bench, options, bench.size_rounds(plan)))
    bench.seed = results.run.header["seed"]
    bench.set_requests(results.run.header["requests"])
    known = {note.partition(":")[0] for note in results.run.notes}  # a resumed run warms up and compares answers again
    for note in bench.notes:
        if note.partition(":")[0] not in known:
            results.say(note)
    gates = ["tok_s"] if like.kind == "embed" else None
    cells = [*bench.loads, *([LOAD_CELL] if options.load else [])]
    reason = run_rounds(bench.subjects(), cells, replace(plan, seed=bench.seed), results, gates, progress)
    is_plain = like.kind != "embed" and not (options.shared or options.mixed or options.turns > 1)
    for line in run_doubts(results.run, bench.warm_s if is_plain else {}, bench.probed):
        results.say(line)
    finish_run(results, reason, plan)
    return results


def header_of(bench: ServeBench, options: argparse.Namespace, requests: Mapping[str, int]) -> dict[str, Any]:
    """Return the header of a run: settings that make it comparable, and everything that describes both sides."""
    names = (
        "kind prompt answer requests clients rate arrivals shared mixed turns cache ctx goodput unequal seed".split()
    )
    settings = {name: getattr(options, name) for name in names} | {"loads": list(bench.loads), "twins": bench.has_twins}
    described = {
        one.contender.name: {
            "wire": one.contender.wire.name,
            "url": one.contender.url,
            "model": one.contender.model,
            "settings": dict(one.contender.settings),
            "version": one.version,
            "context": one.n_ctx,
            "forced": one.forced,
        }
        for one in bench.found
    }
    return {
        "part": "serve",
        "settings": settings,
        "contenders": described,
        "machine": machine.describe(),
        "seed": bench.seed,
        "requests": requests,
    }


def words_per_token(probe: Examined) -> float:
    """Return the words in a token of a server's tokenizer, from prompts of two lengths, which cancels a template."""
    if probe.answers[0].text == "vector" or len(probe.answers) < 2:
        return 1.0
    long, short = (a.counts.prompt for a in probe.answers)
    if not long or not short or long <= short:
        return 1.0
    return (PROBE_WORDS - PROBE_WORDS // 2) / (long - short)


def raw_answer(a: TimedAnswer) -> Mapping[str, Any]:
    """Return one request as it is recorded: times in seconds from its sending."""
    known = {name: value for name, value in vars(a.counts).items() if value not in (None, "")}
    times = np.round(np.array([at for at, _, _ in a.chunks]) - a.sent, 6).tolist()
    line = {"outcome": a.outcome, "wanted": a.wanted, "chunks": times, "ended": round(a.e2e, 6), "told": known}
    if a.text:
        line["sha256"] = hashlib.sha256(a.text.encode()).hexdigest()[:16]
    return line | ({"error": a.error} if a.error else {})


def real_address(contender: Contender) -> tuple[str, int]:
    """Return the numeric address of a server, so that two names for one machine are one."""
    host, port = contender.address
    try:
        return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]), port
    except OSError:
        return host, port


def is_local(contender: Contender) -> bool:
    """Return whether a server runs on this machine: whether packets to it would leave from its own address."""
    host, _ = real_address(contender)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return bool(probe.getsockname()[0] == host)
    except OSError:
        return False
