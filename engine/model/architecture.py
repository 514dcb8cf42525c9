"""An architecture as a value: what a decoder or an encoder reads off its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...kernels import Rope


def by_head(n_layer: int, n_embd: int, n_head: int, n_head_dim: int) -> float:
    """The scale of scores in most models: 1 / sqrt(n_head_dim)."""
    return n_head_dim**-0.5


@dataclass(frozen=True)
class Family:
    """How an architecture computes.

    name            general.architecture in the GGUF
    rope_style      which components RoPE turns together: "norm" or "neox", see kernels/rope.py
    positions       how a token's place comes in: "rope", "learned" (position_embd) or "alibi"
    act             what the feed-forward block, or its gate, goes through: "silu" or "gelu"
    norms           fields of Layer that its files have besides attn_norm and ffn_norm
    assumed         values of keys that a file leaves out, without the architecture's name
    embed_scale     n_embd -> embeddings are multiplied by this
    attn_scale      n_layer, n_embd, n_head, n_head_dim -> scores are multiplied by this
    window_pattern  the last of every so many layers sees all positions, the others a window; 0: all see all
    window_rope     the RoPE of layers with a window, of the others'
    turns           il -> whether that layer has RoPE
    attn_sum        llama.cpp's name for the sum after attention, which a trace shows
    causal          a token looks at those before it, which a cache keeps; False: at the whole text, an encoder
    weights         reads its tensors
    hidden          what it makes of a batch: normed rows for `batch.outputs`, which the output matrix or pooling reads
    """

    name: str
    rope_style: str
    weights: Callable[..., Any]
    hidden: Callable[..., np.ndarray]
    positions: str = "rope"
    act: str = "silu"
    norms: tuple[str, ...] = ()
    assumed: Mapping[str, float] = field(default_factory=dict)
    embed_scale: Callable[[int], float] = lambda n_embd: 1.0
    attn_scale: Callable[[int, int, int, int], float] = by_head
    window_pattern: int = 0
    window_rope: Callable[[Rope], Rope] = lambda rope: rope
    turns: Callable[[int], bool] = lambda il: True
    attn_sum: str = "ffn_inp"
    causal: bool = True
