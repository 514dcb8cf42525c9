"""A runner on a tiny model: order, cancelling, and what it reports."""

from __future__ import annotations

import os
import re
import sys
import threading
from dataclasses import replace
from queue import SimpleQueue

import pytest

from numllama.engine.errors import Cancelled, ContextFull, OutOfMemory, ShuttingDown
from numllama.engine.handle import RequestHandle
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.job import Job
from numllama.engine.run.request import complete
from numllama.engine.serve.runner import Runner
from tiny import tiny_gguf

GREEDY = Options(temperature=0.0, num_predict=8, num_ctx=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf"))


@pytest.fixture
def runner(model):
    runner = Runner(model, GREEDY)
    yield runner
    runner.close()
    runner._thread.join(5)
    assert not runner._thread.is_alive()


class Asker:
    """One job's pieces as they come, and whether it was finished before the last."""

    def __init__(self, runner, prompt, options=GREEDY, **how):
        self.handle, self.pieces, self.finished = RequestHandle(), SimpleQueue(), threading.Event()
        how = {"truncate": True, "shift": True, "n_logprobs": None, "echo": False} | how
        runner.submit(
            Job(
                handle=self.handle,
                prompt=prompt,
                options=options,
                **how,
                deliver=self.pieces.put,
                finished=self.finished.set,
            )
        )

    def rest(self):
        """All pieces up to the last one, which may be an error."""
        out = []
        while not (out and (isinstance(out[-1], Exception) or out[-1].done_reason)):
            out.append(self.pieces.get(timeout=20))
        assert self.finished.is_set()
        return out


def test_it_says_what_generate_says(model, runner):
    expected = list(complete(model, [1, 300, 301], GREEDY))
    got = Asker(runner, [1, 300, 301]).rest()
    assert [p.token for p in got] == [p.token for p in expected]
    assert got[-1].done_reason == "length" and got[-1].timings.eval_count == 8


def test_jobs_are_served_in_their_order_and_each_as_if_alone(runner):
    alone = [[p.token for p in Asker(runner, [1, 300 + i]).rest()] for i in range(4)]
    together = [Asker(runner, [1, 300 + i]) for i in range(4)]
    assert [[p.token for p in asker.rest()] for asker in together] == alone


def test_cancelling_ends_it_within_a_token(runner):
    asker = Asker(runner, [1, 300], replace(GREEDY, num_predict=-1, temperature=2.0, seed=1))
    asker.pieces.get(timeout=20)
    asker.handle.cancel()
    assert isinstance(asker.rest()[-1], Cancelled)
    assert Asker(runner, [1, 300]).rest()[-1].done_reason == "length"  # and the runner goes on


def test_what_is_cancelled_while_it_waits_is_never_begun(runner):
    first, second = Asker(runner, [1, 300]), Asker(runner, [1, 301])
    second.handle.cancel()
    assert [type(p) for p in second.rest()] == [Cancelled]
    assert first.rest()[-1].done_reason == "length"


def test_an_error_is_the_last_thing_delivered(runner):
    [error] = Asker(runner, [1] * 100, truncate=False).rest()
    assert isinstance(error, ContextFull)


def test_stopping_ends_what_runs_and_what_waits_and_what_comes_too_late(model):
    runner = Runner(model, GREEDY, n_slot=1)
    endless = replace(GREEDY, num_predict=-1, temperature=2.0, seed=1)
    first, second = Asker(runner, [1, 300], endless), Asker(runner, [1, 301], endless)
    first.pieces.get(timeout=20)
    runner.stop(ShuttingDown())
    runner._thread.join(5)
    late = Asker(runner, [1, 302])
    for asker in (first, second, late):
        assert str(asker.rest()[-1]) == "the server is shutting down"


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file can't be changed there")
def test_a_file_that_is_deleted_or_cut_while_loaded(tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    runner = Runner(load_model(path), GREEDY)
    expected = [p.token for p in Asker(runner, [1, 300]).rest()]
    kept = path.rename(tmp_path / "elsewhere")
    assert [p.token for p in Asker(runner, [1, 300]).rest()] == expected
    kept.rename(path)
    os.truncate(path, 1000)
    [error] = Asker(runner, [1, 300]).rest()
    assert re.search(r"1000 bytes, \d+ when it was loaded", str(error)) and not runner.serves(GREEDY)
    runner.close()


def test_there_are_as_many_slots_as_a_quarter_of_the_memory_holds(model, monkeypatch):
    from numllama.engine.serve import memory as module

    four = module.cache_size(model, 64, 4, "f16")
    assert four == model.new_cache(64, 4).nbytes
    for available, n_slot in ((None, 4), (4 * four, 4), (4 * four - 1, 1)):
        monkeypatch.setattr(module, "available_memory", lambda available=available: available)
        assert module.default_slots(model, 64, "f16") == n_slot


def test_a_cancelled_load_ends_with_the_layer(model, monkeypatch):
    from numllama.engine.serve.runner import loading

    monkeypatch.setattr("numllama.engine.model.whole.PRODUCTS_PER_CALL", 1)  # each layer is a call of its own
    told = []

    def tell(fraction):
        told.append(fraction)
        if len(told) == 2:
            raise Cancelled()

    with pytest.raises(Cancelled):
        Runner(model, GREEDY, tap=loading(2, tell, {}))
    assert told == [0.0, 0.5]  # the embeddings, and the first of two layers


def test_a_long_load_says_how_far_it_is(model, monkeypatch, caplog):
    from numllama.engine.serve import runner as module

    monkeypatch.setattr(module, "SAY_EVERY", 0.0)
    monkeypatch.setattr("numllama.engine.model.whole.PRODUCTS_PER_CALL", 1)  # each layer is a call of its own
    with caplog.at_level("INFO", "numllama.engine.serve.runner"):
        Runner(model, GREEDY, tap=module.loading(2, lambda fraction: None, {"model": "m"})).close()
    assert caplog.records[1].fields == {"model": "m", "layer": "1/2"}


def test_a_cache_larger_than_memory_is_refused_before_it_is_made(model, monkeypatch):
    from numllama.engine.serve import memory as module

    monkeypatch.setattr(module, "available_memory", lambda: 100_000)
    with pytest.raises(OutOfMemory, match=r"more system memory .* than is available") as refusal:
        Runner(model, GREEDY)
    assert refusal.value.needed > 100_000
