"""Attention maps of a held answer: whole for a short one, else a row of so many tokens, a cell of so many keys.

position    0 1 2 3 4 5 6 7     every = 2: rows 0, 2, 4, 6
row 0       w . . .             width = 2: a cell is the largest weight of two keys
row 2       w w . .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from ..errors import RequestError
from ..model.batch import Span
from .collector import QUERIES, cached_weights
from .held import HeldRun
from .request import LookRequest

SMALL_SIDE = 64  # rows and columns of the maps of all heads of a layer
LARGE_ROWS, LARGE_COLUMNS = 128, 512  # of the map of one head
ROWS_AT_ONCE = 16  # of a forward pass; between two of them a look at a position may run


@dataclass(eq=False)
class AttentionMap:
    """The weights of some heads of a layer.

    rows      positions of the queries, one of `every`
    width     keys of a cell
    weights   f32 [n_head, n_row, n_column], the largest of each cell
    """

    layer: int
    heads: list[int]
    rows: list[int]
    every: int
    width: int
    weights: np.ndarray


def map_of_heads(held: HeldRun, layer: int, head: int | None = None) -> AttentionMap:
    """Map one head in detail, or all heads of a layer small.  Raises: RequestError for an unknown layer or head"""
    cache, hp, n = held.require_cache(), held.model.hparams, len(held.tokens) - 1
    for name, i, size in (("layer", layer, hp.n_layer), ("head", head or 0, hp.n_head)):
        if not 0 <= i < size:
            raise RequestError(f"look: {name} {i} does not exist, expected 0 to {size - 1}")
    heads = list(range(hp.n_head)) if head is None else [head]
    every, width = ceil(n / LARGE_ROWS), ceil(n / LARGE_COLUMNS)
    if head is None:  # rows that the map of one head has, too: their queries are computed once
        every, width = every * ceil(n / every / SMALL_SIDE), ceil(n / SMALL_SIDE)
    rows = [p for p in range(0, n, every) if held.tokens[p] >= 0]
    weights = np.zeros((len(heads), len(rows), ceil(n / width)), np.float32)
    for i, (position, queries) in enumerate(zip(rows, queries_of(held, rows), strict=True)):
        found = cached_weights(held.model, cache, layer, Span(0, position, 1), queries[layer][None], heads)
        row = found[:, 0]  # [n_head, position + 1]
        cells = np.maximum.reduceat(row, np.arange(0, row.shape[1], width), axis=1)
        weights[:, i, : cells.shape[1]] = cells
    return AttentionMap(layer, heads, rows, every, width, weights)


def queries_of(held: HeldRun, positions: Sequence[int]) -> list[list[np.ndarray]]:
    """Return each layer's queries f32 [n_head, n_head_dim] at `positions`; they are kept in `held`."""
    known, look = held.queries, LookRequest(values=tuple(f"{name}-*" for name in QUERIES))
    missing = [position for position in positions if position not in known]
    for start in range(0, len(missing), ROWS_AT_ONCE):
        for step in held.steps(missing[start : start + ROWS_AT_ONCE], look):
            last = [[f"{name}-{il}" for name in QUERIES] for il in range(held.model.hparams.n_layer)]
            known[step.position] = [
                next(step.values[label] for label in reversed(labels) if label in step.values) for labels in last
            ]
    return [known[position] for position in positions]
