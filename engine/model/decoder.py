"""The forward pass: tokens in, logits out.

    x = rows of token_embd, or an image's rows
    each layer:   x += attend(norm(x))            mix information across positions
                  x += feed_forward(norm(x))      transform each position on its own
    logits = output(norm(x))

Every value passes through `tap` under llama.cpp's name for it; a tap may replace it (trace.py).
"""

from __future__ import annotations

import numpy as np

from ...kernels import Kernels
from .batch import Batch
from .cache import KVCache
from .linear import embed, linear
from .model import Model
from .moe import mixture
from .trace import Tap, no_tap
from .whole import whole_layers


def forward(model: Model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Return the logits at `batch.outputs`, and bring the batch's keys and values into the cache.

    -> float [n_out, n_vocab]
    """
    return logits(model, hidden_states(model, batch, cache, kernels, tap), kernels, tap)


def hidden_states(model: Model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Return the final hidden states at `batch.outputs`, before the output matrix.  -> float [n_out, n_embd]"""
    cache.make_room(batch)
    x = embeddings(model, batch, kernels, tap)
    run_layers = cache.run_layers or whole_layers(model, batch, cache, kernels, tap) or layer_by_layer
    x = run_layers(model, x, batch, cache, kernels, tap)
    return tap("result_norm", -1, kernels.rms_norm(x[batch.outputs], model.decoder.output_norm, model.hparams.norm_eps))


def layer_by_layer(model: Model, x: np.ndarray, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap) -> np.ndarray:
    """Run every layer in steps.  x float [n_tok, n_embd] -> as x

    Decoding runs whole layers as one call instead, with the same bits: whole.py.
    """
    eps = model.hparams.norm_eps
    for il, blk in enumerate(model.decoder.blk):
        h = tap("attn_norm", il, kernels.rms_norm(x, blk.attn_norm, eps))
        x = tap(model.family.attn_sum, il, x + attend(model, il, h, batch, cache, kernels, tap))
        h = tap("ffn_norm", il, kernels.rms_norm(x, blk.ffn_norm, eps))
        x = tap("l_out", il, x + feed_forward(model, il, h, kernels, tap))
    return x


def embeddings(model: Model, batch: Batch, kernels: Kernels, tap: Tap) -> np.ndarray:
    """Look up the tokens' embeddings; an image's rows take the place of tokens below 0.  -> float [n_tok, n_embd]"""
    x = tap("embd", -1, embed(kernels, model.decoder.token_embd, np.maximum(batch.tokens, 0)))
    if model.hparams.embed_scale != 1:
        x = tap("inp_scaled", -1, scale_by(x, model.hparams.embed_scale))
    if batch.embeds is None:
        return x
    x = x.copy()
    x[batch.tokens < 0] = batch.embeds
    return tap("inp_embd", -1, x)


def logits(model: Model, x: np.ndarray, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Multiply hidden states by the output matrix.  x float [n_out, n_embd] -> float [n_out, n_vocab]"""
    hp = model.hparams
    y = scale_by(linear(kernels, model.decoder.output, x), 1 / hp.logit_scale)
    if hp.logit_softcap:
        y = hp.logit_softcap * np.tanh(y / hp.logit_softcap)
    return tap("result_output", -1, y)


def attend(
    model: Model, il: int, h: np.ndarray, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap
) -> np.ndarray:
    """Return what attention adds to `x` in layer `il`.  h float [n_tok, n_embd] -> as h

    The matrix products see the whole batch, attention sees one span at a time: that is all of continuous batching.
    """
    hp, blk = model.hparams, model.decoder.blk[il]
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
        q = tap("Qcur_attn_temp_scaled", il, q * hp.query_factors(batch.positions, q.dtype)[:, None, None])

    q, k, v = cache.rotated(q, k, v)

    out, row = np.empty((len(h), hp.n_head * hp.n_head_dim), h.dtype), 0
    for span in batch.spans:
        rows = slice(row, row + span.length)
        cache.write(il, span, k[rows], v[rows])
        keys, values = cache.read(il, span)
        first = len(keys) - span.length
        out[rows] = kernels.attention(q[rows], keys, values, first, rule, lambda name, value: tap(name, il, value))
        row += span.length
    out = cache.rotated_back(tap("kqv_out", il, out))
    out = tap("attn_out", il, linear(kernels, blk.attn_output, out, blk.attn_output_bias))
    return scale_by(norm(model, il, "attn_post_norm", out, blk.post_attention_norm, kernels, tap), hp.residual_scale)


def feed_forward(model: Model, il: int, h: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """Return what the feed-forward block adds to `x` in layer `il`.  h float [n_tok, n_embd] -> as h"""
    hp, blk = model.hparams, model.decoder.blk[il]
    block = gated if blk.ffn_gate_inp is None else mixture
    out = block(model, il, h, kernels, tap)
    return scale_by(norm(model, il, "ffn_post_norm", out, blk.post_ffw_norm, kernels, tap), hp.residual_scale)


def gated(model: Model, il: int, h: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """Return down(act(gate h) * up h) with the family's activation function.  h float [n_tok, n_embd] -> as h"""
    blk = model.decoder.blk[il]
    name, act_mul = {"silu": ("ffn_swiglu", kernels.silu_mul), "gelu": ("ffn_geglu", kernels.gelu_mul)}[
        model.family.act
    ]
    assert blk.ffn_gate and blk.ffn_up and blk.ffn_down
    gate = tap("ffn_gate", il, linear(kernels, blk.ffn_gate, h, blk.ffn_gate_bias))  # [n_tok, n_ff]
    up = tap("ffn_up", il, linear(kernels, blk.ffn_up, h, blk.ffn_up_bias))
    return tap("ffn_out", il, linear(kernels, blk.ffn_down, tap(name, il, act_mul(gate, up)), blk.ffn_down_bias))


def norm(
    model: Model, il: int, name: str, x: np.ndarray, weight: np.ndarray | None, kernels: Kernels, tap: Tap
) -> np.ndarray:
    """Normalize `x` by `weight` and tap it as `name`; return `x` itself where the file has no such weight."""
    return x if weight is None else tap(name, il, kernels.rms_norm(x, weight, model.hparams.norm_eps))


def scale_by(x: np.ndarray, factor: float) -> np.ndarray:
    """Multiply `x` by `factor`; return `x` itself if that is 1."""
    return x if factor == 1 else x * x.dtype.type(factor)
