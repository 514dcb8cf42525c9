"""An encoder's weights under their GGUF names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ...kernels import Tensor
from ..gguf.read import GGUF, described
from .architecture import Family
from .hparams import Hparams
from .weights import Tensors, split_rows


@dataclass(frozen=True, eq=False, repr=False)
class EncoderBlock:
    """One block, `blk.<il>`: matrices are Tensors, vectors f32 arrays; optional ones are None if the file lacks them.

    A fused attn_qkv is split into attn_q, attn_k and attn_v, and an ffn_up of 2 n_ff rows into ffn_gate and ffn_up.
    """

    attn_q: Tensor
    attn_k: Tensor
    attn_v: Tensor
    attn_output: Tensor
    attn_output_norm: np.ndarray
    attn_output_norm_bias: np.ndarray
    ffn_up: Tensor
    ffn_down: Tensor
    layer_output_norm: np.ndarray
    layer_output_norm_bias: np.ndarray
    attn_q_bias: np.ndarray | None = None
    attn_k_bias: np.ndarray | None = None
    attn_v_bias: np.ndarray | None = None
    attn_q_norm: np.ndarray | None = None
    attn_q_norm_bias: np.ndarray | None = None
    attn_k_norm: np.ndarray | None = None
    attn_k_norm_bias: np.ndarray | None = None
    attn_output_bias: np.ndarray | None = None
    attn_norm_2: np.ndarray | None = None
    attn_norm_2_bias: np.ndarray | None = None
    ffn_gate: Tensor | None = None
    ffn_gate_bias: np.ndarray | None = None
    ffn_up_bias: np.ndarray | None = None
    ffn_down_bias: np.ndarray | None = None


@dataclass(frozen=True, eq=False, repr=False)
class EncoderWeights:
    """An encoder's tensors.  token_types is row 0 alone, "sentence A", since every token has that type."""

    token_embd: Tensor
    token_embd_norm: np.ndarray
    token_embd_norm_bias: np.ndarray
    token_types: np.ndarray | None
    position_embd: Tensor | None
    blk: tuple[EncoderBlock, ...]


def read_encoder_weights(gguf: GGUF, hp: Hparams, family: Family) -> EncoderWeights:
    """Read the weights of `gguf` and check their shapes against `hp`.

    Raises: BadGGUF for a tensor that is missing or has another shape, UnsupportedArchitecture for an unused one
    """
    file, n_embd = Tensors(gguf), hp.n_embd
    n_type = gguf.kv.get("tokenizer.ggml.token_type_count", 1)
    if type(n_type) is not int:
        found = f"tokenizer.ggml.token_type_count is {described(n_type)}"
        raise gguf.bad("tokenizer.ggml.token_type_count", f"{found}, expected an integer")
    token_types = file.read("token_types.weight", (n_type, n_embd), optional=True)
    learned = family.positions == "learned"
    weights = EncoderWeights(
        token_embd=file.read("token_embd.weight", (hp.n_vocab, n_embd)),
        token_embd_norm=file.read("token_embd_norm.weight", (n_embd,)),
        token_embd_norm_bias=file.read("token_embd_norm.bias", (n_embd,)),
        token_types=None if token_types is None else token_types.dequantize([0])[0],
        position_embd=file.read("position_embd.weight", (hp.n_ctx_train, n_embd)) if learned else None,
        blk=tuple(_read_layer(file, f"blk.{il}", hp) for il in range(hp.n_layer)),
    )
    file.check_all_used()
    return weights


def _read_layer(file: Tensors, blk: str, hp: Hparams) -> EncoderBlock:
    n_q, n_kv = hp.n_head * hp.n_head_dim, hp.n_head_kv * hp.n_head_dim
    shapes = {
        "attn_q": (n_q, hp.n_embd),
        "attn_k": (n_kv, hp.n_embd),
        "attn_v": (n_kv, hp.n_embd),
        "attn_q_norm": (n_q,),
        "attn_k_norm": (n_kv,),
        "attn_output": (hp.n_embd, n_q),
        "attn_output_norm": (hp.n_embd,),
        "attn_norm_2": (hp.n_embd,),
        "ffn_gate": (hp.n_ff, hp.n_embd),
        "ffn_up": (hp.n_ff, hp.n_embd),
        "ffn_down": (hp.n_embd, hp.n_ff),
        "layer_output_norm": (hp.n_embd,),
    }
    found: dict[str, Any] = {}
    up = file.gguf.tensors.get(f"{blk}.ffn_up.weight")
    n_up = 0 if up is None or len(up.shape) < 2 else up.shape[-2]
    fused = {
        "attn_qkv": ["attn_q", "attn_k", "attn_v"] if f"{blk}.attn_qkv.weight" in file.gguf.tensors else [],
        "ffn_up": ["ffn_gate", "ffn_up"] if n_up == 2 * hp.n_ff else [],
    }
    for whole, parts in fused.items():
        if parts:
            sizes = [shapes[part][0] for part in parts]
            matrix = file.read(f"{blk}.{whole}.weight", (sum(sizes), hp.n_embd))
            bias = file.read(f"{blk}.{whole}.bias", (sum(sizes),), optional=True)
            found |= dict(zip(parts, split_rows(matrix, sizes), strict=True))
            found |= dict(zip([f"{part}_bias" for part in parts], split_rows(bias, sizes), strict=True))
    for field in fields(EncoderBlock):
        if field.name not in found:
            name, is_bias = field.name.removesuffix("_bias"), field.name.endswith("_bias")
            suffix, shape = ("bias", shapes[name][:1]) if is_bias else ("weight", shapes[name])
            found[field.name] = file.read(f"{blk}.{name}.{suffix}", shape, optional=field.default is None)
    for name in ("attn_q_norm", "attn_k_norm", "attn_norm_2"):
        if found[name] is not None and found[f"{name}_bias"] is None:
            found[f"{name}_bias"] = np.zeros(shapes[name], np.float32)
    return EncoderBlock(**found)
