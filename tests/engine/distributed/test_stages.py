"""Models in stages on a Ray cluster: pytest -m ray."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from adapters import tiny_lora

from numllama.engine.distributed import pipeline
from numllama.engine.distributed.stage import Stage
from numllama.engine.errors import CacheLost, EngineError
from numllama.engine.handle import RequestHandle
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.model.trace import Trace
from numllama.engine.options import Options
from numllama.engine.run.job import Job
from numllama.engine.run.request import complete
from numllama.engine.run.scheduler import Scheduler
from numllama.kernels import NUMBA
from tiny import FAMILIES, tiny_gguf

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

N_CTX = 64
IDS = [1, *range(260, 300)]


@pytest.fixture
def staged(cluster, tmp_path):
    """Return a function that makes a model and its cache in stages; they end with the test."""
    caches = []

    def make(family="llama", n_stage=2, adapter=False, n_slot=2, n_ctx=N_CTX, n_batch=0, stage=Stage):
        path = tiny_gguf(tmp_path / f"{family}.gguf", family, "Q4_0", n_ctx=max(256, n_ctx))
        adapters = [tiny_lora(tmp_path / "lora.gguf", path)] if adapter else []
        model = load_model(path, dict.fromkeys(adapters, 1.0))
        caches.append(
            pipeline.StagedCache(adapters, model, n_ctx, n_slot, "f16", n_batch, n_stage=n_stage, stage_class=stage)
        )
        return model, caches[-1]

    yield make
    for cache in caches:
        cache.close()


def answer(scheduler, ids, options):
    """Answer a prompt.  -> its pieces"""
    pieces = []
    scheduler.submit(Job(handle=RequestHandle(), prompt=ids, options=options, deliver=pieces.append))
    while not scheduler.idle:
        scheduler.step()
    return pieces


@pytest.mark.parametrize("family", sorted({"llama", *FAMILIES} - {"gemma-embedding"}))  # which generates nothing
def test_every_family_has_the_bits_of_one_process(staged, family):
    model, cache = staged(family)
    own = model.new_cache(N_CTX, 2)
    for batch in (Batch.of(IDS, outputs=range(len(IDS))), Batch.of([301], 0, len(IDS)), Batch.of([302], 1, 0)):
        got, expected = (forward(model, batch, one, NUMBA) for one in (cache, own))
        np.testing.assert_array_equal(got, expected)
    for got, expected in zip(cache.snapshot(0, len(IDS)), own.snapshot(0, len(IDS)), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_stages_are_on_as_many_nodes_as_there_are(staged):
    for _ in range(2):  # by chance, one in four would be right
        _, cache = staged("smollm3", n_stage=3)
        one, other, last = (node for node, _ in cache._all(lambda stage: stage.place.remote()))
        assert one == other != last and cache.n_at_once == 2


def test_adapters_have_the_bits_of_one_process(staged):
    model, cache = staged(adapter=True)
    batch = Batch.of(IDS)
    np.testing.assert_array_equal(
        forward(model, batch, cache, NUMBA), forward(model, batch, model.new_cache(N_CTX), NUMBA)
    )


def test_answers_are_those_of_one_process_with_shifts_and_reuse(staged):
    model, cache = staged(n_stage=2)
    scheduler = Scheduler(model, cache, guard=False)
    options = Options(num_ctx=N_CTX, num_predict=60, temperature=1.0, seed=3, ignore_eos=True)
    for ids in (IDS, IDS[:30], [*IDS, 310]):
        got = [piece.token for piece in answer(scheduler, ids, options)]
        assert got == [piece.token for piece in complete(model, ids, options)]


def test_layers_with_a_window_keep_a_part_in_every_stage(staged):
    """1,700 tokens are more than a window of 8, a pass of 64 and the 1,024 positions before."""
    model, cache = staged("gemma3", n_stage=3, n_slot=1, n_ctx=2048, n_batch=64)
    scheduler = Scheduler(model, cache, guard=False, num_batch=64)
    options = Options(num_ctx=2048, num_predict=20, temperature=1.0, seed=3, ignore_eos=True)
    long = np.random.default_rng(0).integers(259, 330, 1700).tolist()
    for ids, n_known in ((long, 0), ([*long, 300], 1700), (long[:1200], 1199), (long[:90], 0), (long[:1600], 90)):
        *pieces, last = answer(scheduler, ids, options)
        assert [piece.token for piece in pieces] == [piece.token for piece in complete(model, ids, options)][:-1]
        assert last.timings.prompt_eval_cached_count == n_known
    other = model.new_cache(2048, 2, n_batch=64)
    other.restore(1, cache.snapshot(0, 1610), 1610, 0, 1610)
    cache.restore(0, other.snapshot(1, 1600), 1600, 0, 1600)
    whole = model.new_cache(2048)
    forward(model, Batch.of(long[:1600], outputs=()), whole, NUMBA)
    got, expected = (forward(model, Batch.of([300], 0, 1600), one, NUMBA) for one in (cache, whole))
    np.testing.assert_array_equal(got, expected)
    assert cache.base[0] > 0


def test_taps_see_and_change_values_across_stages(staged):
    model, cache = staged()
    theirs, ours = Trace(), Trace()
    forward(model, Batch.of(IDS), cache, NUMBA, theirs)
    forward(model, Batch.of(IDS), model.new_cache(N_CTX), NUMBA, ours)
    assert list(theirs.values) == list(ours.values)
    for key, value in ours.values.items():
        np.testing.assert_array_equal(theirs.values[key], value)

    def without(name, il, value):
        return np.zeros_like(value) if (name, il) == ("kqv_out", 1) else value

    got, expected = (forward(model, Batch.of(IDS), one, NUMBA, without) for one in (cache, model.new_cache(N_CTX)))
    np.testing.assert_array_equal(got, expected)


def test_a_stage_that_ends_is_one_clear_error_and_the_next_request_is_right(staged):
    model, cache = staged()
    scheduler = Scheduler(model, cache, guard=False)
    options = Options(num_ctx=N_CTX, num_predict=8, temperature=0.0, ignore_eos=True)
    expected = [piece.token for piece in complete(model, IDS, options)]
    assert [piece.token for piece in answer(scheduler, IDS, options)] == expected
    os.kill(ray.get(cache.stages[1].pid.remote()), signal.SIGKILL)
    began = time.monotonic()
    *_, last = answer(scheduler, IDS, options)
    assert isinstance(last, CacheLost) and "stage 2 of 2 (layers 1 to 1) ended" in str(last)
    assert time.monotonic() - began < 5
    for _ in range(60):  # until it is there again
        pieces = answer(scheduler, IDS, options)
        if not isinstance(pieces[-1], Exception):
            break
        time.sleep(0.5)
    assert [piece.token for piece in pieces] == expected


def test_requests_that_decode_together_are_in_different_stages_at_once(staged, tmp_path):
    log = tmp_path / "log"

    class Slow(Stage):
        def run(self, x, batch):
            began = time.time()
            time.sleep(0.25)  # longer than the noise of a busy machine
            with open(log, "a") as file:
                file.write(f"{self.first} {len(x)} {began} {time.time()}\n")
            return super().run(x, batch)

    n = 4 * pipeline.ROWS_AS_WEIGHTS
    model, cache = staged(stage=Slow, n_slot=n)
    scheduler = Scheduler(model, cache, guard=False)
    options, pieces = Options(num_ctx=N_CTX, num_predict=3, temperature=0.0, ignore_eos=True), []
    for i in range(n):
        prompt = [1, 260 + i]
        scheduler.submit(Job(handle=RequestHandle(), prompt=prompt, options=options, deliver=pieces.append))
    scheduler.step()
    log.unlink()
    scheduler.step()
    calls = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    assert [(first, n) for first, n, _, _ in calls] == [(0, n / 2)] * 2 + [(1, n / 2)] * 2
    (_, _, began_second, ended_second), (_, _, began_first, ended_first) = calls[1:3]
    assert min(ended_first, ended_second) - max(began_first, began_second) > 0.1


def test_a_stage_whose_code_fails_costs_the_request_alone(staged):
    class Failing(Stage):
        def run(self, x, batch):
            if len(x) == 3:
                raise ValueError("three")
            return super().run(x, batch)

    model, cache = staged(stage=Failing)
    with pytest.raises(EngineError, match=r"a stage failed: ValueError\('three'\)"):
        forward(model, Batch.of(IDS[:3]), cache, NUMBA)
    batch = Batch.of(IDS)
    np.testing.assert_array_equal(
        forward(model, batch, cache, NUMBA), forward(model, batch, model.new_cache(N_CTX), NUMBA)
    )


def test_a_stage_that_cannot_load_says_why(staged):
    class Missing(Stage):
        def __init__(self, *arguments):
            raise FileNotFoundError("no model at this path")

    with pytest.raises(EngineError, match=r"^a stage did not start: FileNotFoundError: no model at this path$"):
        staged(stage=Missing)


def test_parts_larger_than_what_sockets_hold_do_not_wait_for_one_another(staged):
    class Echo(Stage):
        def run(self, x, batch):
            return x

    _, cache = staged(stage=Echo)
    ring = pipeline.Ring(ray, cache.stages)
    rows = [np.full((1024, 1024), i, np.float32) for i in range(6)]
    for (got, _), expected in zip(ring.run([(x, None) for x in rows]), rows, strict=True):
        np.testing.assert_array_equal(got, expected)
    ring.close()
