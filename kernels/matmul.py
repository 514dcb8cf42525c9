"""Matrix products with a weight: y = x w^T, every row of the weight with every token.

matmul_numpy    the definition: dequantize, then NumPy's product
matmul_exact    the same tile by tile, to save memory; the order of sums does not depend on the batch
matmul_ggml     the values of llama.cpp on a CPU: activations are quantized first
matmul_numba    the values of matmul_ggml up to the order of sums, at speed
"""

from functools import partial

import numpy as np

from . import packed
from .jit import kernel
from .rounding import quantize_activations, round_activations

TILE = 64  # weight rows dequantized at a time: 64 rows of 8192 columns are 2 MB as float32


def matmul_numpy(w, x):
    """Compute x w^T.

    w Tensor [n_out, n_in], x float [n_tok, n_in] -> as x [n_tok, n_out]
    """
    return x @ w.dequantize().astype(x.dtype, copy=False).T


def check_columns(w, x):
    """Check that the rows of `x` are as long as those of the matrix `w`.  Raises: ValueError"""
    if x.ndim != 2 or len(w.shape) != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x has shape {x.shape} and '{w.name}' {w.shape}, expected two matrices of as many columns")


def matmul_exact(w, x):
    """Compute x w^T, with each sum in float64 from the first column to the last, then rounded once.

    w Tensor [n_out, n_in], x f32 [n_tok, n_in] -> f32 [n_tok, n_out]
    Raises: ValueError for rows of another length than the weight's
    """
    check_columns(w, x)
    n_out, _ = w.shape
    return _sum_tiles(w.dequantize, n_out, x)


def _sum_tiles(rows_of, n_out, x):
    """The products of `x` with n_out rows, of which rows_of(ids) returns some, [len(ids), x.shape[1]]."""
    y = np.empty((len(x), n_out), np.float32)
    x = np.ascontiguousarray(x)
    for r in range(0, n_out, TILE):
        columns = np.ascontiguousarray(rows_of(np.arange(r, min(r + TILE, n_out))).T)  # [n_in, TILE]
        _sum_columns(columns, x, y[:, r : r + TILE])
    return y


@kernel(makes_arrays=True)
def _sum_columns(columns, x, y):
    """Compute y[t, r] = sum over i of x[t, i] * columns[i, r].  The inner loop, over contiguous rows r, vectorizes."""
    n_in, n_rows = columns.shape
    total = np.empty(n_rows, np.float64)
    for t in range(x.shape[0]):
        total[:] = 0.0
        for i in range(n_in):
            xi = np.float64(x[t, i])
            column = columns[i]
            for r in range(n_rows):
                total[r] += xi * np.float64(column[r])
        for r in range(n_rows):
            y[t, r] = total[r]


def matmul_ggml(w, x):
    """Compute x w^T as defined by ggml's CPU code: `x` is first rounded to the block format in the weight's `dot_with`.

    w Tensor [n_out, n_in], x f32 [n_tok, n_in] -> f32 [n_tok, n_out]
    ggml multiplies the integers of both sides and sums the scaled blocks in float32.  Only its order of sums differs.
    A block's minimum m is multiplied with the sum s of the activations' Q8_1 block, which is rounded to f16 by itself.
    """
    if w.format.dot_with != "Q8_1":
        return matmul_exact(w, round_activations(x, w.format.dot_with))
    check_columns(w, x)
    s = quantize_activations(x, "Q8_1")["s"].astype(np.float32)  # [n_tok, n_in / 32]
    return _sum_tiles(
        partial(_without_minima, w), w.shape[0], np.concatenate([round_activations(x, "Q8_1"), s], axis=1)
    )


def _without_minima(w, ids):
    """Rows of Q4_1 or Q5_1 with zeros for their minima, then the minima.  -> f32 [len(ids), n_in + n_in / 32]"""
    blocks = w.blocks[ids]
    minima = blocks["m"].astype(np.float32)
    blocks["m"] = 0
    rows = w.format.dequantize(blocks.reshape(-1)).reshape(len(ids), -1)
    return np.concatenate([rows, minima], axis=1)


def matmul_numba(w, x):
    """Compute matmul_ggml on weights repacked for vectors; sums in float32, from the first block to the last.

    w Tensor [n_out, n_in], x f32 [n_tok, n_in] -> f32 [n_tok, n_out]
    The kernels are in packed/: one loop for all formats, and a section a format in formats.py.  Raises as matmul_exact.
    """
    check_columns(w, x)
    return packed.matmul(w, x) if w.format.type in packed.PRODUCTS else packed.matmul_dequantized(w, x)
