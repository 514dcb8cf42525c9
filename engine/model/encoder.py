"""Encoders: a whole text in, a vector for each of its tokens out.  bert, nomic-bert, jina-bert-v2.

    x = norm(rows of token_embd + row 0 of token_types + rows of position_embd)
    each layer:   x = norm(x + attend(x))            every token looks at every other, before it and after
                  x = norm(x + feed_forward(x))

Unlike a decoder's, the norms stand after the sums, nothing is kept for later tokens, and no word is foretold: the rows
of a text are pooled into its embedding.  Where a token stands is said by position_embd (bert), by RoPE (nomic-bert) or
by a penalty on distance (jina-bert-v2): the family's `positions`.

Source: llama.cpp's src/models/bert.cpp, commit 0c1e57098.  Its GELU is the tanh form, where BERT was trained with erf.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ...kernels import Attention, Kernels, Tensor
from ..batch import Batch
from ..cache import KVCache
from ..gguf import GGUF
from ..trace import Tap, no_tap
from .hparams import Hparams
from .linear import embed, linear
from .weights import Tensors, cut


@dataclass(frozen=True, eq=False)
class EncoderLayer:
    """One block, `blk.<il>`: matrices are Tensors, vectors f32 arrays.  What a file may leave out is None then.

    A file's attn_qkv is here as attn_q, attn_k and attn_v, and an ffn_up of 2 n_ff rows as ffn_gate and ffn_up.
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


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """An encoder's tensors.  Of token_types only row 0 is there, "sentence A", which every token is."""

    token_embd: Tensor
    token_embd_norm: np.ndarray
    token_embd_norm_bias: np.ndarray
    token_types: np.ndarray | None
    position_embd: Tensor | None
    blk: tuple[EncoderLayer, ...]


def hidden(model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """What the model makes of the tokens in `batch.outputs`.  -> float [n_out, n_embd]

    Each span is one whole text; `cache` has no layers.
    """
    hp, w = model.hparams, model.weights
    x = embed(kernels, w.token_embd, batch.tokens)  # [n_tok, n_embd]
    if w.token_types is not None:
        x = x + w.token_types
    if w.position_embd is not None:
        x = x + kernels.rows(w.position_embd, batch.positions)
    x = tap("inp_embd", -1, x)
    x = tap("inp_norm", -1, kernels.layer_norm(x, w.token_embd_norm, w.token_embd_norm_bias, hp.norm_eps))
    for il, blk in enumerate(w.blk):
        h = x + attend(model, il, x, batch, kernels, tap)
        h = kernels.layer_norm(h, blk.attn_output_norm, blk.attn_output_norm_bias, hp.norm_eps)
        if blk.attn_norm_2 is not None:
            h = kernels.layer_norm(h + x, blk.attn_norm_2, blk.attn_norm_2_bias, hp.norm_eps)
        x = tap("ffn_inp", il, h)
        x = x + feed_forward(model, il, x, kernels, tap)
        x = tap("l_out", il, kernels.layer_norm(x, blk.layer_output_norm, blk.layer_output_norm_bias, hp.norm_eps))
    return tap("result_embd", -1, x[batch.outputs])


def attend(model, il: int, x: np.ndarray, batch: Batch, kernels: Kernels, tap: Tap) -> np.ndarray:
    """What attention adds in layer `il`.  x float [n_tok, n_embd] -> as x"""
    hp, blk = model.hparams, model.weights.blk[il]
    q = linear(kernels, blk.attn_q, x, blk.attn_q_bias)
    k = linear(kernels, blk.attn_k, x, blk.attn_k_bias)
    v = linear(kernels, blk.attn_v, x, blk.attn_v_bias)
    if blk.attn_q_norm is not None:
        q = kernels.layer_norm(q, blk.attn_q_norm, blk.attn_q_norm_bias, hp.norm_eps)
    if blk.attn_k_norm is not None:
        k = kernels.layer_norm(k, blk.attn_k_norm, blk.attn_k_norm_bias, hp.norm_eps)
    q, k, v = (y.reshape(len(x), -1, hp.n_head_dim) for y in (q, k, v))
    if model.family.positions == "rope":
        q, k = kernels.rope(q, batch.positions, hp.rope[il]), kernels.rope(k, batch.positions, hp.rope[il])
    q, k, v = tap("Qcur", il, q), tap("Kcur", il, k), tap("Vcur", il, v)

    slopes = alibi_slopes(hp.n_head) if model.family.positions == "alibi" else None
    how = Attention(hp.n_head_dim**-0.5, causal=False, slopes=slopes)
    out, row = np.empty((len(x), hp.n_head * hp.n_head_dim), x.dtype), 0
    for span in batch.spans:
        rows = slice(row, row + span.length)
        out[rows] = kernels.attention(q[rows], k[rows], v[rows], 0, how, lambda name, value: tap(name, il, value))
        row += span.length
    out = tap("kqv_out", il, out)
    return tap("attn_out", il, linear(kernels, blk.attn_output, out, blk.attn_output_bias))


def feed_forward(model, il: int, x: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """What the feed-forward block adds in layer `il`.  x float [n_tok, n_embd] -> as x"""
    blk = model.weights.blk[il]
    up = tap("ffn_up", il, linear(kernels, blk.ffn_up, x, blk.ffn_up_bias))  # [n_tok, n_ff]
    if blk.ffn_gate is None:
        act = tap("ffn_gelu", il, kernels.gelu(up))
    else:
        gate = tap("ffn_gate", il, linear(kernels, blk.ffn_gate, x, blk.ffn_gate_bias))
        if model.family.act == "silu":
            act = tap("ffn_swiglu", il, kernels.silu_mul(gate, up))
        else:
            act = tap("ffn_geglu", il, kernels.gelu_mul(gate, up))
    return tap("ffn_out", il, linear(kernels, blk.ffn_down, act, blk.ffn_down_bias))


def alibi_slopes(n_head: int) -> np.ndarray:
    """How fast each head's scores fall with distance.  -> f32 [n_head]

    For a power of two, from 2^(-8 / n_head) down to 2^-8 by equal ratios; the heads beyond one take every other slope
    of the next.  Source: Press, Smith & Lewis 2021, arXiv:2108.12409.
    """
    n = 1 << (n_head.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / n) for h in range(n)]
    slopes += [2 ** (-4 * (2 * h + 1) / n) for h in range(n_head - n)]
    return np.array(slopes, np.float32)


def read_weights(gguf: GGUF, hp: Hparams, family: Any) -> EncoderWeights:
    """The weights of `gguf`, their shapes checked against `hp`.

    Raises BadGGUF for a tensor that is missing or of another shape, UnsupportedArchitecture for a tensor that nothing
    here computes with.
    """
    file, n_embd = Tensors(gguf), hp.n_embd
    n_type = gguf.kv.get("tokenizer.ggml.token_type_count", 1)
    token_types = file.take("token_types.weight", (n_type, n_embd), optional=True)
    learned = family.positions == "learned"
    weights = EncoderWeights(
        token_embd=file.take("token_embd.weight", (hp.n_vocab, n_embd)),
        token_embd_norm=file.take("token_embd_norm.weight", (n_embd,)),
        token_embd_norm_bias=file.take("token_embd_norm.bias", (n_embd,)),
        token_types=None if token_types is None else token_types.dequantize([0])[0],
        position_embd=file.take("position_embd.weight", (hp.n_ctx_train, n_embd)) if learned else None,
        blk=tuple(_read_layer(file, f"blk.{il}", hp) for il in range(hp.n_layer)),
    )
    file.finish()
    return weights


def _read_layer(file: Tensors, blk: str, hp: Hparams) -> EncoderLayer:
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
    fused = {
        "attn_qkv": ["attn_q", "attn_k", "attn_v"] if f"{blk}.attn_qkv.weight" in file.gguf.tensors else [],
        "ffn_up": ["ffn_gate", "ffn_up"] if up is not None and up.shape[0] == 2 * hp.n_ff else [],
    }
    for whole, parts in fused.items():
        if parts:
            sizes = [shapes[part][0] for part in parts]
            matrix = file.take(f"{blk}.{whole}.weight", (sum(sizes), hp.n_embd))
            bias = file.take(f"{blk}.{whole}.bias", (sum(sizes),), optional=True)
            found |= dict(zip(parts, cut(matrix, sizes), strict=True))
            found |= dict(zip([f"{part}_bias" for part in parts], cut(bias, sizes), strict=True))
    for field in fields(EncoderLayer):
        if field.name not in found:
            name, is_bias = field.name.removesuffix("_bias"), field.name.endswith("_bias")
            suffix, shape = ("bias", shapes[name][:1]) if is_bias else ("weight", shapes[name])
            found[field.name] = file.take(f"{blk}.{name}.{suffix}", shape, optional=field.default is None)
    for name in ("attn_q_norm", "attn_k_norm", "attn_norm_2"):
        if found[name] is not None and found[f"{name}_bias"] is None:
            found[f"{name}_bias"] = np.zeros(shapes[name], np.float32)
    return EncoderLayer(**found)
