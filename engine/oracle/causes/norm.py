"""Mistakes in norms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Kernels
from ...model.weights import Weights
from ..setting import Setting
from ..values import LAYER_INPUT
from .cause import HEAD_NORMS, NORMS, SUMS, Cause, Change
from .change import bf16, block, constant, hparams, missing, norms, other_kernel, other_values


def norm_eps(factor: float) -> Change:
    """Multiply the eps of both norms."""
    return lambda s: Setting(
        replace(
            s.kernels,
            rms_norm=lambda x, w, eps: s.kernels.rms_norm(x, w, factor * eps),
            layer_norm=lambda x, w, b, eps: s.kernels.layer_norm(x, w, b, factor * eps),
        ),
        s.model,
    )


def eps_outside(k: Kernels, x: Any, weight: Any, eps: float) -> Any:
    return x / (np.sqrt(np.mean(x * x, -1, keepdims=True)) + eps) * weight


def _row_norm(k: Kernels, x: Any, weight: Any, eps: float) -> Any:
    """Norm over all heads of a row where the model norms each head."""
    if x.ndim != 3:
        return k.rms_norm(x, weight, eps)
    return x / np.sqrt(np.mean(x * x, axis=(1, 2), keepdims=True) + eps) * weight


def _rms(x: Any, weight: Any, s: Setting) -> Any:
    return s.kernels.rms_norm(x, weight, s.model.hparams.norm_eps)


def of_layer(by: int, *names: str) -> Change:
    """Take vectors of the block from the layer `by` after this one."""

    def changed(s: Setting) -> Setting | None:
        il = s.il + by
        if s.whole is None or s.il < 0 or not 0 <= il < len(s.whole.weights.blk):
            return None
        other = s.whole.weights.blk[il]
        return block(**{name: (lambda blk, name=name: getattr(other, name)) for name in names})(s)

    return changed


def _final_weight(name: str) -> Change:
    """Norm the last layer's output by a weight of that layer."""

    def changed(s: Setting) -> Setting | None:
        if s.whole is None or s.il >= 0 or not isinstance(s.model.weights, Weights):
            return None
        weight = getattr(s.whole.weights.blk[-1], name)
        return Setting(s.kernels, replace(s.model, weights=replace(s.model.weights, output_norm=weight)))

    return changed


def _after_sum(s: Setting) -> Setting | None:
    """Apply the norms after attention and feed-forward to the sums, not to what is added."""
    blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
    if blk is None or getattr(blk, "post_attention_norm", None) is None:
        return None

    def attended(x: Any, before: Any) -> Any:
        return _rms(before[LAYER_INPUT] + before["attn_out"], blk.post_attention_norm, s)

    def fed(x: Any, before: Any) -> Any:
        return _rms(before["sa_out" if "sa_out" in before else "ffn_inp"] + before["ffn_out"], blk.post_ffw_norm, s)

    return other_values(sa_out=attended, ffn_inp=attended, l_out=fed)(s)


def _earlier_input(s: Setting) -> Setting | None:
    weight = getattr(s.model.weights.blk[0], "ffn_norm", None) if s.model.weights.blk else None
    return None if weight is None else other_values(ffn_norm=lambda x, before: _rms(before[LAYER_INPUT], weight, s))(s)


def _in_float16(k: Kernels, x: Any, weight: Any, eps: float) -> Any:
    """Norm with squares, sum, root and quotient rounded to float16."""
    h = x.astype(np.float16)
    return (h / np.sqrt((h * h).mean(-1, keepdims=True, dtype=np.float16) + np.float16(eps))).astype(x.dtype) * weight


def _in_bfloat16(k: Kernels, x: Any, weight: Any, eps: float) -> Any:
    return bf16(bf16(k.rms_norm(bf16(x).astype(x.dtype), np.ones_like(weight), eps)) * bf16(weight)).astype(x.dtype)


def _unbiased(k: Kernels) -> Any:
    """Divide the variance of layer norms by n - 1."""

    def layer_norm(x: Any, w: Any, b: Any, eps: float) -> Any:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps) * w + b

    return layer_norm


NORM: tuple[Cause, ...] = (
    Cause("eps were 10 times as large", NORMS, norm_eps(10)),
    Cause("eps were a tenth", NORMS, norm_eps(0.1)),
    Cause("eps were 100 times as large", NORMS, norm_eps(100)),
    Cause("eps were 1000 times as large", NORMS, norm_eps(1000)),
    Cause("eps were missing", NORMS, norm_eps(0)),
    *(
        Cause(f"eps were {eps:g}", NORMS, hparams(norm_eps=constant(eps)))
        for eps in (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12)
    ),
    Cause("eps were added outside the root", NORMS, norms(eps_outside)),
    Cause(
        "eps were added outside the root (layer norm)",
        NORMS,
        other_kernel(
            "layer_norm",
            lambda k: lambda x, w, b, eps: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps) * w + b,
        ),
    ),
    Cause(
        "a layer norm stood for the RMS norm",
        NORMS,
        norms(lambda k, x, w, eps: k.layer_norm(x, w, np.zeros_like(w), eps)),
    ),
    Cause(
        "an RMS norm stood for the layer norm",
        NORMS,
        other_kernel("layer_norm", lambda k: lambda x, w, b, eps: k.rms_norm(x, w, eps) + b),
    ),
    Cause(
        "the bias of the layer norm were missing",
        NORMS,
        other_kernel("layer_norm", lambda k: lambda x, w, b, eps: k.layer_norm(x, w, 0 * b, eps)),
    ),
    Cause(
        "the weight of the norm were missing", NORMS, norms(lambda k, x, w, eps: k.rms_norm(x, np.ones_like(w), eps))
    ),
    Cause("1 were added to the weight of the norm", NORMS, norms(lambda k, x, w, eps: k.rms_norm(x, w + 1, eps))),
    Cause(
        "1 were subtracted from the weight of the norm", NORMS, norms(lambda k, x, w, eps: k.rms_norm(x, w - 1, eps))
    ),
    Cause(
        "the norm divided by the root of the sum, not of the mean",
        NORMS,
        norms(lambda k, x, w, eps: k.rms_norm(x, w, eps) / x.shape[-1] ** 0.5),
    ),
    Cause(
        "the norm divided by the mean square, without root",
        NORMS,
        norms(lambda k, x, w, eps: x / (np.mean(x * x, -1, keepdims=True) + eps) * w),
    ),
    Cause("the norm were missing", NORMS, norms(lambda k, x, w, eps: x)),
    Cause("the layer norm were missing", NORMS, other_kernel("layer_norm", lambda k: lambda x, w, b, eps: x)),
    Cause(
        "the norm of feed-forward had attention's weight",
        frozenset({"ffn_norm"}),
        block(ffn_norm=lambda blk: blk.attn_norm),
    ),
    Cause(
        "the norm of attention had feed-forward's weight",
        frozenset({"attn_norm"}),
        block(attn_norm=lambda blk: blk.ffn_norm),
    ),
    Cause(
        "feed-forward read the norm of attention, in parallel to it",
        frozenset({"ffn_norm"}),
        other_values(ffn_norm=lambda x, before: before["attn_norm"]),
    ),
    Cause(
        "the norm of feed-forward read the layer's input, not the sum after attention",
        frozenset({"ffn_norm"}),
        _earlier_input,
    ),
    Cause("the weights of norms were the next layer's", NORMS, of_layer(1, "attn_norm", "ffn_norm")),
    Cause("the weights of norms were those of the layer before", NORMS, of_layer(-1, "attn_norm", "ffn_norm")),
    Cause(
        "the final norm had the last layer's weight of feed-forward",
        frozenset({"result_norm"}),
        _final_weight("ffn_norm"),
    ),
    Cause(
        "the final norm had the last layer's weight of attention",
        frozenset({"result_norm"}),
        _final_weight("attn_norm"),
    ),
    Cause("the layer norm divided by n - 1", NORMS, other_kernel("layer_norm", _unbiased)),
    Cause(
        "the weight of the layer norm were missing",
        NORMS,
        other_kernel("layer_norm", lambda k: lambda x, w, b, eps: k.layer_norm(x, np.ones_like(w), b, eps)),
    ),
    Cause("norms were computed in float16", NORMS, norms(_in_float16), coarse=True),
    Cause("norms were computed in bfloat16", NORMS, norms(_in_bfloat16), coarse=True),
    Cause("the norms after attention and feed-forward came after the sums", SUMS, _after_sum),
    Cause(
        "the norms after attention and before feed-forward were exchanged",
        NORMS,
        block(post_attention_norm=lambda blk: blk.ffn_norm, ffn_norm=lambda blk: blk.post_attention_norm),
    ),
    Cause(
        "the norms after attention and after feed-forward were exchanged",
        NORMS,
        block(post_attention_norm=lambda blk: blk.post_ffw_norm, post_ffw_norm=lambda blk: blk.post_attention_norm),
    ),
    Cause(
        "the norms before and after feed-forward were exchanged",
        NORMS,
        block(ffn_norm=lambda blk: blk.post_ffw_norm, post_ffw_norm=lambda blk: blk.ffn_norm),
    ),
    Cause("the norm after attention were missing", SUMS | {"attn_post_norm"}, missing("post_attention_norm")),
    Cause("the norm after feed-forward were missing", SUMS | {"ffn_post_norm"}, missing("post_ffw_norm")),
    Cause("the norms of q and k were missing", HEAD_NORMS, missing("attn_q_norm", "attn_k_norm")),
    Cause(
        "the norms of q and k were exchanged",
        HEAD_NORMS,
        block(attn_q_norm=lambda blk: blk.attn_k_norm, attn_k_norm=lambda blk: blk.attn_q_norm),
    ),
    Cause("the norm of k had q's weight", HEAD_NORMS, block(attn_k_norm=lambda blk: blk.attn_q_norm)),
    Cause("the norm of q had k's weight", HEAD_NORMS, block(attn_q_norm=lambda blk: blk.attn_k_norm)),
    Cause("the norm of q and k went over the whole row, not over each head", HEAD_NORMS, norms(_row_norm)),
)
