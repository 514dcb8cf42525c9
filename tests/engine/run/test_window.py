"""Window shifts: when a window is full, and which positions move where."""

from dataclasses import replace

import numpy as np
import pytest

from numllama.engine.handle import RequestHandle
from numllama.engine.model.batch import Batch, Span
from numllama.engine.model.cache import KVCache
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.job import Job
from numllama.engine.run.request import complete
from numllama.engine.run.scheduler import Scheduler
from numllama.engine.run.sequence import Sequence, shift_window
from numllama.kernels import NUMPY, SETS, Rope, numpy_kernels
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


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("n_ctx", range(1, 9))
def test_a_window_of_any_size_shifts_and_goes_on(tmp_path, n_ctx, kernels):
    model = load_model(tiny_gguf(tmp_path / "tiny.gguf", n_ctx=n_ctx))
    options = replace(Options(), temperature=0.0, num_predict=2 * n_ctx)
    for n_prompt in (1, n_ctx, n_ctx + 3):
        *pieces, last = complete(model, list(range(270, 270 + n_prompt)), options, kernels=SETS[kernels])
        assert (len(pieces), last.done_reason) == (2 * n_ctx, "length")
        *pieces, last = complete(model, list(range(270, 270 + n_prompt)), options, kernels=SETS[kernels], shift=False)
        assert (len(pieces), last.done_reason) == (max(1, n_ctx - n_prompt), "length")


@pytest.mark.parametrize(("n_ctx", "shifts"), [(768, True), (769, False)])
def test_a_full_window_ends_the_answer_where_layers_keep_only_a_part_of_it(tmp_path, n_ctx, shifts):
    """docs/compatibility.md [76].  A window of 8 and a batch of 512 are 520, in cells of 256: 768 positions are kept.

    Recorded: Gemma 3 270M with a window of 4,096 ends after a prompt of 29 tokens and 4,067 more.
    """
    model = load_model(tiny_gguf(tmp_path / "tiny.gguf", "gemma2", n_ctx=1024))
    options = replace(Options(), temperature=0.0, num_ctx=n_ctx, num_predict=20, ignore_eos=True)
    prompt = [270 + i % 60 for i in range(760)]
    scheduler, delivered = Scheduler(model, model.new_cache(n_ctx), guard=False), []
    scheduler.submit(Job(handle=RequestHandle(), prompt=prompt, options=options, deliver=delivered.append))
    while not scheduler.idle:
        scheduler.step()
    for *pieces, last in (complete(model, prompt, options), delivered):
        assert (len(pieces), last.done_reason) == (20 if shifts else n_ctx - 760, "length")


def test_in_a_window_of_one_position_each_token_sees_itself_alone(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "tiny.gguf", n_ctx=1))
    options = replace(Options(), temperature=0.0, num_predict=5)
    *pieces, _ = complete(model, [270], options, kernels=NUMPY)
    expected = [270]
    for _ in pieces:
        expected.append(int(forward(model, Batch.of(expected[-1:]), model.new_cache(8), NUMPY).argmax()))
    assert [piece.token for piece in pieces] == expected[1:]


@pytest.mark.parametrize("n_ctx", [1, 2, 3])
def test_the_scheduler_generates_in_a_window_of_any_size(tmp_path, n_ctx):
    model = load_model(tiny_gguf(tmp_path / "tiny.gguf", n_ctx=n_ctx))
    options = replace(Options(), temperature=0.0, num_predict=9)
    scheduler, delivered = Scheduler(model, model.new_cache(n_ctx), guard=False), []
    for _ in range(3):
        scheduler.submit(
            Job(handle=RequestHandle(), prompt=[270, 271, 272, 273][:n_ctx], options=options, deliver=delivered.append)
        )
    while not scheduler.idle:
        scheduler.step()
    assert [piece.done_reason for piece in delivered if piece.done_reason] == ["length"] * 3
    assert len(delivered) == 3 * (9 + 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.write(0, Span(0, 11, 2), np.zeros((2, 2, 8)), np.zeros((2, 2, 8))),
        lambda cache: cache.write(0, Span(2, 0, 1), np.zeros((1, 2, 8)), np.zeros((1, 2, 8))),
        lambda cache: cache.read(0, Span(0, 12, 1)),
        lambda cache: cache.read(0, Span(-1, 0, 1)),
        lambda cache: cache.copy(0, 2, 0, 1),
        lambda cache: cache.copy(0, 1, 4, 3),
        lambda cache: cache.shift(0, 13, 4, 2, NUMPY, [ROPE]),
        lambda cache: cache.shift(0, 1, -3, 2, NUMPY, [ROPE]),  # a window of one position, once
        lambda cache: cache.shift(0, 5, 2, 4, NUMPY, [ROPE]),
    ],
)
def test_a_cache_refuses_slots_and_positions_that_it_lacks(call):
    cache = KVCache(n_layer=1, n_head_kv=2, n_head_dim=8, n_ctx=12, n_slot=2)
    with pytest.raises(
        IndexError, match=r"positions -?\d+ to -?\d+ of slot -?\d, the cache has 2 slots of 12 positions"
    ):
        call(cache)
