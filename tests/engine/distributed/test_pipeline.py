"""Stages: the bits of one process, whatever the cut, the batch, the family; a stage that ends costs one clear error."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.distributed.pipeline import (
    ROWS_AS_WEIGHTS,
    count_parts,
    cut_by_bytes,
    parts,
    stages_of,
)
from numllama.engine.errors import EngineError
from numllama.engine.model.batch import Batch, Span
from numllama.engine.model.load import load_model
from tiny import tiny_gguf


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 12))
def test_a_cut_has_all_layers_in_order_and_the_smallest_largest_stage(sizes, n):
    n = min(n, len(sizes))
    cuts = cut_by_bytes(sizes, n)
    assert [il for cut in cuts for il in cut] == list(range(len(sizes))) and len(cuts) == n and all(map(len, cuts))
    largest = max(sum(sizes[il] for il in cut) for cut in cuts)
    assert largest == least_largest(tuple(sizes), n)


def least_largest(sizes, n):
    """Compute the least possible size of the largest stage, by trying every first cut."""
    if n == 1 or len(sizes) <= 1:
        return sum(sizes)
    rest = (max(sum(sizes[:i]), least_largest(sizes[i:], n - 1)) for i in range(1, len(sizes) - n + 2))
    return min(rest)


def test_memory_decides_how_many_stages_and_too_little_is_refused(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", n_layer=6))
    cut = partial(stages_of, model, 64, 1, "f16")
    assert cut(3) == [range(0, 2), range(2, 4), range(4, 6)]
    assert len(cut(0, memory=1 << 40)) == 1
    with pytest.raises(EngineError, match=r"1 MiB for a stage, expected at least 4\d\d MiB: one layer"):
        cut(0, memory=1 << 20)
    with pytest.raises(EngineError, match="7 stages, and the model has 6 layers"):
        cut(7)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_parts_are_the_batch_in_order(spans, n_at_once):
    spans = tuple(Span(*span) for span in spans)
    n = sum(span.length for span in spans)
    batch = Batch(np.arange(n), spans, np.arange(n, dtype=np.int32))
    cuts = parts(batch, n_at_once)
    assert np.concatenate([part.tokens for _, part in cuts]).tolist() == list(range(n))
    assert np.concatenate([part.positions for _, part in cuts]).tolist() == batch.positions.tolist()
    assert [len(part.tokens) for _, part in cuts] == [rows.stop - rows.start for rows, _ in cuts]
    assert all(sum(span.length for span in part.spans) == len(part.tokens) for _, part in cuts)


@given(st.integers(1, 600), st.integers(1, 12))
def test_as_many_parts_as_make_a_pass_shortest(n_tok, n_at_once):
    def turns_by_rows(n_part):
        return (n_at_once + n_part - 1) * (ROWS_AS_WEIGHTS + n_tok / n_part)

    least = min(map(turns_by_rows, range(1, n_tok + 1)))
    assert turns_by_rows(count_parts(n_tok, n_at_once)) <= 1.07 * least  # rounded: n_part is whole
