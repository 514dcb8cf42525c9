"""Encoders: a whole text in, a vector for each of its tokens out.  bert, nomic-bert, jina-bert-v2.

    x = norm(rows of token_embd + row 0 of token_types + rows of position_embd)
    each layer:   x = norm(x + attend(x))            every token attends to every other, before and after it
                  x = norm(x + feed_forward(x))

Unlike in a decoder, the norms follow the sums, nothing is cached, and no next token is predicted: the rows of a text
are pooled into its embedding.  Positions are encoded by position_embd (bert), by RoPE (nomic-bert) or by ALiBi, a
penalty on distance (jina-bert-v2); see the family's `positions`.

Source: llama.cpp's src/models/bert.cpp, commit 0c1e57098.  Its GELU is the tanh form, where BERT was trained with erf.
"""

from __future__ import annotations

import numpy as np

from ...kernels import Attention, Kernels
from .batch import Batch
from .cache import KVCache
from .linear import embed, linear
from .model import Model
from .trace import Tap, no_tap


def encoder_states(model: Model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Return the final hidden states at `batch.outputs`.  -> float [n_out, n_embd]

    Each span is one whole text; `cache` has no layers.
    """
    hp, w = model.hparams, model.encoder
    x = embed(kernels, w.token_embd, batch.tokens)  # [n_tok, n_embd]
    if w.token_types is not None:
        x = x + w.token_types
    if w.position_embd is not None:
        x = x + kernels.rows(w.position_embd, batch.positions)
    x = tap("inp_embd", -1, x)
    x = tap("inp_norm", -1, kernels.layer_norm(x, w.token_embd_norm, w.token_embd_norm_bias, hp.norm_eps))
    for il, blk in enumerate(w.blk):
        h = x + encoder_attend(model, il, x, batch, kernels, tap)
        h = kernels.layer_norm(h, blk.attn_output_norm, blk.attn_output_norm_bias, hp.norm_eps)
        if blk.attn_norm_2 is not None:
            h = kernels.layer_norm(h + x, blk.attn_norm_2, blk.attn_norm_2_bias, hp.norm_eps)
        x = tap("ffn_inp", il, h)
        x = x + encoder_feed_forward(model, il, x, kernels, tap)
        x = tap("l_out", il, kernels.layer_norm(x, blk.layer_output_norm, blk.layer_output_norm_bias, hp.norm_eps))
    return tap("result_embd", -1, x[batch.outputs])


def encoder_attend(model: Model, il: int, x: np.ndarray, batch: Batch, kernels: Kernels, tap: Tap) -> np.ndarray:
    """Return what attention adds to `x` in layer `il`.  x float [n_tok, n_embd] -> as x"""
    hp, blk = model.hparams, model.encoder.blk[il]
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
    rule = Attention(hp.n_head_dim**-0.5, causal=False, slopes=slopes)
    out, row = np.empty((len(x), hp.n_head * hp.n_head_dim), x.dtype), 0
    for span in batch.spans:
        rows = slice(row, row + span.length)
        out[rows] = kernels.attention(q[rows], k[rows], v[rows], 0, rule, lambda name, value: tap(name, il, value))
        row += span.length
    out = tap("kqv_out", il, out)
    return tap("attn_out", il, linear(kernels, blk.attn_output, out, blk.attn_output_bias))


def encoder_feed_forward(model: Model, il: int, x: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """Return what the feed-forward block adds to `x` in layer `il`.  x float [n_tok, n_embd] -> as x"""
    blk = model.encoder.blk[il]
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
    """Return the factor on distance that is subtracted from each head's scores.  -> f32 [n_head]

    If n_head is a power of two, the slopes fall geometrically from 2^(-8 / n_head) to 2^-8.  Otherwise the heads beyond
    the largest power of two take every other slope of the next power.
    Source: Press, Smith & Lewis 2021, arXiv:2108.12409.
    """
    n = 1 << (n_head.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / n) for h in range(n)]
    slopes += [2 ** (-4 * (2 * h + 1) / n) for h in range(n_head - n)]
    return np.array(slopes, np.float32)
