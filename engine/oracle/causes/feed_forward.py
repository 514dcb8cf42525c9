"""Mistakes in the feed-forward block, and in the sums of the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Kernels
from ..setting import Setting
from ..values import LAYER_INPUT
from .cause import ACTIVATED, SUMS, Cause, Change
from .change import block, hparams, other_values


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


def _clamped(k: Kernels, gate: Any, up: Any) -> Any:
    return k.silu_mul(np.minimum(gate, 7), np.clip(up, -7, 7))


def sums(residual: Callable[[Mapping[str, Any], str], Any]) -> Change:
    """Replace the residual of both sums by a function of the earlier values and the norm's name of that sum."""

    def after_attention(value: Any, before: Mapping[str, Any]) -> Any:
        return value - before[LAYER_INPUT] + residual(before, "attn_norm")

    def after_feed_forward(value: Any, before: Mapping[str, Any]) -> Any:
        return value - before["ffn_inp" if "ffn_inp" in before else "sa_out"] + residual(before, "ffn_norm")

    return other_values(ffn_inp=after_attention, sa_out=after_attention, l_out=after_feed_forward)


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
    Cause("up were missing", ACTIVATED, activation(lambda k, gate, up: k.silu_mul(gate, np.ones_like(up)))),
    Cause("the inputs of the activation function were clamped to 7", ACTIVATED, activation(_clamped)),
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
    Cause("the residual were missing from the sum", SUMS, sums(lambda before, norm: 0)),
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
