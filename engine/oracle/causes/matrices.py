"""Mistakes in matrices and biases: missing, exchanged, permuted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Tensor
from ..setting import Setting
from .cause import NORMS, PRODUCTS, PROJECTED, Cause, Change
from .change import block, missing, weights, with_fields


def head_rows(reorder: Callable[[np.ndarray], np.ndarray], only: str = "") -> Change:
    """Reorder the rows of each head in all matrices of heads, or in the field `only`."""

    def changed(s: Setting) -> Setting:
        d, blk = s.model.hparams.n_head_dim, s.model.weights.blk
        named = getattr(blk[0], only, None) if only and blk else None

        def order(w: Tensor, rows: np.ndarray) -> np.ndarray:
            if named is not None and w is not named:
                return rows
            return rows if len(rows) % d else reorder(rows.reshape(-1, d, rows.shape[1])).reshape(rows.shape)

        made = weights(order)(s)
        assert made is not None
        return made

    return changed


def _to_halves(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1, 2, x.shape[2]).swapaxes(1, 2)


def _to_neighbours(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), 2, -1, x.shape[2]).swapaxes(1, 2)


def _transposed(w: Tensor, rows: np.ndarray) -> np.ndarray:
    return rows.T if rows.shape[0] == rows.shape[1] else rows.reshape(rows.shape[::-1]).T


def _heads_exchanged(s: Setting) -> Setting | None:
    hp = s.model.hparams
    if hp.n_head == hp.n_head_kv:
        return None

    def order(w: Tensor, rows: np.ndarray) -> np.ndarray:
        if len(rows) != hp.n_head * hp.n_head_dim:
            return rows
        return rows.reshape(hp.n_head_kv, -1, hp.n_head_dim, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)

    return weights(order)(s)


def _columns_by_place(s: Setting) -> Setting | None:
    """Order the heads that attn_output reads by their place in a group, not group by group."""
    hp = s.model.hparams
    w_out = getattr(s.model.weights.blk[0], "attn_output", None) if s.model.weights.blk else None
    if hp.n_head == hp.n_head_kv or w_out is None:
        return None

    def order(w: Tensor, rows: np.ndarray) -> np.ndarray:
        if w is not w_out:
            return rows
        return rows.reshape(len(rows), hp.n_head_kv, -1, hp.n_head_dim).swapaxes(1, 2).reshape(rows.shape)

    return weights(order)(s)


def fused_rows(split: Callable[[np.ndarray, int, int], tuple[np.ndarray, ...]]) -> Change:
    """Take rows of q, k and v out of a fused matrix otherwise.  split: rows by head, n_head, n_head_kv -> q, k, v"""

    def changed(s: Setting) -> Setting | None:
        hp = s.model.hparams
        blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
        if blk is None:
            return None
        parts, matmul = (blk.attn_q, blk.attn_k, blk.attn_v), s.kernels.matmul

        def other(w: Tensor, x: np.ndarray) -> np.ndarray:
            at = next((i for i, part in enumerate(parts) if w is part), None)
            if at is None:
                return matmul(w, x)
            rows = np.concatenate([part.dequantize() for part in parts])
            heads = rows.reshape(-1, hp.n_head_dim, rows.shape[1])
            found = split(heads, hp.n_head, hp.n_head_kv)[at].reshape(-1, rows.shape[1])
            return np.asarray(x @ found.astype(x.dtype).T)

        return Setting(replace(s.kernels, matmul=other), s.model)

    return changed


def _group_by_group(heads: np.ndarray, n: int, n_kv: int) -> tuple[np.ndarray, ...]:
    """Read the query heads of a group, its key and its value one after the other."""
    groups = heads.reshape(n_kv, n // n_kv + 2, *heads.shape[1:])
    return groups[:, :-2], groups[:, -2], groups[:, -1]


def _head_counts_of_queries(s: Setting) -> Setting | None:
    """Permute the rows of k in n_head heads where it has n_head_kv."""
    hp = s.model.hparams
    if hp.n_head == hp.n_head_kv or not s.model.weights.blk:
        return None
    w_k, d = s.model.weights.blk[0].attn_k, hp.n_head_dim * hp.n_head_kv // hp.n_head
    if d % 2:
        return None

    def order(w: Tensor, rows: np.ndarray) -> np.ndarray:
        if w is not w_k:
            return rows
        right = _to_halves(rows.reshape(-1, hp.n_head_dim, rows.shape[1])).reshape(rows.shape)  # as in the original
        return _to_neighbours(right.reshape(-1, d, rows.shape[1])).reshape(rows.shape)

    return weights(order)(s)


def of_layer_matrices(by: int) -> Change:
    """Multiply by the matrices of the layer `by` after this one."""

    def changed(s: Setting) -> Setting | None:
        il = s.il + by
        if s.whole is None or s.il < 0 or not 0 <= il < len(s.whole.weights.blk):
            return None
        own, other = s.model.weights.blk[0], s.whole.weights.blk[il]
        found = {id(w): getattr(other, name) for name, w in vars(own).items() if isinstance(w, Tensor)}
        k = s.kernels
        return Setting(
            replace(
                k,
                matmul=lambda w, x: k.matmul(found.get(id(w), w), x),
                experts=lambda w, x, chosen: k.experts(found.get(id(w), w), x, chosen),
            ),
            s.model,
        )

    return changed


def whole_layer(by: int) -> Change:
    """Take all weights of the layer `by` after this one."""

    def changed(s: Setting) -> Setting | None:
        il = s.il + by
        if s.whole is None or s.il < 0 or not 0 <= il < len(s.whole.weights.blk):
            return None
        blk: Any = (s.whole.weights.blk[il],)
        return Setting(s.kernels, replace(s.model, weights=replace(s.model.weights, blk=blk)))

    return changed


def biases(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change the biases of q, k and v."""

    def changed(s: Setting) -> Setting | None:
        blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
        names = [f"attn_{name}_bias" for name in "qkv"]
        found = {name: getattr(blk, name) for name in names if getattr(blk, name, None) is not None}
        return with_fields(s, {name: change(bias) for name, bias in found.items()}) if found else None

    return changed


def _bias_after_rope(s: Setting) -> Setting | None:
    blk: Any = s.model.weights.blk[0] if s.model.weights.blk else None
    if blk is None or getattr(blk, "attn_q_bias", None) is None or getattr(blk, "attn_q_norm", None) is not None:
        return None
    without = with_fields(s, {"attn_q_bias": None, "attn_k_bias": None})

    def added(bias: np.ndarray) -> Callable[..., np.ndarray]:
        return lambda x, before: x + bias.reshape(x.shape[1:])

    return replace(without, values={"Qcur": added(blk.attn_q_bias), "Kcur": added(blk.attn_k_bias)})


def _without_transposing(s: Setting) -> Setting | None:
    """Read the rows of q, k and v as [n_head, n_tok, n_head_dim]."""
    matmul, blk = s.kernels.matmul, s.model.weights.blk[0] if s.model.weights.blk else None
    if blk is None:
        return None
    d = s.model.hparams.n_head_dim

    def other(w: Tensor, x: np.ndarray) -> np.ndarray:
        y = np.asarray(matmul(w, x))
        if w is not blk.attn_q and w is not blk.attn_k and w is not blk.attn_v:
            return y
        return np.ascontiguousarray(y.reshape(-1, len(y), d).swapaxes(0, 1)).reshape(y.shape)

    return Setting(replace(s.kernels, matmul=other), s.model)


MATRICES: tuple[Cause, ...] = (
    Cause(
        "the biases of q, k and v were missing",
        PROJECTED | {"Vcur"},
        missing("attn_q_bias", "attn_k_bias", "attn_v_bias"),
    ),
    Cause("the biases of q, k and v were added twice", PROJECTED | {"Vcur"}, biases(lambda bias: 2 * bias)),
    Cause("the biases of q, k and v were subtracted", PROJECTED | {"Vcur"}, biases(lambda bias: -bias)),
    Cause("the biases of q and k were added after RoPE", frozenset({"Qcur", "Kcur"}), _bias_after_rope),
    Cause("the bias of attn_output were missing", frozenset({"attn_out"}), missing("attn_output_bias")),
    Cause(
        "the biases of feed-forward were missing",
        frozenset({"ffn_gate", "ffn_up", "ffn_out"}),
        missing("ffn_gate_bias", "ffn_up_bias", "ffn_down_bias"),
    ),
    Cause("the rows of each head were in Hugging Face's order", PROJECTED | {"Vcur"}, head_rows(_to_halves)),
    Cause("the rows of each head were permuted once too often", PROJECTED | {"Vcur"}, head_rows(_to_neighbours)),
    *(
        Cause(
            f"the rows of each head were in Hugging Face's order, in {name} alone",
            PROJECTED | {"Vcur"},
            head_rows(_to_halves, f"attn_{name}"),
        )
        for name in "qkv"
    ),
    Cause("the rows of k were permuted as if it had n_head heads", PROJECTED, _head_counts_of_queries),
    Cause(
        "the rows of q, k and v were read group by group (a fused matrix)",
        PROJECTED | {"Vcur"},
        fused_rows(_group_by_group),
    ),
    Cause(
        "the rows of a fused matrix were read as q, v and k",
        PROJECTED | {"Vcur"},
        fused_rows(lambda heads, n, n_kv: (heads[:n], heads[n + n_kv :], heads[n : n + n_kv])),
    ),
    Cause(
        "the rows of a fused matrix were read as k, v and q",
        PROJECTED | {"Vcur"},
        fused_rows(lambda heads, n, n_kv: (heads[2 * n_kv :], heads[:n_kv], heads[n_kv : 2 * n_kv])),
    ),
    Cause("heads and tokens were not exchanged after heads were split", PROJECTED | {"Vcur"}, _without_transposing),
    Cause("the matrices were those of the next layer", PRODUCTS, of_layer_matrices(1)),
    Cause("the matrices were those of the layer before", PRODUCTS, of_layer_matrices(-1)),
    Cause("the whole layer were the next one", PRODUCTS | NORMS, whole_layer(1)),
    Cause("the whole layer were the one before", PRODUCTS | NORMS, whole_layer(-1)),
    Cause("attn_output read query heads by their place in a group", frozenset({"attn_out"}), _columns_by_place),
    Cause("the rows of the matrix were reversed", PRODUCTS, weights(lambda w, rows: rows[::-1])),
    Cause("the columns of the matrix were reversed", PRODUCTS, weights(lambda w, rows: rows[:, ::-1])),
    Cause("the matrix were transposed", PRODUCTS, weights(_transposed)),
    Cause("query heads were ordered by their place in a group", PRODUCTS, _heads_exchanged),
    Cause(
        "the matrices of k and v were exchanged",
        PROJECTED | {"Vcur"},
        block(attn_k=lambda blk: blk.attn_v, attn_v=lambda blk: blk.attn_k),
    ),
)
