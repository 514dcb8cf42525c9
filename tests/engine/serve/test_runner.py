"""A runner on a tiny model: order, cancelling, errors, memory and load progress."""

from __future__ import annotations

import os
import re
import sys
import threading
from dataclasses import replace
from queue import SimpleQueue

import pytest
from adapters import tiny_lora

from numllama.engine.errors import Cancelled, ContextFull, ModelError, OutOfMemory, ShuttingDown
from numllama.engine.handle import RequestHandle
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.job import Job
from numllama.engine.run.request import complete
from numllama.engine.serve.runner import Runner
from tiny import tiny_gguf
from tiny_llava import tiny_mmproj

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


class Client:
    """One job, its pieces, and whether `finished` was called before the last."""

    def __init__(self, runner, prompt, options=GREEDY, **settings):
        self.handle, self.pieces, self.finished = RequestHandle(), SimpleQueue(), threading.Event()
        settings = {"truncate": True, "shift": True, "n_logprobs": None, "echo": False} | settings
        runner.submit(
            Job(
                handle=self.handle,
                prompt=prompt,
                options=options,
                **settings,
                deliver=self.pieces.put,
                finished=self.finished.set,
            )
        )

    def rest(self):
        """Return all remaining pieces; the last one may be an error."""
        out = []
        while not (out and (isinstance(out[-1], Exception) or out[-1].done_reason)):
            out.append(self.pieces.get(timeout=20))
        assert self.finished.is_set()
        return out


def test_a_job_is_answered_as_by_complete(model, runner):
    expected = list(complete(model, [1, 300, 301], GREEDY))
    got = Client(runner, [1, 300, 301]).rest()
    assert [p.token for p in got] == [p.token for p in expected]
    assert got[-1].done_reason == "length" and got[-1].timings.eval_count == 8


def test_concurrent_jobs_are_answered_as_each_alone(runner):
    alone = [[p.token for p in Client(runner, [1, 300 + i]).rest()] for i in range(4)]
    together = [Client(runner, [1, 300 + i]) for i in range(4)]
    assert [[p.token for p in client.rest()] for client in together] == alone


def test_cancelling_ends_a_job_within_a_token(runner):
    client = Client(runner, [1, 300], replace(GREEDY, num_predict=-1, temperature=2.0, seed=1))
    client.pieces.get(timeout=20)
    client.handle.cancel()
    assert isinstance(client.rest()[-1], Cancelled)
    assert Client(runner, [1, 300]).rest()[-1].done_reason == "length"  # the runner still works


def test_a_job_cancelled_in_the_queue_never_starts(runner):
    first, second = Client(runner, [1, 300]), Client(runner, [1, 301])
    second.handle.cancel()
    assert [type(p) for p in second.rest()] == [Cancelled]
    assert first.rest()[-1].done_reason == "length"


def test_an_error_is_the_last_delivery(runner):
    [error] = Client(runner, [1] * 100, truncate=False).rest()
    assert isinstance(error, ContextFull)


def test_stopping_ends_running_waiting_and_late_jobs(model):
    runner = Runner(model, GREEDY, n_slot=1)
    endless = replace(GREEDY, num_predict=-1, temperature=2.0, seed=1)
    first, second = Client(runner, [1, 300], endless), Client(runner, [1, 301], endless)
    first.pieces.get(timeout=20)
    runner.stop(ShuttingDown())
    runner._thread.join(5)
    late = Client(runner, [1, 302])
    for client in (first, second, late):
        assert str(client.rest()[-1]) == "the server is shutting down"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not allow changes to a mapped file")
def test_a_deleted_file_stays_usable_and_a_truncated_one_ends_every_job(tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    runner = Runner(load_model(path), GREEDY)
    expected = [p.token for p in Client(runner, [1, 300]).rest()]
    kept = path.rename(tmp_path / "elsewhere")
    assert [p.token for p in Client(runner, [1, 300]).rest()] == expected
    kept.rename(path)
    os.truncate(path, 1000)
    [error] = Client(runner, [1, 300]).rest()
    assert re.search(r"truncated from \d+ to 1000 bytes", str(error)) and not runner.serves(GREEDY)
    runner.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file can't be changed there")
@pytest.mark.parametrize("part", ["model", "adapter", "projector"])
def test_a_file_that_is_cut_and_then_replaced_by_a_whole_one_is_not_read(tmp_path, part):
    """The map is still of the cut file: reading it would end the process with SIGBUS."""
    base = tiny_gguf(tmp_path / "model.gguf")
    adapter = tiny_lora(tmp_path / "adapter.gguf", base)
    projector = tiny_mmproj(tmp_path / "projector.gguf")
    model = load_model(base, {adapter: 1.0}, projector)
    runner = Runner(model, GREEDY)
    path = tmp_path / f"{part}.gguf"
    whole = path.read_bytes()
    os.truncate(path, 1000)
    (tmp_path / "repaired").write_bytes(whole)
    os.replace(tmp_path / "repaired", path)
    [error] = Client(runner, [1, 300]).rest()
    assert str(error) == f"{path} was truncated from {len(whole)} to 1000 bytes" and not runner.serves(GREEDY)
    runner.close()
    if part == "projector":
        with pytest.raises(ModelError, match="to 1000 bytes"):
            runner.images.encode(b"", RequestHandle())
    assert model.nbytes > len(whole) / 2  # told from the map


def test_there_are_four_slots_if_a_quarter_of_the_memory_holds_their_caches(model, monkeypatch):
    from numllama.engine.serve import memory as module

    four = module.cache_size(model, 64, 4, "f16")
    assert four == model.new_cache(64, 4).nbytes
    for available, n_slot in ((None, 4), (4 * four, 4), (4 * four - 1, 1)):
        monkeypatch.setattr(module, "available_memory", lambda available=available: available)
        assert module.default_slots(model, 64, "f16") == n_slot


def test_a_cancelled_load_ends_after_the_current_layer(model, monkeypatch):
    from numllama.engine.serve.runner import loading

    monkeypatch.setattr("numllama.engine.model.whole.PRODUCTS_PER_CALL", 1)  # each layer is a separate call
    fractions = []

    def progress(fraction):
        fractions.append(fraction)
        if len(fractions) == 2:
            raise Cancelled()

    with pytest.raises(Cancelled):
        Runner(model, GREEDY, tap=loading(2, progress, {}))
    assert fractions == [0.0, 0.5]  # the embeddings, and the first of two layers


def test_a_long_load_logs_its_progress(model, monkeypatch, caplog):
    from numllama.engine.serve import runner as module

    monkeypatch.setattr(module, "LOG_INTERVAL_S", 0.0)
    monkeypatch.setattr("numllama.engine.model.whole.PRODUCTS_PER_CALL", 1)  # each layer is a separate call
    with caplog.at_level("INFO", "numllama.engine.serve.runner"):
        Runner(model, GREEDY, tap=module.loading(2, lambda fraction: None, {"model": "m"})).close()
    assert caplog.records[1].fields == {"model": "m", "layer": "1/2"}


def test_a_cache_larger_than_memory_is_refused_before_it_is_allocated(model, monkeypatch):
    from numllama.engine.serve import memory as module

    monkeypatch.setattr(module, "available_memory", lambda: 100_000)
    with pytest.raises(OutOfMemory, match=r"more system memory .* than is available") as refusal:
        Runner(model, GREEDY)
    assert refusal.value.needed > 100_000
