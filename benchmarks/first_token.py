"""Seconds from `numllama serve` to the first token of `primer`, and of CPU, with an empty and a full kernel cache.

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

from . import machine, table
from .disturbance import cpu_seconds_of, process_tree

SERVE = [sys.executable, "-P", "-c", "from numllama.api.cli import main; main()", "serve"]


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
            return ready - began, first - began, cpu_seconds_of(server.pid), sum(map(cpu_seconds_of, processes))
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print medians of the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(argv).rounds
    found: dict[str, list[tuple[float, ...]]] = {"empty": [], "full": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found["empty"].append(first_token(folder))
            found["full"].append(first_token(folder))
    print(", ".join(f"{key} {value}" for key, value in machine.describe().items()))
    rows = [
        {"cache": cache, **dict(zip(COLUMNS, np.median(times, axis=0).tolist(), strict=True))}
        for cache, times in found.items()
    ]
    print(table.markdown(rows, ["cache", *COLUMNS]))


if __name__ == "__main__":
    main()
