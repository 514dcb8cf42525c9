"""A model's speed in prefill and decode, interleaved with llama.cpp's on the same machine in the same minutes.

    python -m numllama.benchmarks.decode FILE.gguf [--peer DIR with llama-bench, llama-batched-bench, llama-server]
        [--torch] [--rounds 5]

    prefill N           a prompt of N tokens, logits of the last only
    decode @D           single tokens after D cached ones
    batch B             B sequences, one token of each per step, after 64 cached tokens; the total of all sequences
    load, rss           seconds until a model is ready, and peak memory in MiB: see start.py

--torch also times the prompts in PyTorch, in bfloat16, through transformers, with random weights of the same shape.

tok/s are medians over rounds.  Ratios are medians of each round's own ratio: on a shared machine only these are
reliable.  On a busy machine, --cpu counts CPU seconds instead of elapsed ones.  That is fair for one thread; with
several, waiting counts too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import numpy as np

from ..engine.errors import EngineError, RequestError
from ..engine.model.batch import Batch
from ..engine.model.cache import KVCache
from ..engine.model.decoder import forward
from ..engine.model.load import load_model
from ..engine.model.model import Model, require_decoder
from ..engine.store import LocalModel
from ..engine.store.file import FileModel
from ..kernels import NUMBA, threads
from . import llama_cpp, machine, report, start
from .with_torch import prefill_with_torch

STEPS = 32  # decoded tokens per measurement


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
        self.model: Model = loaded(files)
        self.cache: KVCache = self.model.new_cache(n_ctx, n_slot)
        self.step([Batch.of([1] * 20), Batch.of([1], 0, 20)])  # warm-up: compiles, and packs the weights
        self.torch = prefill_with_torch(self.model.hparams, self.clock) if torch else None

    def clock(self) -> float:
        """Return elapsed seconds, or CPU seconds with --cpu."""
        return machine.own_cpu_seconds() if self.cpu else perf_counter()

    def step(self, batches: list[Batch]) -> None:
        """Run the batches one after the other."""
        for batch in batches:
            forward(self.model, batch, self.cache, NUMBA)

    def timed(self, n_thread: int, n_token: int, batches: list[Batch]) -> float:
        """Return tokens per second of `batches`, which count as `n_token` tokens."""
        threads.limit(n_thread)
        began = self.clock()
        self.step(batches)
        return n_token / (self.clock() - began)

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
        """Return tokens per second of llama-bench."""
        command = "llama-bench", "-t", n_thread, "-o", "json", *args
        if self.cpu:  # the cost of two more repetitions
            return 2 * n_token / self.difference([*command, "--no-warmup", "-r", 1], [*command, "--no-warmup", "-r", 3])
        (row,) = json.loads(self.output(*command, "-r", 1))
        return float(row["avg_ts"])

    def llama_batched_bench(self, n_thread: int, n_seq: int) -> float:
        """Return tokens per second of llama-batched-bench."""
        command = ["llama-batched-bench", "-t", n_thread, "-c", 256 * n_seq, "-npp", 64, "-npl", n_seq]
        if self.cpu:
            return STEPS * n_seq / self.difference([*command, "-ntg", STEPS], [*command, "-ntg", 2 * STEPS])
        lines = self.output(*command, "-ntg", STEPS, "--output-format", "jsonl").splitlines()
        (row,) = [json.loads(line) for line in lines if line.startswith("{")]
        return float(row["speed_tg"])

    def difference(self, less: Sequence[object], more: Sequence[object]) -> float:
        """Return the CPU seconds of the command `more` minus those of `less`."""
        before = machine.own_cpu_seconds()
        self.output(*less)
        between = machine.own_cpu_seconds()
        self.output(*more)
        return machine.own_cpu_seconds() - between - (between - before)

    def output(self, program: object, *args: object) -> str:
        """Run one of the peer's programs on the model and return its standard output."""
        assert self.programs is not None
        command = [str(self.programs / str(program)), "-m", self.path, *map(str, args)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loaded(files: LocalModel) -> Model:
    """Load a model with its adapters."""
    return load_model(files.weights, dict.fromkeys(files.adapters, 1.0))


def measure_decode(tasks: list[Task], n_threads: list[int], rounds: int, with_peer: bool) -> list[dict[str, Any]]:
    """Measure each task and thread count in turn, ours and then the peer's, in each of `rounds` rounds."""
    cells = [(task, n) for task in tasks for n in n_threads]
    ours, peers, torch, others = (dict[Any, list[Any]]((cell, []) for cell in cells) for _ in range(4))
    for i in range(rounds):
        for task, n in cells:
            report.show_progress(f"round {i + 1} of {rounds}: {task.name}, {n} thread{'s' * (n > 1)}")
            with machine.watch() as share:
                ours[task, n].append(task.ours(n))
                if with_peer:
                    peers[task, n].append(task.peer(n))
                if task.torch:
                    torch[task, n].append(task.torch(n))
            others[task, n].append(share.others)
    report.show_progress("")
    rows = []
    for cell in cells:
        row = {"task": cell[0].name, "threads": cell[1], "ours": float(np.median(ours[cell]))}
        row |= compared(ours[cell], peers[cell])
        if torch[cell]:
            row |= {"torch bf16": float(np.median(torch[cell])), "to torch": ratio(ours[cell], torch[cell])}
        row["others"] = max((share for share in others[cell] if share is not None), default=None)
        rows.append(row | {"rounds": rounds})
    return rows


def compared(ours: Sequence[float], peers: Sequence[float]) -> dict[str, float]:
    """Return a row's columns about the peer; empty if it was not measured."""
    if not peers:
        return {}
    ratios = np.array(ours) / np.array(peers)
    columns = {"llama.cpp": float(np.median(peers)), "ratio": ratio(ours, peers)}
    return columns | {"least": float(ratios.min()), "most": float(ratios.max())}


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of each round's own ratio."""
    return float(np.median(np.array(ours) / np.array(others)))


def measure_start(files: LocalModel, programs: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Measure memory and seconds of loading, as rows like those of tasks.  Here less is better."""
    rows, path = [], str(files.weights)
    report.show_progress("loading")
    if hasattr(os, "wait4"):
        ours = start.peak_memory_ours(files) / 2**20  # while this process is small
        peers = [start.peak_memory_of_llama_bench(programs, path) / 2**20] if programs else []
        rows.append({"task": "rss, MiB", "ours": ours} | compared([ours], peers) | {"rounds": 1})
    loader, seconds, peers = start.Loader(files), [], []
    for _ in range(rounds):
        seconds.append(loader.seconds())
        if programs:
            peers.append(llama_cpp.seconds_until_healthy(programs, path))
    loader.close()
    return [
        *rows,
        {"task": "load, s", "ours": float(np.median(seconds))} | compared(seconds, peers) | {"rounds": rounds},
    ]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises RequestError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def whole_number_from(minimum: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers from `minimum` on."""

    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"'{text}', expected a whole number from {minimum}")
        return int(text)

    return number


def read_options(argv: list[str] | None, prog: str | None) -> argparse.Namespace:
    """Parse the command line.  Raises: RequestError"""
    parser = Parser(
        prog=prog,
        allow_abbrev=False,
        description="Measure a model's speed; with --peer, compare it with llama.cpp, in turns.",
        epilog="A 1B model compared with llama.cpp takes about twenty minutes; --rounds 2 --depth 0 --batch takes two.",
    )
    several: dict[str, Any] = {"nargs": "*", "metavar": "N"}
    parser.add_argument("model", metavar="MODEL|FILE.gguf")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="folder of llama.cpp's programs")
    parser.add_argument(
        "--rounds", type=whole_number_from(1), metavar="N", default=5, help="measurements per row (default 5)"
    )
    cores = list(dict.fromkeys([1, threads.N_CORE]))
    parser.add_argument(
        "--threads", type=whole_number_from(1), **several | {"nargs": "+"}, default=cores, help="threads (1, all cores)"
    )
    prefill, depth, batch = [32, 128, 512], [0, 1024, 4096], [1, 2, 4, 8]
    parser.add_argument(
        "--prefill", type=whole_number_from(1), **several, default=prefill, help=f"prompt lengths {prefill}"
    )
    parser.add_argument(
        "--depth", type=whole_number_from(0), **several, default=depth, help=f"decode after N cached tokens {depth}"
    )
    parser.add_argument(
        "--batch", type=whole_number_from(1), **several, default=batch, help=f"decode N sequences {batch}"
    )
    parser.add_argument("--start", action="store_true", help="measure only load time and memory")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds: for busy machines")
    parser.add_argument("--torch", action="store_true", help="also time prompts in transformers, in bfloat16")
    parser.add_argument("--jsonl", metavar="FILE", help="append the rows to FILE")
    return parser.parse_args(argv)


def main(
    argv: list[str] | None = None, find: Callable[[str], LocalModel] = FileModel.of, prog: str | None = None
) -> None:
    """Run the benchmark and print the table.

    `find` returns the files of the model of a given name.  Raises: EngineError
    """
    options = read_options(argv, prog)
    files = find(options.model)
    require_decoder(loaded(files))
    if options.peer and files.adapters:
        raise RequestError(f"'{options.model}' has an adapter, which llama-bench does not apply: omit --peer")
    missing = [name for name in llama_cpp.PROGRAMS if options.peer and not (options.peer / name).exists()]
    if missing:
        raise RequestError(f"{options.peer}: {', '.join(missing)} missing, expected a folder of llama.cpp's programs")

    about = machine.describe() | {"model": Path(options.model).name, "seconds": "CPU" if options.cpu else "wall"}
    if options.peer:
        about |= llama_cpp.about(options.peer)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    with machine.watch() as whole:
        rows = measure_start(files, options.peer, options.rounds)
        if not options.start:
            rows = measure_tasks(files, options) + rows
    columns = ["task", "threads", "ours", "llama.cpp", "ratio", "least", "most", "torch bf16", "to torch", "others"]
    columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
    print(report.markdown(rows, columns))
    print("\n" + "\n".join(legend(columns, options, whole.others)))
    if options.jsonl:
        report.append_jsonl(options.jsonl, (about | row for row in rows))


def legend(columns: list[str], options: argparse.Namespace, others: float | None) -> Iterator[str]:
    """Yield explanations of the table's terms, one per line, and a warning if the machine was busy.

    others: as in machine.Share
    """
    if not options.start:
        clock = "CPU second" if options.cpu else "second"
        yield f"prefill, decode, batch: tokens per {clock}, median of {options.rounds}; decode @D is after D tokens"
    yield "rss: peak memory of a process with a prompt of 20 tokens that generates 20"
    theirs = "; for llama.cpp from the start of llama-server until it responds" if options.peer else ""
    yield f"load: seconds in a running process{theirs}"
    if "ratio" in columns:
        yield "ratio: ours / llama.cpp, median of the rounds' own ratios; least, most: of any round"
    if "others" in columns:
        yield "others: cores used by other processes during the measurement"
    if others is not None and others > 0.2 and not options.cpu:
        yield f"This machine was busy: other processes used {others:.2g} cores.  --cpu --threads 1 is fairer then"


def measure_tasks(files: LocalModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the prefill, decode and batch rows that were requested."""
    n_ctx = max([*options.prefill, *(depth + STEPS for depth in options.depth), 64 + STEPS])
    bench = Bench(files, options.peer, n_ctx, max([1, *options.batch]), options.cpu, options.torch)
    tasks = [bench.prefill(n) for n in options.prefill]
    tasks += [bench.decode(depth) for depth in options.depth] + [bench.batched(n) for n in options.batch]
    return measure_decode(tasks, options.threads, options.rounds, options.peer is not None)


if __name__ == "__main__":
    try:
        main()
    except EngineError as error:
        sys.exit(f"Error: {error}")
