"""Mistakes in the choice and weights of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Tensor
from ....kernels.activation import quick_gelu_numpy, softmax_numpy
from ..setting import Setting
from .cause import MIXTURE, Cause, Change
from .change import bf16, hparams, missing, other_kernel, other_values

OUT = MIXTURE | {"ffn_moe_out"}
IN_EXPERTS = frozenset(
    {"ffn_moe_gate", "ffn_moe_up", "ffn_moe_down", "ffn_moe_swiglu", "ffn_moe_swiglu_oai", "ffn_moe_out"}
)
GATED_OAI = frozenset({"ffn_moe_swiglu_oai", "ffn_moe_down", "ffn_moe_out"})
ALPHA, LIMIT = 1.702, 7.0  # of gpt-oss


def number_of_experts(change: Callable[[int, int], int]) -> Change:
    """Use another number of experts.  change: n_expert_used, n_expert -> the number"""

    def changed(s: Setting) -> Setting | None:
        hp = s.model.hparams
        n = change(hp.n_expert_used, hp.n_expert) if hp.n_expert else 0
        return hparams(n_expert_used=lambda hp: n)(s) if 0 < n <= hp.n_expert else None

    return changed


def chosen_experts(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Multiply by other experts of the stack than those chosen.  change: expert ids, and their number -> ids"""
    return lambda s: other_kernel(
        "experts", lambda k: lambda w, x, chosen: k.experts(w, x, change(chosen) % w.shape[0])
    )(s)


def _in_stack(only: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def changed(s: Setting) -> Setting | None:
        named = getattr(s.model.weights.blk[0], only, None) if s.model.weights.blk else None
        if named is None:
            return None
        experts = s.kernels.experts

        def other(w: Tensor, x: Any, chosen: Any) -> Any:
            return experts(w, x, change(chosen) % w.shape[0] if w is named else chosen)

        return Setting(replace(s.kernels, experts=other), s.model)

    return changed


def _weighted_inputs(s: Setting) -> Setting | None:
    """Multiply the inputs of experts by their weights, not their outputs."""
    blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
    if blk is None or getattr(blk, "ffn_gate_exps", None) is None:
        return None
    experts, found = s.kernels.experts, list[np.ndarray]()

    def weighed(x: Any, before: Mapping[str, Any]) -> Any:
        found[:] = [x]
        return x

    def weighted(w: Tensor, x: Any, chosen: Any) -> Any:
        return experts(w, x if w is blk.ffn_down_exps else x * found[0].reshape(-1, 1), chosen)

    def out(x: Any, before: Mapping[str, Any]) -> Any:
        return before["ffn_moe_down"].reshape(x.shape)

    return Setting(
        replace(s.kernels, experts=weighted), s.model, {"ffn_moe_weights_norm": weighed, "ffn_moe_weighted": out}
    )


def _router_without_norm(s: Setting) -> Setting | None:
    """Let the router read the sum before the norm of feed-forward."""
    blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
    router = getattr(blk, "ffn_gate_inp", None)
    if blk is None or router is None:
        return None
    bias = blk.ffn_gate_inp_bias

    def logits(x: Any, before: Mapping[str, Any]) -> Any:
        y = s.kernels.matmul(router, before["ffn_inp"])
        return y if bias is None else y + bias

    return other_values(ffn_moe_logits=logits)(s)


def _by_index(x: Any, before: Mapping[str, Any]) -> Any:
    """Give the experts, taken in the order of their numbers, the weights in the order of preference."""
    place = np.argsort(np.argsort(before["ffn_moe_topk"], axis=1), axis=1)
    return np.take_along_axis(x, place, axis=1)


def gated_oai(change: Callable[[Any, Any], Any]) -> Change:
    """Replace gpt-oss's gated product by a function of gate and up."""
    return other_values(ffn_moe_swiglu_oai=lambda x, before: change(before["ffn_moe_gate"], before["ffn_moe_up"]))


def _oai(gate: Any, up: Any, alpha: float = ALPHA, limit: float = LIMIT, one: float = 1.0) -> Any:
    g = np.minimum(gate, limit)
    return g / (1 + np.exp(-alpha * g)) * (np.clip(up, -limit, limit) + one)


EXPERTS: tuple[Cause, ...] = (
    Cause("one expert less were used", OUT, number_of_experts(lambda n, n_all: n - 1)),
    Cause("one expert more were used", OUT, number_of_experts(lambda n, n_all: n + 1)),
    Cause("one expert were used", OUT, number_of_experts(lambda n, n_all: 1)),
    Cause("all experts were used", OUT, number_of_experts(lambda n, n_all: n_all)),
    Cause(
        "the first experts were chosen, whatever the router said",
        OUT,
        other_values(
            ffn_moe_topk=lambda x, before: np.broadcast_to(np.arange(x.shape[1], dtype=x.dtype), x.shape).copy()
        ),
    ),
    Cause("the matrices of experts were those of the next one", IN_EXPERTS, chosen_experts(lambda e: e + 1)),
    Cause("the matrices of experts were those of the one before", IN_EXPERTS, chosen_experts(lambda e: e - 1)),
    Cause("all experts had the matrices of expert 0", IN_EXPERTS, chosen_experts(lambda e: 0 * e)),
    Cause("ffn_down of experts was that of the next one", IN_EXPERTS, _in_stack("ffn_down_exps", lambda e: e + 1)),
    Cause("the weights of chosen experts multiplied their inputs", IN_EXPERTS, _weighted_inputs),
    Cause("the router read the sum before the norm", frozenset({"ffn_moe_logits", *OUT}), _router_without_norm),
    Cause("the bias of the router were missing", frozenset({"ffn_moe_logits"}), missing("ffn_gate_inp_bias")),
    Cause(
        "the biases of experts were missing",
        IN_EXPERTS,
        missing("ffn_gate_exps_bias", "ffn_up_exps_bias", "ffn_down_exps_bias"),
    ),
    Cause(
        "the weights of chosen experts were in the order of their numbers",
        OUT,
        other_values(ffn_moe_weights_norm=_by_index),
    ),
    Cause(
        "the weights of chosen experts were not normalized to sum 1",
        OUT,
        other_values(ffn_moe_weights_norm=lambda x, before: before["ffn_moe_weights"]),
    ),
    Cause(
        "the least probable experts were chosen",
        OUT,
        other_values(
            ffn_moe_topk=lambda x, before: np.argsort(before["ffn_moe_probs"], 1, "stable")[:, : x.shape[1]].astype(
                x.dtype
            )
        ),
    ),
    Cause(
        "the weights of chosen experts were in reverse order",
        OUT,
        other_values(ffn_moe_weights_norm=lambda x, before: x[:, ::-1]),
    ),
    Cause(
        "the weights of chosen experts were a softmax of their probabilities",
        OUT,
        other_values(ffn_moe_weights_norm=lambda x, before: softmax_numpy(before["ffn_moe_weights"])),
    ),
    Cause(
        "chosen experts had equal weights",
        OUT,
        other_values(ffn_moe_weights_norm=lambda x, before: np.full_like(x, 1 / x.shape[1])),
    ),
    Cause(
        "experts were not weighted",
        OUT,
        other_values(ffn_moe_weighted=lambda x, before: before["ffn_moe_down"].reshape(x.shape)),
    ),
    Cause(
        "the router's probabilities were sigmoids",
        MIXTURE,
        other_kernel("softmax", lambda k: lambda x: 1 / (1 + np.exp(-x))),
    ),
    Cause(
        "the router's softmax went over tokens", MIXTURE, other_kernel("softmax", lambda k: lambda x: k.softmax(x.T).T)
    ),
    Cause(
        "the router's probabilities were rounded to bfloat16",
        MIXTURE,
        other_kernel("softmax", lambda k: lambda x: bf16(k.softmax(x)).astype(x.dtype)),
        arithmetic=True,
    ),
    Cause("the gate of experts were not bounded", GATED_OAI, gated_oai(lambda g, u: _oai(g, u, limit=np.inf))),
    Cause("the gate of experts were a SiLU", GATED_OAI, gated_oai(lambda g, u: _oai(g, u, alpha=1.0))),
    Cause("1 were not added to up", GATED_OAI, gated_oai(lambda g, u: _oai(g, u, one=0.0))),
    Cause("gate and up of experts were exchanged", GATED_OAI, gated_oai(lambda g, u: _oai(u, g))),
    Cause(
        "the gated product of experts were SiLU(gate) up", GATED_OAI, gated_oai(lambda g, u: g / (1 + np.exp(-g)) * u)
    ),
    Cause(
        "the gate of experts were a quick GELU, unbounded, times up",
        GATED_OAI,
        gated_oai(lambda g, u: quick_gelu_numpy(g) * u),
    ),
    Cause("the router's probabilities were its logits", MIXTURE, other_kernel("softmax", lambda k: lambda x: x)),
)
