"""Embedding lookup: the rows of a weight for a batch of token ids."""

import numpy as np

from .tensor import Tensor

MAX_KEPT_ELEMENTS = 1 << 20  # 4 MiB as f32: larger weights are not kept dequantized


def rows_numpy(w, ids, dtype=np.float32):
    """Return rows `ids` of `w`, dequantized.

    w Tensor [n_vocab, n_embd], ids i32 [n_tok] -> dtype [n_tok, n_embd]
    Raises: IndexError for a row that `w` lacks
    All sets use it, since ggml dequantizes looked-up rows exactly too.  With 2048 columns, one row takes 10 to 36 us
    (Q8_0, Q4_0, Q6_K, IQ4_XS); 512 rows take 8 to 28 ms, a hundredth of the time in a 1B model's layers.
    """
    check_row_ids(w, ids)
    return w.dequantize(rows=ids).astype(dtype, copy=False)


def rows_numba(w, ids):
    """Compute rows_numpy in float32.  A small weight is dequantized once: for small models lookups take long."""
    if w.n_elements > MAX_KEPT_ELEMENTS:
        return rows_numpy(w, ids)
    check_row_ids(w, ids)
    return w.form(Tensor.dequantize)[ids]


def check_row_ids(w, ids):
    """Check that `w` has all rows `ids`.  Raises: IndexError

    NumPy refuses only ids at or after the end itself, and takes negative ones from the end.
    """
    known = ids.tolist()
    if known and not 0 <= min(known) <= max(known) < w.shape[0]:
        raise IndexError(f"rows {min(known)} to {max(known)} of '{w.name}', expected 0 to {w.shape[0] - 1}")
