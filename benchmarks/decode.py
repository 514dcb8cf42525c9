"""`bench model`: a model's speed in prefill and decode, in turns with llama.cpp's on the same machine.

    numllama bench FILE.gguf [--peer DIR with llama-bench, llama-batched-bench, llama-server] [--torch]

    prefill N           a prompt of N tokens, logits of the last only
    decode @D           single tokens after D cached ones
    batch B             B sequences, one token of each per step, after 64 cached tokens; the total of all sequences
    load                seconds until a model is ready, and peak memory in MiB: see start.py

Several files without --peer are compared with the first one.  --torch also times the prompts in PyTorch, in bfloat16,
through transformers, with random weights of the same shape.

On a busy machine, --cpu counts CPU seconds instead of elapsed ones.  That is fair for one thread; with several,
waiting counts too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..engine.errors import RequestError
from ..engine.model.batch import Batch
from ..engine.model.cache import KVCache
from ..engine.model.decoder import forward
from ..engine.model.load import load_model
from ..engine.model.model import Model, require_decoder
from ..engine.store import LocalModel
from ..kernels import NUMBA, threads
from . import disturbance, llama_cpp, machine, start
from .invocation import Invocation
from .results import ResultsFile
from .rounds import Plan, RoundResult, Subject, finish_run, warm_and_run
from .show import Progress
from .with_torch import prefill_with_torch

STEPS = 32  # decoded tokens per measurement
SHORTEST = 0.1  # seconds of a measurement: shorter work is repeated


@dataclass(frozen=True)
class Task:
    """One row of the table: `ours`, `peer` and `torch` take a number of threads and return tokens per second."""

    name: str
    ours: Callable[[int], float]
    peer: Callable[[int], float]
    torch: Callable[[int], float] | None = None


class Bench:
    """A loaded model and the peer's programs."""

    def __init__(
        self, files: LocalModel, peer: Path | None, n_ctx: int, n_slot: int, cpu: bool = False, torch: bool = False
    ):
        self.path, self.programs, self.cpu = str(files.weights), peer, cpu
        self.repeats: dict[tuple[object, ...], int] = {}  # of llama-bench, by command
        self.model: Model = loaded(files)
        self.cache: KVCache = self.model.new_cache(n_ctx, n_slot)
        self.step([Batch.of([1] * 20), Batch.of([1], 0, 20)])  # warm-up: compiles, and packs the weights
        self.torch = prefill_with_torch(self.model.hparams, self.clock) if torch else None

    def clock(self) -> float:
        """Return elapsed seconds, or CPU seconds with --cpu."""
        return disturbance.own_cpu_seconds() if self.cpu else perf_counter()

    def step(self, batches: list[Batch]) -> None:
        """Run the batches one after the other."""
        for batch in batches:
            forward(self.model, batch, self.cache, NUMBA)

    def timed(self, n_thread: int, n_token: int, batches: list[Batch]) -> float:
        """Return tokens per second of `batches`, which count as `n_token` tokens, repeated for SHORTEST seconds."""
        threads.limit(n_thread)
        began, n, seconds = self.clock(), 0, 0.0
        while seconds < SHORTEST:
            self.step(batches)
            n, seconds = n + n_token, self.clock() - began
        return n / seconds

    def prefill(self, n: int) -> Task:
        """Return the task of a prompt of `n` tokens; only the last one has logits."""
        tokens = np.random.default_rng(n).integers(3, self.model.hparams.n_vocab, n).tolist()
        batch = Batch.of(tokens)
        return Task(
            f"prefill {n}",
            lambda n_thread: self.timed(n_thread, n, [batch]),
            lambda n_thread: self.llama_bench(n_thread, n, "-p", n, "-n", 0),
            partial(self.torch, n) if self.torch else None,
        )

    def decode(self, depth: int) -> Task:
        """Return the task of single tokens after `depth` cached ones."""
        batches = [Batch.of([3 + i], 0, depth + i) for i in range(STEPS)]
        return Task(
            f"decode @{depth}",
            lambda n_thread: self.timed(n_thread, STEPS, batches),
            lambda n_thread: self.llama_bench(n_thread, STEPS, "-p", 0, "-n", STEPS, "-d", depth),
        )

    def batched(self, n_seq: int) -> Task:
        """Return the task of `n_seq` sequences that decode together."""
        batches = [Batch.join([Batch.of([3 + i], slot, 64 + i) for slot in range(n_seq)]) for i in range(STEPS)]
        return Task(
            f"batch {n_seq}",
            lambda n_thread: self.timed(n_thread, STEPS * n_seq, batches),
            lambda n_thread: self.llama_batched_bench(n_thread, n_seq),
        )

    def llama_bench(self, n_thread: int, n_token: int, *args: object) -> float:
        """Return tokens per second of llama-bench, which repeats its work for SHORTEST seconds."""
        command = "llama-bench", "-t", n_thread, "-o", "json", *args
        if command not in self.repeats:
            speed = self.llama_bench_speed(*command, "-r", 1)
            self.repeats[command] = max(1, math.ceil(SHORTEST * speed / n_token))
        n = self.repeats[command]
        if not self.cpu:
            return self.llama_bench_speed(*command, "-r", n)
        n = max(2, n)
        return n * n_token / self.difference([*command, "--no-warmup", "-r", 1], [*command, "--no-warmup", "-r", 1 + n])

    def llama_bench_speed(self, *command: object) -> float:
        """Return the tokens per second that llama-bench prints."""
        (row,) = json.loads(self.output(*command))
        return float(row["avg_ts"])

    def llama_batched_bench(self, n_thread: int, n_seq: int) -> float:
        """Return tokens per second of llama-batched-bench."""
        command = ["llama-batched-bench", "-t", n_thread, "-c", 256 * n_seq, "-npp", 64, "-npl", n_seq]
        if self.cpu:
            return STEPS * n_seq / self.difference([*command, "-ntg", STEPS], [*command, "-ntg", 2 * STEPS])
        for _ in range(3):  # its last lines are lost now and then: 1 run of 40 printed nothing
            lines = self.output(*command, "-ntg", STEPS, "--output-format", "jsonl").splitlines()
            if rows := [json.loads(line) for line in lines if line.startswith("{")]:
                return float(rows[0]["speed_tg"])
        raise RequestError(f"llama-batched-bench measured nothing with {n_seq} sequences: omit --batch {n_seq}")

    def difference(self, less: Sequence[object], more: Sequence[object]) -> float:
        """Return the CPU seconds of the command `more` minus those of `less`.

        Raises: RequestError if that is not above 0
        """
        before = disturbance.own_cpu_seconds()
        self.output(*less)
        between = disturbance.own_cpu_seconds()
        self.output(*more)
        seconds = disturbance.own_cpu_seconds() - between - (between - before)
        if seconds <= 0:
            raise RequestError(f"{more[0]} took no more CPU time for more work, expected some: omit --cpu")
        return seconds

    def output(self, program: object, *args: object) -> str:
        """Run one of the peer's programs on the model and return its standard output.  Raises: RequestError"""
        assert self.programs is not None
        command = [str(self.programs / str(program)), "-m", self.path, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
            raise RequestError(f"{program} exited with {done.returncode}: {last.strip()[:200]}")
        return done.stdout


def loaded(files: LocalModel) -> Model:
    """Load a model with its adapters."""
    return load_model(files.weights, dict.fromkeys(files.adapters, 1.0))


@dataclass
class ModelBench:
    """The tasks of one file, and what is measured once.

    cells    name of a cell -> its task and number of threads
    memory   contender -> peak memory in MiB
    """

    name: str
    files: LocalModel
    cells: dict[str, tuple[Task, int]]
    loader: start.Loader
    programs: Path | None
    memory: dict[str, float]

    def measure(self, contender: str, cell: str, _: int) -> RoundResult:
        """Measure a contender in a cell: ours, llama.cpp's or torch's."""
        if cell.endswith(LOAD_CELL):
            return RoundResult(self.loading(contender))
        task, n_thread = self.cells[cell]
        run = {PEER: task.peer, TORCH: task.torch}.get(contender, task.ours)
        return RoundResult({"tok_s": run(n_thread)} if run else {})

    def loading(self, contender: str) -> dict[str, float]:
        """Measure the seconds until the model is ready."""
        if contender == TORCH:
            return {}
        memory = {"peak_mib": self.memory[contender]} if contender in self.memory else {}
        if contender == PEER:
            assert self.programs is not None
            return {"load_s": llama_cpp.seconds_until_healthy(self.programs, str(self.files.weights))} | memory
        return {"load_s": self.loader.seconds()} | memory


OURS, PEER, TORCH, LOAD_CELL = "numllama", "llama.cpp", "torch bf16", "load"


def peak_memories(files: LocalModel, programs: Path | None) -> dict[str, float]:
    """Measure peak memory in MiB."""
    if not hasattr(os, "wait4"):
        return {}
    found = {OURS: start.peak_memory_ours(files) / 2**20}
    return found | ({PEER: start.peak_memory_of_llama_bench(programs, str(files.weights)) / 2**20} if programs else {})


def model_bench(name: str, files: LocalModel, options: argparse.Namespace, memory: dict[str, float]) -> ModelBench:
    """Load a file and make its tasks."""
    prefill, depth, batch = ([] if options.start else given for given in task_sizes(options))
    n_ctx = max([*prefill, *(d + STEPS for d in depth), 64 + STEPS])
    bench = Bench(files, options.peer, n_ctx, max([1, *batch]), options.cpu, options.torch)
    tasks = [bench.prefill(n) for n in prefill] + [bench.decode(d) for d in depth] + [bench.batched(n) for n in batch]
    n_threads = options.threads or [threads.N_CORE]
    cells = {f"{task.name}, {n} thread{'s' * (n > 1)}": (task, n) for task in tasks for n in n_threads}
    return ModelBench(name, files, cells, start.Loader(files), options.peer, memory)


def task_sizes(options: argparse.Namespace) -> tuple[list[int], list[int], list[int]]:
    """Return the lengths of prompts, depths of decode and sizes of batches."""
    given = options.prefill, options.depth, options.batch
    prefill, depth, batch = (size if size is not None else usual for size, usual in zip(given, USUAL, strict=True))
    return prefill, depth, batch


USUAL = ([128, 512], [0, 1024], [8])  # with a peer and a 1B model, 8 rounds of these take about five minutes


def check_model(name: str, files: LocalModel, peer: Path | None) -> None:
    """Check that a model can be measured.  Raises: EngineError"""
    require_decoder(loaded(files))
    if peer and files.adapters:
        raise RequestError(f"'{name}' has an adapter, which llama-bench does not apply: omit --peer")


def bench_model(call: Invocation) -> ResultsFile:
    """Run `bench model`.  `find` returns the files of the model of a given name.  Raises: EngineError"""
    options, plan, progress = call.options, call.plan, call.progress
    missing = [name for name in llama_cpp.PROGRAMS if options.peer and not (options.peer / name).exists()]
    if missing:
        raise RequestError(f"{options.peer}: {', '.join(missing)} missing, expected a folder of llama.cpp's programs")
    names = short_names(options.models)
    found = {short: call.find(name) for short, name in names.items()}
    for short, files in found.items():
        check_model(short, files, options.peer)
    progress(0.0, "memory")
    memories = {short: peak_memories(files, options.peer) for short, files in found.items()}
    progress(0.0, "loading and compiling")
    benches = [model_bench(short, files, options, memories[short]) for short, files in found.items()]
    results = call.open_results(model_header(benches, options))
    try:
        if options.peer or options.torch or len(benches) == 1:
            reason = run_beside(benches, options, plan, results, progress)
        else:
            reason = run_models(benches, plan, results, progress)
    finally:
        for bench in benches:
            bench.loader.close()
    results.say("memory: the peak of a process with a prompt of 20 tokens that generates 20")
    finish_run(results, reason, plan)
    return results


def run_beside(
    benches: Sequence[ModelBench], options: argparse.Namespace, plan: Plan, results: ResultsFile, progress: Progress
) -> str:
    """Compare each model in this engine with the same model in others."""
    cells = {
        (f"{b.name}: {cell}" if len(benches) > 1 else cell): (b, cell)
        for b in benches
        for cell in [*b.cells, LOAD_CELL]
    }

    def subject(name: str) -> Subject:
        return Subject(name, lambda cell, number: cells[cell][0].measure(name, cells[cell][1], number))

    names = list(results.run.header["contenders"])
    return warm_and_run([subject(name) for name in names], list(cells), plan, results, progress)


def run_models(benches: Sequence[ModelBench], plan: Plan, results: ResultsFile, progress: Progress) -> str:
    """Compare models with one another."""

    def subject(bench: ModelBench) -> Subject:
        return Subject(bench.name, lambda cell, number: bench.measure(OURS, cell, number))

    return warm_and_run([subject(b) for b in benches], [*benches[0].cells, LOAD_CELL], plan, results, progress)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return a name for each model: its file's, its path if two files have the same, numbered if it is given twice."""
    short = [Path(model).name for model in models]
    found: dict[str, str] = {}
    for name, model in zip(short, models, strict=True):
        name = name if short.count(name) == 1 else model
        found[f"{name} ({models[: len(found)].count(model) + 1})" if models.count(model) > 1 else name] = model
    return found


def model_header(benches: Sequence[ModelBench], options: argparse.Namespace) -> dict[str, Any]:
    """Return the header of a run."""
    prefill, depth, batch = task_sizes(options)
    settings = {"models": [b.name for b in benches], "prefill": prefill, "depth": depth, "batch": batch}
    settings |= {"threads": options.threads, "start": options.start, "seconds": "CPU" if options.cpu else "wall"}
    if options.peer or options.torch or len(benches) == 1:
        sides: dict[str, Any] = {PEER: llama_cpp.about(options.peer)} if options.peer else {}
        sides |= {OURS: machine.own_version()} | ({TORCH: {}} if options.torch else {})
    else:
        sides = {b.name: {} for b in benches}
    return {"part": "model", "settings": settings, "contenders": sides, "machine": machine.describe()}
