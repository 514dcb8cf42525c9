"""Concurrent requests: shared caches, slow clients, shutdown, several servers."""

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
from adapters import tiny_lora
from serving import Served, until, wait_for
from tiny_encoder import tiny_encoder

from numllama.api.server.connection import Connection
from numllama.api.wire.request import RequestContext
from numllama.engine.errors import Cancelled
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings
from tiny import tiny_gguf

GREEDY = {"temperature": 0, "num_predict": 4}


def ask(served, prompt, **options):
    return served.ok("/api/generate", model="bare", prompt=prompt, stream=False, options=GREEDY | options)


# timings and counts


def test_cached_tokens_are_reported_and_change_no_answer(served):
    first, second = ask(served, "the little cat was in the world"), ask(served, "the little cat was in the world")
    assert first["response"] == second["response"]
    assert first["prompt_eval_count"] == second["prompt_eval_count"]
    assert second["prompt_eval_cached_count"] == second["prompt_eval_count"] - 1


def test_speculation_is_counted_where_it_is_asked_for_and_changes_no_answer(served):
    again = {"logit_bias": {"300": 100}, "num_predict": 12}  # an answer that repeats itself
    plain, quick = ask(served, "the cat", **again, speculate="off"), ask(served, "the cat", **again, speculate="ngram")
    assert quick["response"] == plain["response"] == ask(served, "the cat", **again)["response"]
    assert (plain["draft_tokens"], plain["draft_accepted_tokens"]) == (0, 0)
    assert quick["draft_tokens"] >= quick["draft_accepted_tokens"] > 0
    assert "draft_tokens" not in ask(served, "the cat", **again)
    refused = served.post("/api/generate", model="bare", prompt="the cat", options={"speculate": "yes"})
    assert refused.status_code == 400 and "speculate" in refused.json()["error"]


def test_a_restarted_server_continues_a_conversation_without_reading_it_again(models, tmp_path):
    settings, known = Settings(models=tmp_path / "store", builtin=False, kv_cache_dir=tmp_path / "caches"), []
    for _ in range(2):
        server = Served(settings)
        server.add("bare", models / "bare.gguf")
        known.append(ask(server, "the cat and the dog " * 10)["prompt_eval_cached_count"])
        server.close()
    assert known[0] == 0 and known[1] > 40


def test_a_draft_model_is_created_loaded_counted_and_changes_no_answer(served, models, tmp_path):
    digest, _ = served.engine.store.put_blob([(models / "bare.gguf").read_bytes()])
    body = {"from": "bare", "draft_files": {"small.gguf": digest}}
    assert served.post("/api/create", model="drafted", **body, draft_quantize="q8_0").status_code == 200
    asked = {"model": "drafted", "prompt": "the cat", "stream": False}
    for options in ({"temperature": 0}, {"temperature": 2, "seed": 7}):
        options |= {"num_predict": 12}
        plain = served.ok("/api/generate", **asked | {"model": "bare"}, options=options)
        drafted = served.ok("/api/generate", **asked, options=options | {"speculate": "draft"})
        assert drafted["response"] == plain["response"]
        assert drafted["draft_tokens"] >= drafted["draft_accepted_tokens"] > 0
    shown = served.ok("/api/show", model="drafted")["modelfile"]
    assert shown.count("DRAFT ") == 1
    (drafted,) = (one for one in served.client.get("/api/ps").json()["models"] if one["name"] == "drafted:latest")
    refused = served.post("/api/generate", **asked | {"model": "bare"}, options={"speculate": "draft"})
    assert refused.status_code == 400 and "the model has no DRAFT" in refused.json()["error"]
    (bare,) = (one for one in served.client.get("/api/ps").json()["models"] if one["name"] == "bare:latest")
    assert drafted["size"] > bare["size"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("few", "few.gguf: a draft model with a vocabulary of"),
        ("embed", "cannot be a draft"),
        ("lora", "expected a draft"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused_when_the_model_is_made(served, models, tmp_path, kind, message):
    path = tmp_path / f"{kind}.gguf"
    if kind == "few":
        tiny_gguf(path, tokenizer="bpe")
    elif kind == "embed":
        tiny_encoder(path)
    else:
        tiny_lora(path, models / "bare.gguf")
    digest, _ = served.engine.store.put_blob([path.read_bytes()])
    body = {"from": "bare", "draft_files": {path.name: digest}, "stream": False}
    answer = served.post("/api/create", model="x", **body)
    assert answer.status_code == 400 and message in answer.json()["error"], answer.text


def test_a_truncated_prompt_is_reported(served):
    long = "the cat and the dog " * 20
    whole = ask(served, long)
    assert "truncated" not in whole
    cut = ask(served, long, num_ctx=32)
    assert cut["truncated"] == {"prompt_tokens": whole["prompt_eval_count"], "kept": 32}


def test_dropped_messages_are_reported_as_truncation(served):
    messages = [{"role": "user", "content": f"the cat {n}"} for n in range(20)]
    body = {"model": "m", "messages": messages, "stream": False, "options": GREEDY | {"num_ctx": 200}}
    cut = served.ok("/api/chat", **body)
    assert cut["truncated"]["kept"] == cut["prompt_eval_count"] <= 200 < cut["truncated"]["prompt_tokens"]


# clients that are slow, stuck or greedy


@pytest.fixture
def never_reads(served, caplog, monkeypatch):
    """Request 2560 tokens with logprobs, about 3 MB, without reading; return the error that ended the request."""
    caplog.set_level("DEBUG", "numllama.engine.run.scheduler")
    made = Connection.connection_made

    def with_small_buffer(connection, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # else up to 4 MB
        made(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", with_small_buffer)
    options = {"num_predict": -1, "temperature": 3, "logit_bias": {"2": False}, "seed": 1}
    body = json.dumps({"model": "bare", "prompt": "a", "options": options, "logprobs": True, "top_logprobs": 20})

    def leave():
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", served.port))
            head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            stuck.sendall((head + body).encode())
            until(lambda: any(entry.n_using for entry in served.engine.pool.loaded()))
            assert ask(served, "the cat")["done"]  # other clients are served meanwhile
            until(lambda: not any(entry.n_using for entry in served.engine.pool.loaded()), seconds=30)
        left = [record.fields for record in caplog.records if record.msg == "leaves"]
        return next(
            (fields["error"] for fields in left if "error" in fields), None
        )  # the other client's may come later

    return leave


def test_a_client_that_never_reads_is_disconnected(never_reads, monkeypatch):
    monkeypatch.setattr("numllama.api.server.connection.STALL_TIMEOUT_S", 0.05)
    assert isinstance(never_reads(), Cancelled)


def test_unread_pieces_are_bounded(never_reads, monkeypatch):
    monkeypatch.setattr("numllama.api.wire.request.MAX_UNREAD_PIECES", 200)
    assert str(never_reads()) == "client reads too slowly: more than 200 pieces of its answer are unread"


def test_the_size_of_a_body_is_limited(served, monkeypatch):
    from numllama.api.wire import request

    monkeypatch.setattr(request, "MAX_BODY_BYTES", 3_000_000)
    fits = served.post("/api/show", model="x" * 2_000_000)  # decoded in a thread
    assert fits.status_code == 400 and "error" in fits.json()
    answer = served.post("/api/show", model="x" * 3_000_000)
    assert answer.status_code == 413
    assert answer.json() == {"error": "request body exceeds the limit of 2 MiB"}


@pytest.fixture
def visits(monkeypatch):
    """Collect weak references to request contexts, with the garbage collector switched off."""
    refs, init = [], RequestContext.__init__
    monkeypatch.setattr(
        RequestContext, "__init__", lambda self, request: refs.append(weakref.ref(self)) or init(self, request)
    )
    gc.disable()
    yield refs
    gc.enable()


@pytest.mark.parametrize(("model", "n_lines"), [("bare", 1000), ("bare", 3), ("none", 1)])
def test_a_finished_request_leaves_nothing_in_memory(served, slowly, visits, model, n_lines):
    options = {"num_predict": 100, "temperature": 3, "logit_bias": {"2": False}}
    body = {"model": model, "prompt": "a", "options": options}
    with httpx.stream("POST", f"{served.url}/api/generate", json=body) as answer:
        assert list(islice(answer.iter_lines(), n_lines))
    until(lambda: visits and not any(ref() for ref in visits))


# servers in processes of their own


@pytest.fixture
def processes(models, tmp_path):
    """Return a function that starts a `numllama serve` on a shared store with the model `bare` -> (URL, process)."""
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
def test_running_streams_end_with_an_error_line_at_shutdown(processes):
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


@pytest.mark.parametrize("cache", ["full", pytest.param("empty", marks=pytest.mark.slow)])  # compiles for half a minute
def test_two_servers_share_a_store_and_a_kernel_cache(served, processes, tmp_path, cache):
    """Both get requests at once, from the first load on; then one is killed, and the other keeps working."""
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
    ).raise_for_status()  # the killed process left no lock
    assert second.poll() is None
