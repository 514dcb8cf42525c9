"""Repetition, frequency and presence penalties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.sampling.penalties import penalties
from numllama.engine.sampling.steps import Candidates


def vocabulary(*logits):
    return Candidates(np.arange(len(logits), dtype=np.int32), np.array(logits, np.float32))


def test_by_pencil():
    # token 0 twice: 2 / 2 = 1, then 1 - (2 * 0.5 + 0.25);  token 1 once: -1 * 2 = -2, then -2 - (0.5 + 0.25)
    got = penalties(vocabulary(2, -1, 0.5), window=[0, 1, 0], repeat=2, frequency=0.5, presence=0.25)
    assert got.logits.tolist() == [-0.25, -2.75, 0.5]


@pytest.mark.parametrize(
    ("window", "repeat", "frequency", "presence"), [([], 2, 1, 1), ([0, 1], 1, 0, 0), ([0, 0], 1.0, 0.0, 0.0)]
)
def test_neutral_penalties_return_the_same_candidates(window, repeat, frequency, presence):
    c = vocabulary(2, -1, 0.5)
    assert penalties(c, window, repeat, frequency, presence) is c


def test_a_repetition_penalty_lowers_positive_and_negative_logits():
    got = penalties(vocabulary(4, -4, 0), window=[0, 1, 2], repeat=2, frequency=0, presence=0)
    assert got.logits.tolist() == [2, -8, 0]


def test_tokens_removed_by_the_mask_are_skipped():
    c = Candidates(np.array([1, 5], np.int32), np.array([1, 1], np.float32))
    assert penalties(c, window=[0, 5, 9, 9], repeat=1, frequency=0, presence=1).logits.tolist() == [1, 0]


def test_the_models_logits_are_not_modified():
    c = vocabulary(1, 2, 3)
    penalties(c, window=[0, 1], repeat=1.5, frequency=1, presence=1)
    assert c.logits.tolist() == [1, 2, 3]


def test_a_huge_penalty_stays_finite():
    with np.errstate(over="ignore"):
        got = penalties(vocabulary(1, -1), window=[0, 1], repeat=3e38, frequency=3e38, presence=3e38)
    assert np.isfinite(got.logits).all()


@given(
    st.lists(st.integers(-80, 80).map(lambda q: q / 4), min_size=1, max_size=20),
    st.lists(st.integers(0, 19), max_size=40),
    st.floats(0.25, 4, width=32),
    st.floats(-2, 2, width=32),
    st.floats(-2, 2, width=32),
)
def test_equals_the_formula_token_by_token(logits, window, repeat, frequency, presence):
    got = penalties(vocabulary(*logits), window, repeat, frequency, presence)
    f = np.float32
    for id, x in enumerate(map(f, logits)):
        if count := window.count(id):
            x = x * f(repeat) if x <= 0 else x / f(repeat)
            x = x - (f(count) * f(frequency) + f(presence))
        assert got.logits[id] == x
