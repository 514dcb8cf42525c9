"""Verdicts: exact intervals, and error rates over simulated comparisons."""

from __future__ import annotations

import itertools
import math
from itertools import islice

import numpy as np
import pytest

from numllama.benchmarks.verdict import (
    ALPHA_OF_LOOKS,
    Interval,
    is_look,
    judge_rounds,
    level_after,
    looks,
    rank_sum_cut,
    ratio_interval,
    verdict_word,
)


def test_the_signed_rank_sum_has_the_distribution_of_all_signs():
    """For six rounds, counted over the 64 ways to choose signs."""
    sums = [
        sum(rank for rank, up in zip(range(1, 7), signs, strict=True) if up)
        for signs in itertools.product([0, 1], repeat=6)
    ]
    for level in (0.03, 0.04, 0.05, 0.1, 0.2, 0.5):
        assert rank_sum_cut(6, level) == max(k for k in range(30) if 2 * sum(s < k for s in sums) / 64 <= level)


def test_worked_example_of_an_interval():
    """Six differences; at level 1/32 only T = 0 is left out, so the ends are the smallest and the largest."""
    d = [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]
    got = ratio_interval(d, 1 / 32)
    assert (math.log(got.low), math.log(got.high)) == (pytest.approx(0.1), pytest.approx(0.9))
    assert math.log(got.ratio) == pytest.approx(0.35)  # the 11th of the 21 averages of pairs
    assert ratio_interval(d[:5], 1 / 32).low is None


def test_scipy_agrees_with_the_exact_cut():
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not needed")
    for n in (6, 9, 14):
        d = np.random.default_rng(n).standard_normal(n) + 0.4
        low = ratio_interval(d, 0.05).low
        shifted = scipy.wilcoxon(d - math.log(low) + 1e-9, method="exact").pvalue
        assert shifted <= 0.05 < scipy.wilcoxon(d - math.log(low) - 0.05, method="exact").pvalue


@pytest.mark.parametrize("family", [1, 7])
def test_all_looks_together_spend_the_chance_of_an_error(family):
    assert family * sum(level for _, level in islice(looks(family), 200)) == pytest.approx(ALPHA_OF_LOOKS)
    first, level = next(looks(family))
    assert rank_sum_cut(first, level) >= 1 and rank_sum_cut(first - 1, level) == 0
    assert is_look(first, family) and not is_look(first + 1, family)
    assert level_after(first + 1, family) == next(islice(looks(family), 1, None))[1]


@pytest.mark.parametrize(
    ("low", "ratio", "high", "word"),
    [
        (1.03, 1.05, 1.07, "faster"),
        (0.90, 0.94, 0.98, "slower"),
        (0.99, 1.00, 1.01, "the same"),
        (1.001, 1.01, 1.019, "the same"),
        (1.001, 1.015, 1.03, "cannot tell"),  # not 1, but by how much?
        (0.97, 1.00, 1.03, "cannot tell"),
        (None, 1.5, None, "cannot tell"),
    ],
)
def test_the_four_words(low, ratio, high, word):
    assert verdict_word(Interval(ratio, low, high), 0.02, lower_is_better=False) == word
    opposite = {"faster": "slower", "slower": "faster"}
    assert verdict_word(Interval(ratio, low, high), 0.02, lower_is_better=True) == opposite.get(word, word)


NOISES = {
    "quiet": lambda rng: 0.01 * rng.standard_normal(),
    "noisy": lambda rng: 0.1 * rng.standard_normal(),
    "heavy tails": lambda rng: 0.02 * rng.standard_t(1.5),
    "spikes": lambda rng: 0.01 * rng.standard_normal() + (rng.random() < 0.2) * rng.exponential(0.5),
    "one-sided": lambda rng: rng.exponential(0.05),
}


def simulate(noise, effect, rng, max_rounds=57):
    """Compare as `bench` does: look, stop at a verdict, go on otherwise.  -> the word"""
    d = []
    while len(d) < max_rounds:
        d.append(math.log1p(effect) + noise(rng) - noise(rng))
        if is_look(len(d)) and (found := judge_rounds(d)).is_known:
            return found.word
    return judge_rounds(d).word


@pytest.mark.parametrize("noise", NOISES.values(), ids=list(NOISES))
def test_equals_are_called_different_in_at_most_5_of_100_comparisons(noise):
    rng = np.random.default_rng(5)
    words = [simulate(noise, 0.0, rng) for _ in range(200)]
    assert sum(word in ("faster", "slower") for word in words) <= 10


@pytest.mark.parametrize(
    ("effect", "name"), [(0.05, "quiet"), (0.2, "quiet"), (0.2, "noisy"), (0.2, "spikes"), (0.2, "heavy tails")]
)
def test_known_differences_are_found(effect, name):
    rng = np.random.default_rng(6)
    words = [simulate(NOISES[name], effect, rng) for _ in range(50)]
    assert words.count("faster") >= 47 and "slower" not in words


def test_too_few_rounds_say_how_many_more():
    got = judge_rounds([0.5] * 5)
    assert got.word == "cannot tell" and got.more == 3 and got.note.startswith("3 more rounds")
    assert judge_rounds([0.5] * 6, fixed=True).word == "faster"
    assert judge_rounds([0.5] * 5, fixed=True).more == 1


def test_a_verdict_out_of_reach_is_said_to_be():
    d = [0.0195 + 0.05 * (-1) ** i for i in range(11)]
    assert judge_rounds(d).more is None
    noisy = [0.04 + 0.06 * (-1) ** i for i in range(11)]
    assert 5 < judge_rounds(noisy).more < 200
