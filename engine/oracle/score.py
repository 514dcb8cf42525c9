"""Perplexity, and the divergence from a base model's log-probabilities, as llama-perplexity computes them.

text      ids, cut into chunks of n_ctx; what is left at the end is not scored
chunk     its first id is replaced by BOS if the vocabulary adds one; each token of the second half but its first is
          scored by the logits of the position before it, so that every token has at least n_ctx / 2 before it

Source: llama.cpp 0c1e57098, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...kernels import Kernels
from ..errors import RequestError
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import hidden_states, logits
from ..model.model import Model

N_BATCH, N_UBATCH = 2048, 512  # tokens that llama-perplexity sends, and that it computes at a time
ROWS_PER_PRODUCT = 128  # rows of logits at a time: 62 MiB with 128 thousand pieces


def text_ids(model: Model, text: str) -> list[int]:
    """Return the ids that llama-perplexity scores: BOS first, special tokens read as text, and no EOS."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text.removesuffix("\n"), parse_special=False)
    return ids[:-1] if tokenizer.last is not None else ids


def cut_chunks(ids: Sequence[int], n_ctx: int, n_chunk: int | None = None) -> np.ndarray:
    """Cut `ids` into at most n_chunk chunks of n_ctx.  -> i32 [n, n_ctx]

    Raises: RequestError if the text is too short, or n_ctx or n_chunk too small
    """
    if n_ctx < 4:
        raise RequestError(f"a context of {n_ctx} tokens, expected at least 4")
    if n_chunk is not None and n_chunk < 1:
        raise RequestError(f"{n_chunk} chunks, expected at least 1")
    n = len(ids) // n_ctx if n_chunk is None else min(n_chunk, len(ids) // n_ctx)
    if not n:
        raise RequestError(f"the text has {len(ids)} tokens, expected at least {n_ctx}, one context (--ctx-size)")
    return np.array(ids[: n * n_ctx], np.int32).reshape(n, n_ctx)


def n_scored(n_ctx: int) -> int:
    """Return how many tokens of a chunk are scored."""
    return n_ctx - 1 - n_ctx // 2


def n_tokens_at_once(n_ctx: int, n_chunk: int, i: int) -> int:
    """Return how many tokens of chunk i llama-perplexity computes at a time: it reads several chunks together.

    >>> n_tokens_at_once(512, 10, 0), n_tokens_at_once(128, 20, 0), n_tokens_at_once(128, 20, 17)
    (128, 32, 128)
    """
    n_together = max(1, N_BATCH // n_ctx)
    return max(1, N_UBATCH // min(n_together, n_chunk - i // n_together * n_together))


def scored_logits(
    model: Model, chunk: np.ndarray, cache: KVCache, kernels: Kernels, n_at_once: int = N_UBATCH
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the logits that score a chunk, and the ids that they score: f32 [n, n_vocab], i32 [n], n_scored in all.

    n_at_once   tokens in a batch; changes the bits of the set `llamacpp` only
    """
    first, last, tokens = len(chunk) // 2, len(chunk) - 1, chunk.copy()
    if model.tokenizer.add_bos and model.tokenizer.bos is not None:
        tokens[0] = model.tokenizer.bos
    for start in range(0, len(tokens), n_at_once):
        end = min(start + n_at_once, len(tokens))
        outputs = range(max(first, start) - start, max(first, min(last, end)) - start)
        batch = Batch.of(tokens[start:end].tolist(), start=start, outputs=outputs)
        hidden = hidden_states(model, batch, cache, kernels)
        for i in range(0, len(hidden), ROWS_PER_PRODUCT):
            at = start + outputs[i] + 1
            rows = logits(model, hidden[i : i + ROWS_PER_PRODUCT], kernels)
            yield rows, chunk[at : at + len(rows)]


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    """Return the mean of `x` and its standard error; 0 for a single number."""
    return float(x.mean()), float(x.std() / np.sqrt(len(x) - 1)) if len(x) > 1 else 0.0


@dataclass
class Scores:
    """The negative log-probability of each scored token, in nats."""

    nll: np.ndarray = field(default_factory=lambda: np.empty(0))

    def add(self, logits: np.ndarray, ids: np.ndarray) -> None:
        """Score `ids` by the logits of the positions before them.  float [n, n_vocab], i32 [n]"""
        self.nll = np.append(self.nll, -log_softmax(logits)[np.arange(len(ids)), ids])

    def extend(self, later: Scores) -> None:
        """Append the tokens of `later`, which are of the same class."""
        for name, values in vars(later).items():
            setattr(self, name, np.append(getattr(self, name), values))

    @property
    def perplexity(self) -> tuple[float, float]:
        """e^(mean nll), and its standard error."""
        mean, error = mean_and_error(self.nll)
        return float(np.exp(mean)), float(np.exp(mean) * error)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return ln softmax of each row; exponentials in the logits' type, sums in float64.  float [n, n_vocab] -> f64"""
    shifted = logits - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    ln: np.ndarray = shifted.astype(np.float64) - np.log(sums)
    return ln


@dataclass
class Divergence(Scores):
    """The same beside a base model's log-probabilities: a number for each scored token.

    nll_base   its negative log-probability under the base
    kld        Kullback-Leibler divergence from the base's distribution, over tokens whose log-probability is above -16
    p_diff     its probability minus that under the base
    same_top   whether both models have the same most likely token
    """

    nll_base: np.ndarray = field(default_factory=lambda: np.empty(0))
    kld: np.ndarray = field(default_factory=lambda: np.empty(0))
    p_diff: np.ndarray = field(default_factory=lambda: np.empty(0))
    same_top: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    def add_beside(self, logits: np.ndarray, ids: np.ndarray, base: np.ndarray) -> None:
        """Score `ids`, with the base's log-probabilities beside the logits.  float, i32 [n], f32 [n, n_vocab]"""
        rows, ln = np.arange(len(ids)), log_softmax(logits)
        nll, nll_base = -ln[rows, ids], -base[rows, ids].astype(np.float64)
        terms = np.where(base > -16, np.exp(base.astype(np.float64)) * (base - ln), 0.0)
        self.nll = np.append(self.nll, nll)
        self.nll_base = np.append(self.nll_base, nll_base)
        self.kld = np.append(self.kld, terms.sum(axis=1))
        self.p_diff = np.append(self.p_diff, np.exp(-nll) - np.exp(-nll_base))
        self.same_top = np.append(self.same_top, logits.argmax(axis=1) == base.argmax(axis=1))

    @property
    def perplexity_base(self) -> tuple[float, float]:
        """The base's perplexity, and its standard error."""
        return Scores(self.nll_base).perplexity

    @property
    def ln_ratio(self) -> tuple[float, float]:
        """ln (perplexity / perplexity of the base), and its standard error, from each token's difference."""
        return mean_and_error(self.nll - self.nll_base)

    @property
    def correlation(self) -> float:
        """The correlation of both models' log-probabilities."""
        deviations = self.nll.std() * self.nll_base.std()
        covariance = np.mean((self.nll - self.nll.mean()) * (self.nll_base - self.nll_base.mean()))
        return float(covariance / deviations) if deviations else 1.0

    @property
    def rms_p_diff(self) -> tuple[float, float]:
        """The root of the mean square of p_diff, and its standard error."""
        mean, error = mean_and_error(self.p_diff**2)
        return float(np.sqrt(mean)), float(0.5 / np.sqrt(mean) * error) if mean else 0.0

    @property
    def same_top_share(self) -> tuple[float, float]:
        """The share of tokens at which both models agree on the most likely token, and its standard error."""
        return mean_and_error(self.same_top.astype(np.float64))
