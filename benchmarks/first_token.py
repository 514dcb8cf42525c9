"""Seconds from `numllama serve` to the first token of `primer`, and of CPU, with an empty and a full kernel cache.

A second table has the CPU seconds that each of its kernels takes to compile, in one process.

python -m numllama.benchmarks.first_token [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np

from ..engine.model.load import load_model
from ..engine.serve.runner import kernel_names
from ..engine.settings import Settings
from ..engine.store import ModelName, default_store
from ..kernels.warmup import compile_them
from . import machine, table
from .disturbance import cpu_seconds_of, process_tree

SERVE = [sys.executable, "-P", "-c", "from numllama.api.cli import main; main()", "serve"]
COMPILE = [
    sys.executable,
    "-P",
    "-c",
    "from numllama.benchmarks.first_token import print_compile_seconds as run; run()",
]
COLUMNS = "ready, s", "first token, s", "CPU of the server, s", "of all processes, s"


def first_token(folder: str) -> tuple[float, ...]:
    """Start a server and ask for a token.  Its store and cache are in `folder`.  -> COLUMNS

    CPU seconds until the first token: they depend less on what else runs.  0 where the system does not count them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    own = {"OLLAMA_HOST": url, "OLLAMA_MODELS": folder, "NUMBA_CACHE_DIR": folder, "NUMLLAMA_BUILTIN": "1"}
    began = time.perf_counter()
    server = subprocess.Popen(SERVE, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _answers(url):
            if server.poll() is not None:
                raise RuntimeError(f"the server exited with {server.returncode}")
            time.sleep(0.002)
        ready = time.perf_counter()
        body = json.dumps({"model": "primer", "prompt": "What is a token?"}).encode()
        with urllib.request.urlopen(f"{url}/api/generate", body) as answer:
            answer.readline()
            first, processes = time.perf_counter(), process_tree([server.pid])
            seconds = cpu_seconds_of(server.pid), sum(map(cpu_seconds_of, processes))
        while len(process_tree([server.pid])) > 1:  # another process compiles on, for the next server
            time.sleep(0.05)
        return ready - began, first - began, *seconds
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def compile_seconds() -> dict[str, float]:
    """Compile the kernels of `primer` with an empty cache.  -> CPU seconds of each, in one new process"""
    with tempfile.TemporaryDirectory() as folder:
        own = {"NUMBA_CACHE_DIR": folder, "NUMLLAMA_BUILTIN": "1"}
        found = subprocess.run(COMPILE, env=os.environ | own, check=True, capture_output=True, text=True).stdout
    seconds: dict[str, float] = json.loads(found)
    return seconds


def print_compile_seconds() -> None:
    """Run as the process of `compile_seconds`."""
    primer = default_store(Settings.from_env()).resolve(ModelName.parse("primer"))
    seconds = {}
    for name in kernel_names(load_model(primer.weights)):
        began = time.process_time()
        compile_them([name])
        seconds[name] = time.process_time() - began
    print(json.dumps(seconds))


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print medians of the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(argv).rounds
    found: dict[str, list[tuple[float, ...]]] = {"empty": [], "full": []}
    compiled: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found["empty"].append(first_token(folder))
            found["full"].append(first_token(folder))
        compiled.append(compile_seconds())
    print(", ".join(f"{key} {value}" for key, value in machine.describe().items()))
    rows = [
        {"cache": cache, **dict(zip(COLUMNS, np.median(times, axis=0).tolist(), strict=True))}
        for cache, times in found.items()
    ]
    print(table.markdown(rows, ["cache", *COLUMNS]))
    kernels = [
        {"kernel": name, "CPU, s": float(np.median([times[name] for times in compiled]))} for name in compiled[0]
    ]
    total = {"kernel": "all", "CPU, s": float(np.median([sum(times.values()) for times in compiled]))}
    print("\n" + table.markdown([*kernels, total], ["kernel", "CPU, s"]))


if __name__ == "__main__":
    main()
