"""The feed-forward block as a mixture of experts: each token uses the few that the router prefers.

    probs  = softmax(router h)                      one for each expert
    chosen = the n_expert_used largest of them
    out    = sum over chosen e of  probs[e] / (sum of chosen probs) * down_e(silu(gate_e h) * up_e h)

Source: Jiang et al. 2024, arXiv:2401.04088; its softmax over the chosen logits alone gives the same weights.
"""

from __future__ import annotations

from functools import reduce

import numpy as np

from ...kernels import Kernels, Tensor
from ...kernels.activation import swiglu_oai
from .linear import experts, linear
from .model import Model
from .trace import Tap

MIN_WEIGHT_SUM = (
    2.0**-14
)  # lower bound on a divisor, to avoid dividing by zero; as in llama-graph.cpp build_moe_ffn, 0c1e57098


def mixture(model: Model, il: int, h: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
    """Return what the experts of layer `il` add.  h float [n_tok, n_embd] -> as h"""
    hp, blk = model.hparams, model.decoder.blk[il]
    assert blk.ffn_gate_inp and blk.ffn_gate_exps and blk.ffn_up_exps and blk.ffn_down_exps
    logits = tap("ffn_moe_logits", il, linear(kernels, blk.ffn_gate_inp, h, blk.ffn_gate_inp_bias))  # [n_tok, n_expert]
    probs = tap("ffn_moe_probs", il, kernels.softmax(logits))
    chosen = tap("ffn_moe_topk", il, top_experts(probs, hp.n_expert_used))  # [n_tok, n_expert_used]
    weights = tap("ffn_moe_weights", il, np.take_along_axis(probs, chosen, axis=1))
    total = reduce(np.add, weights.T.astype(np.float64))[:, None].astype(h.dtype)  # in order of preference, as below
    weights = tap("ffn_moe_weights_norm", il, weights / np.maximum(total, MIN_WEIGHT_SUM))

    def each(w: Tensor, x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """Multiply rows by their experts.  x [n_tok * n_expert_used, n_in] -> [n_tok * n_expert_used, n_out]"""
        y = experts(kernels, w, x, chosen.reshape(-1))
        return y if bias is None else y + bias[chosen.reshape(-1)].astype(y.dtype, copy=False)

    x = np.repeat(h, hp.n_expert_used, axis=0)
    gate = tap("ffn_moe_gate", il, each(blk.ffn_gate_exps, x, blk.ffn_gate_exps_bias))
    up = tap("ffn_moe_up", il, each(blk.ffn_up_exps, x, blk.ffn_up_exps_bias))
    if model.family.act == "silu":
        gated = tap("ffn_moe_swiglu", il, kernels.silu_mul(gate, up))
    else:
        gated = tap("ffn_moe_swiglu_oai", il, swiglu_oai(gate, up))
    out = tap("ffn_moe_down", il, each(blk.ffn_down_exps, gated, blk.ffn_down_exps_bias)).reshape(*chosen.shape, -1)
    weighted = tap("ffn_moe_weighted", il, out * weights[:, :, None])  # [n_tok, n_expert_used, n_embd]
    return tap("ffn_moe_out", il, reduce(np.add, weighted.swapaxes(0, 1)))  # in order of preference


def top_experts(probs: np.ndarray, n: int) -> np.ndarray:
    """Return the indices of the `n` largest of each row, in descending order, ties by index.  -> i32 [n_tok, n]"""
    return np.argsort(-probs, axis=1, kind="stable")[:, :n].astype(np.int32)
