"""The forward pass: tokens in, logits out.

    x = rows of token_embd
    each layer:   x += attend(norm(x))            a look at what came before
                  x += feed_forward(norm(x))      a thought about it
    logits = output(norm(x))

`tap` is shown every value under llama.cpp's name for it, and may replace it (trace.py).
"""

from __future__ import annotations

import numpy as np

from ...kernels import Attention, Kernels
from ..batch import Batch
from ..cache import KVCache
from ..trace import Tap, no_tap
from .linear import embed, linear
from .moe import mixture


def forward(model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Logits for the positions in `batch.outputs`.  -> float [n_out, n_vocab]"""
    return logits(model, hidden(model, batch, cache, kernels, tap), kernels, tap)


def logits(model, x: np.ndarray, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Logits for what may follow rows `x` of hidden().  float [n_out, n_embd] -> float [n_out, n_vocab]"""
    return tap("result_output", -1, linear(kernels, model.weights.output, x))


def hidden(model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """What the model makes of the positions in `batch.outputs`, before any word for it.  -> float [n_out, n_embd]"""
    hp, w = model.hparams, model.weights
    x = tap("embd", -1, embed(kernels, w.token_embd, batch.tokens))  # [n_tok, n_embd]
    for il, blk in enumerate(w.blk):
        h = tap("attn_norm", il, kernels.rms_norm(x, blk.attn_norm, hp.norm_eps))
        x = tap("ffn_inp", il, x + attend(model, il, h, batch, cache, kernels, tap))
        h = tap("ffn_norm", il, kernels.rms_norm(x, blk.ffn_norm, hp.norm_eps))
        x = tap("l_out", il, x + feed_forward(model, il, h, kernels, tap))
    return tap("result_norm", -1, kernels.rms_norm(x[batch.outputs], w.output_norm, hp.norm_eps))


def attend(model, il: int, h: np.ndarray, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap) -> np.ndarray:
    """What attention adds in layer `il`.  h float [n_tok, n_embd] -> as h

    The matrix products see the whole batch, attention sees one span at a time: that is all of continuous batching.
    """
    hp, blk = model.hparams, model.weights.blk[il]
    q = linear(kernels, blk.attn_q, h, blk.attn_q_bias).reshape(len(h), hp.n_head, hp.n_head_dim)
    k = linear(kernels, blk.attn_k, h, blk.attn_k_bias).reshape(len(h), hp.n_head_kv, hp.n_head_dim)
    v = linear(kernels, blk.attn_v, h, blk.attn_v_bias).reshape(len(h), hp.n_head_kv, hp.n_head_dim)
    q = tap("Qcur", il, kernels.rope(q, batch.positions, hp.rope))
    k = tap("Kcur", il, kernels.rope(k, batch.positions, hp.rope))
    v = tap("Vcur", il, v)

    how = Attention(hp.n_head_dim**-0.5)
    out, row = np.empty((len(h), hp.n_head * hp.n_head_dim), h.dtype), 0
    for span in batch.spans:
        rows = slice(row, row + span.length)
        cache.write(il, span, k[rows], v[rows])
        keys, values = cache.read(il, span)
        out[rows] = kernels.attention(q[rows], keys, values, span.start, how, lambda name, value: tap(name, il, value))
        row += span.length
    out = tap("kqv_out", il, out)
    return tap("attn_out", il, linear(kernels, blk.attn_output, out, blk.attn_output_bias))


def feed_forward(model, il: int, h: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """What the feed-forward block adds in layer `il`.  h float [n_tok, n_embd] -> as h"""
    blk = model.weights.blk[il]
    if blk.ffn_gate_inp is not None:
        return mixture(model, il, h, kernels, tap)
    gate = tap("ffn_gate", il, linear(kernels, blk.ffn_gate, h, blk.ffn_gate_bias))  # [n_tok, n_ff]
    up = tap("ffn_up", il, linear(kernels, blk.ffn_up, h, blk.ffn_up_bias))
    gated = tap("ffn_swiglu", il, kernels.silu_mul(gate, up))
    return tap("ffn_out", il, linear(kernels, blk.ffn_down, gated, blk.ffn_down_bias))
