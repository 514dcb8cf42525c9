"""`bench embed`: embedding speed in tokens per second, in turns with llama.cpp's on the same machine.

    numllama bench embed FILE.gguf [--peer DIR with llama-server] [--texts 256] [--tokens 128]

    engine      Engine.embed in this process
    server      POST /api/embed to a server in its own process, all texts in one request
    llama.cpp   POST /v1/embeddings to llama-server --embeddings, likewise; with its own defaults

Vectors are compared before anything is measured.  --cpu counts CPU seconds of the measured process instead of elapsed
ones (Linux), for busy machines.  models.py creates files of real shapes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np

from ..engine.errors import RequestError
from ..engine.model.load import load_model
from ..engine.options import RequestOptions
from ..engine.serve.engine import Engine
from ..engine.settings import Settings
from ..engine.tokenizer import Tokenizer
from ..kernels import threads
from . import disturbance, llama_cpp, machine
from .invocation import Invocation
from .results import ResultsFile
from .rounds import RoundResult, Subject, finish_run, warm_and_run

NAME = "embed"
MIN_COSINE = 0.999  # between two engines' vectors of a text; both round activations
SERVE = "import sys; from numllama.api.cli import main; sys.exit(main(['serve']))"


@dataclass(frozen=True)
class Embedder:
    """An implementation that embeds.

    vectors       embeddings of texts, f32 [n_text, n_embd]
    cpu_seconds   CPU seconds used by its process so far
    pids          its process, if that is not this one
    """

    name: str
    vectors: Callable[[Sequence[str]], np.ndarray]
    cpu_seconds: Callable[[], float]
    pids: Callable[[], Sequence[int]] = tuple


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
def embed_in_process(store: Path, n_thread: int) -> Iterator[Embedder]:
    """Provide an engine in this process."""
    engine = Engine(Settings(models=store, builtin=False))

    def vectors(texts: Sequence[str]) -> np.ndarray:
        (piece,) = engine.embed(NAME, texts, RequestOptions({"num_thread": n_thread}))
        return np.array(piece.embeddings)

    yield Embedder("engine", vectors, disturbance.own_cpu_seconds)
    engine.close()


@contextmanager
def served(store: Path, n_thread: int) -> Iterator[Embedder]:
    """Provide a numllama server in its own process."""
    port = free_port()
    environ = {"OLLAMA_MODELS": str(store), "OLLAMA_HOST": f"127.0.0.1:{port}", "NUMLLAMA_BUILTIN": "0"}

    def vectors(texts: Sequence[str]) -> np.ndarray:
        body = {"model": NAME, "input": list(texts), "options": {"num_thread": n_thread}}
        return np.array(ask_for_vectors(f"http://127.0.0.1:{port}/api/embed", body)["embeddings"], np.float32)

    with running([sys.executable, "-P", "-c", SERVE], f"http://127.0.0.1:{port}/", environ) as process:
        yield Embedder("server", vectors, lambda: disturbance.cpu_seconds_of(process.pid), lambda: [process.pid])


@contextmanager
def peer(programs: Path, model: str, n_thread: int) -> Iterator[Embedder]:
    """Provide llama-server."""
    port = free_port()
    options = ["--embeddings", "-t", n_thread, "--host", "127.0.0.1", "--port", port]

    def vectors(texts: Sequence[str]) -> np.ndarray:
        answer = ask_for_vectors(f"http://127.0.0.1:{port}/v1/embeddings", {"input": list(texts)})
        return np.array([row["embedding"] for row in answer["data"]], np.float32)

    command = [programs / "llama-server", "-m", model, *options]
    with running(command, f"http://127.0.0.1:{port}/health", {}) as process:
        yield Embedder("llama.cpp", vectors, lambda: disturbance.cpu_seconds_of(process.pid), lambda: [process.pid])


@contextmanager
def running(command: Sequence[object], url: str, environ: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Start a server and yield its process once `url` responds."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*map(str, command)], env=os.environ | environ, **quiet)
    try:
        end = monotonic() + 120
        while not answers(url):
            if process.poll() is not None or monotonic() > end:
                raise RequestError(f"{command[0]} does not answer at {url}")
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


def check_embed(contenders: Sequence[Embedder], texts: Sequence[str]) -> float:
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


def embed_subject(one: Embedder, texts: Sequence[str], n_tok: int, cpu: bool) -> Subject:
    """Return a contender as the rounds measure it."""

    def measure(cell: str, number: int) -> RoundResult:
        clock = one.cpu_seconds if cpu else perf_counter
        began = clock()
        one.vectors(texts)
        return RoundResult({"tok_s": n_tok / (clock() - began)})

    return Subject(one.name, measure, one.pids)


def bench_embed(call: Invocation) -> ResultsFile:
    """Run `bench embed`.  Raises: EngineError"""
    options, plan, progress = call.options, call.plan, call.progress
    path = call.find(options.model).weights
    tokenizer = load_model(path).tokenizer
    texts = random_texts(tokenizer, options.texts, options.tokens)
    n_tok = sum(len(tokenizer.encode(text)) for text in texts)
    settings = {"model": path.name, "texts": options.texts, "tokens": options.tokens, "threads": options.threads}
    settings |= {"seconds": "CPU" if options.cpu else "wall"}
    sides: dict[str, Any] = {"llama.cpp": llama_cpp.about(options.peer)} if options.peer else {}
    sides |= {"engine": machine.own_version(), "server": {}}
    results = call.open_results(
        {"part": "embed", "settings": settings, "contenders": sides, "machine": machine.describe()}
    )
    n_threads, reason = options.threads or list(dict.fromkeys([1, threads.N_CORE])), ""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        engine = Engine(Settings(models=store, builtin=False))
        digest, _ = engine.store.put_blob([path.read_bytes()])
        list(engine.create(NAME, files={"model.gguf": digest}))
        engine.close()
        for n in n_threads:
            with ExitStack() as stack:
                contenders = [stack.enter_context(peer(options.peer, str(path), n))] if options.peer else []
                contenders += [stack.enter_context(embed_in_process(store, n)), stack.enter_context(served(store, n))]
                results.say(
                    f"{n} threads: the smallest cosine of two vectors is {check_embed(contenders, texts[:16]):.6f}"
                )
                subjects = [embed_subject(one, texts, n_tok, options.cpu) for one in contenders]
                share = replace(plan, budget_s=plan.budget_s / len(n_threads))
                reason = warm_and_run(subjects, [f"{n} thread{'s' * (n > 1)}"], share, results, progress)
            if reason == "interrupted":
                break
    finish_run(results, reason, plan)
    return results
