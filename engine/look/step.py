"""The findings of a look: at one position of an answer, and about its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..model.cache import KVCache, position_bytes
from ..model.model import Model

Heads = tuple[tuple[int, int], ...]


@dataclass(eq=False)
class LensAt:
    """The next token as each layer's output predicts it, by the output norm and matrix alone.

    ids, p   i32 and f32 [n_layer, top], the likeliest first
    p_next   f32 [n_layer], the probability of the token that follows
    rank     i32 [n_layer], how many tokens are likelier than that one
    """

    ids: np.ndarray
    p: np.ndarray
    p_next: np.ndarray
    rank: np.ndarray


@dataclass(eq=False)
class ResidualAt:
    """The parts that blocks add to the residual stream, and to the logit of the token that follows.

    norms       f32 [2 n_layer + 1]: of the embedding, then of what attention and feed-forward add in each layer
    adds        f32 [2 n_layer + 1]: their part of the logit; with `bias`, they sum to it
    stream      f32 [n_layer + 1]: the norm of the stream, at first and after each layer
    neurons     (layer, neuron, activation, its part of the logit), the largest activations of each layer
    """

    norms: np.ndarray
    adds: np.ndarray
    stream: np.ndarray
    neurons: list[tuple[int, int, float, float]] = field(default_factory=list)


@dataclass(eq=False)
class SamplerStep:
    """One step of the sampler: the candidates that are left, the likeliest of them first.

    kept    the part of the probability before this step that is left
    """

    name: str
    parameter: float
    n: int
    ids: np.ndarray
    logits: np.ndarray
    p: np.ndarray
    kept: float


@dataclass(eq=False)
class LogitsAt:
    """The largest logits before sampling; of the others, their number and the log of the sum of exponentials."""

    ids: np.ndarray
    values: np.ndarray
    n_rest: int
    log_sum_rest: float


@dataclass(eq=False)
class StepTime:
    """Nanoseconds of one forward pass by operation, named by the value it computes; other sequences share the pass.

    by_layer   (name, layer) -> nanoseconds; layer -1 outside the layers
    """

    n_tok: int
    by_layer: dict[tuple[str, int], int]

    @property
    def total(self) -> int:
        return sum(self.by_layer.values())


@dataclass(eq=False)
class LookStep:
    """One position: the token there, the token that follows, and the values between them.

    attention   f32 [n_map, position + 1], the weights of the heads in `heads`
    peaks       the position of each head's largest weight, i32 [n_layer, n_head], and that weight, f32
    sampled     whether the token that follows was sampled; otherwise the prompt has it
    """

    position: int
    token: int
    next: int | None
    sampled: bool
    heads: Heads = ()
    attention: np.ndarray | None = None
    peaks: tuple[np.ndarray, np.ndarray] | None = None
    lens: LensAt | None = None
    residual: ResidualAt | None = None
    sampler: list[SamplerStep] | None = None
    logits: LogitsAt | None = None
    values: dict[str, np.ndarray] = field(default_factory=dict)
    time: StepTime | None = None


@dataclass(eq=False)
class LookPrompt:
    """The prompt of an answer that is looked at, and how it ran.

    spans     (start, end, role): which characters of `text` are a message's, the rest is the template's
    words     of Tokenizer.explain, if merges were asked for
    cache     slots, bytes, what was reused; None unless asked for
    heads     pairs (layer, head) whose attention the steps show, in this order
    changed   what ablate and patch change, in words
    job       the number of the request in the scheduler's timeline
    run       the name under which the keys and values are kept; "" if they are not
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int, str]]
    words: list[Any] | None
    cache: dict[str, Any] | None
    changed: list[str]
    sizes: dict[str, int]
    heads: Heads = ()
    job: int = 0
    seed: int = 0
    run: str = ""


@dataclass(eq=False)
class LookPart:
    """The part of a look that comes with one piece of an answer."""

    steps: list[LookStep]
    prompt: LookPrompt | None = None


def cache_facts(model: Model, cache: KVCache) -> dict[str, int | str]:
    """Return the cache's type and sizes: a position takes bytes_per_position in all layers together.

    window_bytes_per_position of it are in layers that keep only window_positions of a text
    """
    hp = model.hparams
    per_layer = hp.n_head_kv * position_bytes(cache.type, hp.n_head_dim)
    return {
        "type": cache.type,
        "n_slot": cache.n_slot,
        "n_ctx": cache.n_ctx,
        "n_layer": hp.n_layer,
        "bytes_per_position": hp.n_layer * per_layer,
        "window_bytes_per_position": cache.n_window_layer * per_layer,
        "window_positions": cache.n_kept,
        "bytes": cache.nbytes,
    }


def cached_bytes(facts: Mapping[str, Any], n: int) -> int:
    """Return the bytes of `n` positions of a text in a cache with these facts; some layers keep only a window."""
    dropped = max(0, n - facts["window_positions"]) * facts["window_bytes_per_position"]
    return int(n * facts["bytes_per_position"] - dropped)
