"""Embedding speed in tokens per second, interleaved with llama.cpp's on the same machine in the same minutes.

    python -m numllama.benchmarks.embed FILE.gguf [--peer DIR with llama-server] [--texts 256] [--tokens 128]

    engine      Engine.embed in this process
    server      POST /api/embed to a server in its own process, all texts in one request
    llama.cpp   POST /v1/embeddings to llama-server --embeddings, likewise; with its own defaults

Vectors are compared before anything is measured.  tok/s are medians over rounds; ratios are medians of each round's own
ratio.  --cpu counts CPU seconds of the measured process instead of elapsed ones (Linux), for busy machines.
models.py creates files of real shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np

from ..engine.model.load import load_model
from ..engine.options import RequestOptions
from ..engine.serve.engine import Engine
from ..engine.settings import Settings
from ..engine.tokenizer import Tokenizer
from ..kernels import threads
from . import llama_cpp, machine, report

NAME = "embed"
MIN_COSINE = 0.999  # between two engines' vectors of a text; both round activations
SERVE = "import sys; from numllama.api.cli import main; sys.exit(main(['serve']))"


@dataclass(frozen=True)
class Contender:
    """An implementation to measure.

    vectors       embeddings of texts, f32 [n_text, n_embd]
    cpu_seconds   CPU seconds used by its process so far
    """

    name: str
    vectors: Callable[[Sequence[str]], np.ndarray]
    cpu_seconds: Callable[[], float]


def random_texts(tokenizer: Tokenizer, n_text: int, n_tok: int) -> list[str]:
    """Return texts of `n_tok` tokens each, including special ones, made of words that are single tokens."""
    pieces = [piece[1:] for piece in tokenizer.vocab.tokens if piece[:1] in "\u2581\u0120" and piece[1:].isascii()]
    words = [word for word in pieces if word.isalpha() and word.islower()]
    n_word = n_tok - (tokenizer.first is not None) - (tokenizer.last is not None)
    dice = np.random.default_rng(0)
    texts = [" ".join(words[i] for i in dice.integers(0, len(words), n_word)) for _ in range(n_text)]
    assert all(abs(len(tokenizer.encode(text)) - n_tok) <= 1 for text in texts), "some words are several tokens"
    return texts


@contextmanager
def embed_in_process(store: Path, n_thread: int) -> Iterator[Contender]:
    """Provide an engine in this process."""
    engine = Engine(Settings(models=store, builtin=False))

    def vectors(texts: Sequence[str]) -> np.ndarray:
        (piece,) = engine.embed(NAME, texts, RequestOptions({"num_thread": n_thread}))
        return np.array(piece.embeddings)

    yield Contender("engine", vectors, machine.own_cpu_seconds)
    engine.close()


@contextmanager
def served(store: Path, n_thread: int) -> Iterator[Contender]:
    """Provide a numllama server in its own process."""
    port = free_port()
    environ = {"OLLAMA_MODELS": str(store), "OLLAMA_HOST": f"127.0.0.1:{port}", "NUMLLAMA_BUILTIN": "0"}

    def vectors(texts: Sequence[str]) -> np.ndarray:
        body = {"model": NAME, "input": list(texts), "options": {"num_thread": n_thread}}
        return np.array(ask_for_vectors(f"http://127.0.0.1:{port}/api/embed", body)["embeddings"], np.float32)

    with running([sys.executable, "-P", "-c", SERVE], f"http://127.0.0.1:{port}/", environ) as process:
        yield Contender("server", vectors, lambda: cpu_seconds(process.pid))


@contextmanager
def peer(programs: Path, model: str, n_thread: int) -> Iterator[Contender]:
    """Provide llama-server."""
    port = free_port()
    options = ["--embeddings", "-t", n_thread, "--host", "127.0.0.1", "--port", port]

    def vectors(texts: Sequence[str]) -> np.ndarray:
        answer = ask_for_vectors(f"http://127.0.0.1:{port}/v1/embeddings", {"input": list(texts)})
        return np.array([row["embedding"] for row in answer["data"]], np.float32)

    command = [programs / "llama-server", "-m", model, *options]
    with running(command, f"http://127.0.0.1:{port}/health", {}) as process:
        yield Contender("llama.cpp", vectors, lambda: cpu_seconds(process.pid))


@contextmanager
def running(command: Sequence[object], url: str, environ: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Start a server and yield its process once `url` responds."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*map(str, command)], env=os.environ | environ, **quiet)
    try:
        end = monotonic() + 120
        while not answers(url):
            if process.poll() is not None or monotonic() > end:
                raise RuntimeError(f"{command[0]} does not answer at {url}")
            sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except (URLError, OSError):
        return False


def ask_for_vectors(url: str, body: dict) -> dict:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=3600) as answer:
        return json.load(answer)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of process `pid`; Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def check_embed(contenders: Sequence[Contender], texts: Sequence[str]) -> float:
    """Compare the contenders' vectors.  -> the smallest cosine

    Raises: AssertionError if two contenders differ on a text.
    """
    first, *others = (unit_rows(one.vectors(texts)) for one in contenders)
    between = (first @ first.T)[np.triu_indices(len(texts), 1)]
    least = min((float((first * other).sum(-1).min()) for other in others), default=1.0)
    assert least > MIN_COSINE, f"vectors differ: the smallest cosine is {least}"
    assert len(texts) == 1 or between.max() < MIN_COSINE, "different texts have the same vector: the comparison is void"
    return least


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def measure_embed(
    contenders: Sequence[Contender], texts: Sequence[str], n_tok: int, rounds: int, cpu: bool
) -> list[dict]:
    """Measure all contenders in turn in every round.  -> a row for each of ours, with llama.cpp's figures if present"""
    speeds: dict[str, list[float]] = {one.name: [] for one in contenders}
    others: list[float | None] = []
    for _ in range(rounds):
        with machine.watch() as share:
            for one in contenders:
                clock = one.cpu_seconds if cpu else perf_counter
                began = clock()
                one.vectors(texts)
                speeds[one.name].append(n_tok / (clock() - began))
        others.append(share.others)
    theirs = np.array(speeds.pop("llama.cpp", []))
    rows = []
    for name, ours in speeds.items():
        row = {"task": name, "ours": float(np.median(ours)), "rounds": rounds}
        if theirs.size:
            ratios = np.array(ours) / theirs
            row |= {"llama.cpp": float(np.median(theirs)), "ratio": float(np.median(ratios))}
            row |= {"least": float(ratios.min()), "most": float(ratios.max())}
        rows.append(row | {"others": max((share for share in others if share is not None), default=None)})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--peer", type=Path, help="folder with llama-server")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", nargs="+", type=int, default=list(dict.fromkeys([1, threads.N_CORE])))
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds: for busy machines")
    parser.add_argument("--jsonl", help="append the rows to this file")
    options = parser.parse_args(argv)

    tokenizer = load_model(options.model).tokenizer
    texts = random_texts(tokenizer, options.texts, options.tokens)
    n_tok = sum(len(tokenizer.encode(text)) for text in texts)
    about = machine.describe() | {"model": Path(options.model).name, "seconds": "CPU" if options.cpu else "wall"}
    about |= {"texts": options.texts, "tokens": options.tokens}
    about |= llama_cpp.about(options.peer) if options.peer else {}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        engine = Engine(Settings(models=store, builtin=False))
        digest, _ = engine.store.put_blob([Path(options.model).read_bytes()])
        list(engine.create(NAME, files={"model.gguf": digest}))
        engine.close()
        for n in options.threads:
            with ExitStack() as stack:
                contenders = [stack.enter_context(embed_in_process(store, n)), stack.enter_context(served(store, n))]
                if options.peer:
                    contenders.append(stack.enter_context(peer(options.peer, options.model, n)))
                least = check_embed(contenders, texts[:16])
                found = measure_embed(contenders, texts, n_tok, options.rounds, options.cpu)
                rows += [{"task": row.pop("task"), "threads": n} | row | {"cosine": least} for row in found]
    columns = ["task", "threads", "ours", "llama.cpp", "ratio", "least", "most", "others"]
    print(report.markdown(rows, columns if options.peer else ["task", "threads", "ours", "others"]))
    if options.jsonl:
        report.append_jsonl(options.jsonl, (about | row for row in rows))


if __name__ == "__main__":
    main()
