"""What one forward pass works on: runs of new tokens from one or many sequences.

tokens   [ 5 9 2 7 | 3 | 8 ]      three sequences share this pass:
spans      slot 0    1   2        a prefill chunk of four tokens, two decode steps of one
outputs  [ 3,        4,  5 ]      rows whose logits somebody wants
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Span:
    """A run of one sequence's new tokens: positions start .. start + length - 1 of cache slot `slot`."""

    slot: int
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Tokens i32 [n_tok] of all spans, one after the other; `outputs` i32 [n_out] picks rows of them."""

    tokens: np.ndarray
    spans: tuple[Span, ...]
    outputs: np.ndarray

    @staticmethod
    def of(tokens: Sequence[int], slot: int = 0, start: int = 0, outputs: Sequence[int] = (-1,)) -> Batch:
        """One sequence's `tokens` at positions from `start`; by default the last one's logits are wanted."""
        n = len(tokens)
        return Batch(np.array(tokens, np.int32), (Span(slot, start, n),), np.arange(n, dtype=np.int32)[list(outputs)])

    @staticmethod
    def join(batches: Sequence[Batch]) -> Batch:
        """All of `batches` as one, in this order."""
        starts = np.cumsum([0, *(len(batch.tokens) for batch in batches[:-1])])
        return Batch(
            np.concatenate([batch.tokens for batch in batches]),
            tuple(span for batch in batches for span in batch.spans),
            np.concatenate([batch.outputs + start for batch, start in zip(batches, starts, strict=True)]).astype(
                np.int32
            ),
        )

    @cached_property
    def positions(self) -> np.ndarray:
        """Each token's position in its sequence.  i32 [n_tok]"""
        return np.concatenate([np.arange(s.start, s.start + s.length, dtype=np.int32) for s in self.spans])
