"""A cause, and the values that it may explain."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..setting import Setting

Change = Callable[[Setting], Setting | None]


@dataclass(frozen=True, eq=False)
class Cause:
    """A hypothesis.

    sentence     completes "as if ..."
    explains     names of the values whose operation it changes
    change       a setting -> the setting under the hypothesis; None where it does not apply
    arithmetic   whether it only rounds otherwise, which is right
    coarse       whether it rounds, which is wrong only in an engine whose other values are finer
    """

    sentence: str
    explains: frozenset[str]
    change: Change
    arithmetic: bool = False
    coarse: bool = False

    def may_explain(self, names: Collection[str]) -> bool:
        """Return whether it changes the operation of one of these values."""
        return not self.explains.isdisjoint(names)


Q_K = frozenset({"Qcur", "Kcur"})
UNNORMED = frozenset({"Qcur_unnormed", "Kcur_unnormed"})
PROJECTED = UNNORMED | {"Qcur", "Kcur", "Qcur_pre_rope", "Kcur_pre_rope", "Qcur_normed", "Kcur_normed"}
PRODUCTS = PROJECTED | {
    "Vcur",
    "attn_out",
    "ffn_gate",
    "ffn_up",
    "ffn_out",
    "ffn_moe_logits",
    "ffn_moe_gate",
    "ffn_moe_up",
    "ffn_moe_down",
    "result_output",
}
HEAD_NORMS = frozenset({"Qcur_normed", "Kcur_normed", "Qcur", "Kcur", "Qcur_pre_rope", "Kcur_pre_rope"})
NORMS = HEAD_NORMS | {
    "attn_norm",
    "ffn_norm",
    "attn_post_norm",
    "ffn_post_norm",
    "result_norm",
    "inp_norm",
    "ffn_inp",
    "l_out",
}
SUMS = frozenset({"ffn_inp", "sa_out", "l_out"})
ACTIVATED = frozenset({"ffn_swiglu", "ffn_geglu", "ffn_gelu", "ffn_moe_swiglu"})
SCORES = frozenset({"kq", "kq_soft_max", "kqv_out"})
SOFTMAX = frozenset({"kq_soft_max", "kqv_out"})
MIXTURE = frozenset({"ffn_moe_topk", "ffn_moe_weights", "ffn_moe_weights_norm", "ffn_moe_probs", "ffn_moe_weighted"})
INPUT = frozenset({"embd", "inp_scaled", "inp_embd"})
LOGITS = frozenset({"result_output"})
