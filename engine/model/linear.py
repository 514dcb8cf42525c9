"""Products with a weight, including what adapters add to it (lora.py)."""

from __future__ import annotations

import numpy as np

from ...kernels import Kernels, Tensor


def linear(kernels: Kernels, w: Tensor, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return x w^T, plus `bias` if given.  float [n_tok, n_in] -> float [n_tok, n_out]"""
    y = kernels.matmul(w, x)
    for term in w.low_rank:
        y = y + term.scale * kernels.matmul(term.b, kernels.matmul(term.a, x))
    return y if bias is None else y + bias.astype(y.dtype, copy=False)


def experts(kernels: Kernels, w: Tensor, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Multiply each row by the expert chosen for it.  float [n, n_in], i32 [n] -> float [n, n_out]"""
    y = kernels.experts(w, x, chosen)
    for term in w.low_rank:
        y = y + term.scale * kernels.experts(term.b, kernels.experts(term.a, x, chosen), chosen)
    return y


def embed(kernels: Kernels, w: Tensor, ids: np.ndarray) -> np.ndarray:
    """Look up rows `ids` of `w`.  i32 [n_tok] -> float [n_tok, n_embd]"""
    x = kernels.rows(w, ids)
    for term in w.low_rank:
        x = x + term.scale * kernels.matmul(term.b, kernels.rows(term.a, ids))
    return x
