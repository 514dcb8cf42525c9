"""`numllama compare`: models here, our own server, and small servers of each wire."""

import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest

from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.kernels import SETS
from tiny import tiny_gguf

TEXT = "once upon a time there was a little boy"


@contextmanager
def serving(routes):
    """Serve functions body -> JSON by path; one that raises ValueError answers with status 400."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            route = routes.get(self.path)
            try:
                status, value = (200, route(json.loads(body or b"{}"))) if route else (404, {"error": "no such route"})
            except ValueError as error:
                status, value = 400, {"error": {"message": str(error)}}
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Predictor(tmp_path_factory.mktemp("other"))


class Predictor:
    """Another engine: the model of `file` in float64, with the routes of each wire."""

    def __init__(self, folder):
        self.model = load_model(tiny_gguf(folder / "m.gguf", seed=1))
        self.tokenizer = self.model.tokenizer

    def ln(self, ids):
        logits = forward(
            self.model,
            Batch.of(ids, outputs=range(len(ids))),
            self.model.new_cache(len(ids), type="f64"),
            SETS["numpy-float64"],
        )
        return logits - np.logaddexp.reduce(logits, axis=1)[:, None]

    def text(self, id):
        return self.tokenizer.piece(int(id)).decode("utf-8", "replace")

    def entries(self, ln, n):
        return [
            {"id": int(id), "token": self.text(id), "bytes": list(self.tokenizer.piece(int(id))), "logprob": ln[id]}
            for id in np.argsort(-ln)[:n]
        ]

    def llama_server(self):
        def tokenize(body):
            ids = self.tokenizer.encode(body["content"], add_special=body["add_special"], parse_special=False)
            return {"tokens": [{"id": id, "piece": self.text(id)} for id in ids]}

        def completion(body):
            assert body["n_predict"] == 1 and all(isinstance(id, int) for id in body["prompt"])
            return {
                "completion_probabilities": [
                    {"top_logprobs": self.entries(self.ln(body["prompt"])[-1], body["n_probs"])}
                ]
            }

        models = {"data": [{"id": "tiny", "meta": {"n_vocab": self.model.hparams.n_vocab}}]}
        return {
            "/props": lambda _: {"default_generation_settings": {}},
            "/v1/models": lambda _: models,
            "/tokenize": tokenize,
            "/completion": completion,
        }

    def openai(self, with_bos=False):
        def completions(body):
            if body["logprobs"] > 5 or body["max_tokens"] < 1:
                raise ValueError("at most 5 logprobs, at least 1 token")
            ids = self.tokenizer.encode(body["prompt"])
            rows, texts = self.ln(ids), [self.text(id) for id in ids]
            lns = [None, *(float(row[id]) for row, id in zip(rows, ids[1:], strict=False))]
            tops = [
                None,
                *({e["token"]: e["logprob"] for e in reversed(self.entries(row, body["logprobs"]))} for row in rows),
            ]
            first = 0 if with_bos else 1
            offsets = np.cumsum([0, *(len(text) for text in texts[1:])]) - 1
            found = {
                "tokens": [*texts, "x"][first:],
                "token_logprobs": [*lns, -1.0][first:],
                "top_logprobs": [*tops][first:],
                "text_offset": [0, *map(int, offsets)][first:],
            }
            return {"choices": [{"text": body["prompt"], "logprobs": found}]}

        return {"/v1/completions": completions}

    def ollama(self):
        def generate(body):
            assert body["raw"] and body["top_logprobs"] <= 20
            ids = self.tokenizer.encode(body["prompt"])
            entries = self.entries(self.ln(ids)[-1], body["top_logprobs"])
            return {
                "response": entries[0]["token"],
                "logprobs": [entries[0] | {"top_logprobs": entries}],
                "prompt_eval_count": len(ids),
            }

        return {"/api/generate": generate}


def compared(numllama, a, b, *more):
    status, out, err = numllama("compare", a, b, "-f", "-", "--json", "--kernels", "exact", *more, stdin=TEXT)
    assert (status, err) == (0, "")
    return json.loads(out)


def test_two_models_are_compared_in_this_process(numllama, alone, file):
    status, out, err = numllama("compare", file, "m", "--text", "-", "--kernels", "exact,numba", stdin=TEXT)
    assert (status, err) == (0, "") and "same likeliest token" in out and "kernels numba, cache f16" in out
    report = compared(numllama, file, file)
    assert report["kl"] == {"value": 0, "error": 0, "at_least": False} and report["same_top"]["value"] == 1
    assert report["first_other_token"] is None and report["ln_ratio"]["value"] == 0
    other = compared(numllama, file, "bare")
    assert (
        other["kl"]["value"] > 0.1 and other["first_other_token"]["a"]["p_a"] > other["first_other_token"]["b"]["p_a"]
    )
    assert numllama("compare", file, file, "--tokens", "3", "--json").out.count('"places": 3,') == 1


@pytest.mark.parametrize("wire", ["llama_server", "openai", "ollama"])
def test_a_server_with_the_same_model_agrees(numllama, file, engine, wire):
    with serving(getattr(engine, wire)()) as url:
        report = compared(numllama, file, f"{url}#tiny")
    assert report["kl"]["value"] < 1e-5 and report["same_top"]["value"] == 1
    assert report["kl"]["at_least"] == (wire != "llama_server")  # which lists the whole vocabulary
    assert report["total_variation"]["least"] < 1e-3 and report["places"] >= 7  # one begins with part of a character
    exact = report["a"]["perplexity"]["value"]
    if wire == "ollama":
        assert report["b"]["perplexity"]["at_least"] and report["b"]["perplexity"]["value"] <= exact * 1.001
        assert report["skipped"] == 1  # an empty prompt
    else:
        assert report["b"]["perplexity"]["value"] == pytest.approx(exact, rel=1e-4)


def test_a_server_with_another_model_differs(numllama, alone, engine):
    with serving(engine.llama_server()) as url:
        there = compared(numllama, "bare", f"{url}#tiny")
    assert there["kl"]["value"] > 0.1 and there["first_other_token"]["token"] < 8
    with serving(engine.ollama()) as url:
        listed = compared(numllama, "bare", f"{url}#tiny")
    assert 0 < listed["kl"]["value"] < there["kl"]["value"] * 1.2 and listed["kl"]["at_least"]


def test_two_servers_are_compared_by_tokens_or_by_words(numllama, engine):
    with serving(engine.llama_server()) as a, serving(engine.openai(with_bos=True)) as b, serving(engine.ollama()) as c:
        report = compared(numllama, a, f"{b}#x")
        assert report["kl"]["value"] < 1e-5 and report["b"]["perplexity"]["at_least"] is False
        report = compared(numllama, f"{c}#x", f"{c}#x")
        assert report["kl"]["value"] == 0 and "perplexity" not in report["a"] and report["places"] == 8
        assert "perplexity" not in numllama("compare", f"{c}#x", f"{c}#x", "-f", "-", stdin=TEXT).out


def test_our_own_server_is_compared(numllama, served, tmp_path):
    """Over both of its wires; a byte-level vocabulary, in which no two tokens have the same bytes."""
    path = tiny_gguf(tmp_path / "b.gguf", tokenizer="bpe", seed=1)
    served.add("b", path)
    report = compared(numllama, str(path), f"{served.url}#b", "--kernels", "numba")
    assert report["kl"]["value"] < 1e-6 and report["same_top"]["value"] == 1
    assert report["b"]["perplexity"]["value"] == pytest.approx(report["a"]["perplexity"]["value"], rel=1e-4)
    assert "echo, 20 likely tokens" in report["b"]["kind"]


def test_ctrl_c_prints_what_there_is(numllama, file, monkeypatch):
    from numllama.engine.oracle.compare import Distances

    given = Distances.add

    def interrupted(self, *args):
        if len(self.kl) == 3:
            raise KeyboardInterrupt
        given(self, *args)

    monkeypatch.setattr(Distances, "add", interrupted)
    status, out, _ = numllama("compare", file, file, "--kernels", "exact")
    assert status == 130 and "places" in out and out.rstrip().endswith("interrupted")


def test_errors_of_compare_are_one_line(numllama, alone, file, engine, tmp_path):
    other = str(tiny_gguf(tmp_path / "bpe.gguf", tokenizer="bpe"))
    plain = {"/api/generate": lambda _: {"response": "x"}, "/v1/completions": lambda _: {"choices": [{"text": "x"}]}}
    odd = {"/api/generate": lambda _: b"<html>", "/v1/completions": lambda _: []}
    with serving(plain) as mute, serving(odd) as html, serving(engine.llama_server()) as llama:
        for args, message in [
            (["nope", file], "model 'nope' not found"),
            ([file, other], "have other vocabularies"),
            ([file, "http://127.0.0.1:1#m"], "http://127.0.0.1:1: connection refused"),
            ([file, "ftp://host#m"], "ftp://host#m: expected an address such as http://127.0.0.1:11434#MODEL"),
            ([file, f"{mute}#m"], "gives no log-probabilities of a text"),
            ([file, f"{html}#m"], "gives no log-probabilities of a text"),
            ([file, f"{llama}#other"], "the server has no model 'other'; it has tiny"),
            ([other, f"{llama}#tiny"], "have other vocabularies: token 0 of the text is"),
            ([file, file, "--kernels", "x"], "unknown kernel set 'x'"),
            ([file, file, "--kernels", "a,b,c"], "--kernels is 'a,b,c', expected one value, or A's and B's"),
            ([file, file, "--tokens", "0"], "--tokens is 0, expected at least 1"),
            ([file, file, "-f", str(tmp_path / "none")], "none cannot be read: No such file"),
        ]:
            status, out, err = numllama("compare", *args)
            assert (status, out) == (1, "") and err.startswith("Error: ") and message in err, (args, err)
            assert err.count("\n") == 1


@contextmanager
def native_server(path):
    """Run llama-server with the model in `path`.  Skips without a native build."""
    folder = os.environ.get("NUMLLAMA_LLAMA_CPP") or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder of programs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    args = ["-m", path, "--port", str(port), "-t", "1", "-c", "512", "-np", "1"]
    environment = os.environ | {"LD_LIBRARY_PATH": folder}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([Path(folder) / "llama-server", *args], env=environment, **quiet) as server:
        try:
            for _ in range(300):
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.mark.peer
def test_llama_server_with_the_same_model_agrees(numllama, tmp_path):
    path = str(tiny_gguf(tmp_path / "m.gguf", n_embd=128, n_head=2, n_head_kv=1))
    with native_server(path) as url:
        report = compared(numllama, path, url, "--kernels", "llamacpp")
        listed = compared(numllama, path, url, "--kernels", "llamacpp", "--top", "5")
    # in float32, which token is read in which batch changes last bits, and flash attention in f16
    assert report["kl"]["value"] < 1e-5 and report["kl"]["at_least"] is False and report["places"] >= 8
    assert report["b"]["perplexity"]["value"] == pytest.approx(report["a"]["perplexity"]["value"], rel=1e-2)
    assert listed["kl"]["value"] < 1e-5 and listed["kl"]["at_least"] and "5 of 334 tokens" not in listed["a"]["kind"]
