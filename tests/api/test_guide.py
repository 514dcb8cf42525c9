"""The requests of the API guide that need neither a Go template nor a later endpoint, as they were sent to Ollama.

The models here have no TEMPLATE, so the texts differ; status, content type and every key have to be Ollama's.
"""

from __future__ import annotations

import json

import pytest
from serving import Served

from numllama.engine.settings import Settings

PATHS = ("/api/generate", "/api/chat", "/api/show", "/api/tags", "/api/ps", "/api/copy", "/api/delete")
LATER = ("images", "tools", "format", "suffix", "template")  # fields of requests that this test skips
MADE = (
    "mario",
    "luigi",
    "modelbin",
    "tiny",
    "wario",
    "llava",
    "stories",
    "firefunction",
    "codellama:code",
    "127.0.0.1",
)


@pytest.fixture(scope="module")
def guide(kept, tmp_path_factory):
    """Start a server -> (server, function that creates a model of the guide, the guide's steps)."""
    server = Served(Settings(models=tmp_path_factory.mktemp("store"), builtin=False, kv_cache_type="f32"))
    steps = kept.json("transcripts/guide")["steps"]

    def create(model, files, stream, template=None, **more):
        server.add(model, kept.model(next(iter(files)).removesuffix(".gguf")), **more)

    yield server, create, [step for step in steps if "send" in step and _is_ours(step["send"])]
    server.close()


def _is_ours(sent):
    try:
        body = sent["body"] if "body" in sent else json.loads(sent.get("text") or "{}")
    except ValueError:
        body = {}  # an error in the guide
    named = [str(body.get(key, "")) for key in ("model", "name", "source")]
    if sent["path"] == "/api/create":
        return body.get("model") in ("llama3.1", "llama3", "mistral") and "files" in body
    return (
        sent["path"] in PATHS
        and "file" not in sent
        and not any(key in body for key in LATER)
        and not any(name.startswith(MADE) for name in named)
    )


def shape(value, key=""):
    """Reduce a value to keys and types, without the parts that depend on the model's text."""
    if key in ("model_info", "modelfile", "parameters", "tensors"):
        return "..."
    if isinstance(value, dict):
        return {
            k: shape(v, k)
            for k, v in value.items()
            if k not in ("done_reason", "parameters", "families", "prompt_eval_cached_count")
        }
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def test_requests_of_the_guide_get_the_recorded_answers(guide):
    server, create, steps = guide
    seen = set()
    for step in steps:
        sent, wanted = step["send"], step.get("ours", step["got"])
        if sent["path"] == "/api/create":
            create(**sent["body"])
            continue
        body = json.dumps(sent["body"]) if "body" in sent else sent.get("text", "")
        answer = server.client.request(sent["method"], sent["path"], content=body.encode())
        what = f"{sent['method']} {sent['path']} {body[:80]}"
        assert answer.status_code == wanted["status"], f"{what}: {answer.text}"
        if "type" in wanted:
            assert answer.headers.get("content-type", "") == wanted["type"], what
        if "lines" in wanted:
            got = [json.loads(line) for line in answer.text.splitlines()]
            assert shape(got[-1]) == shape(wanted["lines"][-1]), what
        elif answer.status_code != 200:
            assert answer.json() == wanted["json"], what
        elif isinstance(wanted.get("json"), dict) and sent["path"] not in ("/api/tags", "/api/ps"):
            assert shape(answer.json()) == shape(wanted["json"]), what
        seen.add(sent["path"])
    assert seen == set(PATHS) and len(steps) > 40
