import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numba.core import config

from numllama.kernels import SETS, Attention
from numllama.kernels.attention import attention_exact, attention_ggml, attention_numpy
from numllama.kernels.kv import CACHE_TYPES, new_cache, write
from numllama.kernels.rounding import round_activations
from rules import rules

every_attention = pytest.mark.parametrize("attention", [attention_numpy, attention_exact, attention_ggml])


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@every_attention
def test_worked_example(attention):
    # scores ln 3 and 0: the first value's weight is three times the second's
    q = np.array([[[1.0]]], np.float32)
    k, v = np.array([[[np.log(3)]], [[0.0]]], np.float32), np.array([[[8.0]], [[0.0]]], np.float32)
    np.testing.assert_allclose(attention(q, k, v, 1, Attention(1.0)), [[6.0]], rtol=1e-6)


@every_attention
def test_the_first_token_attends_only_to_itself(attention):
    q, k, v = random(4, 2, 8), random(4, 1, 8), random(4, 1, 8, seed=1)
    np.testing.assert_allclose(attention(q, k, v, 0, Attention(1.0))[0], np.tile(v[0, 0], 2), rtol=1e-6)


@every_attention
def test_later_positions_are_masked(attention):
    q, k, v = random(4, 2, 8), random(7, 1, 8), random(7, 1, 8, seed=1)
    before = attention(q, k, v, 3, Attention(1.0))[:3]
    k[6], v[6] = 1e4, -1e4
    np.testing.assert_array_equal(attention(q, k, v, 3, Attention(1.0))[:3], before)


@every_attention
def test_groups_of_queries_share_a_key_head(attention):
    q, k, v = random(3, 4, 8), random(3, 2, 8), random(3, 2, 8, seed=1)
    shared = attention(q, k, v, 0, Attention(0.5))
    own = attention(q, np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1), 0, Attention(0.5))
    np.testing.assert_allclose(shared, own, rtol=1e-5, atol=1e-6)


@every_attention
@given(shift=st.floats(-50, 50))
def test_a_constant_added_to_all_scores_changes_nothing(attention, shift):
    q = np.concatenate([random(2, 1, 7), np.full((2, 1, 1), shift, np.float32)], axis=-1)
    k = np.concatenate([random(5, 1, 7), np.ones((5, 1, 1), np.float32)], axis=-1)
    v = random(5, 1, 8, seed=1)
    still = q.copy()
    still[..., -1] = 0
    np.testing.assert_allclose(
        attention(q, k, v, 3, Attention(1.0)), attention(still, k, v, 3, Attention(1.0)), rtol=1e-3, atol=1e-4
    )


def test_the_tap_receives_scores_and_can_replace_them():
    q, k, v = random(2, 2, 8), random(4, 1, 8), random(4, 1, 8, seed=1)
    seen = {}

    def tap(name, value):
        seen[name] = value
        return np.eye(4)[[0, 1]][None].repeat(2, axis=0) if name == "kq_soft_max" else value

    got = attention_numpy(q, k, v, 2, Attention(1.0), tap)
    assert seen["kq"].shape == seen["kq_soft_max"].shape == (2, 2, 4)
    np.testing.assert_allclose(seen["kq_soft_max"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(got, np.concatenate([v[:2], v[:2]], axis=1).reshape(2, 16), rtol=1e-6)


@pytest.mark.parametrize("attention", [attention_exact, attention_ggml])
def test_an_f16_cache_errs_by_f16_rounding(attention):
    q, k, v = random(3, 2, 16), random(9, 2, 16), random(9, 2, 16, seed=1)
    expected = attention_numpy(q.astype(np.float64), k, v, 6, Attention(0.25))
    got = attention(q, k.astype(np.float16), v.astype(np.float16), 6, Attention(0.25))
    np.testing.assert_allclose(got, expected, atol=4e-3)  # f16 keeps 11 bits: 5e-4 of scores up to 4


@every_attention
def test_worked_examples_of_each_rule(attention):
    q, k, v = np.ones((1, 1, 1), np.float32), np.full((3, 1, 1), np.log(3), np.float32), np.float32([8, 4, 0])
    v = v[:, None, None]  # three positions score ln 3 each; the query is the middle one, at position 1

    def answer(**rule):
        return float(attention(q, k, v, 1, Attention(1.0, **rule))[0, 0])

    near = pytest.approx
    assert answer() == near(6)  # the mean of 8 and 4
    assert answer(window=1) == near(4)  # only its own value
    assert answer(causal=False) == near(4)  # the mean of all three
    assert answer(causal=False, window=1) == near(2)  # its own value and the next one
    assert answer(sinks=np.float32([np.log(3)])) == near(4)  # a third key whose value is 0: (8 + 4 + 0) / 3
    assert answer(slopes=np.float32([np.log(3)])) == near(5)  # a position away weighs a third: (8 / 3 + 4) / (4 / 3)
    four = np.full((4, 1, 1), np.log(3), np.float32), np.float32([8, 4, 0, 100])[:, None, None]
    ahead = float(attention(q, *four, 1, Attention(1.0, causal=False, ahead=1))[0, 0])
    assert ahead == near(4)  # the fourth key is two positions after the query
    k[0] = 1e4
    assert answer(softcap=np.log(3)) == near((3 * 8 + np.exp(np.log(3) * np.tanh(1)) * 4) / (3 + 3 ** np.tanh(1)))


@given(
    rule=rules(n_head=4),
    group=st.sampled_from([1, 2, 4]),
    d=st.sampled_from([8, 16, 20, 32, 64]),
    n_tok=st.integers(1, 9),
    first=st.sampled_from([0, 1, 250, 256]),
    cache_type=st.sampled_from(["f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]),
)
@settings(deadline=None, max_examples=5 if config.DISABLE_JIT else 60)  # plain Python is slow
def test_every_set_agrees_for_every_rule(rule, group, d, n_tok, first, cache_type):
    assume(d % 32 == 0 or cache_type in ("f16", "f32", "bf16"))
    n_pos = first + n_tok
    q = random(n_tok, 4, d)
    k, v = (cached(random(n_pos, 4 // group, d, seed=seed), cache_type) for seed in (1, 2))
    expected = attention_numpy(q.astype(np.float64), k, v, first, rule)
    for kernels in SETS.values():
        got = kernels.attention(q, k, v, first, rule)
        # ggml rounds queries, to f16 (steps of 5e-4) or to blocks (4e-3 of the maximum): scores up to 30 change by 0.1
        # flash attention rounds the sum of values to f16 at every position
        rounds = kernels.name in ("ggml", "llamacpp", "llamacpp-avx2") or (
            kernels.name == "numba" and "q" in cache_type
        )
        near = {"f32": 2e-5 if kernels.name == "ggml" else 0.05, "f16": 0.05}.get(cache_type, 0.3) if rounds else 2e-5
        np.testing.assert_allclose(got, expected, rtol=0, atol=near, err_msg=kernels.name)


def cached(x, cache_type):
    """Return `x` as stored in a cache of this type."""
    cache = new_cache(1, *x.shape, CACHE_TYPES[cache_type])[0]
    write(cache, x)
    return cache


@pytest.mark.parametrize("cache_type", ["q8_0", "q4_0"])
def test_ggml_rounds_queries_if_the_cache_is_in_blocks(cache_type):
    q, k, v = random(3, 4, 32), *(cached(random(9, 2, 32, seed=seed), cache_type) for seed in (1, 2))
    expected = attention_numpy(round_activations(q, "Q8_0").astype(np.float64), k, v, 6, Attention(0.25))
    got = attention_ggml(q, k, v, 6, Attention(0.25))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert np.abs(got - attention_exact(q, k, v, 6, Attention(0.25))).max() > 1e-4  # queries were rounded
