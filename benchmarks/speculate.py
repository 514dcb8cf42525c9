"""`bench speculate`: tokens per second of answers with guesses at the next tokens, and without, in turns.

    numllama bench speculate MODEL|FILE.gguf [--texts copying right plain own] [--answer 96]

    copying   20 code edits and quotations (copying.json); the right answer is prescribed, whatever the model would say
    right     a prescribed answer that copies its prompt with so many changes that 60 % of the guesses are right
    plain     prose and speeches that do not repeat themselves, prescribed
    own       the model's own answers to the prompts of `copying`, greedy

A prescribed answer costs what the model's own costs: every token is sampled, and then another one is taken.  So
the cost of speculation can be measured on random weights of a real model's shape.  Time begins with an answer's first
token.  Before anything is timed, tokens and their log-probabilities are compared to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from ..engine.errors import EngineError, RequestError
from ..engine.handle import RequestHandle
from ..engine.model.load import load_model
from ..engine.model.model import Model, require_decoder
from ..engine.options import Options
from ..engine.oracle.passage import PASSAGE
from ..engine.run.draft import N_GRAM, PassTimes
from ..engine.run.job import Job
from ..engine.run.piece import Piece
from ..engine.run.scheduler import Running, Scheduler
from ..engine.sampling import Sampler
from ..kernels import threads
from . import machine
from .invocation import Invocation
from .results import ResultsFile
from .rounds import RoundResult, Subject, finish_run, warm_and_run

TASKS = Path(__file__).with_name("copying.json")
CONTENDERS = "off", "auto"
RIGHT, N_PROMPT = 0.6, 64  # of guesses in `right`; tokens of its prompt that are not copied
N_RIGHT = 4  # texts in `right`
RUNS = 1, 32  # tokens copied between two changes, on average: where the search for it begins


@dataclass(frozen=True)
class Prescribed:
    """A prompt, and the answer that is taken for the model's; empty: the model's own."""

    prompt: list[int]
    answer: list[int] = field(default_factory=list)


class Prescribing:
    """A sampler that samples, and returns the prescribed token."""

    def __init__(self, sampler: Sampler, answer: Sequence[int]):
        self.sampler, self._answer = sampler, iter(answer)

    def sample(self, *args: Any) -> int:
        self.sampler.sample(*args)
        return next(self._answer)


@dataclass(eq=False)
class Answered:
    """The pieces of an answer, and the seconds after its first one."""

    pieces: list[Piece] = field(default_factory=list)
    began: float = 0.0
    seconds: float = 0.0

    @property
    def seen(self) -> list[tuple[int | None, str, str | None]]:
        return [(piece.token, repr(piece.logprob), piece.done_reason) for piece in self.pieces]


class SpeculateBench(Scheduler):
    """A scheduler whose answers can be prescribed, and what is measured in it."""

    def __init__(self, model: Model, n_ctx: int, n_slot: int, n_answer: int, cpu: bool):
        super().__init__(model, model.new_cache(n_ctx, n_slot), guard=False)
        self.n_answer, self.cpu = n_answer, cpu
        self.learned = {name: PassTimes() for name in CONTENDERS}
        self.prescribed: list[int] = []

    def _begin(self, job: Job) -> Running:
        one = super()._begin(job)
        if self.prescribed:
            one.seq.sampler = Prescribing(one.seq.sampler, self.prescribed)  # type: ignore[assignment]
        return one

    def clock(self) -> float:
        return process_time() if self.cpu else perf_counter()

    def answer(self, item: Prescribed, contender: str, n_logprobs: int | None = None) -> Answered:
        """Answer one prompt."""
        answered = Answered()

        def deliver(piece: Piece | Exception) -> None:
            if isinstance(piece, Exception):
                raise piece
            answered.began = answered.began or self.clock()
            answered.pieces.append(piece)

        n = len(item.answer) or self.n_answer
        options = Options(temperature=0.0, num_predict=n, num_ctx=self.cache.n_ctx, speculate=contender)
        self.times, self.prescribed = self.learned[contender], item.answer
        handle = RequestHandle()
        self.submit(Job(handle=handle, prompt=item.prompt, options=options, deliver=deliver, n_logprobs=n_logprobs))
        while not self.idle:
            self.step()
        answered.seconds = self.clock() - answered.began
        return answered

    def measure(self, items: Sequence[Prescribed], contender: str) -> RoundResult:
        """Answer all prompts, and count the tokens after each answer's first one."""
        all_answered = [self.answer(item, contender) for item in items]
        n = sum(max(0, len(one.pieces) - 2) for one in all_answered)  # the last piece has no token
        seconds = sum(one.seconds for one in all_answered)
        return RoundResult({"tok_s": n / seconds} if n else {}, guess_counts(all_answered), n_token=n)

    def check(self, name: str, items: Sequence[Prescribed]) -> str:
        """Compare the answers of all contenders to the bit.  -> how many guesses were right.  Raises: EngineError"""
        found = [[self.answer(item, contender, n_logprobs=1) for item in items] for contender in CONTENDERS]
        for i, (plain, guessed) in enumerate(zip(*found, strict=True)):
            if plain.seen != guessed.seen:
                raise EngineError(f"{name}, text {i + 1}: the answer with guesses is not the plain one, a bug")
        n, n_right = guess_counts(found[-1]).values()
        return f"{name}: {len(items)} answers are equal to the bit; {n_right} of {n} guesses were right"


def guess_counts(answered: Sequence[Answered]) -> dict[str, int]:
    """Return how many tokens were guessed, and how many of these guesses were right."""
    timings = [one.pieces[-1].timings for one in answered]
    return {
        "guessed": sum(one.draft_tokens for one in timings if one),
        "right": sum(one.draft_accepted_tokens for one in timings if one),
    }


def copying_texts(tasks: Sequence[dict[str, str]], model: Model, n_answer: int) -> list[Prescribed]:
    """Return tasks with their right answers."""
    encode = model.tokenizer.encode
    return [Prescribed(encode(task["prompt"]), encode(task["answer"], add_special=False)[:n_answer]) for task in tasks]


def plain_texts(tasks: Sequence[dict[str, str]], model: Model, n_answer: int) -> list[Prescribed]:
    """Return prose, and the speeches of three tasks, that go on as they were written."""
    found = []
    for text in (PASSAGE, *(task["prompt"] for task in tasks[:3])):
        ids = model.tokenizer.encode(text)
        n = max(1, min(len(ids) // 2, len(ids) - n_answer))
        found.append(Prescribed(ids[:n], ids[n : n + n_answer]))
    return found


def changed_copy(known: Sequence[int], n_answer: int, run: int, seed: int) -> Prescribed:
    """Return an answer that copies its prompt, with another token after `run` tokens on average; of `known` ids."""
    random = np.random.default_rng(seed)
    prompt = random.choice(known, N_PROMPT + n_answer).tolist()
    copied = prompt[N_GRAM : N_GRAM + n_answer]
    answer = [int(random.choice(known)) if random.random() < 1 / run else id for id in copied]
    return Prescribed(prompt + prompt[:N_GRAM], answer)


def right_texts(bench: SpeculateBench, known: Sequence[int]) -> list[Prescribed]:
    """Return changed copies in which as nearly as possible RIGHT of the guesses are right."""
    if N_PROMPT + N_GRAM + 2 * bench.n_answer >= bench.cache.n_ctx:
        return []
    found: dict[int, float] = {}
    low, high = RUNS
    while high - low > 1:
        run = (low + high) // 2
        told = guess_counts([bench.answer(changed_copy(known, bench.n_answer, run, i), "auto") for i in range(N_RIGHT)])
        share = told["right"] / max(1, told["guessed"])
        found[run] = abs(share - RIGHT)
        low, high = (run, high) if share < RIGHT else (low, run)
    best = min(found, key=found.__getitem__)
    return [changed_copy(known, bench.n_answer, best, i) for i in range(N_RIGHT)]


def bench_speculate(call: Invocation) -> ResultsFile:
    """Run `bench speculate`.  Raises: EngineError"""
    options, plan, progress = call.options, call.plan, call.progress
    files = call.find(options.model)
    model = load_model(files.weights, dict.fromkeys(files.adapters, 1.0))
    require_decoder(model)
    n_thread = options.threads or threads.N_CORE
    threads.limit(n_thread)
    tasks = json.loads(TASKS.read_text("utf-8"))["tasks"]
    copying, plain = (make(tasks, model, options.answer) for make in (copying_texts, plain_texts))
    known = sorted({id for one in copying for id in one.answer})
    longest = max(len(one.prompt) for one in (*copying, *plain, changed_copy(known, options.answer, 1, 0)))
    n_ctx = min(model.hparams.n_ctx_train, longest + options.answer + 1)
    progress(0.0, "compiling")
    n_slot = len(copying) + len(plain) + N_RIGHT  # so that every prompt is read once
    bench = SpeculateBench(model, n_ctx, n_slot, options.answer, options.cpu)
    texts = {"copying": copying, "plain": plain, "own": [replace(one, answer=[]) for one in copying]}
    if "right" in options.texts:
        texts["right"] = right_texts(bench, known)
    for name in options.texts:
        texts[name] = [one for one in texts[name] if len(one.prompt) + options.answer < n_ctx]
        if not texts[name]:
            raise RequestError(f"{name}: no text fits into the model's {n_ctx} positions; choose other --texts")
    texts = {name: texts[name] for name in options.texts}
    settings = {"model": files.weights.name, "texts": options.texts, "answer": options.answer, "threads": n_thread}
    settings |= {"seconds": "CPU" if options.cpu else "wall"}
    sides = dict.fromkeys(CONTENDERS, machine.own_version())
    results = call.open_results(
        {"part": "speculate", "settings": settings, "contenders": sides, "machine": machine.describe()}
    )
    for name, items in texts.items():
        results.say(bench.check(name, items))

    def subject(contender: str) -> Subject:
        return Subject(contender, lambda cell, number: bench.measure(texts[cell], contender))

    reason = warm_and_run([subject(name) for name in CONTENDERS], list(texts), plan, results, progress)
    finish_run(results, reason, plan)
    return results
