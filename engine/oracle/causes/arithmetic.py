"""Arithmetics: they explain rounding, and nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Attention
from ....kernels.attention import attention_numpy
from ....kernels.hadamard import key_group, rotate_groups, value_group
from ....kernels.kv import CACHE_TYPES, in_blocks, new_cache, numbers, write
from ....kernels.rounding import round_activations
from ..injection import F16_MAX
from ..setting import Setting
from .attend import attend_by, in_order
from .cause import ACTIVATED, INPUT, NORMS, PRODUCTS, SCORES, Cause, Change
from .change import bf16, f16, weights
from .feed_forward import gelu


def cached_as(kind: str, rotated: bool = False) -> Change:
    """Read keys and values as a cache of this type has them; in blocks with queries in 8 bits, and rotated if so."""

    def stored(x: np.ndarray, group: int) -> np.ndarray:
        if kind == "f16" and np.abs(x).max() > F16_MAX:
            return np.full_like(x, np.nan)  # an overflow, not a rounding
        cache = new_cache(1, len(x), x.shape[1], x.shape[2], CACHE_TYPES[kind])[0]
        write(cache, turned(x, group).astype(np.float32))
        return np.asarray(numbers(cache, x.dtype))

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        d, blocks = q.shape[2], in_blocks(CACHE_TYPES[kind])
        k_group, v_group = (key_group(d), value_group(d)) if rotated else (0, 0)
        q = turned(q, k_group)
        q = _eight_bits(q, "Q8_0") if blocks else q
        out = attention_numpy(q, stored(k, k_group), stored(v, v_group), first, rule, tap)
        return turned(out, v_group)

    def changed(s: Setting) -> Setting | None:
        return attend_by(attend)(s) if not rotated or key_group(s.model.hparams.n_head_dim) else None

    return changed


def cut_to_float16(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    """Cut keys and values to the range of float16 where some are beyond it; infinite ones give no finite result."""
    if max(np.abs(k).max(), np.abs(v).max()) <= F16_MAX:
        return np.full((len(q), q.shape[1] * q.shape[2]), np.nan)
    k, v = (np.clip(x, -F16_MAX, F16_MAX).astype(np.float16).astype(q.dtype) for x in (k, v))
    return attention_numpy(q, k, v, first, rule, tap)


def flash_in_f16(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    """Attend key by key with f16 queries, keys and values, and sums of values in float16, as llama.cpp's CPU code does.

    A new largest score rescales the sum.  Source: ggml-cpu/ops.cpp ggml_compute_forward_flash_attn_ext_f16, 0c1e57098.
    """
    n_tok, n_head, d = q.shape
    group, f32 = n_head // k.shape[1], np.float32
    q, k, v = (np.asarray(x).astype(np.float16).astype(q.dtype) for x in (q, k, v))
    score = in_order(np.einsum("thd,jhd->htj", q, k.repeat(group, axis=1)), rule, 0).astype(f32)
    out = np.empty((n_tok, n_head, d), q.dtype)
    for t in range(n_tok):
        begin, end = rule.seen(first + t, len(k))
        total, weight = np.zeros((n_head, d), np.float16), np.zeros((n_head, 1), f32)
        top = np.full((n_head, 1), -np.inf, f32)
        for j in range(begin, end):
            s = score[:, t, j : j + 1]
            new = np.maximum(top, s)
            shrink, e = np.exp(top - new), np.exp(s - new)
            total = (total.astype(f32) * shrink).astype(np.float16)
            total = (total.astype(f32) + e * v[j].repeat(group, axis=0).astype(f32)).astype(np.float16)
            weight, top = weight * shrink + e, new
        out[t] = total.astype(f32) / weight
    return out.reshape(n_tok, n_head * d)


def turned(x: np.ndarray, group: int) -> np.ndarray:
    """Rotate `x` in groups, or back; return `x` itself if `group` is 0."""
    return rotate_groups(x, group) if group else x


def rounded_norms(rounded: Callable[[Any], Any]) -> Change:
    return lambda s: Setting(
        replace(
            s.kernels,
            rms_norm=lambda x, w, eps: s.kernels.rms_norm(x, rounded(w), eps),
            layer_norm=lambda x, w, b, eps: s.kernels.layer_norm(x, rounded(w), rounded(b), eps),
        ),
        s.model,
    )


def eight_bit(block_type: str) -> Change:
    return lambda s: Setting(
        replace(s.kernels, matmul=lambda w, x: s.kernels.matmul(w, _eight_bits(x, block_type))), s.model
    )


def _eight_bits(x: np.ndarray, block_type: str) -> np.ndarray:
    return np.asarray(round_activations(x.astype(np.float32), block_type)).astype(x.dtype)


ARITHMETIC: tuple[Cause, ...] = (
    Cause("keys and values beyond 65504 were cut to it in an f16 cache", SCORES, attend_by(cut_to_float16)),
    Cause("the weights of norms were rounded to bfloat16", NORMS, rounded_norms(bf16), arithmetic=True),
    Cause("the weights of norms were rounded to float16", NORMS, rounded_norms(f16), arithmetic=True),
    Cause(
        "the weights of matrices were rounded to bfloat16",
        PRODUCTS | INPUT,
        weights(lambda w, x: bf16(x)),
        arithmetic=True,
    ),
    Cause(
        "the weights of matrices were rounded to float16",
        PRODUCTS | INPUT,
        weights(lambda w, x: f16(x)),
        arithmetic=True,
    ),
    Cause("activations were rounded to 8 bits in blocks of 32", PRODUCTS, eight_bit("Q8_0"), arithmetic=True),
    Cause("activations were rounded to 8 bits in blocks of 256", PRODUCTS, eight_bit("Q8_K"), arithmetic=True),
    Cause("the cache were f16", SCORES, cached_as("f16"), arithmetic=True),
    Cause(
        "attention summed values in float16 (flash attention)",
        frozenset({"kqv_out"}),
        attend_by(flash_in_f16),
        arithmetic=True,
    ),
    Cause("the cache were q8_0", SCORES, cached_as("q8_0"), arithmetic=True),
    Cause("the cache were q4_0", SCORES, cached_as("q4_0"), arithmetic=True),
    Cause("the cache were q8_0, of rotated heads", SCORES, cached_as("q8_0", rotated=True), arithmetic=True),
    Cause("the cache were q4_0, of rotated heads", SCORES, cached_as("q4_0", rotated=True), arithmetic=True),
    Cause(
        "GELU were read from ggml's table in float16",
        ACTIVATED,
        gelu(lambda k, x: np.where(np.abs(x) > 10, k.gelu(x), f16(k.gelu(f16(np.clip(x, -10, 10)).astype(x.dtype))))),
        arithmetic=True,
    ),
)
