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
from ..setting import Setting
from .attention import attend_by
from .cause import ACTIVATED, INPUT, NORMS, PRODUCTS, SCORES, Cause, Change
from .change import bf16, f16, weights
from .feed_forward import gelu


def cached_as(kind: str, rotated: bool = False) -> Change:
    """Read keys and values as a cache of this type has them; in blocks with queries in 8 bits, and rotated if so."""

    def stored(x: np.ndarray, group: int) -> np.ndarray:
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
