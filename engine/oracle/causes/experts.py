"""Mistakes in the choice and weights of experts."""

from __future__ import annotations

import numpy as np

from ....kernels.activation import softmax_numpy
from ..setting import Setting
from .cause import MIXTURE, Cause
from .change import hparams, other_kernel, other_values


def top_only(s: Setting) -> Setting | None:
    """Use one expert less."""
    n = s.model.hparams.n_expert_used
    return hparams(n_expert_used=lambda hp: hp.n_expert_used - 1)(s) if n > 1 else None


EXPERTS: tuple[Cause, ...] = (
    Cause("one expert less were used", MIXTURE | {"ffn_moe_out"}, top_only),
    Cause(
        "the weights of chosen experts were not normalized to sum 1",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weights_norm=lambda x, before: before["ffn_moe_weights"]),
    ),
    Cause(
        "the least probable experts were chosen",
        MIXTURE | {"ffn_moe_out"},
        other_values(
            ffn_moe_topk=lambda x, before: np.argsort(before["ffn_moe_probs"], 1, "stable")[:, : x.shape[1]].astype(
                x.dtype
            )
        ),
    ),
    Cause(
        "the weights of chosen experts were in reverse order",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weights_norm=lambda x, before: x[:, ::-1]),
    ),
    Cause(
        "the weights of chosen experts were a softmax of their probabilities",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weights_norm=lambda x, before: softmax_numpy(before["ffn_moe_weights"])),
    ),
    Cause(
        "chosen experts had equal weights",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weights_norm=lambda x, before: np.full_like(x, 1 / x.shape[1])),
    ),
    Cause(
        "experts were not weighted",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weighted=lambda x, before: before["ffn_moe_down"].reshape(x.shape)),
    ),
    Cause(
        "the router's probabilities were sigmoids",
        MIXTURE,
        other_kernel("softmax", lambda k: lambda x: 1 / (1 + np.exp(-x))),
    ),
    Cause("the router's probabilities were its logits", MIXTURE, other_kernel("softmax", lambda k: lambda x: x)),
)
