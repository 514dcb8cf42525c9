"""Guesses at the next tokens: where they come from, and how many are worth their time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import BadOptions
from numllama.engine.options import Options
from numllama.engine.run.draft import (
    BRIEF,
    DOUBT,
    HALF_LIFE,
    MAX_MATCH,
    N_GRAM,
    SELDOM,
    SURE,
    Ngrams,
    PassTimes,
    Speculation,
)


def latest(tokens, n):
    """Find the latest earlier occurrence of the last N_GRAM tokens by search, and go on from there token by token."""
    text = list(tokens)
    for i in range(len(text) - 1, N_GRAM - 1, -1):
        if text[i - N_GRAM : i] == text[-N_GRAM:]:
            n_match = next((m for m in range(MAX_MATCH) if i - 1 - m < 0 or text[i - 1 - m] != text[-1 - m]), MAX_MATCH)
            for j in range(n):
                text.append(text[i + j])
            return text[len(text) - n :], n_match
    return [], 0


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 8), st.integers(0, 60))
def test_guesses_are_what_followed_the_latest_occurrence(tokens, n, n_before):
    ngrams = Ngrams()
    ngrams.guess(tokens[:n_before], n)  # what it learned earlier changes nothing
    assert ngrams.guess(tokens, n) == (latest(tokens, n) if n else ([], 0))


def test_a_period_goes_on():
    assert Ngrams().guess([7, 1, 2, 3, 1, 2, 3], 8)[0] == [1, 2, 3, 1, 2, 3, 1, 2]


def test_behind_a_change_in_a_copy_the_copied_text_is_guessed_to_go_on():
    """The copy of 30 distinct tokens has another one at 12, and two at 20."""
    text = list(range(100, 130))
    copy = [*text[:12], 7, *text[13:20], 8, 9, *text[22:]]
    speculation, found = Speculation("ngram"), []
    for n in range(3, 27):
        guesses = speculation.guess([*text, *copy[:n]], 3, PassTimes(), 1, 1)
        found.append(guesses == [*text, *copy][n : n + 3])
    assert all(found)
    assert Ngrams().guess([*text, *copy[:13]], 3) == ([], 0)  # three tokens that agree are not there


def test_after_three_tokens_by_chance_nothing_is_guessed_to_go_on():
    text = [*range(100, 130), 1, 2, 3, 4, 5, 6, 7, 110, 111, 112]
    speculation = Speculation("ngram")
    assert speculation.guess(text, 2, PassTimes(), 1, 1) == [113, 114]
    assert speculation.guess([*text, 8], 2, PassTimes(), 1, 1) == []
    assert speculation.guess([*text, 8, 114], 2, PassTimes(), 1, 1) == []


def test_images_are_not_guessed():
    tokens = [5, 6, 7, 8, -1, -2, 5, 6, 7]
    assert Speculation("ngram").guess(tokens, 4, PassTimes(), 1, 1) == [8]


def times_of(cost, unit=2 * BRIEF):
    """Return the times of passes that take cost(n_row) units, which have been measured often."""
    times = PassTimes()
    for n_row in list(range(1, 20)) * SURE:
        times.add(n_row, unit * cost(n_row))
    return times


def rehearse(n_pass, times, right):
    """Speculate `n_pass` times about a text with period 3; of each pass's guesses the first `right` are right."""
    speculation, lengths = Speculation(), []
    for _ in range(n_pass):
        guesses = speculation.guess([1, 2, 3] * 5, 15, times, 1, 1)
        speculation.judge(len(guesses), min(right, len(guesses)))
        lengths.append(len(guesses))
    return lengths


def test_the_number_of_guesses_follows_what_they_bring():
    cheap, dear = times_of(lambda n: 1 + n / 100), times_of(lambda n: float(n))
    assert rehearse(50, cheap, right=15)[-1] == 15  # always right, nearly free
    assert sum(rehearse(300, times_of(lambda n: 1 + n / 10), right=0)[100:]) <= 20  # never right: tried now and then
    assert sum(rehearse(300, dear, right=1)) == 0  # a row costs as much as a pass: never
    assert 1 <= rehearse(50, times_of(lambda n: 1 + n / 10), right=2)[-1] <= 6


def test_what_guesses_bring_is_calculated_again_after_some_passes_or_a_judged_guess():
    """At each pass that would take a small model time; much later, a text that repeats itself would have no guesses."""
    dear, cheap = times_of(lambda n: float(n)), times_of(lambda n: 1 + n / 1000)
    speculation, lengths = Speculation(), []
    for times in [dear] + 40 * [cheap]:
        lengths.append(len(speculation.guess([1, 2, 3] * 5, 15, times, 1, 1)))
        if lengths[-1]:
            break
        speculation.judge(0, 0)
    assert 8 < len(lengths) <= 33 and lengths[-1] == 15
    speculation.judge(15, 0)
    assert 0 < len(speculation.guess([1, 2, 3] * 5, 15, cheap, 1, 1)) < 15


def test_a_full_batch_has_no_use_for_guesses():
    times = times_of(lambda n: 1.0 if n <= 8 else 3.0)
    speculation = Speculation()
    assert len(speculation.guess([1, 2, 3] * 5, 15, times, 1, 1)) > 0
    assert len(speculation.guess([1, 2, 3] * 5, 15, times, 8, 8)) == 0


def test_times_between_measured_sizes_lie_on_lines():
    times = PassTimes()
    assert times.of(3) == 0
    times.add(5, 10.0)
    times.add(1, 2.0)
    expected = np.interp([1, 2, 3, 4, 5], [1, 5], [2.0, times.of(5)])
    np.testing.assert_allclose([times.of(n) for n in (1, 2, 3, 4, 5)], expected)
    assert times.of(9) > times.of(5)


def test_a_size_that_was_not_measured_for_long_is_tried_again_once():
    """Its time halves with each HALF_LIFE of other passes, whether these are many short ones or few long ones."""
    for duration in (HALF_LIFE / 100, HALF_LIFE / 10_000):
        times = PassTimes()
        times.add(1, duration)
        for _ in range(SURE):
            times.add(4, 3 * duration)
        for _ in range(round(HALF_LIFE / duration)):
            times.add(1, duration)
        assert times.of(4) == pytest.approx(1.5 * duration, rel=1e-9)
        assert times.of(4) < times.of(5) < 1.7 * duration
        for _ in range(round(HALF_LIFE / duration)):
            times.add(1, duration)
        assert times.of(4) == times.of(1) == duration  # more rows are never expected to be faster than one
        times.add(4, 3 * duration)
        assert times.of(4) == 3 * duration  # the next guess knows what it costs


def test_the_first_time_of_a_size_is_doubted():
    """It may have compiled something, and is tried again soon; what was measured often is believed for long."""
    times = PassTimes()
    times.add(1, 1e5), times.add(4, 50e5)
    assert times.of(4) == pytest.approx(DOUBT * 1.3e5)  # one row more was expected to take a tenth
    for _ in range(round(HALF_LIFE / 4 ** (SURE - 1) / 1e5)):
        times.add(1, 1e5)
    assert times.of(4) == pytest.approx(DOUBT * 1.3e5 / 2, rel=1e-3)


def test_the_longer_a_match_the_more_guesses_are_made_at_first():
    text, times = list(range(100, 160)), times_of(lambda n: 1 + n / 4)
    found = [len(Speculation().guess([*text, *text[20 : 20 + n]], 15, times, 1, 1)) for n in (3, 6, 10, 14)]
    assert found == sorted(found) and found[0] < found[-1]


@pytest.mark.parametrize(("duration", "n_copied"), [(BRIEF / 10, 5), (10 * BRIEF, N_GRAM)])
def test_beside_short_passes_a_copy_is_looked_for_seldom(duration, n_copied):
    """After a text without repetition a copy is noticed with its third token, or at the next eighth one."""
    times, speculation = times_of(lambda n: 1 + n / 100, duration), Speculation()
    text = list(range(1000, 1100))
    assert not any(speculation.guess(text[:n], 8, times, 1, 1) for n in range(10, 101))
    found = [len(speculation.guess([*text, *text[:n]], 8, times, 1, 1)) for n in range(1, SELDOM + 1)]
    assert found.index(next(filter(None, found))) + 1 == n_copied
    always = Speculation("ngram")
    assert not any(always.guess(text[:n], 8, times, 1, 1) for n in range(10, 101))
    assert len(always.guess([*text, *text[:3]], 8, times, 1, 1)) == 8


@given(st.lists(st.integers(0, 3), min_size=40, max_size=90), st.integers(4, 30))
def test_a_long_text_is_indexed_like_one_that_grows(tokens, n):
    """At once by NumPy, or token by token."""
    whole, grown = Ngrams(), Ngrams()
    for i in range(len(tokens)):
        grown.guess(tokens[:i], n)
    assert whole.guess(tokens, n) == grown.guess(tokens, n) == latest(tokens, n)


def test_another_way_to_speculate_is_refused():
    with pytest.raises(BadOptions, match='"speculate" must be "auto" or "off" or "ngram" or "draft", got \'fast\''):
        Options.parse({"speculate": "fast"})
    with pytest.raises(BadOptions, match="of type string"):
        Options.parse({"speculate": True})
    assert Options.parse({"speculate": "off"}).speculate == "off"
