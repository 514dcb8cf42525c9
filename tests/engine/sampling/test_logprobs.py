"""Log probabilities of raw logits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.sampling import logprobs_of

HALF_QUARTER_EIGHTHS = np.log(np.array([0.125, 0.5, 0.125, 0.25], np.float32)) + np.float32(3)


def test_by_pencil():
    got = logprobs_of(HALF_QUARTER_EIGHTHS, id=0, n_top=3)
    assert got.id == 0
    assert got.logprob == pytest.approx(math.log(1 / 8), abs=1e-6)
    assert [id for id, _ in got.top] == [1, 3, 0]  # the lower id of the two eighths
    assert [lp for _, lp in got.top] == pytest.approx([math.log(1 / 2), math.log(1 / 4), math.log(1 / 8)], abs=1e-6)


def test_the_sampled_token_need_not_be_among_the_top():
    assert [id for id, _ in logprobs_of(HALF_QUARTER_EIGHTHS, id=2, n_top=1).top] == [1]


def test_n_top_of_0_gives_none_and_beyond_the_vocabulary_all():
    assert logprobs_of(HALF_QUARTER_EIGHTHS, id=2).top == ()
    assert len(logprobs_of(HALF_QUARTER_EIGHTHS, id=2, n_top=20).top) == 4


def test_an_impossible_token_has_minus_infinity():
    assert logprobs_of(np.array([0, -np.inf], np.float32), id=1).logprob == -math.inf


def test_large_logits_do_not_overflow():
    assert logprobs_of(np.array([5000, 5000], np.float32), id=1).logprob == pytest.approx(math.log(1 / 2))


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=300))
def test_probabilities_sum_to_one_and_descend(logits):
    top = logprobs_of(np.array(logits, np.float32), id=0, n_top=len(logits)).top
    values = [lp for _, lp in top]
    assert math.fsum(map(math.exp, values)) == pytest.approx(1, abs=1e-5)  # float32 exponentials
    assert values == sorted(values, reverse=True)
    assert sorted(id for id, _ in top) == list(range(len(logits)))


def test_a_large_vocabulary_agrees_with_float64():
    logits = (np.random.default_rng(0).standard_normal(128_256) * 3).astype(np.float32)
    exact = logits.astype(np.float64)
    expected = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    got = logprobs_of(logits, id=77, n_top=20)
    assert got.logprob == pytest.approx(expected[77], abs=2e-6)
    np.testing.assert_allclose([lp for _, lp in got.top], np.sort(expected)[::-1][:20], atol=2e-6)
