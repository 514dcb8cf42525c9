"""An architecture as a value, from which a decoder or an encoder computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...kernels import Rope


def scale_by_head_dim(n_layer: int, n_embd: int, n_head: int, n_head_dim: int) -> float:
    """Return the scale of attention scores in most models: 1 / sqrt(n_head_dim)."""
    return float(n_head_dim**-0.5)


# Keys that llama.cpp (0c1e57098) reads for a few architectures and ignores in files of all others
FEW_READ = frozenset(
    {
        *("embedding_scale", "residual_scale", "logit_scale", "attention.scale", "attention.temperature_scale"),
        *("attn_logit_softcapping", "final_logit_softcapping", "rope.scaling.finetuned"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier"),
    }
)


@dataclass(frozen=True)
class Family:
    """An architecture: what its computation has that others' lack.

    name            general.architecture in the GGUF
    rope_style      which components RoPE rotates together: "norm" or "neox", see kernels/rope.py
    positions       how positions are encoded: "rope", "learned" (position_embd) or "alibi"
    act             activation function of the feed-forward block: "silu", "gelu" or "swiglu_oai"
    norms           fields of Block that its files have besides attn_norm and ffn_norm
    tensors         fields of Block and Weights that its files call otherwise: their names there
    defaults        values of keys that a file may lack, without the architecture's name
    keys            of FEW_READ, those that its files may have
    embed_scale     n_embd -> factor on embeddings
    attn_scale      n_layer, n_embd, n_head, n_head_dim -> factor on attention scores
    window_pattern  period of layers: the last of each period sees all positions, the others a window; 0: all see all
    symmetric       windows reach half of their size to each side of a token, not all of it before the token
    window_rope     RoPE of the other layers -> RoPE of layers with a window
    uses_rope       il -> whether that layer has RoPE
    attn_sum        llama.cpp's name for the sum after attention, for traces
    causal          a token attends to earlier ones, which are cached; False: to the whole text (an encoder)
    weights         function that reads its tensors
    hidden          forward pass up to the normed rows of `batch.outputs`, the input of the output matrix or of pooling
    """

    name: str
    rope_style: str
    weights: Callable[..., Any]
    hidden: Callable[..., np.ndarray]
    positions: str = "rope"
    act: str = "silu"
    norms: tuple[str, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    embed_scale: Callable[[int], float] = lambda n_embd: 1.0
    attn_scale: Callable[[int, int, int, int], float] = scale_by_head_dim
    window_pattern: int = 0
    symmetric: bool = False
    window_rope: Callable[[Rope], Rope] = lambda rope: rope
    uses_rope: Callable[[int], bool] = lambda il: True
    attn_sum: str = "ffn_inp"
    causal: bool = True
