"""Products with a stack of matrices, one of which is chosen for each row: the experts of a mixture of experts.

    y[i] = w[chosen[i]] x[i]

experts_numpy   the definition, row by row
experts_exact, experts_ggml, experts_numba      one product per chosen expert, by that set's matmul

Which rows share a product depends on the other tokens of the batch.  The matmuls of these three sets do not depend on
the batch, so the results do not either.
"""

from functools import partial

import numpy as np

from .matmul import matmul_exact, matmul_ggml, matmul_numba


def experts_numpy(w, x, chosen):
    """Multiply each row by the matrix of its chosen expert.

    w Tensor [n_expert, n_out, n_in], x float [n, n_in], chosen i32 [n] -> as x [n, n_out]
    Raises: IndexError for an expert that `w` lacks, ValueError unless one is chosen for each row
    """
    check_chosen(w, x, chosen.tolist())
    y = np.empty((len(x), w.shape[1]), x.dtype)
    for i, e in enumerate(chosen):
        y[i] = w.matrices[e].dequantize().astype(x.dtype, copy=False) @ x[i]
    return y


def check_chosen(w, x, ids):
    """Check that `ids` holds an expert of `w` for each row of `x`.  Raises: IndexError, ValueError"""
    if len(ids) != len(x):
        raise ValueError(f"{len(ids)} experts are chosen, expected one for each of {len(x)} rows")
    if ids and not 0 <= min(ids) <= max(ids) < w.shape[0]:
        raise IndexError(f"expert {min(ids)} to {max(ids)} of '{w.name}', expected 0 to {w.shape[0] - 1}")


def experts_together(matmul, w, x, chosen):
    """Compute experts_numpy with one `matmul` per chosen expert, over all rows that chose it.

    w Tensor [n_expert, n_out, n_in], x f32 [n, n_in], chosen i32 [n] -> f32 [n, n_out]
    Raises as experts_numpy
    """
    rows_of: dict[int, list[int]] = {}
    ids = chosen.tolist()
    check_chosen(w, x, ids)
    for i, e in enumerate(ids):
        rows_of.setdefault(e, []).append(i)
    y = np.empty((len(x), w.shape[1]), np.float32)
    for e, rows in rows_of.items():
        y[rows] = matmul(w.matrices[e], x[rows])
    return y


experts_exact = partial(experts_together, matmul_exact)
experts_ggml = partial(experts_together, matmul_ggml)
experts_numba = partial(experts_together, matmul_numba)
