"""A model's hyperparameters, read from the GGUF's key-values, under llama.cpp's names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...kernels import Rope
from ..errors import BadGGUF, UnsupportedArchitecture
from ..gguf import GGUF

POOLINGS = ("none", "mean", "cls", "last", "rank")  # by <arch>.pooling_type, as in llama.h


@dataclass(frozen=True, eq=False)
class Hparams:
    """Sizes of a decoder.

    n_head queries share n_head_kv keys of n_head_dim components; n_ff is the feed-forward block's width.  With
    n_expert, each token goes through n_expert_used of them, n_ff_exp wide.  pooling is how an embedding model makes one
    vector of a text's, one of POOLINGS, "" in a model that speaks.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    norm_eps: float
    rope: Rope
    pooling: str = ""
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_exp: int = 0
    expert_weights_scale: float = 1.0


def read_hparams(gguf: GGUF, arch: str, rope_style: str) -> Hparams:
    """The hyperparameters of a GGUF of architecture `arch`.

    Raises BadGGUF where one is missing or impossible, UnsupportedArchitecture where it asks for what is not computed.
    """

    def fail(key: str, found: object, expected: str) -> BadGGUF:
        return BadGGUF(gguf.path, gguf.kv_offsets.get(key, 0), f"key '{key}' is {found}, expected {expected}")

    def number(name: str, default: float | None = None, least: float = 1) -> int | float:
        key = f"{arch}.{name}"
        value = gguf.kv.get(key, default)
        if value is None:
            raise fail(key, "missing", "a number")
        if isinstance(value, np.ndarray):
            if len(value) and (value == value[0]).all():
                value = value[0].item()
            else:
                raise UnsupportedArchitecture(
                    arch, f"key '{key}' differs from layer to layer, which this build does not compute"
                )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise fail(key, f"{value!r}", "a number")
        if not least <= value < 2**31:
            raise fail(key, value, f"a number from {least}")
        return value

    n_embd, n_head = int(number("embedding_length")), int(number("attention.head_count"))
    n_head_kv = int(number("attention.head_count_kv", n_head))
    if n_head % n_head_kv:
        raise fail(f"{arch}.attention.head_count_kv", n_head_kv, f"a divisor of the head count, {n_head}")
    n_head_dim = int(number("attention.key_length", n_embd // n_head))
    if number("attention.value_length", n_head_dim) != n_head_dim:
        raise UnsupportedArchitecture(
            arch, f"key '{arch}.attention.value_length' differs from the key length, {n_head_dim}"
        )
    n_rot = int(number("rope.dimension_count", n_head_dim))
    if n_rot % 2 or n_rot > n_head_dim:
        raise fail(f"{arch}.rope.dimension_count", n_rot, f"an even number up to the head size, {n_head_dim}")

    n_ff, n_expert = int(number("feed_forward_length")), int(number("expert_count", 0, least=0))
    n_expert_used = int(number("expert_used_count", 0, least=min(n_expert, 1)))
    if n_expert_used > n_expert:
        raise fail(f"{arch}.expert_used_count", n_expert_used, f"a number up to the expert count, {n_expert}")

    norm = "layer_norm" if f"{arch}.attention.layer_norm_epsilon" in gguf.kv else "layer_norm_rms"
    tokens = gguf.kv.get("tokenizer.ggml.tokens")
    embedding = gguf.tensors.get("token_embd.weight")
    n_vocab = len(tokens) if tokens is not None else embedding.shape[0] if embedding is not None else 0
    if not n_vocab:
        raise fail("tokenizer.ggml.tokens", "missing or empty", "a vocabulary")
    return Hparams(
        n_layer=int(number("block_count")),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_head_dim=n_head_dim,
        n_ff=n_ff,
        n_vocab=n_vocab,
        n_ctx_train=int(number("context_length")),
        norm_eps=float(number(f"attention.{norm}_epsilon", least=0)),
        rope=Rope(
            rope_style,
            n_rot,
            float(number("rope.freq_base", 10000.0)),
            _rope_scale(gguf, arch, number),
            _factors(gguf, n_rot),
        ),
        pooling=_pooling(gguf, arch, number),
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_ff_exp=int(number("expert_feed_forward_length", n_ff)),
        expert_weights_scale=float(number("expert_weights_scale", 0, least=0)) or 1.0,
    )


def _pooling(gguf: GGUF, arch: str, number) -> str:
    key = f"{arch}.pooling_type"
    if key not in gguf.kv:
        return ""
    kind = number("pooling_type", least=0)
    if kind not in range(len(POOLINGS)):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(POOLINGS))
        raise BadGGUF(gguf.path, gguf.kv_offsets.get(key, 0), f"key '{key}' is {kind}, expected one of {known}")
    return POOLINGS[int(kind)]


def _rope_scale(gguf: GGUF, arch: str, number) -> float:
    kind = gguf.kv.get(f"{arch}.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedArchitecture(
            arch, f"rope scaling '{kind}' is not computed by this build, 'none' and 'linear' are"
        )
    if kind == "none":
        return 1.0
    factor = number("rope.scaling.factor", gguf.kv.get(f"{arch}.rope.scale_linear", 1.0), least=0)
    return 1.0 / factor if factor else 1.0


def _factors(gguf: GGUF, n_rot: int) -> np.ndarray | None:
    tensor = gguf.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    if tensor.shape != (n_rot // 2,):
        raise BadGGUF(gguf.path, 0, f"tensor 'rope_freqs.weight' has shape {tensor.shape}, expected ({n_rot // 2},)")
    return tensor.dequantize()
