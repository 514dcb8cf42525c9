"""Layers that keep only their window: bit for bit what a cache gives that keeps every position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import config

from numllama.engine.handle import RequestHandle
from numllama.engine.look.collector import Collector
from numllama.engine.look.request import LookRequest
from numllama.engine.model import cache as module
from numllama.engine.model.batch import Batch
from numllama.engine.model.cache import KVCache
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.cache_file import CacheFiles
from numllama.engine.run.draft_model import DraftModel
from numllama.engine.run.job import Job
from numllama.engine.run.kept import KeptPrefixes
from numllama.engine.run.request import complete
from numllama.engine.run.scheduler import Scheduler
from numllama.engine.serve.memory import cache_size
from numllama.kernels import NUMBA, SETS
from tiny import tiny_gguf

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="texts of hundreds of tokens need the compiler")

N_CTX, N_BATCH, ROLLBACK = 1024, 96, 64
N_KEPT = 512  # the window of 8, a pass of 96, ROLLBACK and a tile of 256 are 424: two tiles
OPTIONS = Options(temperature=1.0, seed=3, num_predict=6, num_ctx=N_CTX, ignore_eos=True)
ENOUGH = 1 << 30
FAMILIES = pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt-oss"])


@pytest.fixture(autouse=True)
def short_rollback(monkeypatch):
    monkeypatch.setattr(module, "ROLLBACK", ROLLBACK)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        family: load_model(tiny_gguf(folder / f"{family}.gguf", family, quant="Q8_0", n_ctx=N_CTX))
        for family in ("gemma2", "gemma3", "gpt-oss")
    }


def text(n, number=0):
    """Make n ids, of which the first 500 are the same for all numbers."""
    trunk = np.random.default_rng(99).integers(259, 330, 500).tolist()
    return [*trunk, *np.random.default_rng(number).integers(259, 330, max(n - 500, 0)).tolist()][:n]


def read(model, cache, ids, slot=0, start=0, kernels=NUMBA, n_batch=N_BATCH):
    """Read `ids` in passes of `n_batch` tokens.  -> logits of the last one"""
    for first in range(0, len(ids), n_batch):
        (logits,) = forward(model, Batch.of(ids[first : first + n_batch], slot, start + first), cache, kernels)
    return logits


@FAMILIES
def test_a_layer_with_a_window_keeps_a_part_and_the_others_keep_all(models, family):
    model = models[family]
    cache, whole = model.new_cache(N_CTX, 2, n_batch=N_BATCH), model.new_cache(N_CTX, 2)
    sizes = [array.shape[1] for array in cache.k]
    assert sizes == [N_KEPT if rule.window else N_CTX for rule in model.hparams.attention]
    assert N_KEPT in sizes and N_CTX in sizes and cache.nbytes < whole.nbytes
    assert [cache_size(model, N_CTX, 2, "f16", n) for n in (0, N_BATCH)] == [whole.nbytes, cache.nbytes]
    assert f"({N_KEPT} in {sizes.count(N_KEPT)} layers with a window of 8)" in repr(cache)


@pytest.mark.parametrize("n_batch", [N_BATCH, 0])
def test_models_without_windows_and_short_contexts_keep_all(models, tmp_path, n_batch):
    llama = load_model(tiny_gguf(tmp_path / "llama.gguf", n_ctx=N_CTX))
    for cache in (llama.new_cache(N_CTX, n_batch=n_batch), models["gemma3"].new_cache(N_KEPT, n_batch=n_batch)):
        assert cache.window == 0 and cache.k[0].shape[1] == cache.n_ctx


@pytest.mark.parametrize(
    ("kernels", "family"),
    [(name, "gemma2") for name in SETS if not name.startswith("numpy")] + [("numba", "gemma3"), ("numba", "gpt-oss")],
)
def test_every_set_of_kernels_has_the_bits_of_a_cache_that_keeps_all(models, kernels, family):
    """The sets that sum by BLAS are left out: it sums in another order for another number of positions."""
    model, ids = models[family], text(640)
    cache, whole = model.new_cache(N_CTX, n_batch=N_BATCH), model.new_cache(N_CTX)
    for n_batch, first, last in ((N_BATCH, 0, 600), (7, 600, 630), (1, 630, 640)):
        got, expected = (read(model, one, ids[first:last], 0, first, SETS[kernels], n_batch) for one in (cache, whole))
        assert got.tobytes() == expected.tobytes()
    assert cache.base[0] == 256  # 600 - 8 - 64 lies in the third tile, and 512 + 256 - 512 have moved


@pytest.mark.parametrize("type", ["q8_0", "q4_0/q8_0", "f32"])
def test_every_type_has_the_bits_of_a_cache_that_keeps_all(models, type):
    model, ids = models["gemma3"], text(620)
    cache, whole = model.new_cache(N_CTX, type=type, n_batch=N_BATCH), model.new_cache(N_CTX, type=type)
    read(model, cache, ids[:-1]), read(model, whole, ids[:-1])
    got, expected = (forward(model, Batch.of(ids[-1:], 0, 619), one, NUMBA) for one in (cache, whole))
    assert got.tobytes() == expected.tobytes()


def test_a_text_goes_back_as_far_as_its_window_is_there_and_no_further(models):
    model, ids = models["gemma3"], text(640)
    cache = model.new_cache(N_CTX, 2, n_batch=N_BATCH)
    read(model, cache, ids)
    assert [n for n in range(641) if cache.resumes(0, n)] == list(range(256 + 8 - 1, 641))
    for n in (600, 300, 263):
        got = read(model, cache, text(N_CTX, 1)[n : n + 5], 0, n)
        other = model.new_cache(N_CTX)
        read(model, other, ids[:n])
        assert got.tobytes() == read(model, other, text(N_CTX, 1)[n : n + 5], 0, n).tobytes()
    for n in (262, 1):
        with pytest.raises(IndexError, match=f"position {n} of slot 0, layers with a window have 256 and later"):
            read(model, cache, ids[:1], 0, n)
        with pytest.raises(IndexError, match=f"position {n} of slot 0, layers with a window have 256 and later"):
            cache.copy(0, 1, 0, n)
    assert read(model, cache, ids[:50]).tobytes() == read(model, model.new_cache(N_CTX), ids[:50]).tobytes()


@settings(max_examples=60)
@given(data=st.data(), window=st.integers(1, 300), n_batch=st.integers(1, 600))
def test_whatever_is_read_and_taken_back_the_window_is_there(data, window, n_batch):
    """The rows themselves are the positions, so that each can be told from another."""
    module.ROLLBACK = ROLLBACK  # hypothesis runs before the fixture
    n_ctx = 4096
    cache = KVCache(1, 1, 16, n_ctx, 2, "f32", [window], n_batch)
    n = 0
    for _ in range(data.draw(st.integers(1, 12))):
        if not cache.resumes(0, n):
            n = 0
        length = data.draw(st.integers(1, min(n_batch, n_ctx - n)))
        batch = Batch.of([0] * length, 0, n)
        (span,) = batch.spans
        cache.make_room(batch)
        rows = np.broadcast_to(np.arange(n, n + length, dtype=np.float32)[:, None, None], (length, 1, 16))
        cache.write(0, span, rows, rows)
        keys, values = cache.read(0, span)
        first = n + length - len(keys)
        assert first % module.TILE == 0 and first <= max(0, n + 1 - window)
        for array in (keys, values):
            np.testing.assert_array_equal(array[:, 0, 0], np.arange(first, n + length))
        n += length
        back = data.draw(st.integers(0, 2 * ROLLBACK))
        assert back > ROLLBACK or cache.resumes(0, max(0, n - back))
        n = max(0, n - back) if n < n_ctx else 0


def serve(scheduler, jobs):
    """Submit (prompt, options, steps before the next one), and run to the end.  -> each one's pieces"""
    pieces = [[] for _ in jobs]
    for found, (prompt, options, gap) in zip(pieces, jobs, strict=True):
        scheduler.submit(
            Job(handle=RequestHandle(), prompt=prompt, options=options, deliver=found.append, n_logprobs=1)
        )
        for _ in range(gap):
            scheduler.step()
    while not scheduler.idle:
        scheduler.step()
    return pieces


def seen(pieces):
    return [(piece.text, piece.token, repr(piece.logprob), piece.done_reason) for piece in pieces]


class Guessing(Scheduler):
    """A scheduler that guesses in every pass: the truth and then wrong tokens."""

    def _begin(self, job):
        one = super()._begin(job)
        random = np.random.default_rng(len(job.prompt))
        one.speculation.guess = lambda tokens, n, *rest: random.integers(259, 330, max(n, 0)).tolist()[:12]
        return one


asked = st.lists(
    st.tuples(st.integers(1, 900), st.integers(0, 2), st.integers(1, 40), st.integers(0, 8)), min_size=2, max_size=5
)


def test_every_request_is_answered_as_by_a_cache_that_keeps_all(models, tmp_path_factory):
    @settings(max_examples=8)
    @given(
        asked=asked,
        family=st.sampled_from(["gemma2", "gemma3", "gpt-oss"]),
        n_slot=st.integers(1, 2),
        n_batch=st.sampled_from([40, N_BATCH]),
        memory=st.sampled_from([0, ENOUGH]),
        on_disk=st.booleans(),
    )
    def check(asked, family, n_slot, n_batch, memory, on_disk):
        model, folder = models[family], tmp_path_factory.mktemp("kept") if on_disk else None
        cache = model.new_cache(N_CTX, n_slot, n_batch=n_batch)
        files = CacheFiles(folder, {}, cache, ENOUGH) if folder else None
        scheduler = Guessing(model, cache, num_batch=n_batch, guard=False, kept=KeptPrefixes(cache, memory, files))
        jobs = [(text(n, number), replace(OPTIONS, num_predict=m), gap) for n, number, m, gap in asked]
        for found, (prompt, options, _) in zip(serve(scheduler, jobs), jobs, strict=True):
            assert seen(found) == seen(complete(model, prompt, options, n_logprobs=1))

    check()


def known_tokens(scheduler, prompt, n_predict=6):
    """Answer `prompt` and check it.  -> prompt tokens that were known"""
    options = replace(OPTIONS, num_predict=n_predict)
    (pieces,) = serve(scheduler, [(prompt, options, 0)])
    assert seen(pieces) == seen(complete(scheduler.model, prompt, options, n_logprobs=1))
    return pieces[-1].timings.prompt_eval_cached_count


def scheduler_of(model, n_slot=1, memory=0, folder=None, **more):
    cache = model.new_cache(N_CTX, n_slot, n_batch=N_BATCH)
    files = CacheFiles(folder, {}, cache, ENOUGH) if folder else None
    return Scheduler(model, cache, num_batch=N_BATCH, guard=False, kept=KeptPrefixes(cache, memory, files), **more)


def test_a_conversation_goes_on_and_a_beginning_whose_window_was_dropped_is_read_again(models):
    scheduler = scheduler_of(models["gemma3"])
    assert known_tokens(scheduler, text(700)) == 0
    assert known_tokens(scheduler, [*text(700), 300]) == 700
    assert known_tokens(scheduler, [*text(650), 300]) == 650  # 64 back, and to the tile's beginning
    assert known_tokens(scheduler, [*text(200), 300]) == 0
    assert known_tokens(scheduler, [*text(100), 300]) == 100  # everything of a short text is there


def test_a_beginning_where_texts_part_is_read_twice_and_then_kept(models):
    scheduler = scheduler_of(models["gemma3"], n_slot=2, memory=ENOUGH)
    assert [known_tokens(scheduler, text(900, number)) for number in range(5)] == [0, 0, 500, 500, 500]
    assert known_tokens(scheduler, [*text(900, 2), 300]) == 900  # longer ones are kept beside it
    assert known_tokens(scheduler, text(900, 5)) == 500


def test_another_slot_takes_over_what_a_slot_still_has(models):
    scheduler = scheduler_of(models["gemma3"], n_slot=2)
    known_tokens(scheduler, text(700))
    prompts = [[*text(700), 300], [*text(690), 301], [*text(200), 302]]
    found = serve(scheduler, [(prompt, OPTIONS, 0) for prompt in prompts])
    for prompt, pieces in zip(prompts, found, strict=True):
        assert seen(pieces) == seen(complete(scheduler.model, prompt, OPTIONS, n_logprobs=1))
    assert [pieces[-1].timings.prompt_eval_cached_count for pieces in found] == [700, 690, 0]


@pytest.mark.parametrize("on_disk", [False, True])
def test_conversations_that_lost_their_slot_and_those_of_a_restarted_server_go_on(models, tmp_path, on_disk):
    more = {"folder": tmp_path} if on_disk else {"memory": ENOUGH}
    scheduler = scheduler_of(models["gemma3"], **more)
    texts = [[*np.random.default_rng(10 + i).integers(259, 330, 700).tolist()] for i in range(2)]
    assert [known_tokens(scheduler, one) for one in texts] == [0, 0]
    assert [known_tokens(scheduler, [*one, 300]) for one in texts] == [700, 700]
    assert known_tokens(scheduler, [*texts[0][:200], 300]) == 0  # the window before 200 is not among what was kept
    if on_disk:
        scheduler.save()
        restarted = scheduler_of(models["gemma3"], **more)
        assert known_tokens(restarted, [*texts[1], 301]) == 700


def test_a_cache_that_keeps_all_does_not_take_what_lacks_the_beginning(models):
    model = models["gemma3"]
    cache, whole = model.new_cache(N_CTX, n_batch=N_BATCH), model.new_cache(N_CTX, 2)
    read(model, cache, text(700)), read(model, whole, text(700))
    with pytest.raises(IndexError, match="positions 0 to 700 of a snapshot that has 256 to 700"):
        whole.restore(1, cache.snapshot(0, 700), 700, 0, 700)
    cache.restore(0, whole.snapshot(0, 700), 700, 0, 650)  # the other way round the last rows are taken
    got, expected = (read(model, one, [300], 0, 650) for one in (cache, whole))
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("same", [True, False])
def test_a_draft_model_with_windows_changes_no_bit(models, tmp_path, same):
    model = models["gemma3"]
    draft = model if same else load_model(tiny_gguf(tmp_path / "draft.gguf", "gemma3", seed=7, n_ctx=N_CTX))
    drafting = DraftModel(draft, draft.new_cache(N_CTX, 1, n_batch=N_BATCH), num_batch=N_BATCH)
    scheduler = scheduler_of(model, draft=drafting)
    for prompt in (text(600), [*text(600), 300], text(300), text(900, 1)):
        known_tokens(scheduler, prompt, 100)
    assert drafting.cache.base[0] > 0


def test_a_look_sees_dropped_positions_as_hidden_and_a_kept_one_sees_them_all(models):
    """The window of the first layer is 8, the sixth layer sees all."""
    model, wanted = models["gemma3"], {"attention": [[0, 1], [5, 2]], "lens": 2, "prompt": "last", "keep": True}
    steps, again = [], []
    for n_batch in (N_BATCH, 0):
        scheduler = Scheduler(model, model.new_cache(N_CTX, 1, n_batch=n_batch), num_batch=N_BATCH)
        serve(scheduler, [(text(600), OPTIONS, 0)])
        look = Collector(LookRequest.parse(wanted, model.hparams), model)
        pieces = []
        job = Job(handle=RequestHandle(), prompt=text(700), options=OPTIONS, deliver=pieces.append, look=look)
        scheduler.submit(job)
        while not scheduler.idle:
            scheduler.step()
        steps.append([piece.look.steps for piece in pieces if piece.look])
        (name,) = [piece.look.prompt.run for piece in pieces if piece.look and piece.look.prompt]
        run = scheduler.held[name]
        again.append([run.at(position, look.look) for position in (3, 300, 702)])
    for got, expected in zip(steps[0] + [again[0]], steps[1] + [again[1]], strict=True):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert one.attention.tobytes() == other.attention.tobytes()
            assert repr(one.lens) == repr(other.lens)
