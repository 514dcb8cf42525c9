"""The input of one forward pass: runs of new tokens from one or many sequences.

tokens   [ 5 9 2 7 | 3 | 8 ]      three sequences share this pass:
spans      slot 0    1   2        a prefill chunk of four tokens, two decode steps of one
outputs  [ 3,        4,  5 ]      rows whose logits are needed

Ids below 0 stand for an image's rows (vision/prompt.py); `embeds` holds these rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """The tokens of all spans.

    tokens    i64 [n_tok], span after span
    outputs   i32 [n_out], rows of `tokens` whose results are needed
    embeds    float [n, n_embd], rows for the tokens below 0, in their order; None if there are no such tokens
    """

    tokens: np.ndarray
    spans: tuple[Span, ...]
    outputs: np.ndarray
    embeds: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"<Batch: {len(self.tokens)} tokens in {len(self.spans)} spans, {len(self.outputs)} outputs>"

    @staticmethod
    def of(
        tokens: Sequence[int],
        slot: int = 0,
        start: int = 0,
        outputs: Sequence[int] = (-1,),
        embeds: Mapping[int, np.ndarray] | None = None,
    ) -> Batch:
        """Make a batch of one sequence's `tokens` at positions from `start`; the default output is the last token.

        embeds   the row [n_embd] of each token below 0
        """
        n, rows = len(tokens), [(embeds or {})[id] for id in tokens if id < 0]
        return Batch(
            np.array(tokens, np.int64),
            (Span(slot, start, n),),
            np.arange(n, dtype=np.int32)[list(outputs)],
            np.stack(rows) if rows else None,
        )

    @staticmethod
    def join(batches: Sequence[Batch]) -> Batch:
        """Concatenate `batches` in this order."""
        if len(batches) == 1:
            return batches[0]
        starts = np.cumsum([0, *(len(batch.tokens) for batch in batches[:-1])])
        embeds = [batch.embeds for batch in batches if batch.embeds is not None]
        return Batch(
            np.concatenate([batch.tokens for batch in batches]),
            tuple(span for batch in batches for span in batch.spans),
            np.concatenate([batch.outputs + start for batch, start in zip(batches, starts, strict=True)]).astype(
                np.int32
            ),
            np.concatenate(embeds) if embeds else None,
        )

    def rows(self, first: int, last: int) -> Batch:
        """Return the batch of tokens `first` .. `last` - 1; spans are cut, outputs are those among these tokens."""
        spans, row = [], 0
        for span in self.spans:
            a, b = max(first - row, 0), min(last - row, span.length)
            if a < b:
                spans.append(Span(span.slot, span.start + a, b - a))
            row += span.length
        inside = self.outputs[(self.outputs >= first) & (self.outputs < last)] - first
        return Batch(self.tokens[first:last], tuple(spans), inside)

    @cached_property
    def places(self) -> np.ndarray | None:
        """Slot and position of each token, i64 [n_tok, 2]; None unless every span has one token."""
        if len(self.spans) != len(self.tokens):
            return None
        return np.array([(span.slot, span.start) for span in self.spans], np.int64).reshape(-1, 2)

    @cached_property
    def positions(self) -> np.ndarray:
        """Each token's position in its sequence.  i32 [n_tok]"""
        return np.concatenate([np.arange(s.start, s.start + s.length, dtype=np.int32) for s in self.spans])
