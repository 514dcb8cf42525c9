"""What one forward pass works on: runs of new tokens from one or many sequences.

tokens   [ 5 9 2 7 | 3 | 8 ]      three sequences share this pass:
spans      slot 0    1   2        a prefill chunk of four tokens, two decode steps of one
outputs  [ 3,        4,  5 ]      rows whose logits somebody wants

An image's rows stand among the tokens as ids below 0 (images.py): the batch brings what they are, in `embeds`.
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
    """Tokens i64 [n_tok] of all spans, one after the other; `outputs` i32 [n_out] picks rows of them.

    embeds   float [n, n_embd] in place of the embeddings of the tokens below 0, in their order; None without any
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
        """One sequence's `tokens` at positions from `start`; by default the last one's logits are wanted.

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
        """All of `batches` as one, in this order."""
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

    @cached_property
    def places(self) -> np.ndarray | None:
        """Slot and position of each token, i64 [n_tok, 2], where each is of another span; else None."""
        if len(self.spans) != len(self.tokens):
            return None
        return np.array([(span.slot, span.start) for span in self.spans], np.int64).reshape(-1, 2)

    @cached_property
    def positions(self) -> np.ndarray:
        """Each token's position in its sequence.  i32 [n_tok]"""
        return np.concatenate([np.arange(s.start, s.start + s.length, dtype=np.int32) for s in self.spans])
