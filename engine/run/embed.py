"""One vector for a text, from what the model makes of its tokens.

    tokens   <s>   The   grass   is   green
    hidden    .     .      .     .     .       a row of n_embd numbers each, after the last norm
             cls                      last     one of them stands for the text,
              '--------- mean --------'        or the mean of them all

The file says which, by `pooling_type`; the mean is taken where it says nothing, or "none", which is no one vector.
What is given out has length 1, so that the dot product of two such vectors is the cosine of the angle between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from time import perf_counter_ns

import numpy as np

from ..errors import ContextFull, RequestError
from ..handle import RequestHandle
from ..model.hparams import Hparams
from ..options import Options
from ..tokenizer import Tokenizer
from .job import Job
from .piece import Piece, Timings

Deliver = Callable[[Piece | Exception], None]


class Pooled:
    """The rows of a text's positions, pooled as they come.

    Rows are added one after the other, so that the chunks in which they come change no bit.
    """

    def __init__(self, pooling: str, n_tok: int):
        """`pooling`: "mean", "cls" or "last", the latter two being means of one row."""
        self.first, self.end = {"mean": (0, n_tok), "cls": (0, 1), "last": (n_tok - 1, n_tok)}[pooling]
        self._sum: np.ndarray = np.zeros(1, np.float32)

    def outputs(self, start: int, n: int) -> range:
        """Which rows of the `n` from position `start` on are wanted."""
        return range(max(self.first - start, 0), min(self.end - start, n))

    def add(self, rows: Iterable[np.ndarray]) -> None:
        """rows float [n_embd] each, those that `outputs` named"""
        for row in rows:
            self._sum = self._sum + row

    def vector(self) -> np.ndarray:
        """What all of them come to.  -> float [n_embd]"""
        return self._sum / np.float32(self.end - self.first)


def pooling_of(hp: Hparams) -> str:
    """How the model's texts are pooled.  Raises: RequestError where they are not, but ranked"""
    if hp.pooling == "rank":
        raise RequestError("the model ranks texts (pooling type 4), and has no embeddings of them")
    return hp.pooling if hp.pooling in ("mean", "cls", "last") else "mean"


def tokens_of(text: str, tokenizer: Tokenizer, n_ctx: int, truncate: bool = True) -> list[int]:
    """The tokens of `text` that the model is to read: those of as much of its front as the window holds.

    What is kept of a text too long is made tokens anew, as in Ollama; SPM then sees its first blank twice.
    Raises: RequestError for none at all, ContextFull for too many where cutting is not allowed, or leaves nothing
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise RequestError("the input has no tokens, and the model's vocabulary puts none around it")
    if len(ids) <= n_ctx:
        return ids
    if not truncate:
        raise ContextFull(len(ids), n_ctx)
    first, last = ([] if special is None else [special] for special in (tokenizer.first, tokenizer.last))
    n = n_ctx - len(last)
    if n <= len(first):
        raise ContextFull(len(ids), n_ctx, "input after truncation exceeds maximum context length")
    front = b"".join(tokenizer.piece(id) for id in ids[len(first) : n]).decode("utf-8", "ignore")
    ids = tokenizer.encode(front)
    return ids if len(ids) <= n_ctx else ids[:n] + last


def unit_vector(vector: np.ndarray, dimensions: int = 0) -> np.ndarray:
    """`vector` at length 1, only its first `dimensions` components if it has more.  float [n_embd] -> f32 [n]

    Raises: RequestError for one that is not finite
    """
    if not np.isfinite(vector).all():
        raise RequestError("embedding contains NaN or Inf values")
    vector = vector[:dimensions] if dimensions > 0 else vector
    length = np.sqrt(np.square(vector, dtype=np.float64).sum())
    return (vector / max(length, 1e-12)).astype(np.float32)


def reading(handle: RequestHandle, ids: list[int], options: Options, pooling: str, deliver: Deliver) -> Job:
    """The job that is over once `ids` are read; its last piece has their vector."""
    return Job(
        handle=handle, prompt=ids, options=options, deliver=deliver, truncate=False, shift=False, pooling=pooling
    )


class Vectors:
    """The vectors of one request's texts, which go out in one piece when the last is there.

    They come to the runner one after the other, `n_at_once` at first, so that whoever asks meanwhile has a turn among
    them.  What goes wrong with one text ends the others, and goes out in their place.
    """

    def __init__(
        self, n_text: int, dimensions: int, handle: RequestHandle, deliver: Deliver, release: Callable[[], None]
    ):
        """`release` is called once, when all jobs are over and nothing has been delivered yet."""
        self.n_text, self.dimensions = n_text, dimensions
        self.handle, self.deliver, self.release = handle, deliver, release
        self._submit: Callable[[int], None]
        self._vectors: dict[int, np.ndarray] = {}
        self._error: Exception | None = None
        self._n_tok, self._n_begun, self._n_over, self._lock = 0, 0, 0, Lock()

    def begin(self, n_at_once: int, submit: Callable[[int], None]) -> None:
        """`submit` has the runner read a text, so that `take` hears what it came to."""
        self._submit, self._began = submit, perf_counter_ns()
        self._n_begun = min(n_at_once, self.n_text)
        for i in range(self._n_begun):
            submit(i)

    def take(self, i: int, last: Piece | Exception) -> None:
        """What text `i` came to, from any thread.  Raises: RequestError, which then comes in its place"""
        if isinstance(last, Exception):
            self._error = self._error or last
            self.handle.cancel()
        else:
            assert last.timings
            self._vectors[i] = unit_vector(last.embeddings[0], self.dimensions)
            self._n_tok += last.timings.prompt_eval_count
        with self._lock:
            self._n_over, following = self._n_over + 1, self._n_begun
            goes_on = following < self.n_text and not self._error
            self._n_begun += goes_on
            is_last = self._n_over == self._n_begun
        if goes_on:
            self._submit(following)
        elif is_last:
            self.release()
            self.deliver(self._error or self._together())

    def _together(self) -> Piece:
        timings = Timings(prompt_eval_count=self._n_tok, prompt_eval_duration=perf_counter_ns() - self._began)
        embeddings = tuple(self._vectors[i] for i in range(len(self._vectors)))
        return Piece("", done_reason="stop", timings=timings, embeddings=embeddings)
