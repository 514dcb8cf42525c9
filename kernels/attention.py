"""Causal attention: each query looks at the keys up to its own position, and takes their values' weighted mean.

n_head queries share n_head_kv keys (grouped queries): query head h reads key head h // (n_head / n_head_kv)

position     0 1 2 3 4 5
query t=0    * * * *           first = 3: three positions were cached before this span,
query t=1    * * * * *         so query t is position first + t and sees keys 0 .. first + t
query t=2    * * * * * *
"""

import numpy as np

from .activation import softmax_numpy
from .jit import kernel


def look_away(name, value):
    """The `look` that sees nothing: returns `value`."""
    return value


def attention_numpy(q, k, v, first, scale, look=look_away):
    """softmax(q k^T * scale) v  for each head.

    q float [n_tok, n_head, n_head_dim], k and v [n_pos, n_head_kv, n_head_dim] with n_pos = first + n_tok
    -> as q [n_tok, n_head * n_head_dim]
    `look` is shown "kq" (before scale and mask, as in llama.cpp) and "kq_soft_max", both [n_head, n_tok, n_pos]; what
    it returns is used.
    Source: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245.
    """
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    group = n_head // n_head_kv
    queries = q.reshape(n_tok, n_head_kv, group, n_head_dim).transpose(1, 2, 0, 3)  # [kv, group, n_tok, d]
    keys = k.astype(q.dtype, copy=False).transpose(1, 2, 0)[:, None]  # [kv, 1, d, n_pos]
    values = v.astype(q.dtype, copy=False).transpose(1, 0, 2)[:, None]  # [kv, 1, n_pos, d]
    hidden = np.arange(n_pos) > first + np.arange(n_tok)[:, None]  # [n_tok, n_pos]

    kq = look("kq", (queries @ keys).reshape(n_head, n_tok, n_pos))
    p = look("kq_soft_max", softmax_numpy(np.where(hidden, -np.inf, kq * q.dtype.type(scale))))
    out = p.reshape(n_head_kv, group, n_tok, n_pos) @ values  # [kv, group, n_tok, d]
    return np.ascontiguousarray(out.transpose(2, 0, 1, 3)).reshape(n_tok, n_head * n_head_dim)


def attention_exact(q, k, v, first, scale, look=look_away):
    """As attention_numpy in float64, position after position: the sums do not depend on what else is in the batch.

    q f32 [n_tok, n_head, n_head_dim], k and v f32 or f16 [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim]
    """
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    _attend_exact(q, np.ascontiguousarray(k, np.float32), np.ascontiguousarray(v, np.float32), first, scale, out)
    return out.reshape(n_tok, n_head * n_head_dim)


@kernel
def _attend_exact(q, k, v, first, scale, out):
    n_tok, n_head, n_head_dim = q.shape
    group = n_head // k.shape[1]
    score = np.empty(first + n_tok, np.float64)
    total = np.empty(n_head_dim, np.float64)
    for t in range(n_tok):
        n_seen = first + t + 1
        for h in range(n_head):
            g = h // group
            largest = -np.inf
            for j in range(n_seen):
                s = 0.0
                for i in range(n_head_dim):
                    s += np.float64(q[t, h, i]) * np.float64(k[j, g, i])
                score[j] = s * scale
                largest = max(largest, score[j])
            weight_sum = 0.0
            total[:] = 0.0
            for j in range(n_seen):
                p = np.exp(score[j] - largest)
                weight_sum += p
                for i in range(n_head_dim):
                    total[i] += p * np.float64(v[j, g, i])
            for i in range(n_head_dim):
                out[t, h, i] = total[i] / weight_sum


def attention_ggml(q, k, v, first, scale, look=look_away):
    """As attention_exact, rounded where ggml's CPU code rounds (without flash attention).

    Against an f16 cache ggml rounds the queries and the softmax to f16 too, as each is the other side of a dot product.
    """
    if k.dtype != np.float16:
        return attention_exact(q, k, v, first, scale)
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    for t in range(n_tok):  # one query at a time: its sums are the same in any batch
        n_pos = first + t + 1
        p = attention_numpy(q[t : t + 1].astype(np.float16).astype(np.float64), k[:n_pos], v[:n_pos], n_pos - 1, scale)
        out[t] = p.reshape(n_head, n_head_dim)
    return out.reshape(n_tok, n_head * n_head_dim)
