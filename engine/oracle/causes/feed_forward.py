"""Mistakes in the feed-forward block, and in the sums of the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Kernels, Tensor
from ..setting import Setting
from ..values import LAYER_INPUT
from .cause import ACTIVATED, PROJECTED, SUMS, Cause, Change
from .change import block, hparams, other_values

GATED = ACTIVATED | {"ffn_gate", "ffn_up", "ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu_oai"}


def activation(change: Callable[[Kernels, Any, Any], np.ndarray]) -> Change:
    """Replace the gated products of the feed-forward block by a function of the kernels, gate and up."""
    return lambda s: Setting(
        replace(
            s.kernels,
            silu_mul=lambda gate, up: change(s.kernels, gate, up),
            gelu_mul=lambda gate, up: change(s.kernels, gate, up),
        ),
        s.model,
    )


def gelu(change: Callable[[Kernels, Any], np.ndarray]) -> Change:
    """Replace the activation function of an encoder without gate, and GELU within gated products."""
    return lambda s: Setting(
        replace(
            s.kernels,
            gelu=lambda x: change(s.kernels, x),
            gelu_mul=lambda gate, up: change(s.kernels, gate) * up,
        ),
        s.model,
    )


def _clamped(s: Setting) -> Setting:
    """Bound gate and up to 7 before the activation function, as gpt-oss does."""
    k = s.kernels
    bounded: dict[str, Any] = {
        name: lambda gate, up, act=act: act(np.minimum(gate, 7), np.clip(up, -7, 7))
        for name, act in (("silu_mul", k.silu_mul), ("gelu_mul", k.gelu_mul))
    }
    return Setting(replace(k, **bounded), s.model)


def rows_of_gate_and_up(split: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Change:
    """Take the rows of gate and up out of a fused matrix otherwise.  split: [2 n_ff, n_embd] -> gate and up"""

    def changed(s: Setting) -> Setting | None:
        blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
        fields = [
            (getattr(blk, f"ffn_gate{exps}", None), getattr(blk, f"ffn_up{exps}", None)) for exps in ("", "_exps")
        ]
        pairs = [(gate, up) for gate, up in fields if gate is not None and up is not None]
        if not pairs:
            return None
        (gate, up), k = pairs[0], s.kernels

        def rows(w: Tensor, e: int | None = None) -> np.ndarray:
            parts = [(m if e is None else m.matrices[e]).dequantize() for m in (gate, up)]
            return split(np.concatenate(parts))[0 if w is gate else 1]

        def matmul(w: Tensor, x: Any) -> Any:
            return x @ rows(w).astype(x.dtype).T if w is gate or w is up else k.matmul(w, x)

        def experts(w: Tensor, x: Any, chosen: Any) -> Any:
            if w is not gate and w is not up:
                return k.experts(w, x, chosen)
            y = np.empty((len(x), w.shape[1]), x.dtype)
            for e in np.unique(chosen):
                y[chosen == e] = x[chosen == e] @ rows(w, int(e)).astype(x.dtype).T
            return y

        return Setting(replace(k, matmul=matmul, experts=experts), s.model)

    return changed


def _woven_halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split the matrix whose rows alternate where the file has two halves."""
    woven = x.reshape(2, -1, x.shape[1]).swapaxes(0, 1).reshape(x.shape)
    return woven[: len(x) // 2], woven[len(x) // 2 :]


def sums(residual: Callable[[Mapping[str, Any], str], Any], parts: Collection[str] = SUMS) -> Change:
    """Replace the residual of the sums `parts` by a function of the earlier values and the norm's name of that sum."""

    def after_attention(value: Any, before: Mapping[str, Any]) -> Any:
        return value - before[LAYER_INPUT] + residual(before, "attn_norm")

    def encoded(s: Setting) -> Setting | None:
        blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
        if blk is None or not hasattr(blk, "attn_output_norm"):
            changes = {"ffn_inp": after_attention, "sa_out": after_attention, "l_out": after_feed_forward}
            return replace(s, values={name: changes[name] for name in parts})
        return encoder_sums(s, residual) if parts == SUMS else None

    def after_feed_forward(value: Any, before: Mapping[str, Any]) -> Any:
        return value - before["ffn_inp" if "ffn_inp" in before else "sa_out"] + residual(before, "ffn_norm")

    return encoded


def encoder_sums(s: Setting, residual: Callable[[Mapping[str, Any], str], Any], normed: bool = True) -> Setting:
    """Change the sums of an encoder, which norms follow; normed False: norms of what is added alone."""
    blk, k, eps = s.model.encoder.blk[0], s.kernels, s.model.hparams.norm_eps

    def norm(added: Any, left: Any, name: str) -> Any:
        weight, bias = getattr(blk, name), getattr(blk, f"{name}_bias")
        return (
            k.layer_norm(added + left, weight, bias, eps) if normed else k.layer_norm(added, weight, bias, eps) + left
        )

    def attended(value: Any, before: Mapping[str, Any]) -> Any:
        x = norm(before["attn_out"], residual(before, LAYER_INPUT), "attn_output_norm")
        return x if blk.attn_norm_2 is None else norm(x, residual(before, LAYER_INPUT), "attn_norm_2")

    def fed(value: Any, before: Mapping[str, Any]) -> Any:
        return norm(before["ffn_out"], residual(before, "ffn_inp"), "layer_output_norm")

    return replace(s, values={"ffn_inp": attended, "l_out": fed})


def _norm_before_sum(s: Setting) -> Setting | None:
    blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
    if blk is None or not hasattr(blk, "attn_output_norm"):
        return None
    return encoder_sums(s, lambda before, name: before[name], normed=False)


def _pre_norm(s: Setting) -> Setting | None:
    """Norm the input of attention, as decoders do, not the sum after it."""
    blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
    if blk is None or not hasattr(blk, "attn_output_norm"):
        return None
    k, eps = s.kernels, s.model.hparams.norm_eps

    def matmul(w: Tensor, x: Any) -> Any:
        if w is blk.attn_q or w is blk.attn_k or w is blk.attn_v:
            x = k.layer_norm(x, blk.attn_output_norm, blk.attn_output_norm_bias, eps)
        return k.matmul(w, x)

    return Setting(replace(k, matmul=matmul), s.model)


FEED_FORWARD: tuple[Cause, ...] = (
    Cause("gate and up were exchanged", ACTIVATED, activation(lambda k, gate, up: k.silu_mul(up, gate))),
    Cause("gate and up were exchanged (GELU)", ACTIVATED, activation(lambda k, gate, up: k.gelu_mul(up, gate))),
    Cause("the activation function were GELU", ACTIVATED, activation(lambda k, gate, up: k.gelu_mul(gate, up))),
    Cause("the activation function were SiLU", ACTIVATED, activation(lambda k, gate, up: k.silu_mul(gate, up))),
    Cause("the activation function were ReLU", ACTIVATED, activation(lambda k, gate, up: np.maximum(gate, 0) * up)),
    Cause("the activation function were the exact GELU", ACTIVATED, gelu(lambda k, x: k.gelu_erf(x))),
    Cause("the activation function were the quick GELU", ACTIVATED, gelu(lambda k, x: k.quick_gelu(x))),
    Cause("the activation function were ReLU, without gate", ACTIVATED, gelu(lambda k, x: np.maximum(x, 0))),
    Cause("the activation function were SiLU, without gate", ACTIVATED, gelu(lambda k, x: x / (1 + np.exp(-x)))),
    Cause(
        "the activation function were a sigmoid", ACTIVATED, activation(lambda k, gate, up: up / (1 + np.exp(-gate)))
    ),
    Cause("the activation function were missing", ACTIVATED, activation(lambda k, gate, up: gate * up)),
    Cause(
        "the activation function were the quick GELU (gated)",
        ACTIVATED,
        activation(lambda k, g, u: k.quick_gelu(g) * u),
    ),
    Cause(
        "the activation function were applied to gate times up",
        ACTIVATED,
        activation(lambda k, g, u: k.silu_mul(g * u, np.ones_like(u))),
    ),
    Cause(
        "the activation function were applied to gate and to up",
        ACTIVATED,
        activation(lambda k, g, u: k.silu_mul(g, k.silu_mul(u, np.ones_like(u)))),
    ),
    Cause("gate and up were added", ACTIVATED, activation(lambda k, g, u: k.silu_mul(g, np.ones_like(u)) + u)),
    Cause("gate were missing, and up activated", ACTIVATED, activation(lambda k, g, u: k.silu_mul(u, np.ones_like(u)))),
    Cause(
        "the rows of gate and up alternated in their matrix",
        GATED,
        rows_of_gate_and_up(lambda x: (x[0::2], x[1::2])),
    ),
    Cause(
        "alternating rows of gate and up were read as halves",
        GATED,
        rows_of_gate_and_up(_woven_halves),
    ),
    Cause("up were missing", ACTIVATED, activation(lambda k, gate, up: k.silu_mul(gate, np.ones_like(up)))),
    Cause("the inputs of the activation function were clamped to 7", ACTIVATED, _clamped),
    Cause(
        "the matrices of gate and up were exchanged",
        frozenset({"ffn_gate", "ffn_up", "ffn_swiglu", "ffn_geglu"}),
        block(ffn_gate=lambda blk: blk.ffn_up, ffn_up=lambda blk: blk.ffn_gate),
    ),
    Cause(
        "the matrices of gate and up of experts were exchanged",
        frozenset({"ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu"}),
        block(ffn_gate_exps=lambda blk: blk.ffn_up_exps, ffn_up_exps=lambda blk: blk.ffn_gate_exps),
    ),
)

RESIDUAL: tuple[Cause, ...] = (
    Cause("the norm came before the sum, not after it", SUMS, _norm_before_sum),
    Cause("the input of attention were normed (pre-norm, in a post-norm model)", PROJECTED | {"Vcur"}, _pre_norm),
    Cause("the residual were missing from the sum", SUMS, sums(lambda before, norm: 0)),
    Cause(
        "the residual were missing from the sum after attention",
        SUMS,
        sums(lambda before, norm: 0, ("ffn_inp", "sa_out")),
    ),
    Cause(
        "the residual were missing from the sum after feed-forward",
        frozenset({"l_out"}),
        sums(lambda before, norm: 0, ("l_out",)),
    ),
    Cause("the residual were the normed input", SUMS, sums(lambda before, norm: before[norm])),
    Cause("the residual of feed-forward were the layer's input", SUMS, sums(lambda before, norm: before[LAYER_INPUT])),
    Cause(
        "the residual were added twice",
        SUMS,
        other_values(
            ffn_inp=lambda x, before: x + before[LAYER_INPUT],
            sa_out=lambda x, before: x + before[LAYER_INPUT],
            l_out=lambda x, before: x + before["ffn_inp" if "ffn_inp" in before else "sa_out"],
        ),
    ),
    Cause("the residual scale were missing", SUMS, hparams(residual_scale=lambda hp: 1.0)),
    Cause("the residual scale were squared", SUMS, hparams(residual_scale=lambda hp: hp.residual_scale**2)),
)
