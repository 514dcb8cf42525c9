"""A loaded model at work: its cache, its thread, and the requests that wait for it.

caller            runner's thread
------            ---------------
submit(job)  -->  waiting, first come first served
                  generate() ... deliver(piece) ... deliver(last piece)
call.cancel()     seen at the next value that a forward pass names, so well within a token
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import perf_counter_ns

import numpy as np

from ..kernels import NUMBA, Kernels
from .batch import Batch
from .cache import CACHE_TYPES, KVCache
from .errors import Cancelled, OutOfMemory
from .generate import generate
from .grammar import Grammar
from .model import Model, forward
from .options import Options
from .piece import Piece, Timings

log = logging.getLogger(__name__)

RUNAWAY = 30  # so many times the same text in a row is not an answer any more: as in Ollama's llm/server.go


class Call:
    """Somebody who waits for an answer, and may stop waiting at any moment, from any thread."""

    def __init__(self) -> None:
        self.began = perf_counter_ns()
        self.cancelled = False
        self.on_cancel: Callable[[], None] = lambda: None  # whatever it waits for now

    def cancel(self) -> None:
        self.cancelled = True
        self.on_cancel()

    def check(self) -> None:
        """Raises Cancelled if nobody waits any more."""
        if self.cancelled:
            raise Cancelled("request canceled")

    def tap(self, name: str, il: int, value: np.ndarray) -> np.ndarray:
        """The tap that ends a forward pass nobody waits for."""
        self.check()
        return value


@dataclass(eq=False)
class Job:
    """One prompt for a runner, and where its pieces go.

    shown      control tokens whose text counts
    echo       the prompt is given out before the answer
    grammar    what the answer is held to
    deliver    is called in the runner's thread with each piece, the last one being an error if there is one
    finished   is called once, before the last of them is delivered
    """

    call: Call
    prompt: list[int]
    options: Options
    truncate: bool
    shift: bool
    n_logprobs: int | None
    echo: bool
    deliver: Callable[[Piece | Exception], None]
    finished: Callable[[], None]
    shown: Collection[int] = ()
    grammar: Grammar | None = None


def check_memory(model: Model, n_ctx: int, cache_type: str) -> None:
    """Raises: OutOfMemory when weights and cache are more than this machine could free.

    Pages of mapped files count as free, since the system may drop them.  A machine that does not tell refuses nothing.
    """
    hp = model.hparams
    cache = 2 * hp.n_layer * n_ctx * hp.n_head_kv * hp.n_head_dim * np.dtype(CACHE_TYPES[cache_type]).itemsize
    needed, available = cache + sum(tensor.nbytes for tensor in model.gguf.tensors.values()), available_memory()
    if available is not None and needed > available:
        sizes = [f"{n / 2**30:.1f} GiB" for n in (needed, available)]
        raise OutOfMemory(
            needed, available, f"model requires more system memory ({sizes[0]}) than is available ({sizes[1]})"
        )


def available_memory() -> int | None:
    """Bytes that could be had without swapping, where the kernel says so (Linux)."""
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class Runner:
    """One loaded model, one cache, one thread; one request at a time.

    options   those it was loaded with, num_ctx within what the model was trained on
    """

    def __init__(self, model: Model, options: Options, cache_type: str = "f16", kernels: Kernels = NUMBA):
        self.model, self.options = model, options.clamped(model.hparams.n_ctx_train)
        self.kernels = kernels
        check_memory(model, self.options.num_ctx, cache_type)
        self.cache: KVCache = model.new_cache(self.options.num_ctx, type=cache_type)
        # Made on first use, which is now, as they belong to loading: the tokenizer, packed weights, compiled kernels.
        _ = model.tokenizer
        forward(model, Batch.of([0]), self.cache, kernels)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"runner {model.path.name}", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Bytes of weights and cache."""
        return sum(tensor.nbytes for tensor in self.model.gguf.tensors.values()) + self.cache.nbytes

    def serves(self, options: Options) -> bool:
        """Whether a request with `options` can be answered without loading the model anew."""
        return not self.options.needs_reload(options.clamped(self.model.hparams.n_ctx_train))

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        """Let the thread end when what was submitted is done.  Does not wait."""
        self._jobs.put(None)

    def _work(self) -> None:
        while job := self._jobs.get():
            self._serve(job)
            del job  # with it goes all that its caller held

    def _serve(self, job: Job) -> None:
        last: Piece | Exception
        try:
            job.call.check()
            last = self._run(job)
        except Exception as error:
            last = error
        job.finished()
        job.deliver(last)

    def _run(self, job: Job) -> Piece:
        """Everything but the last piece delivered; the last piece."""
        began, first, n, text, repeated = perf_counter_ns(), 0, 0, "", 0
        n_echo = len(job.prompt) if job.echo else 0
        if job.truncate and len(job.prompt) > self.options.num_ctx:
            facts = {"num_ctx": self.options.num_ctx, "prompt": len(job.prompt), "num_keep": job.options.num_keep}
            log.warning("truncating input prompt", extra={"fields": facts})
        for piece in generate(
            self.model,
            job.prompt,
            replace(job.options, num_ctx=self.options.num_ctx),
            kernels=self.kernels,
            cache=self.cache,
            truncate=job.truncate,
            shift=job.shift,
            n_logprobs=job.n_logprobs,
            shown=job.shown,
            echo=job.echo,
            grammar=job.grammar,
            tap=job.call.tap,
        ):
            if piece.done_reason:
                return piece
            job.call.check()
            job.deliver(piece)
            if n_echo:
                n_echo -= 1
                continue
            first, n = first or perf_counter_ns(), n + 1
            if piece.text:
                repeated, text = repeated + 1 if piece.text.strip() == text else 0, piece.text.strip()
            if repeated > RUNAWAY:
                n_prompt = min(len(job.prompt), self.options.num_ctx)
                timings = Timings(0, n_prompt, first - began, n, perf_counter_ns() - first)
                return Piece("", done_reason="length", timings=timings)
        raise AssertionError("generate() ended without a last piece")
