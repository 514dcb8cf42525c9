"""Softmax, and the gate of the feed-forward block."""

import numpy as np


def softmax_numpy(x):
    """Rows of `x` as probabilities.  float [..., n] -> as x;  the largest is subtracted first, so nothing overflows"""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def silu_mul_numpy(gate, up):
    """SwiGLU's product  silu(gate) * up,  silu(z) = z / (1 + exp(-z)).

    gate and up float [n_tok, n_ff] -> as gate.  Source: Shazeer 2020, arXiv:2002.05202.
    """
    with np.errstate(over="ignore"):  # exp(-z) is inf for very negative z, and z / inf is 0
        return gate / (1 + np.exp(-gate)) * up
