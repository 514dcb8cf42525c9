"""`bench long`: prefill and decode after thousands of cached tokens, by type of cache, beside llama.cpp's.

prefill   tokens per second of 512 tokens after `depth` cached ones
decode    tokens per second of single tokens there
whole     seconds of a prompt of `depth` tokens from its first on: 512 tokens take a + b * depth, summed over the prompt

llama-bench reads `depth` tokens before it measures, which takes minutes: it runs once for each row, with all its
repetitions, between two measurements of ours.  Our cache is filled with random numbers: no time depends on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from time import perf_counter

import numpy as np

from ..engine.errors import RequestError
from ..engine.model.batch import Batch, Span
from ..engine.model.cache import KVCache
from ..engine.model.decoder import forward
from ..engine.model.load import load_model
from ..engine.model.model import Model, require_decoder
from ..kernels import NUMBA, threads
from . import llama_cpp, machine, table

N_PROMPT, N_DECODED, REPEATS = 512, 32, 3
PREFILL, DECODE = "prefill", "decode"
Figures = dict[str, list[float]]  # PREFILL and DECODE, tokens per second


def filled_cache(model: Model, type: str, depth: int) -> KVCache:
    """Return a cache whose first `depth` positions hold random keys and values, with room for what is measured."""
    cache, hp = model.new_cache(depth + N_PROMPT, type=type), model.hparams
    rng = np.random.default_rng(0)
    for il in range(len(cache.k)):
        for start in range(0, depth, 4096):
            shape = min(4096, depth - start), hp.n_head_kv, hp.n_head_dim
            cache.write(il, Span(0, start, shape[0]), *(rng.standard_normal(shape, np.float32) for _ in "kv"))
    return cache


def measure_ours(model: Model, cache: KVCache, depth: int) -> Figures:
    """Return tokens per second of prefill and decode after `depth` tokens, each REPEATS times."""
    tokens = np.random.default_rng(1).integers(3, model.hparams.n_vocab, N_PROMPT).tolist()
    one_by_one = [Batch.of([token], 0, depth + i) for i, token in enumerate(tokens[:N_DECODED])]
    work = {PREFILL: [Batch.of(tokens, 0, depth)], DECODE: one_by_one}
    found: Figures = {PREFILL: [], DECODE: []}
    for _ in range(REPEATS):
        for name, batches in work.items():
            began = perf_counter()
            for batch in batches:
                forward(model, batch, cache, NUMBA)
            found[name].append(sum(len(batch.tokens) for batch in batches) / (perf_counter() - began))
    return found


def measure_peer(programs: Path, file: Path, type: str, depth: int, n_thread: int) -> Figures:
    """Measure llama-bench's.  Raises: RequestError"""
    k, _, v = type.partition("/")
    command = [programs / "llama-bench", "-m", file, "-t", n_thread, "-r", REPEATS, "-d", depth, "-o", "json"]
    command += ["-p", N_PROMPT, "-n", N_DECODED, "-ctk", k, "-ctv", v or k, "-fa", "auto" if type == "f16" else "on"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RequestError(f"llama-bench exited with {done.returncode}: {done.stderr.strip()[-200:]}")
    rows = json.loads(done.stdout)
    return {PREFILL if row["n_prompt"] else DECODE: row["samples_ts"] for row in rows}


def whole_prompt(depth: int, near: float, far: float) -> float:
    """Return the seconds of a prompt of `depth` tokens.

    near, far    tokens per second of N_PROMPT tokens at its start, and after its end
    """
    n = depth // N_PROMPT
    first, last = N_PROMPT / near, N_PROMPT / far
    return n * first + (last - first) * (n - 1) / 2


def depth_row(depth: int, ours: Figures, theirs: Figures, at_start: tuple[Figures, Figures]) -> dict[str, object]:
    """Return a row of the table: medians, ours over theirs, and the seconds of a whole prompt."""
    row: dict[str, object] = {"depth": depth}
    for name in (PREFILL, DECODE):
        own, peer = statistics.median(ours[name]), statistics.median(theirs[name]) if theirs else None
        row |= {f"{name}, tok/s": own, f"{name}, llama.cpp": peer, f"{name}, ratio": own / peer if peer else None}
    sides = zip(("whole, s", "whole, llama.cpp, s"), at_start, (ours, theirs), strict=True)
    for name, near, far in sides:
        speeds = [statistics.median(figures[PREFILL]) for figures in (near, far) if figures]
        row[name] = whole_prompt(depth, *speeds) if depth and len(speeds) == 2 else None
    return row


def bench_long(options: argparse.Namespace) -> None:
    """Run `bench long`: print a table for each type of cache.  Raises: EngineError"""
    n_thread = options.threads or threads.N_CORE
    threads.limit(n_thread)
    model = load_model(options.file)
    require_decoder(model)
    print(", ".join(f"{key} {value}" for key, value in machine.describe().items()))
    if options.peer:
        print(", ".join(f"{key} {value}" for key, value in llama_cpp.about(options.peer).items()))
    for type in options.cache_type:
        rows: list[dict[str, object]] = []
        for depth in [0, *options.depth]:
            table.show_progress(f"{type} after {depth} tokens")
            cache = filled_cache(model, type, depth)
            measure_ours(model, cache, depth)  # warm-up
            ours, theirs = measure_ours(model, cache, depth), {}
            if options.peer:
                theirs = measure_peer(options.peer, options.file, type, depth, n_thread)
                for name, values in measure_ours(model, cache, depth).items():
                    ours[name] += values
            if not depth:
                at_start = ours, theirs
            mib = cache.nbytes / cache.n_ctx / 1024
            rows.append({"cache": type, "MiB / 1024 tokens": mib} | depth_row(depth, ours, theirs, at_start))
        table.show_progress("")
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        print(table.markdown(rows, columns), flush=True)
