"""Window shifts: when a window is full, and which positions move where."""

from dataclasses import replace

import numpy as np
import pytest

from numllama.engine.model.cache import KVCache
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.engine.run.sequence import Sequence, shift_window
from numllama.kernels import NUMPY, Rope, numpy_kernels
from tiny import tiny_gguf

ROPE = Rope("norm", 8, 10000.0)


class RecordingCache:
    """A cache that only records its shifts."""

    def __init__(self):
        self.shifts = []

    def shift(self, slot, n_cached, keep, discard, kernels, ropes):
        self.shifts.append((n_cached, keep, discard))
        return n_cached - discard


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf"))


@pytest.mark.parametrize(("n_cached", "shifts"), [(14, []), (15, [(15, 5, 5)])])
def test_a_window_of_16_shifts_at_15_positions(model, n_cached, shifts):
    """One position stays free for the next token: n_cached = W - 1 is full, W - 2 is not.  5 = num_keep and BOS."""
    seq = Sequence(model.tokenizer, list(range(3, 13)), replace(Options(), num_ctx=16))
    seq.tokens += [7] * (n_cached + 1 - len(seq.tokens))
    seq.n_cached, cache = n_cached, RecordingCache()
    assert shift_window(seq, cache, NUMPY, ()) == (5 if shifts else n_cached)
    assert cache.shifts == shifts and seq.n_cached == n_cached - sum(discard for *_, discard in shifts)


def test_a_shift_moves_values_and_rotates_keys_to_their_new_positions():
    """Positions 0 and 1 stay, 2 to 5 are discarded, 6 to 9 become 2 to 5: keys equal keys computed there."""
    kernels, random = numpy_kernels(np.float64), np.random.default_rng(0)
    k, v = random.standard_normal((10, 2, 8)), random.standard_normal((10, 2, 8))
    cache = KVCache(n_layer=1, n_head_kv=2, n_head_dim=8, n_ctx=12, n_slot=2, type="f64")
    cache.k[0][1, :10] = kernels.rope(k, np.arange(10, dtype=np.int32), ROPE)
    cache.v[0][1, :10] = v
    other = cache.k[0][0].copy()

    assert cache.shift(1, 10, keep=2, discard=4, kernels=kernels, ropes=[ROPE]) == 6
    kept = [0, 1, 6, 7, 8, 9]
    expected = kernels.rope(k[kept], np.arange(6, dtype=np.int32), ROPE)
    np.testing.assert_allclose(cache.k[0][1, :6], expected, rtol=0, atol=1e-12)  # rounding of float64 sines
    np.testing.assert_array_equal(cache.v[0][1, :6], v[kept])
    np.testing.assert_array_equal(cache.k[0][0], other)


def test_the_text_does_not_depend_on_the_window_until_it_is_full(model):
    """Window 24: prompt 4, so tokens 5 to 23 are sampled as in a wide window; the 24th is the first after a shift."""
    options = replace(Options(), temperature=0.0, num_predict=40)
    ids = [1, 300, 301, 302]
    wide, narrow = (
        [piece.token for piece in complete(model, ids, replace(options, num_ctx=n)) if piece.token is not None]
        for n in (128, 24)
    )
    n_same = next(i for i in range(len(wide)) if wide[i] != narrow[i])
    assert n_same >= 24 - 4
