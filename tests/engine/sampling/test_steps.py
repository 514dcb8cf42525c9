"""The steps of the chain one by one: worked cases, plain loops, and properties."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import EngineError, ModelError
from numllama.engine.sampling.steps import (
    Candidates,
    candidates,
    descending,
    dist,
    min_p,
    mirostat_v1,
    mirostat_v2,
    scale_by_temperature,
    softmax,
    tail_free,
    top_k,
    top_p,
    typical_p,
    zipf_k,
)


def race(*probabilities):
    """Return candidates 0, 1, 2, ... with these probabilities, in this order."""
    p = np.array([float(Fraction(p)) for p in probabilities])
    return Candidates(np.arange(len(p), dtype=np.int32), np.log(p).astype(np.float32))


def ids(c):
    return c.ids.tolist()


SHUFFLED = race("1/8", "1/2", "1/8", "1/4")


class TestByPencil:
    def test_top_k(self):
        assert ids(top_k(SHUFFLED, 2)) == [1, 3]
        assert ids(top_k(SHUFFLED, 3)) == [1, 3, 0]  # the first of the two eighths
        assert ids(top_k(SHUFFLED, 99)) == [1, 3, 0, 2]

    def test_top_k_of_0_keeps_the_order(self):
        assert top_k(SHUFFLED, 0) is SHUFFLED

    @pytest.mark.parametrize(("p", "kept"), [(0, [1]), (0.49, [1]), (0.51, [1, 3]), (0.76, [1, 3, 0])])
    def test_top_p(self, p, kept):
        assert ids(top_p(SHUFFLED, p)) == kept  # running sums: 1/2, 3/4, 7/8, 1

    def test_top_p_of_1_keeps_the_order(self):
        assert top_p(SHUFFLED, 1) is SHUFFLED

    @pytest.mark.parametrize(("p", "kept"), [(0.9, [1]), (0.45, [1, 3]), (0.2, [0, 1, 2, 3])])
    def test_min_p(self, p, kept):
        assert ids(min_p(SHUFFLED, p)) == kept  # relative to the most likely, an eighth is 0.25 and a quarter 0.5

    @pytest.mark.parametrize(("p", "kept"), [(0.2, [3]), (0.3, [3, 1]), (0.76, [3, 1, 0])])
    def test_typical_p(self, p, kept):
        # surprise in bits 3 1 3 2, expected 3/8 + 1/2 + 3/8 + 2/4 = 7/4; distances 5/4 3/4 5/4 1/4
        got = typical_p(SHUFFLED, p)
        assert ids(got) == kept and not got.sorted

    def test_top_p_stops_where_the_sum_reaches_p_and_typical_p_where_it_exceeds_p(self):
        assert ids(top_p(race("1/2", "1/2"), 0.5)) == [0]
        assert ids(typical_p(race("1/2", "1/2"), 0.5)) == [0, 1]

    def test_p_is_compared_as_a_float32(self):
        # a little below ln 9, where the first one's probability is the float32 next to 0.9, which is less than 0.9
        close = (Candidates(np.arange(2), np.array([x, 0], np.float32)) for x in 2.197224 + np.arange(40) * 1e-7)
        c = next(c for c in close if softmax(c.logits)[0] == np.float32(0.9))
        assert float(softmax(c.logits)[0]) < 0.9
        assert ids(top_p(c, 0.9)) == [0]

    @pytest.mark.parametrize(("z", "kept"), [(0.4, 1), (0.7, 1), (0.8, 2), (0.99, 2)])
    def test_tail_free(self, z, kept):
        # p in 16ths 8 4 2 1 1; d1 4 2 1 0; d2 2 1 1, normalised 1/2 1/4 1/4, running 1/2 3/4 1
        assert len(tail_free(race("1/2", "1/4", "1/8", "1/16", "1/16"), z).ids) == kept

    def test_tail_free_of_a_straight_line_has_no_tail(self):
        assert len(tail_free(race("1/4", "1/4", "1/4", "1/4"), 0.9).ids) == 1  # no curvature: d2 counts as uniform
        assert len(tail_free(race(*["1/8"] * 8), 0.45).ids) == 2  # sixths: 3/6 > 0.45 at i = 2

    def test_temperature(self):
        # at 1/2 probabilities are squared: 1 16 1 4 in 22nds
        np.testing.assert_allclose(
            softmax(scale_by_temperature(SHUFFLED, 0.5).logits), np.array([1, 16, 1, 4]) / 22, rtol=1e-6
        )  # float32

    def test_temperature_0_keeps_the_first_of_the_largest(self):
        assert ids(scale_by_temperature(race("1/5", "2/5", "2/5"), 0)) == [1]
        assert ids(scale_by_temperature(race("1/5", "2/5", "2/5"), -1)) == [1]

    @pytest.mark.parametrize(("u", "index"), [(0, 0), (0.12, 0), (0.13, 1), (0.62, 1), (0.63, 2), (0.74, 2), (0.76, 3)])
    def test_dist(self, u, index):
        assert dist(SHUFFLED, u) == index  # running sums: 1/8, 5/8, 6/8, 1

    @pytest.mark.parametrize(("mu", "kept"), [(0.5, [1]), (1.5, [1]), (2.5, [1, 3]), (3.5, [1, 3, 0, 2])])
    def test_mirostat_v2(self, mu, kept):
        assert ids(mirostat_v2(SHUFFLED, mu)) == kept  # surprise in bits: 1, 2, 3, 3

    def test_mirostat_v2_keeps_a_surprise_of_exactly_mu(self):
        """Four equal logits: each has exactly 2 bits."""
        four = Candidates(np.arange(4, dtype=np.int32), np.zeros(4, np.float32))
        assert ids(mirostat_v2(four, 2.0)) == [0, 1, 2, 3] and ids(mirostat_v2(four, 1.99)) == [0]

    def test_mirostat_v1_on_zipfs_law(self):
        harmonic = 1 / np.arange(1, 101)  # s = 1, so k = 2**5 / ln 1000 = 4.63
        assert zipf_k(harmonic / harmonic.sum(), mu=5, n_vocab=1000, n=1000) == 4
        squares = harmonic**2  # s = 2, eps = 1, so k = (2**6 / (1 - 1/1000)) ** (1/2) = 8.004
        assert zipf_k(squares / squares.sum(), mu=6, n_vocab=1000, n=1000) == 8

    def test_mirostat_v1_keeps_the_k_likeliest(self):
        assert ids(mirostat_v1(SHUFFLED, mu=-100, n_vocab=4)) == [1]
        assert ids(mirostat_v1(SHUFFLED, mu=100, n_vocab=4)) == [1, 3, 0, 2]


# Quarters make ties likely; a span of 60 makes probabilities of 0 occur in float32 after halving the temperature.
races = st.builds(
    lambda logits, first: Candidates(np.arange(len(logits), dtype=np.int32) + first, np.array(logits, np.float32)),
    st.lists(st.integers(-120, 120).map(lambda q: q / 4), min_size=1, max_size=60),
    st.integers(0, 9),
)
shares = st.floats(0, 1, width=32)
# Steps that truncate, each with its parameter; a larger parameter keeps more.
TRUNCATING = {
    "top_k": (top_k, st.integers(1, 70)),
    "top_p": (top_p, shares),
    "min_p": (lambda c, x: min_p(c, 1 - x), shares),
    "typical_p": (lambda c, x: typical_p(c, x or 1e-30), shares),
    "tail_free": (tail_free, shares),
    "mirostat_v1": (lambda c, x: mirostat_v1(c, x, 100), st.floats(-5, 20)),
    "mirostat_v2": (mirostat_v2, st.floats(-5, 20)),
}
truncating = pytest.mark.parametrize("name", TRUNCATING)


class TestProperties:
    @truncating
    @given(data=st.data(), c=races)
    def test_a_truncation_keeps_a_subset_of_the_candidates(self, name, data, c):
        step, parameter = TRUNCATING[name]
        got = step(c, data.draw(parameter))
        before = dict(zip(c.ids.tolist(), c.logits.tolist(), strict=True))
        assert 1 <= len(got.ids) == len(set(got.ids.tolist()))
        assert all(before[i] == logit for i, logit in zip(got.ids.tolist(), got.logits.tolist(), strict=True))

    @truncating
    @given(data=st.data(), c=races)
    def test_sorted_candidates_are_sorted_and_ties_keep_their_order(self, name, data, c):
        step, parameter = TRUNCATING[name]
        got = step(c, data.draw(parameter))
        ranked = sorted(zip((-got.logits).tolist(), got.ids.tolist(), strict=True))
        assert not got.sorted or ids(got) == [i for _, i in ranked]

    @truncating
    @given(data=st.data(), c=races)
    def test_a_larger_parameter_keeps_more(self, name, data, c):
        step, parameter = TRUNCATING[name]
        less, more = sorted([data.draw(parameter), data.draw(parameter)])
        assert set(ids(step(c, less))) <= set(ids(step(c, more)))

    @pytest.mark.parametrize("name", [name for name in TRUNCATING if name != "typical_p"])
    @given(data=st.data(), c=races)
    def test_the_most_likely_token_always_stays(self, name, data, c):
        step, parameter = TRUNCATING[name]
        assert step(c, data.draw(parameter)).logits.max() == c.logits.max()

    @pytest.mark.parametrize("name", [name for name in TRUNCATING if name != "top_k"])
    @given(data=st.data(), c=races)
    def test_a_constant_added_to_the_logits_changes_nothing(self, name, data, c):
        step, parameter = TRUNCATING[name]
        x = data.draw(parameter)
        higher = Candidates(c.ids, c.logits + np.float32(64))  # exact: quarters
        if name == "min_p":  # ln p is added to the largest, where rounding depends on its size
            x = data.draw(st.sampled_from([0.0, 0.3, 0.9]))
        assert ids(step(higher, x)) == ids(step(c, x))

    @given(races, st.randoms(use_true_random=False), st.sampled_from([0.01, 0.3, 0.99]))
    def test_the_order_of_the_candidates_does_not_matter_to_min_p(self, c, random, p):
        order = random.sample(range(len(c.ids)), len(c.ids))
        assert set(ids(min_p(c.take(np.array(order), sorted=False), p))) == set(ids(min_p(c, p)))

    @given(races, st.floats(2.0**-10, 100, width=32))
    def test_temperature_keeps_all_candidates_in_order(self, c, t):
        got = scale_by_temperature(c, t)
        assert ids(got) == ids(c)
        assert (np.diff(got.logits[np.argsort(c.logits)]) >= 0).all()

    @given(races, st.sampled_from([1e-44, 1e-38, 1e-20, 1e-6]))
    def test_a_temperature_near_0_approaches_greedy(self, c, t):
        with np.errstate(over="ignore"):
            got = scale_by_temperature(c, t)
            assert got.logits[dist(got, 0.5)] == got.logits.max()
        assert np.isfinite(got.logits.max())

    @given(races)
    def test_dist_selects_each_candidate_in_proportion(self, c):
        drawn = np.bincount([dist(c, (i + 0.5) / 500) for i in range(500)], minlength=len(c.ids))
        np.testing.assert_allclose(drawn / 500, softmax(c.logits), atol=1 / 500 + 1e-6)

    def test_dist_never_selects_a_probability_of_0(self):
        c = Candidates(np.arange(4), np.array([-np.inf, 0, -np.inf, -500], np.float32))
        assert {dist(c, u) for u in (0.0, 2.0**-64, 0.5, 1 - 2.0**-53)} == {1}


class TestAgainstPlainLoops:
    """The definitions of llama.cpp's loops, written as loops over np.float32."""

    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=400), st.data())
    def test_descending_is_a_stable_sort(self, values, data):
        k = data.draw(st.integers(1, len(values)))
        expected = sorted(range(len(values)), key=lambda i: -values[i])[:k]
        assert descending(np.array(values, np.float32), k).tolist() == expected

    @pytest.mark.parametrize("k", [1, 40, 1000, 128_256])
    @pytest.mark.parametrize("spread", [0.0, 2.0, 1e6])
    def test_descending_is_a_stable_sort_of_a_large_vocabulary(self, k, spread):
        logits = np.round(np.random.default_rng(1).standard_normal(128_256) * spread).astype(np.float32)
        np.testing.assert_array_equal(descending(logits, k), np.argsort(-logits, kind="stable")[:k])

    def test_zero_and_negative_zero_tie(self):
        assert descending(np.array([-0.0, 0.0, -0.0], np.float32), 3).tolist() == [0, 1, 2]

    @given(races)
    def test_softmax_sums_from_first_to_last(self, c):
        e, total = np.exp(c.logits - c.logits.max()), np.float32(0)
        for x in e:
            total += x
        np.testing.assert_array_equal(softmax(c.logits), e / total)

    @given(races, shares)
    def test_top_p(self, c, p):
        probs = softmax(c.logits)
        order = sorted(range(len(probs)), key=lambda i: -c.logits[i])
        total, n = np.float32(0), len(probs)
        for i, j in enumerate(order):
            total += probs[j]
            if total >= p:
                n = i + 1
                break
        assert ids(top_p(c, p)) == (ids(c) if p >= 1 else [int(c.ids[j]) for j in order[:n]])

    @pytest.mark.parametrize("p", [0.05, 0.2, 0.9, 0.9999])
    @pytest.mark.parametrize("spread", [0.1, 3.0])
    def test_top_p_of_many_unsorted(self, p, spread):
        logits = (np.random.default_rng(2).standard_normal(3000) * spread).astype(np.float32)
        order = np.argsort(-logits, kind="stable")
        n = np.flatnonzero(np.cumsum(softmax(logits)[order]) >= np.float32(p))[0] + 1
        assert ids(top_p(Candidates(np.arange(3000), logits), p)) == order[:n].tolist()

    @given(races, st.floats(0, 1, width=32, exclude_min=True, exclude_max=True))
    def test_typical_p(self, c, p):
        order = sorted(range(len(c.ids)), key=lambda i: -c.logits[i])
        probs = softmax(c.logits[order])
        surprise = [-np.log(x) if x > 0 else np.float32(math.inf) for x in probs]
        entropy = np.float32(0)
        for x, s in zip(probs, surprise, strict=True):
            entropy += x * s if x > 0 else np.float32(0)
        total, expected = np.float32(0), []
        for i in sorted(range(len(probs)), key=lambda i: abs(surprise[i] - entropy)):
            expected.append(int(c.ids[order[i]]))
            total += probs[i]
            if total > p:
                break
        assert ids(typical_p(c, p)) == expected


class TestCandidates:
    IDS = np.arange(3, dtype=np.int32)

    @pytest.mark.parametrize("bad", [[0, np.nan, 1], [np.inf, 0, 1], [-np.inf] * 3, [np.nan, np.inf, 0]])
    def test_broken_logits_are_a_model_error(self, bad):
        with pytest.raises(ModelError, match=r"logits are not finite: (nan|inf|-inf) for token \d"):
            candidates(self.IDS, np.array(bad, np.float32), None)

    def test_candidates_start_in_the_order_of_ids_unsorted(self):
        c = candidates(self.IDS, np.array([1, 3, 2], np.float32), None)
        assert ids(c) == [0, 1, 2] and not c.sorted

    def test_the_mask_is_applied_first(self):
        assert ids(candidates(self.IDS, np.array([1, 3, 2], np.float32), np.array([True, False, True]))) == [0, 2]

    @pytest.mark.parametrize(("logits", "mask"), [([1, 3, 2], [0, 0, 0]), ([1, -np.inf, 2], [0, 1, 0])])
    def test_a_mask_that_allows_nothing_is_an_error(self, logits, mask):
        with pytest.raises(EngineError, match="no token is allowed next"):
            candidates(self.IDS, np.array(logits, np.float32), np.array(mask, bool))
