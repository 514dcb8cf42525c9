"""The fast attention: values over several tiles, and results that do not depend on the span of queries."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import config

from numllama.kernels import threads
from numllama.kernels.attention import FAR, TILE, Attention, attention_numba, attention_numpy
from numllama.kernels.exp import exp
from numllama.kernels.jit import kernel
from numllama.kernels.kv import CACHE_TYPES, in_blocks, new_cache, numbers, write
from numllama.kernels.rounding import round_activations
from numllama.kernels.simd import f32x16, load, store
from rules import rules

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")


def queries_and_cache(n_tok, n_pos, n_head, n_head_kv, d, cache_type="f16"):
    rng = np.random.default_rng([n_tok, n_pos, n_head, d])
    q = rng.standard_normal((n_tok, n_head, d), np.float32)
    dtype = CACHE_TYPES[cache_type]
    k, v = (new_cache(1, n_pos, n_head_kv, d, dtype)[0] for _ in "kv")
    for cache in (k, v):
        write(cache, rng.standard_normal((n_pos, n_head_kv, d), np.float32))
    return q, k, v


@pytest.mark.parametrize("cache_type", ["f16", "f32"])
@pytest.mark.parametrize(
    "n_head, n_head_kv, d",
    [(8, 2, 64), (4, 4, 128), (7, 1, 80), (4, 2, 8), (6, 2, 20)],  # whole vectors, and partial ones (8, 20)
)
def test_several_tiles_equal_one_softmax(n_head, n_head_kv, d, cache_type):
    q, k, v = queries_and_cache(5, 2 * TILE + 90, n_head, n_head_kv, d, cache_type)
    first = len(k) - len(q)
    rounded = round_activations(q, "Q8_0") if in_blocks(k.dtype) else q
    expected = attention_numpy(rounded.astype(np.float64), k, v, first, Attention(0.2))
    got = attention_numba(q, k, v, first, Attention(0.2))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)  # float32: values around 1, 600 weights, scores to 10


@pytest.mark.parametrize("n_pos", [FAR, FAR + 1])
def test_pieces_of_many_rows_equal_one_softmax_and_single_queries(n_pos):
    """Two key heads of 320 rows each: five pieces of 64 or, beyond FAR, three of 128, the last one not full."""
    q, k, v = queries_and_cache(80, n_pos, 8, 2, 64)
    first, rule = n_pos - len(q), Attention(0.2)
    got = attention_numba(q, k, v, first, rule)
    expected = attention_numpy(q.astype(np.float64), k, v, first, rule)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)  # as above
    for t in (0, 15, 16, 31, 32, 63, 64, 79):  # the first and last tokens of pieces
        one = attention_numba(q[t : t + 1], k[: first + t + 1], v[: first + t + 1], first + t, rule)
        np.testing.assert_array_equal(got[t : t + 1], one)


@pytest.mark.parametrize("cache_type", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "bf16"])
@pytest.mark.parametrize("n_head, n_head_kv, d", [(8, 2, 64), (4, 4, 128), (7, 1, 96)])
def test_several_tiles_in_blocks_equal_one_softmax(n_head, n_head_kv, d, cache_type):
    test_several_tiles_equal_one_softmax(n_head, n_head_kv, d, cache_type)


def test_every_cache_type_is_read_to_the_bit():
    """A query of zeros takes the mean of the values; one position has it alone."""
    for name in CACHE_TYPES:
        if name != "f64":
            q, k, v = queries_and_cache(1, 1, 2, 2, 64, name)
            expected = numbers(v, np.float32).reshape(1, -1)
            np.testing.assert_array_equal(attention_numba(0 * q, k, v, 0, Attention(1.0)), expected, err_msg=name)


def test_keys_and_values_may_have_different_types():
    q, k, _ = queries_and_cache(3, 40, 4, 2, 32, "q8_0")
    _, _, v = queries_and_cache(3, 40, 4, 2, 32, "f16")
    expected = attention_numpy(round_activations(q, "Q8_0").astype(np.float64), k, v, 37, Attention(0.2))
    np.testing.assert_allclose(attention_numba(q, k, v, 37, Attention(0.2)), expected, rtol=0, atol=1e-5)


@given(
    cuts=st.lists(st.integers(1, 59), unique=True, max_size=4).map(sorted),
    first=st.sampled_from([0, 1, 200, 250, 256]),  # spans on both sides of a tile's edge
    n_thread=st.integers(1, 2),
    rule=rules(n_head=6, causal=st.just(True)),
    cache_type=st.sampled_from(["f16", "f32", "q8_0", "q4_0"]),
)
@settings(deadline=None, max_examples=40)
def test_a_query_s_bits_do_not_depend_on_the_span_or_the_threads(cuts, first, n_thread, rule, cache_type):
    q, k, v = queries_and_cache(60, first + 60, 6, 2, 32, cache_type)
    threads.limit(1)
    whole = attention_numba(q, k, v, first, rule)
    threads.limit(n_thread)
    try:
        edges = [0, *cuts, 60]
        pieces = [attention_numba(q[a:b], k[: first + b], v[: first + b], first + a, rule) for a, b in pairwise(edges)]
    finally:
        threads.limit(None)
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@given(cut=st.integers(1, 59), rule=rules(n_head=6, causal=st.just(False)))
@settings(deadline=None, max_examples=20)
def test_a_query_s_bits_do_not_depend_on_the_span_without_a_causal_mask(cut, rule):
    q, k, v = queries_and_cache(60, 300, 6, 2, 32)
    whole = attention_numba(q, k, v, 100, rule)
    pieces = [attention_numba(q[:cut], k, v, 100, rule), attention_numba(q[cut:], k, v, 100 + cut, rule)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@kernel
def each_exp(x, y):
    for i in range(0, x.size, 16):
        store(y, i, exp(load(f32x16, x, i)))


def test_exp_is_accurate_to_1e_7_and_zero_for_hidden_scores():
    x = np.linspace(-87, 88, 1 << 16, dtype=np.float32)
    y = np.empty_like(x)
    each_exp(x, y)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=1e-7)
    x = np.array([0, -np.inf, -1e30, -88.2] * 4, np.float32)
    y = np.empty_like(x)
    each_exp(x, y)
    np.testing.assert_array_equal(y, [1, 0, 0, 0] * 4)
