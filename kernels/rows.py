"""Embedding lookup: the rows of a weight that a batch of token ids asks for."""

import numpy as np

from .tensor import Tensor

SMALL = 1 << 20  # numbers of a weight that is kept as such, 4 MiB


def rows_numpy(w, ids, dtype=np.float32):
    """Rows `ids` of `w`, dequantized.

    w Tensor [n_vocab, n_embd], ids i32 [n_tok] -> dtype [n_tok, n_embd]
    Every set shares it: ggml dequantizes looked-up rows exactly, too.  Of 2048 columns one row takes 10 to 36 us (Q8_0,
    Q4_0, Q6_K, IQ4_XS), 512 take 8 to 28 ms, a hundredth of what the 1B models' layers do.
    """
    return w.dequantize(rows=ids).astype(dtype, copy=False)


def rows_numba(w, ids):
    """As rows_numpy in float32; a small model's, whose whole token takes as long, are dequantized once."""
    return w.form(Tensor.dequantize)[ids] if w.n_elements <= SMALL else rows_numpy(w, ids)
