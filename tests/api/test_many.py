"""Many requests at once, what they share, and how they end."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import httpx
import pytest
from serving import until, wait_for

from numllama.api.wire.request import RequestContext
from numllama.engine.errors import Cancelled
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings

GREEDY = {"temperature": 0, "num_predict": 4}


def ask(served, prompt, **options):
    return served.ok("/api/generate", model="bare", prompt=prompt, stream=False, options=GREEDY | options)


# figures


def test_what_the_cache_knew_is_said_and_changes_nothing(served):
    first, second = ask(served, "the little cat was in the world"), ask(served, "the little cat was in the world")
    assert first["response"] == second["response"]
    assert first["prompt_eval_count"] == second["prompt_eval_count"]
    assert second["prompt_eval_cached_count"] == second["prompt_eval_count"] - 1


def test_a_cut_prompt_is_said_to_be_cut(served):
    long = "the cat and the dog " * 20
    whole = ask(served, long)
    assert "truncated" not in whole
    cut = ask(served, long, num_ctx=32)
    assert cut["truncated"] == {"prompt_tokens": whole["prompt_eval_count"], "kept": 32}


def test_a_conversation_without_its_oldest_messages_is_said_to_be_cut(served):
    messages = [{"role": "user", "content": f"the cat {n}"} for n in range(20)]
    body = {"model": "m", "messages": messages, "stream": False, "options": GREEDY | {"num_ctx": 200}}
    cut = served.ok("/api/chat", **body)
    assert cut["truncated"]["kept"] == cut["prompt_eval_count"] <= 200 < cut["truncated"]["prompt_tokens"]


# clients that are slow, stuck or greedy


@pytest.fixture
def never_reads(served, caplog):
    """Asks for 2560 tokens with logprobs, some 6 MB, and reads nothing; what ended that is returned."""
    caplog.set_level("DEBUG", "numllama.engine.run.scheduler")
    options = {"num_predict": -1, "temperature": 3, "logit_bias": {"2": False}, "seed": 1}
    body = json.dumps({"model": "bare", "prompt": "a", "options": options, "logprobs": True, "top_logprobs": 20})

    def leave():
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", served.port))
            head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            stuck.sendall((head + body).encode())
            until(lambda: any(entry.n_using for entry in served.engine.pool.loaded()))
            assert ask(served, "the cat")["done"]  # others are answered meanwhile
            until(lambda: not any(entry.n_using for entry in served.engine.pool.loaded()), seconds=30)
        return [record.fields.get("error") for record in caplog.records if record.msg == "leaves"][-1]

    return leave


def test_a_client_that_never_reads_is_broken_off(never_reads, monkeypatch):
    monkeypatch.setattr("numllama.api.server.connection.PATIENCE", 0.05)
    assert isinstance(never_reads(), Cancelled)


def test_what_waits_for_a_client_is_bounded(never_reads, monkeypatch):
    monkeypatch.setattr("numllama.api.wire.request.MAX_UNREAD_PIECES", 200)
    assert str(never_reads()) == "the client is too slow: 200 pieces of its answer wait for it"


def test_a_body_may_be_so_large_and_no_larger(served, monkeypatch):
    from numllama.api.wire import request as visit

    monkeypatch.setattr(visit, "MAX_BODY", 3_000_000)
    fits = served.post("/api/show", model="x" * 2_000_000)  # decoded in a thread
    assert fits.status_code == 400 and "error" in fits.json()
    answer = served.post("/api/show", model="x" * 3_000_000)
    assert answer.status_code == 413
    assert answer.json() == {"error": "the request's body is larger than 2 MiB"}


@pytest.fixture
def visits(monkeypatch):
    """Weak references to requests from now on, while nothing collects cycles."""
    refs, init = [], RequestContext.__init__
    monkeypatch.setattr(
        RequestContext, "__init__", lambda self, request: refs.append(weakref.ref(self)) or init(self, request)
    )
    gc.disable()
    yield refs
    gc.enable()


@pytest.mark.parametrize(("model", "n_lines"), [("bare", 1000), ("bare", 3), ("none", 1)])
def test_nothing_stays_in_memory_of_one_who_was_answered_or_left_or_was_refused(served, slowly, visits, model, n_lines):
    options = {"num_predict": 100, "temperature": 3, "logit_bias": {"2": False}}
    body = {"model": model, "prompt": "a", "options": options}
    with httpx.stream("POST", f"{served.url}/api/generate", json=body) as answer:
        assert list(islice(answer.iter_lines(), n_lines))
    until(lambda: visits and not any(ref() for ref in visits))


# servers that are processes


@pytest.fixture
def processes(models, tmp_path):
    """Called, it starts one more `numllama serve`, with the model bare in a store of all: its URL and the process."""
    engine = Engine(Settings(models=tmp_path, builtin=False))
    digest, _ = engine.store.put_blob([(models / "bare.gguf").read_bytes()])
    list(engine.create("bare", files={"bare.gguf": digest}))
    engine.close()
    begun = []

    def begin(**environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        own = {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(tmp_path), "NUMLLAMA_BUILTIN": "0"}
        command = [sys.executable, "-c", "from numllama.api.cli import main; main()", "serve"]
        begun.append(subprocess.Popen(command, env=os.environ | own | environment, stderr=subprocess.PIPE, text=True))
        return url, begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to send")
def test_streams_end_with_a_word_when_the_server_is_told_to_stop(processes):
    url, server = processes()
    wait_for(server)
    body = {
        "model": "bare",
        "prompt": "a",
        "options": {"num_predict": -1, "temperature": 3, "logit_bias": {"2": False}},
    }
    with httpx.stream("POST", f"{url}/api/generate", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert not json.loads(next(lines))["done"]
        server.send_signal(signal.SIGINT)
        *_, last = lines
    assert json.loads(last) == {"error": "the server is shutting down"}
    assert server.wait(30) == 0
    assert "Traceback" not in server.stderr.read()


@pytest.mark.parametrize("cache", ["full", pytest.param("empty", marks=pytest.mark.slow)])  # half a minute of compiling
def test_two_servers_share_store_and_cache_and_disturb_each_other_in_nothing(served, processes, tmp_path, cache):
    """Both asked at once, from the first load on; then one is killed, and the other one stays."""
    variables = {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")} if cache == "empty" else {}
    begun = [processes(**variables) for _ in range(2)]
    for _, process in begun:
        wait_for(process)
    body = {"model": "bare", "stream": False, "options": {"temperature": 0, "num_predict": 8}}
    prompts = [f"the cat {n}" for n in range(4)]
    expected = [served.ok("/api/generate", **body, prompt=prompt)["response"] for prompt in prompts]

    def ask(url, prompt):
        answer = httpx.post(f"{url}/api/generate", json=body | {"prompt": prompt}, timeout=300)
        return answer.json()["response"]

    with ThreadPoolExecutor(8) as threads:
        got = [[threads.submit(ask, url, prompt) for prompt in prompts] for url, _ in begun]
        assert [[one.result() for one in each] for each in got] == [expected, expected]
    (_, first), (url, second) = begun
    first.kill()
    first.wait(10)
    assert ask(url, prompts[0]) == expected[0]
    httpx.post(
        f"{url}/api/copy", json={"source": "bare", "destination": "other"}
    ).raise_for_status()  # no lock was left
    assert second.poll() is None
