"""Mistakes in matrices and biases: missing, exchanged, permuted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....kernels import Tensor
from ..setting import Setting
from .cause import PRODUCTS, PROJECTED, Cause, Change
from .change import block, missing, weights


def head_rows(reorder: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Reorder the rows of each head in all matrices of heads."""

    def changed(s: Setting) -> Setting:
        d = s.model.hparams.n_head_dim

        def order(w: Tensor, rows: np.ndarray) -> np.ndarray:
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


MATRICES: tuple[Cause, ...] = (
    Cause(
        "the biases of q, k and v were missing",
        PROJECTED | {"Vcur"},
        missing("attn_q_bias", "attn_k_bias", "attn_v_bias"),
    ),
    Cause("the bias of attn_output were missing", frozenset({"attn_out"}), missing("attn_output_bias")),
    Cause(
        "the biases of feed-forward were missing",
        frozenset({"ffn_gate", "ffn_up", "ffn_out"}),
        missing("ffn_gate_bias", "ffn_up_bias", "ffn_down_bias"),
    ),
    Cause("the rows of each head were in Hugging Face's order", PROJECTED, head_rows(_to_halves)),
    Cause("the rows of each head were permuted once too often", PROJECTED, head_rows(_to_neighbours)),
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
