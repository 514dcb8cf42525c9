"""Tiny models of every family: random weights in F32, small enough for a pack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....kernels.quants import FORMATS_BY_NAME, QuantFormat
from ...gguf.write import write_gguf
from . import vocabulary
from .numbers import Numbers

Shaped = tuple[str, QuantFormat, tuple[int, ...], np.ndarray]

N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_CTX = 64, 96, 4, 2, 128
HEAD_NORMS, POST_NORMS = ("attn_q_norm", "attn_k_norm"), ("post_attention_norm", "post_ffw_norm")
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 32.0,
    "rope.scaling.original_context_length": 8,
    "rope.scaling.yarn_beta_fast": 1.0,  # few turns, as the window is small: pairs at both ends of the ramp
    "rope.scaling.yarn_beta_slow": 0.125,
}
WINDOW = {"attention.sliding_window": 8}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-experts": {"n_expert": 4},
    "llama-factors": {"factors": True},
    "mistral3": {
        "n_head_dim": 32,
        "keys": {"attention.temperature_scale": 0.5, "rope.scaling.yarn_log_multiplier": 0.5, **YARN},
    },
    "qwen2": {"bias": True},
    "qwen3": {"norms": HEAD_NORMS, "n_head_dim": 32},
    "qwen3moe": {"norms": HEAD_NORMS, "n_head_dim": 32, "n_expert": 8, "n_expert_used": 3},
    "gemma": {"tied": True, "n_head_dim": 32},
    "gemma2": {
        "tied": True,
        "n_head_dim": 32,
        "norms": POST_NORMS,
        "keys": {**WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0},
    },
    "gemma3": {
        "tied": True,
        "n_head_dim": 32,
        "n_layer": 6,  # the sixth has full attention
        "norms": (*HEAD_NORMS, *POST_NORMS),
        "keys": {**WINDOW, "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    },
    "phi3": {"fused": ("attn_qkv", "ffn_up"), "keys": {"rope.scaling.original_context_length": 128}},
    "smollm3": {"n_layer": 4},  # the fourth has no RoPE
    "glm4": {"bias": True, "norms": POST_NORMS, "fused": ("ffn_up",), "n_rot": 8},
    "granite": {
        "tied": True,
        "keys": {"attention.scale": 0.125, "embedding_scale": 4.0, "residual_scale": 0.5, "logit_scale": 2.0},
    },
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"pooling": 2, "bias": True},
    "nomic-bert": {"pooling": 1, "gate": True, "fused": True, "keys": {"rope.freq_base": 1000.0}},
    "jina-bert-v2": {"pooling": 1, "gate": True, "bias": True},
}


class RandomTensors:
    """The tensors of a model, with random numbers."""

    def __init__(self, name: str):
        self.numbers = Numbers(f"model {name}")
        self.made: list[Shaped] = []

    def add(self, name: str, x: np.ndarray) -> None:
        self.made.append((name, FORMATS_BY_NAME["F32"], x.shape, x.astype("<f4")))

    def matrix(self, name: str, n_out: int, n_in: int, size: float = 1.0, bias: bool = False, stack: int = 0) -> None:
        shape = (stack, n_out, n_in) if stack else (n_out, n_in)
        self.add(f"{name}.weight", self.numbers.normal(*shape) * size * n_in**-0.5)
        if bias:
            self.add(f"{name}.bias", self.numbers.normal(n_out) / 4)

    def norm(self, name: str, n: int, bias: bool = False) -> None:
        self.add(f"{name}.weight", 1 + self.numbers.uniform(n) / 4)
        if bias:
            self.add(f"{name}.bias", self.numbers.uniform(n) / 4)


def write_tiny(path: Path, name: str) -> None:
    """Write the model `name`, one of DECODERS or ENCODERS, to `path`: the same bytes every time."""
    if name in DECODERS:
        _write_decoder(path, name, **DECODERS[name])
    else:
        _write_encoder(path, name, **ENCODERS[name])


def _write_decoder(
    path: Path,
    name: str,
    *,
    n_layer: int = 2,
    n_head_dim: int = 16,
    n_rot: int = 0,
    n_expert: int = 0,
    n_expert_used: int = 2,
    tied: bool = False,
    bias: bool = False,
    factors: bool = False,
    norms: tuple[str, ...] = (),
    fused: tuple[str, ...] = (),
    keys: Mapping[str, Any] | None = None,
) -> None:
    family = name.partition("-")[0]
    t, words = RandomTensors(name), vocabulary.tiny_spm(add_space_prefix=not family.startswith("gemma"))
    n_vocab, n_q, n_kv = len(words["tokenizer.ggml.tokens"]), N_HEAD * n_head_dim, N_HEAD_KV * n_head_dim
    t.matrix("token_embd", n_vocab, N_EMBD, 4 if tied else 8)
    if factors:
        t.add("rope_freqs.weight", np.linspace(1, 8, n_head_dim // 2))
    for blk in (f"blk.{il}" for il in range(n_layer)):
        t.norm(f"{blk}.attn_norm", N_EMBD)
        parts = {"attn_qkv": n_q + 2 * n_kv} if "attn_qkv" in fused else {"attn_q": n_q, "attn_k": n_kv, "attn_v": n_kv}
        for part, n_out in parts.items():
            t.matrix(f"{blk}.{part}", n_out, N_EMBD, bias=bias)
        t.matrix(f"{blk}.attn_output", N_EMBD, n_q)
        t.norm(f"{blk}.ffn_norm", N_EMBD)
        for norm in norms:
            t.norm(f"{blk}.{norm}", n_head_dim if norm in HEAD_NORMS else N_EMBD)
        exps = "_exps" if n_expert else ""
        if n_expert:
            t.matrix(f"{blk}.ffn_gate_inp", n_expert, N_EMBD)
        if "ffn_up" not in fused:
            t.matrix(f"{blk}.ffn_gate{exps}", N_FF, N_EMBD, stack=n_expert)
        t.matrix(f"{blk}.ffn_up{exps}", 2 * N_FF if "ffn_up" in fused else N_FF, N_EMBD, stack=n_expert)
        t.matrix(f"{blk}.ffn_down{exps}", N_EMBD, N_FF, stack=n_expert)
    t.norm("output_norm", N_EMBD)
    if not tied:
        t.matrix("output", n_vocab, N_EMBD, 2.5)
    values = {
        "block_count": n_layer,
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": n_head_dim,
        "attention.value_length": n_head_dim,
        "rope.dimension_count": n_rot or n_head_dim,
        "rope.freq_base": 10000.0,
        "vocab_size": n_vocab,
        **({"expert_count": n_expert, "expert_used_count": n_expert_used} if n_expert else {}),
        **(keys or {}),
    }
    _write(path, family, name, values, words, t)


def _write_encoder(
    path: Path,
    family: str,
    *,
    pooling: int,
    gate: bool = False,
    fused: bool = False,
    bias: bool = False,
    keys: Mapping[str, Any] | None = None,
) -> None:
    t, words, n_layer = RandomTensors(family), vocabulary.tiny_wordpiece(), 2
    t.matrix("token_embd", len(words["tokenizer.ggml.tokens"]), N_EMBD, 8)
    t.matrix("token_types", 2, N_EMBD, 2)
    if family == "bert":
        t.matrix("position_embd", N_CTX, N_EMBD, 4)
    t.norm("token_embd_norm", N_EMBD, bias=True)
    for blk in (f"blk.{il}" for il in range(n_layer)):
        for part in ("attn_qkv",) if fused else ("attn_q", "attn_k", "attn_v"):
            t.matrix(f"{blk}.{part}", (3 if fused else 1) * N_EMBD, N_EMBD, 1.5, bias)
        t.matrix(f"{blk}.attn_output", N_EMBD, N_EMBD, 1.5, bias)
        t.norm(f"{blk}.attn_output_norm", N_EMBD, bias=True)
        t.matrix(f"{blk}.ffn_up", N_FF, N_EMBD, 1.5, bias)
        if gate:
            t.matrix(f"{blk}.ffn_gate", N_FF, N_EMBD, 1.5)
        t.matrix(f"{blk}.ffn_down", N_EMBD, N_FF, 1.5, bias)
        t.norm(f"{blk}.layer_output_norm", N_EMBD, bias=True)
    values = {
        "block_count": n_layer,
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "pooling_type": pooling,
        **(keys or {}),
    }
    _write(path, family, family, values, words, t)


def _write(
    path: Path, family: str, name: str, values: Mapping[str, Any], words: Mapping[str, Any], tensors: RandomTensors
) -> None:
    about = {"general.architecture": family, "general.name": f"pack-{name}"}
    write_gguf(path, {**about, **{f"{family}.{key}": value for key, value in values.items()}, **words}, tensors.made)
