"""The forward pass: tokens in, logits out.

    x = rows of token_embd, or an image's own
    each layer:   x += attend(norm(x))            a look at what came before
                  x += feed_forward(norm(x))      a thought about it
    logits = output(norm(x))

`tap` is shown every value under llama.cpp's name for it, and may replace it (trace.py).
"""

from __future__ import annotations

import numpy as np

from ...kernels import Kernels
from .batch import Batch
from .cache import KVCache
from .linear import embed, linear
from .moe import mixture
from .trace import Tap, no_tap
from .whole import whole_layers


def forward(model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Logits for the positions in `batch.outputs`.  -> float [n_out, n_vocab]"""
    return logits(model, hidden_states(model, batch, cache, kernels, tap), kernels, tap)


def logits(model, x: np.ndarray, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Logits for what may follow rows `x` of hidden().  float [n_out, n_embd] -> float [n_out, n_vocab]"""
    hp = model.hparams
    y = scale_by(linear(kernels, model.weights.output, x), 1 / hp.logit_scale)
    if hp.logit_softcap:
        y = hp.logit_softcap * np.tanh(y / hp.logit_softcap)
    return tap("result_output", -1, y)


def hidden_states(model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """What the model makes of the positions in `batch.outputs`, before any word for it.  -> float [n_out, n_embd]"""
    hp, w = model.hparams, model.weights
    x = tap("embd", -1, embed(kernels, w.token_embd, np.maximum(batch.tokens, 0)))  # [n_tok, n_embd]
    if hp.embed_scale != 1:
        x = tap("inp_scaled", -1, scale_by(x, hp.embed_scale))
    if batch.embeds is not None:
        x = x.copy()
        x[batch.tokens < 0] = batch.embeds
        x = tap("inp_embd", -1, x)
    whole = whole_layers(model, batch, cache, kernels, tap)
    for il, blk in enumerate(w.blk):
        if whole:  # what follows, in one call
            x = tap("l_out", il, whole(il, x))
            continue
        h = tap("attn_norm", il, kernels.rms_norm(x, blk.attn_norm, hp.norm_eps))
        x = tap(model.family.attn_sum, il, x + attend(model, il, h, batch, cache, kernels, tap))
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
    q = norm(model, il, "Qcur_normed", q, blk.attn_q_norm, kernels, tap)
    k = norm(model, il, "Kcur_normed", k, blk.attn_k_norm, kernels, tap)
    rule, rope = hp.attention[il], hp.ropes(cache.n_ctx)[il]
    if rope is not None:
        q, k = kernels.rope(q, batch.positions, rope), kernels.rope(k, batch.positions, rope)
    q, k, v = tap("Qcur", il, q), tap("Kcur", il, k), tap("Vcur", il, v)
    if hp.attn_temp:
        q = tap("Qcur_attn_temp_scaled", il, q * query_temperature(hp, batch.positions, q.dtype)[:, None, None])

    out, row = np.empty((len(h), hp.n_head * hp.n_head_dim), h.dtype), 0
    for span in batch.spans:
        rows = slice(row, row + span.length)
        cache.write(il, span, k[rows], v[rows])
        keys, values = cache.read(il, span)
        out[rows] = kernels.attention(q[rows], keys, values, span.start, rule, lambda name, value: tap(name, il, value))
        row += span.length
    out = tap("kqv_out", il, out)
    out = tap("attn_out", il, linear(kernels, blk.attn_output, out, blk.attn_output_bias))
    return scale_by(norm(model, il, "attn_post_norm", out, blk.post_attention_norm, kernels, tap), hp.residual_scale)


def query_temperature(hp, positions: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """How much sharper a query looks, the further it is beyond n_ctx_orig.  i32 [n_tok] -> dtype [n_tok]"""
    return (1 + hp.attn_temp * np.log(1 + positions // hp.n_ctx_orig)).astype(dtype)


def feed_forward(model, il: int, h: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """What the feed-forward block adds in layer `il`.  h float [n_tok, n_embd] -> as h"""
    hp, blk = model.hparams, model.weights.blk[il]
    block = gated if blk.ffn_gate_inp is None else mixture
    out = block(model, il, h, kernels, tap)
    return scale_by(norm(model, il, "ffn_post_norm", out, blk.post_ffw_norm, kernels, tap), hp.residual_scale)


def gated(model, il: int, h: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """down(act(gate h) * up h),  the act being the family's.  h float [n_tok, n_embd] -> as h"""
    blk = model.weights.blk[il]
    name, act_mul = {"silu": ("ffn_swiglu", kernels.silu_mul), "gelu": ("ffn_geglu", kernels.gelu_mul)}[
        model.family.act
    ]
    gate = tap("ffn_gate", il, linear(kernels, blk.ffn_gate, h, blk.ffn_gate_bias))  # [n_tok, n_ff]
    up = tap("ffn_up", il, linear(kernels, blk.ffn_up, h, blk.ffn_up_bias))
    return tap("ffn_out", il, linear(kernels, blk.ffn_down, tap(name, il, act_mul(gate, up)), blk.ffn_down_bias))


def norm(model, il: int, name: str, x: np.ndarray, weight: np.ndarray | None, kernels: Kernels, tap: Tap) -> np.ndarray:
    """`x` normed by `weight` where the file has it, shown as `name`."""
    return x if weight is None else tap(name, il, kernels.rms_norm(x, weight, model.hparams.norm_eps))


def scale_by(x: np.ndarray, by: float) -> np.ndarray:
    """`x` times `by`; itself where that is 1."""
    return x if by == 1 else x * x.dtype.type(by)
