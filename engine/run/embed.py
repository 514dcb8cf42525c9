"""Embeddings: one vector for a text, pooled from the hidden states of its tokens.

    tokens   <s>   The   grass   is   green
    hidden    .     .      .     .     .       a row of n_embd numbers each, after the last norm
             cls                      last     the vector is one row,
              '--------- mean --------'        or the mean of all rows

The file's `pooling_type` selects one; without it, and for "none", the mean is used.  Some models multiply it by two
matrices, dense_2 and dense_3.  Vectors have length 1, so that the
dot product of two vectors is the cosine of the angle between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from time import perf_counter_ns

import numpy as np

from ...kernels import NUMPY, Kernels, Tensor
from ..errors import ContextFull, RequestError
from ..handle import RequestHandle
from ..model.hparams import Hparams
from ..options import Options
from ..tokenizer import Tokenizer
from .job import Job
from .piece import Piece, Timings

Deliver = Callable[[Piece | Exception], None]


class Pooled:
    """A text's rows, pooled chunk by chunk.

    Rows are added one after the other, so that the size of chunks changes no bit.
    """

    def __init__(self, pooling: str, n_tok: int, dense: Sequence[Tensor] = (), kernels: Kernels = NUMPY):
        """Start with no rows.

        pooling   "mean", "cls" or "last"; the latter two are means of one row
        dense     matrices that multiply the vector, one after the other
        """
        self.dense, self.kernels = dense, kernels
        self.first, self.end = {"mean": (0, n_tok), "cls": (0, 1), "last": (n_tok - 1, n_tok)}[pooling]
        self._sum: np.ndarray = np.zeros(1, np.float32)

    def outputs(self, start: int, n: int) -> range:
        """Return the indices, among the `n` rows from position `start`, of the rows to add."""
        return range(max(self.first - start, 0), min(self.end - start, n))

    def add(self, rows: Iterable[np.ndarray]) -> None:
        """Add the rows that `outputs` selected, float [n_embd] each."""
        for row in rows:
            self._sum = self._sum + row

    def vector(self) -> np.ndarray:
        """Return the mean of the added rows, multiplied by each dense matrix.  -> float [n_embd]"""
        x = self._sum / np.float32(self.end - self.first)
        for w in self.dense:
            x = self.kernels.matmul(w, x[None])[0]
        return x


def pooling_of(hp: Hparams) -> str:
    """Return the model's pooling.  Raises: RequestError for a reranker, which has no embeddings"""
    if hp.pooling == "rank":
        raise RequestError("the model is a reranker (pooling type 4) and has no embeddings")
    return hp.pooling if hp.pooling in ("mean", "cls", "last") else "mean"


def refuse_far_too_long(text: str, tokenizer: Tokenizer, n_ctx: int) -> None:
    """Refuse a text with more characters than `n_ctx` of the longest pieces have, before time is spent on its tokens.

    Raises: ContextFull
    """
    most = tokenizer.max_chars_per_token
    if most and len(text) > n_ctx * most:
        raise ContextFull(len(text) // most, n_ctx)


def embedding_tokens(
    text: str | Sequence[int],
    tokenizer: Tokenizer,
    n_ctx: int,
    truncate: bool = True,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """Tokenize `text`, cut at its end to fit into the window; ids are used unchanged.

    The kept part of a long text is tokenized again, as in Ollama; SPM then adds its leading blank twice.
    check   called between chunks of a long text; what it raises ends the encoding
    Raises: RequestError if there are no tokens, ContextFull if they do not fit and `truncate` is
    False, or if cutting leaves none
    """
    if isinstance(text, str):
        if not truncate:
            refuse_far_too_long(text, tokenizer, n_ctx)
        ids = tokenizer.encode(text, check=check)
    else:
        ids = list(text)
    if not ids:
        raise RequestError("the input has no tokens, and the model's vocabulary adds none")
    if len(ids) <= n_ctx:
        return ids
    if not truncate:
        raise ContextFull(len(ids), n_ctx)
    if not isinstance(text, str) and n_ctx > 0:
        return ids[:n_ctx]
    first, last = ([] if special is None else [special] for special in (tokenizer.first, tokenizer.last))
    n = n_ctx - len(last)
    if n <= len(first):
        raise ContextFull(len(ids), n_ctx, "input after truncation exceeds maximum context length")
    front = b"".join(tokenizer.piece(id) for id in ids[len(first) : n]).decode("utf-8", "ignore")
    ids = tokenizer.encode(front)
    return ids if len(ids) <= n_ctx else ids[:n] + last


def unit_vector(vector: np.ndarray, dimensions: int = 0) -> np.ndarray:
    """Scale `vector`, cut to `dimensions` components (0: all), to length 1.  float [n_embd] -> f32 [n]

    Raises: RequestError if it is not finite
    """
    if not np.isfinite(vector).all():
        raise RequestError("embedding contains NaN or Inf values")
    vector = vector[:dimensions] if dimensions > 0 else vector
    length = np.sqrt(np.square(vector, dtype=np.float64).sum())
    unit: np.ndarray = (vector / max(length, 1e-12)).astype(np.float32)
    return unit


def embedding_job(handle: RequestHandle, ids: list[int], options: Options, pooling: str, deliver: Deliver) -> Job:
    """Make a job that ends after prefill; its last piece has the vector of `ids`."""
    return Job(
        handle=handle, prompt=ids, options=options, deliver=deliver, truncate=False, shift=False, pooling=pooling
    )


class Vectors:
    """The vectors of one request's texts, delivered in one piece after the last text.

    `n_at_once` texts are submitted to the runner at first, then one for each that ends, so that other requests are
    served in between.  The first error cancels the remaining texts and is delivered instead.
    """

    def __init__(
        self, n_text: int, dimensions: int, handle: RequestHandle, deliver: Deliver, release: Callable[[], None]
    ):
        """Prepare for `n_text` texts.  `release` is called once, after all jobs have ended and before the delivery."""
        self.n_text, self.dimensions = n_text, dimensions
        self.handle, self.deliver, self.release = handle, deliver, release
        self._submit: Callable[[int], None]
        self._vectors: dict[int, np.ndarray] = {}
        self._error: Exception | None = None
        self._n_tok, self._n_submitted, self._n_ended, self._lock = 0, 0, 0, Lock()

    def start(self, n_at_once: int, submit: Callable[[int], None]) -> None:
        """Submit the first `n_at_once` texts.  `submit(i)` gives text i to the runner; its result goes to `add`."""
        self._submit, self._began = submit, perf_counter_ns()
        self._n_submitted = min(n_at_once, self.n_text)
        for i in range(self._n_submitted):
            submit(i)

    def add(self, i: int, last: Piece | Exception) -> None:
        """Add the result of text `i`, from any thread, and submit the next text or deliver.

        Raises: RequestError for a vector that is not finite; the caller then adds that error as the result
        """
        if isinstance(last, Exception):
            self._error = self._error or last
            self.handle.cancel()
        else:
            assert last.timings
            self._vectors[i] = unit_vector(last.embeddings[0], self.dimensions)
            self._n_tok += last.timings.prompt_eval_count
        with self._lock:
            self._n_ended, following = self._n_ended + 1, self._n_submitted
            has_next = following < self.n_text and not self._error
            self._n_submitted += has_next
            is_last = self._n_ended == self._n_submitted
        if has_next:
            self._submit(following)
        elif is_last:
            self.release()
            self.deliver(self._error or self._joined())

    def _joined(self) -> Piece:
        timings = Timings(prompt_eval_count=self._n_tok, prompt_eval_duration=perf_counter_ns() - self._began)
        embeddings = tuple(self._vectors[i] for i in range(len(self._vectors)))
        return Piece("", done_reason="stop", timings=timings, embeddings=embeddings)
