"""Mistakes in norms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Kernels
from ..setting import Setting
from .cause import HEAD_NORMS, NORMS, SUMS, Cause, Change
from .change import block, constant, hparams, missing, norms, other_kernel, other_values


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
    Cause("the norm after attention were missing", SUMS | {"attn_post_norm"}, missing("post_attention_norm")),
    Cause("the norm after feed-forward were missing", SUMS | {"ffn_post_norm"}, missing("post_ffw_norm")),
    Cause("the norms of q and k were missing", HEAD_NORMS, missing("attn_q_norm", "attn_k_norm")),
    Cause(
        "the norms of q and k were exchanged",
        HEAD_NORMS,
        block(attn_q_norm=lambda blk: blk.attn_k_norm, attn_k_norm=lambda blk: blk.attn_q_norm),
    ),
    Cause("the norm of q and k went over the whole row, not over each head", HEAD_NORMS, norms(_row_norm)),
)
