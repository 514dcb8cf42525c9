"""Prefix reuse: the longest prefix of a prompt that is cached in any slot is not computed again.

    slot 0   You are a cat . Say miau </s>       busy
    slot 1   You are a dog . Say                 free, least recently used
    slot 2   You are a dog . What do you eat ?   free

    "You are a dog . What do you drink ?"   gets slot 2 and continues at "drink"
    "You are a cat . Who are you ?"         gets slot 1, keeps "You are a" and copies "cat ." from slot 0

A slot's list holds the tokens whose keys and values are at its positions 0, 1, ...; it is exact between two forward
passes.  Positions that a window shift has moved cannot be reused, so the list then ends where the shift began.  The
kernels guarantee that keys and values depend only on the tokens up to their position, not on batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence


class Prefixes:
    """The tokens in each slot, and which slots are free.

    losing    called with a slot, its tokens and how many of them stay, before a new prompt overwrites the others
    resumes   whether the text in a slot can go on after its first n tokens, or layers have dropped their window
    """

    def __init__(
        self,
        n_slot: int,
        losing: Callable[[int, list[int], int], None] = lambda slot, tokens, n_left: None,
        resumes: Callable[[int, int], bool] = lambda slot, n: True,
    ):
        self.losing, self.resumes = losing, resumes
        self.held: list[list[int]] = [[] for _ in range(n_slot)]
        self.free = deque(range(n_slot))  # the least recently used first

    def acquire(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Take a free slot for `prompt`.  -> the slot, and the number of prompt tokens cached in it

        The slot with the longest common prefix is chosen, unless it would lose more tokens than it provides; then the
        least recently used one.
        """
        slot = max(self.free, key=lambda slot: self.known(slot, prompt))
        if 2 * self.known(slot, prompt) < len(self.held[slot]):
            slot = self.free[0]
        self.free.remove(slot)
        n = self.known(slot, prompt)
        if n < len(self.held[slot]):
            self.losing(slot, self.held[slot], n)
        self.truncate(slot, n)
        return slot, n

    def longest(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Find the slot, free or busy, with the longest prefix of `prompt`.  -> the slot, and the prefix's length"""
        lengths = [self.known(slot, prompt) for slot in range(len(self.held))]
        slot = max(range(len(lengths)), key=lengths.__getitem__)
        return slot, lengths[slot]

    def known(self, slot: int, prompt: Sequence[int]) -> int:
        """Return how many tokens of `prompt` need not be computed in `slot`."""
        n = common_prefix(self.held[slot], prompt)
        return n if self.resumes(slot, n) else 0

    def shared(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of `prompt` any slot has in common, whether the text can go on after them or not."""
        return max(common_prefix(held, prompt) for held in self.held)

    def record(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        """Record that the cache has `tokens` at positions from `start`."""
        if start == len(self.held[slot]):  # false only after a shift
            self.held[slot] += tokens

    def truncate(self, slot: int, n: int) -> None:
        """Record that positions from `n` will be overwritten, or have moved."""
        del self.held[slot][n:]

    def forget(self) -> None:
        """Record that nothing is cached any more; no slot may be in use."""
        self.held, self.free = [[] for _ in self.held], deque(range(len(self.held)))

    def release(self, slot: int) -> None:
        """Mark the slot as free; its tokens stay cached."""
        self.free.append(slot)


def common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Return the length of the common prefix, at most all but the last token of `prompt`, whose logits are needed."""
    n = max(0, min(len(held), len(prompt) - 1))
    if held[:n] == prompt[:n]:
        return n
    return next(i for i in range(n) if held[i] != prompt[i])
