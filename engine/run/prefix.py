"""What the cache already knows: the longest beginning of a prompt that lies in any slot is not computed again.

    slot 0   You are a cat . Say miau </s>       busy
    slot 1   You are a dog . Say                 free, for longest
    slot 2   You are a dog . What do you eat ?   free

    "You are a dog . What do you drink ?"   goes on in slot 2, from "drink"
    "You are a cat . Who are you ?"         goes into slot 1, over "You are a" which stands there, and "cat ." copied

A slot's list holds the tokens whose keys and values lie at its positions 0, 1, ...: always true between two forward
passes.  What a window shift has moved is no prefix of anything, so the list ends where the shift began.  Keys and
values at a position depend on the tokens up to it alone, not on how they were computed: so the kernels promise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class Prefixes:
    """The tokens in each slot, and which slots are free."""

    def __init__(self, n_slot: int):
        self.held: list[list[int]] = [[] for _ in range(n_slot)]
        self.free = deque(range(n_slot))  # the one that was used least recently first

    def take(self, prompt: Sequence[int]) -> tuple[int, int]:
        """A free slot for `prompt`, and how many of its tokens stand there.

        The one that holds most of it, unless that would cost the slot more than it gives; else the oldest.
        """
        slot = max(self.free, key=lambda slot: common(self.held[slot], prompt))
        if 2 * common(self.held[slot], prompt) < len(self.held[slot]):
            slot = self.free[0]
        self.free.remove(slot)
        n = common(self.held[slot], prompt)
        self.forget(slot, n)
        return slot, n

    def longest(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The slot, free or not, that holds most of `prompt`, and how many of its tokens."""
        lengths = [common(held, prompt) for held in self.held]
        slot = max(range(len(lengths)), key=lengths.__getitem__)
        return slot, lengths[slot]

    def wrote(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        """The cache now has `tokens` at positions from `start`."""
        if start == len(self.held[slot]):  # elsewhere only after a shift
            self.held[slot] += tokens

    def forget(self, slot: int, n: int) -> None:
        """What stands from position `n` on will be overwritten, or has moved."""
        del self.held[slot][n:]

    def give_back(self, slot: int) -> None:
        self.free.append(slot)


def common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens that both begin with; never all of `prompt`, as nothing but its last token's pass gives its logits."""
    n = max(0, min(len(held), len(prompt) - 1))
    if held[:n] == prompt[:n]:
        return n
    return next(i for i in range(n) if held[i] != prompt[i])
