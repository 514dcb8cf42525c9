"""Slots: their cached tokens, and the choice of one for a prompt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.run.prefix import Prefixes, common_prefix


def filled(*slots):
    prefixes = Prefixes(len(slots))
    prefixes.held = [list(tokens) for tokens in slots]
    return prefixes


def test_a_conversation_gets_the_slot_that_has_it():
    prefixes = filled([1, 2, 3, 4], [1, 9, 9, 9])
    assert prefixes.acquire([1, 9, 9, 9, 5]) == (1, 4)
    assert prefixes.held == [[1, 2, 3, 4], [1, 9, 9, 9]] and list(prefixes.free) == [0]


def test_the_last_token_is_always_computed_again():
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == common_prefix([1], []) == 0


def test_a_slot_that_would_lose_more_than_it_provides_is_not_chosen():
    prefixes = filled([1, 2, 3, 4, 5, 6], [7])
    assert prefixes.acquire([1, 2, 8, 8]) == (0, 0) or prefixes.held[0] == [1, 2]
    prefixes = filled([7], [1, 2, 3, 4, 5, 6])
    assert prefixes.acquire([1, 2, 8, 8]) == (0, 0)  # and "1 2" can be copied from slot 1:
    assert prefixes.longest([1, 2, 8, 8]) == (1, 2)


def test_the_least_recently_used_slot_is_taken():
    prefixes = Prefixes(2)
    for slot in (0, 1):
        assert prefixes.acquire([5, 6]) == (slot, 0)
    prefixes.release(1)
    prefixes.release(0)
    assert prefixes.acquire([5, 6]) == (1, 0)


def test_after_a_shift_only_the_kept_positions_are_known():
    prefixes = filled([1, 2, 3, 4, 5, 6])
    prefixes.truncate(0, 2)
    prefixes.record(0, 4, [7])
    assert prefixes.held == [[1, 2]]


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_common_is_the_longest_common_prefix_short_of_the_whole_prompt(held, prompt):
    n = common_prefix(held, prompt)
    assert held[:n] == prompt[:n] and n < len(prompt)
    assert n == len(prompt) - 1 or n == len(held) or held[n] != prompt[n]
