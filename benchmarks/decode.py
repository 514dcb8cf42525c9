"""A model's speed from prompt to tokens, interleaved with llama.cpp's on the same machine in the same minutes.

    python -m numllama.benchmarks.decode FILE.gguf [--peer DIR with llama-bench, llama-batched-bench, llama-server]
        [--torch] [--rounds 5]

    prefill N           tokens of a prompt of N, logits of the last only
    decode @D           tokens one by one after D cached ones
    batch B             B sequences one token each a step, after 64 cached ones; tokens of all together
    load, rss           seconds until a model is ready, MiB at the most: see start.py

--torch also has PyTorch read the prompts, in bfloat16, through transformers, with random weights of the same shape.

tok/s are medians over rounds, ratios medians of the rounds' own: on a shared machine only these mean something.
Where others use much of it, --cpu counts seconds that a core worked instead of seconds that passed: fair for one
thread; with more, waiting counts too.
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

STEPS = 32  # decoded tokens a measurement


@dataclass(frozen=True)
class Task:
    """One row: `ours`, `peer` and `torch` give tokens a second with so many threads."""

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
        self.step([Batch.of([1] * 20), Batch.of([1], 0, 20)])  # compiles, and packs the weights
        self.torch = prefill_with_torch(self.model.hparams, self.clock) if torch else None

    def clock(self) -> float:
        return machine.own() if self.cpu else perf_counter()

    def step(self, batches: list[Batch]) -> None:
        for batch in batches:
            forward(self.model, batch, self.cache, NUMBA)

    def timed(self, n_thread: int, n_token: int, batches: list[Batch]) -> float:
        threads.limit(n_thread)
        began = self.clock()
        self.step(batches)
        return n_token / (self.clock() - began)

    def prefill(self, n: int) -> Task:
        """Tokens of a prompt; only the last one has logits."""
        tokens = np.random.default_rng(n).integers(3, self.model.hparams.n_vocab, n).tolist()
        batch = Batch.of(tokens)
        return Task(
            f"prefill {n}",
            lambda n_thread: self.timed(n_thread, n, [batch]),
            lambda n_thread: self.llama_bench(n_thread, n, "-p", n, "-n", 0),
            partial(self.torch, n) if self.torch else None,
        )

    def decode(self, depth: int) -> Task:
        batches = [Batch.of([3 + i], 0, depth + i) for i in range(STEPS)]
        return Task(
            f"decode @{depth}",
            lambda n_thread: self.timed(n_thread, STEPS, batches),
            lambda n_thread: self.llama_bench(n_thread, STEPS, "-p", 0, "-n", STEPS, "-d", depth),
        )

    def batched(self, n_seq: int) -> Task:
        batches = [Batch.join([Batch.of([3 + i], slot, 64 + i) for slot in range(n_seq)]) for i in range(STEPS)]
        return Task(
            f"batch {n_seq}",
            lambda n_thread: self.timed(n_thread, STEPS * n_seq, batches),
            lambda n_thread: self.llama_batched_bench(n_thread, n_seq),
        )

    def llama_bench(self, n_thread: int, n_token: int, *args: object) -> float:
        command = "llama-bench", "-t", n_thread, "-o", "json", *args
        if self.cpu:  # what two more repetitions cost
            return 2 * n_token / self.difference([*command, "--no-warmup", "-r", 1], [*command, "--no-warmup", "-r", 3])
        (row,) = json.loads(self.output(*command, "-r", 1))
        return row["avg_ts"]

    def llama_batched_bench(self, n_thread: int, n_seq: int) -> float:
        command = ["llama-batched-bench", "-t", n_thread, "-c", 256 * n_seq, "-npp", 64, "-npl", n_seq]
        if self.cpu:
            return STEPS * n_seq / self.difference([*command, "-ntg", STEPS], [*command, "-ntg", 2 * STEPS])
        lines = self.output(*command, "-ntg", STEPS, "--output-format", "jsonl").splitlines()
        (row,) = [json.loads(line) for line in lines if line.startswith("{")]
        return row["speed_tg"]

    def difference(self, less: Sequence[object], more: Sequence[object]) -> float:
        """CPU seconds that the command `more` takes over `less`."""
        before = machine.own()
        self.output(*less)
        between = machine.own()
        self.output(*more)
        return machine.own() - between - (between - before)

    def output(self, program: object, *args: object) -> str:
        assert self.programs is not None
        command = [str(self.programs / str(program)), "-m", self.path, *map(str, args)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loaded(files: LocalModel) -> Model:
    return load_model(files.weights, dict.fromkeys(files.adapters, 1.0))


def measure_decode(tasks: list[Task], n_threads: list[int], rounds: int, with_peer: bool) -> list[dict]:
    """Each task and thread count in turn, ours and then the peer's, `rounds` times over."""
    cells = [(task, n) for task in tasks for n in n_threads]
    ours, peers, torch, others = ({cell: [] for cell in cells} for _ in range(4))  # type: dict, dict, dict, dict
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
    """What a row says of the peer, if it was asked."""
    if not peers:
        return {}
    ratios = np.array(ours) / np.array(peers)
    found = {"llama.cpp": float(np.median(peers)), "ratio": ratio(ours, peers)}
    return found | {"least": float(ratios.min()), "most": float(ratios.max())}


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' own."""
    return float(np.median(np.array(ours) / np.array(others)))


def measure_start(files: LocalModel, programs: Path | None, rounds: int) -> list[dict]:
    """Memory and seconds of loading, in rows like those of tasks; but less is better."""
    rows, path = [], str(files.weights)
    report.show_progress("loading")
    if hasattr(os, "wait4"):
        ours = start.most_memory_ours(files) / 2**20  # while this process is small
        peers = [start.most_memory_of_llama_bench(programs, path) / 2**20] if programs else []
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
    """Whose errors are like any other's."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def positive(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}', expected a whole number from {least}")
        return int(text)

    return number


def read_options(argv: list[str] | None, prog: str | None) -> argparse.Namespace:
    """Raises: RequestError"""
    parser = Parser(
        prog=prog,
        allow_abbrev=False,
        description="A model's speed; with --peer beside that of the llama.cpp there, in turn.",
        epilog="A model of 1B beside llama.cpp takes some twenty minutes; --rounds 2 --depth 0 --batch takes two.",
    )
    several: dict[str, Any] = {"nargs": "*", "metavar": "N"}
    parser.add_argument("model", metavar="MODEL|FILE.gguf")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="with llama-bench, -batched-bench and -server")
    parser.add_argument("--rounds", type=positive(1), metavar="N", default=5, help="measurements of each (default 5)")
    cores = list(dict.fromkeys([1, threads.N_CORE]))
    parser.add_argument("--threads", type=positive(1), **several | {"nargs": "+"}, default=cores, help="(1, all cores)")
    prefill, depth, batch = [32, 128, 512], [0, 1024, 4096], [1, 2, 4, 8]
    parser.add_argument("--prefill", type=positive(1), **several, default=prefill, help=f"tokens of prompts {prefill}")
    parser.add_argument("--depth", type=positive(0), **several, default=depth, help=f"decode after N tokens {depth}")
    parser.add_argument("--batch", type=positive(1), **several, default=batch, help=f"decode N sequences {batch}")
    parser.add_argument("--start", action="store_true", help="only seconds of loading, and memory")
    parser.add_argument("--cpu", action="store_true", help="count seconds that a core worked: for busy machines")
    parser.add_argument("--torch", action="store_true", help="prompts through transformers in bfloat16, too")
    parser.add_argument("--jsonl", metavar="FILE", help="append the rows to FILE")
    return parser.parse_args(argv)


def main(
    argv: list[str] | None = None, find: Callable[[str], LocalModel] = FileModel.of, prog: str | None = None
) -> None:
    """The table on standard output.  `find` has the files of a model that is named.  Raises: EngineError"""
    options = read_options(argv, prog)
    files = find(options.model)
    require_decoder(loaded(files))
    if options.peer and files.adapters:
        raise RequestError(f"'{options.model}' has an adapter, which llama-bench does not apply: leave --peer out")
    missing = [name for name in llama_cpp.PROGRAMS if options.peer and not (options.peer / name).exists()]
    if missing:
        raise RequestError(f"{options.peer}: no {', '.join(missing)} there, expected a folder of llama.cpp's programs")

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
    """What the table's words mean, a line each; and whether the machine was busy.  others: as in machine.Share"""
    if not options.start:
        clock = "CPU second" if options.cpu else "second"
        yield f"prefill, decode, batch: tokens a {clock}, the median of {options.rounds}; decode @D is after D tokens"
    yield "rss: memory at the most of a process that reads 20 tokens and says 20"
    theirs = ", for llama.cpp from the start of llama-server until it answers" if options.peer else ""
    yield f"load: seconds in a process that runs already{theirs}"
    if "ratio" in columns:
        yield "ratio: ours / llama.cpp, the median of the rounds' own; least, most: of a round"
    if "others" in columns:
        yield "others: cores that other processes used meanwhile"
    if others is not None and others > 0.2 and not options.cpu:
        yield f"This machine was busy, with {others:.2g} cores of other work: --cpu --threads 1 is fairer then"


def measure_tasks(files: LocalModel, options: argparse.Namespace) -> list[dict]:
    """The rows of prefill, decode and batches that were asked for."""
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
