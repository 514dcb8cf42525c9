"""Embedding lookup: the rows of a weight that a batch of token ids asks for."""

import numpy as np


def rows_numpy(w, ids, dtype=np.float32):
    """Rows `ids` of `w`, dequantized.

    w Tensor [n_vocab, n_embd], ids i32 [n_tok] -> dtype [n_tok, n_embd]
    Every set shares it: ggml dequantizes looked-up rows exactly, too.
    """
    return w.dequantize(rows=ids).astype(dtype, copy=False)
