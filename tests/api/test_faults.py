"""Faults that a server survives: disconnects, changed files, full disks, exhausted memory."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from serving import Served, until

from numllama.engine.run.scheduler import Scheduler
from numllama.engine.run.sequence import SequenceState
from numllama.engine.serve.runner import Runner
from numllama.engine.settings import Settings

GREEDY = {"temperature": 0, "num_predict": 6}
ENDLESS = {"num_predict": -1, "temperature": 3, "logit_bias": {"2": False}}


@pytest.fixture
def server(models, tmp_path):
    """Start a server with the models m and n, with one slot each."""
    server = Served(Settings(models=tmp_path / "store", builtin=False, num_parallel=1))
    server.add("m", models / "bare.gguf")
    server.add("n", models / "chat.gguf")
    yield server
    server.close()


def say(server, model="m"):
    return server.ok("/api/generate", model=model, prompt="the cat", stream=False, options=GREEDY)["response"]


def error_of(answer, status=500):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


# disconnects


class Client:
    """A client that sends a request, and disconnects on `hang_up`."""

    def __init__(self, server, **body):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port)
        self.connection.request("POST", "/api/generate", json.dumps({"model": "m"} | body))

    def hang_up(self):
        self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()


@pytest.fixture
def client(server):
    """Return a function that sends a request in a client."""
    clients = []

    def ask(**body):
        clients.append(Client(server, **body))
        return clients[-1]

    yield ask
    for one in clients:
        one.connection.close()


def running(server):
    """Return the sequences of m that have a slot."""
    loaded = [entry.runner for entry in server.engine.pool.loaded() if entry.model.name.short == "m:latest"]
    return [one.seq for runner in loaded for one in runner.scheduler.running]


def waiting(server):
    return [job for entry in server.engine.pool.loaded() for job in entry.runner.scheduler.waiting]


def is_free(server):
    """Return whether nothing waits or runs and every slot is free."""
    pool = server.engine.pool
    runners = [entry.runner for entry in pool.loaded()]
    return (
        not pool.n_waiting
        and not any(entry.n_using for entry in pool.loaded())
        and all(r.scheduler.idle and len(r.scheduler.prefixes.free) == r.cache.n_slot for r in runners)
    )


def test_a_disconnect_while_another_model_loads(server, client, monkeypatch):
    gate, load = threading.Event(), server.engine._load
    monkeypatch.setattr(server.engine, "_load", lambda *args: gate.wait(10) and load(*args))
    first = client()
    until(lambda: server.engine.pool.n_waiting == 1)
    second = client(model="n")
    until(lambda: server.engine.pool.n_waiting == 2)
    second.hang_up()
    until(lambda: server.engine.pool.n_waiting == 1)
    gate.set()
    assert json.loads(first.connection.getresponse().read())["done_reason"] == "load"
    assert is_free(server) and say(server) and say(server, "n")


def test_a_disconnect_while_its_model_loads(server, client, monkeypatch):
    gate, values = threading.Event(), []

    def loading(n_layer, tell, facts):
        def tap(name, il, value):
            values.append(name)
            gate.wait(10)
            tell(0.0)
            return value

        return tap

    monkeypatch.setattr("numllama.engine.serve.engine.loading", loading)
    one = client(prompt="a")
    until(lambda: values)
    call = server.engine.pool._queue[0][1]
    one.hang_up()
    until(lambda: call.cancelled)
    gate.set()
    until(lambda: is_free(server))
    assert len(values) == 1 and not server.engine.pool.loaded()
    assert say(server)


def test_a_disconnect_while_waiting_for_a_slot(server, client, slowly):
    expected = say(server)
    busy = client(prompt="a", options=ENDLESS)
    until(lambda: running(server))
    second = client(prompt="b", options=ENDLESS)
    until(lambda: waiting(server))
    second.hang_up()
    until(lambda: not waiting(server))
    assert running(server)
    busy.hang_up()
    until(lambda: is_free(server))
    assert say(server) == expected


def test_a_disconnect_during_prefill(server, client, slowly):
    expected = say(server)
    long = client(prompt="the cat and the dog " * 12, options=ENDLESS | {"num_batch": 1})
    until(lambda: any(seq.state is SequenceState.PREFILL and seq.n_cached > 3 for seq in running(server)))
    long.hang_up()
    until(lambda: is_free(server))
    assert say(server) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_during_decoding(server, client, slowly, stream):
    expected = say(server)
    one = client(prompt="a", options=ENDLESS, stream=stream)
    until(lambda: any(seq.n_sampled > 3 for seq in running(server)))
    one.hang_up()
    until(lambda: is_free(server))
    assert say(server) == expected


# changed files


def weights(server, name):
    return server.engine._resolve(name).weights


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file can't be changed there")
def test_deleting_the_file_of_a_running_model_does_not_end_its_answer(server, monkeypatch):
    body = {"model": "m", "prompt": "a", "options": ENDLESS | {"num_predict": 50, "seed": 1}, "stream": False}
    expected, path, look = server.ok("/api/generate", **body)["response"], weights(server, "m"), Runner._check_files

    def delete(runner):
        """Delete the file between two forward passes."""
        if any(seq.n_sampled > 3 for seq in running(server)):
            path.unlink(missing_ok=True)
        look(runner)

    monkeypatch.setattr(Runner, "_check_files", delete)
    assert server.ok("/api/generate", **body)["response"] == expected
    assert not path.exists()
    assert "missing blob of model m:latest" in error_of(server.post("/api/generate", model="m", prompt="a"))
    assert say(server, "n")


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file can't be changed there")
def test_truncating_the_file_of_a_running_model_fails_only_that_model(server, monkeypatch):
    expected, path, look = say(server, "n"), weights(server, "m"), Runner._check_files

    def cut(runner):
        """Truncate the file between two forward passes."""
        if any(seq.n_sampled > 3 for seq in running(server)):
            os.truncate(path, 1000)
        look(runner)

    monkeypatch.setattr(Runner, "_check_files", cut)
    answer = server.post("/api/generate", model="m", prompt="a", options=ENDLESS)
    assert "to 1000 bytes" in json.loads(answer.text.splitlines()[-1])["error"]
    assert say(server, "n") == expected
    assert "1000 bytes, expected" in error_of(server.post("/api/generate", model="m", prompt="a"))


def test_a_deleted_model_that_is_loaded_still_runs_as_far_as_ps_and_metrics_tell(server):
    say(server)
    say(server, "n")
    expected = server.client.get("/api/ps").json()["models"]
    assert server.client.request("DELETE", "/api/delete", json={"model": "m"}).status_code == 200
    assert not any(path.name.endswith(expected[0]["digest"]) for path in server.engine.store.blobs.folder.iterdir())
    got = server.client.get("/api/ps").json()["models"]
    assert sorted(entry["name"] for entry in got) == ["m:latest", "n:latest"]
    moment = {"expires_at": ""}
    assert [entry | moment for entry in got] == [entry | moment for entry in expected]
    assert [entry["name"] for entry in server.client.get("/api/tags").json()["models"]] == ["n:latest"]
    assert 'numllama_model_bytes{model="m:latest"}' in server.client.get("/metrics").text


# full disks


def put(server, content):
    return server.client.post(f"/api/blobs/sha256:{hashlib.sha256(content).hexdigest()}", content=content)


def test_a_store_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    server = Served(Settings(models=tmp_path / "file" / "store"))
    try:
        assert "not a directory" in error_of(put(server, b"x")).lower()
        create = server.post("/api/create", model="x", **{"from": "primer"}, stream=False)
        assert "not a directory" in error_of(create).lower()
        copy = server.post("/api/copy", source="primer", destination="x")
        assert "not a directory" in error_of(copy).lower()
    finally:
        server.close()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("not allowed to mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_reported_and_leaves_no_partial_file(small_disk, models):
    server = Served(Settings(models=small_disk, builtin=False))
    try:
        assert put(server, b"x" * 100_000).status_code == 201
        assert "no space left" in error_of(put(server, b"y" * 1_000_000)).lower()
        assert len(list((small_disk / "blobs").iterdir())) == 1
        assert put(server, b"z" * 50_000).status_code == 201  # a blob that fits is still stored
        assert server.client.get("/api/tags").json() == {"models": []}
    finally:
        server.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become someone else")
def test_an_unwritable_folder_is_named(tmp_path):
    """Root can write everywhere, so the store runs in a process of an unprivileged user."""
    program = """
import os, sys
from numllama.engine.settings import Settings
from numllama.engine.store import default_store
store = default_store(Settings(models=__import__("pathlib").Path(sys.argv[1]), builtin=False))
os.setuid(65534)
try:
    store.put_blob([b"x"])
except Exception as error:
    print(type(error).__name__, error)
"""
    folder = tmp_path / "models"
    folder.mkdir(mode=0o755)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StoreError") and "ermission denied" in done.stdout


# exhausted memory


def test_a_model_too_large_for_memory_is_refused_and_others_still_run(server, monkeypatch):
    expected = say(server, "n")
    with monkeypatch.context() as patch:
        patch.setattr("numllama.engine.serve.memory.available_memory", lambda: 100_000)
        assert "model requires more system memory" in error_of(server.post("/api/generate", model="m", prompt="a"))
    assert say(server, "m") and say(server, "n") == expected


def test_slots_too_large_for_memory_are_refused_before_allocation(server, monkeypatch):
    monkeypatch.setattr(server.engine, "settings", Settings(num_parallel=10**7))
    began = time.monotonic()
    assert "model requires more system memory" in error_of(server.post("/api/generate", model="m", prompt="a"))
    assert time.monotonic() - began < 5


# failing forward passes


def test_a_failing_forward_pass_ends_only_the_sequences_in_it(server, monkeypatch):
    expected, step = say(server), Scheduler._plan
    with monkeypatch.context() as patch:
        patch.setattr(
            Scheduler, "_plan", lambda scheduler: [(one, 1 / 0) for one in scheduler.running] or step(scheduler)
        )
        assert "internal error" in error_of(server.post("/api/generate", model="m", prompt="a", stream=False))
    assert say(server) == expected
