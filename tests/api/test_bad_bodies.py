"""Whatever a client sends, it gets one of the statuses that are documented, and soon."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Served

from numllama.api.anthropic import schema as anthropic_schema
from numllama.api.openai import schema as openai_schema
from numllama.api.wire import schema
from numllama.engine.settings import Settings

BLOB = "/api/blobs/sha256:1"
REQUESTS = {
    ("POST", "/api/generate"): schema.GenerateRequest,
    ("POST", "/api/chat"): schema.ChatRequest,
    ("POST", "/api/embed"): schema.EmbedRequest,
    ("POST", "/api/embeddings"): schema.EmbeddingRequest,
    ("POST", "/api/show"): schema.ShowRequest,
    ("POST", "/api/copy"): schema.CopyRequest,
    ("DELETE", "/api/delete"): schema.DeleteRequest,
    ("POST", "/api/create"): schema.CreateRequest,
    ("POST", "/api/pull"): schema.PullRequest,
    ("POST", "/api/push"): schema.PushRequest,
    ("POST", "/api/tokenize"): schema.TokenizeRequest,
    ("POST", "/api/detokenize"): schema.DetokenizeRequest,
    ("POST", BLOB): bytes,
    ("POST", "/v1/chat/completions"): openai_schema.ChatCompletionRequest,
    ("POST", "/v1/completions"): openai_schema.CompletionRequest,
    ("POST", "/v1/responses"): openai_schema.ResponsesRequest,
    ("POST", "/v1/messages"): anthropic_schema.MessagesRequest,
}
ROUTES = [*REQUESTS]
STATUSES = {200, 201, 400, 403, 404, 413, 501}

names = st.sampled_from(
    "model name prompt messages role content options stream format raw system template context images tools think"
    " keep_alive truncate shift suffix logprobs top_logprobs from files adapters tokens text source destination input"
    " num_predict num_ctx temperature stop seed max_tokens function parameters type tool_calls arguments".split()
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.sampled_from(["", "bare", "m", "user", "assistant", "json", "5m", "a/b:c", "../x", "\ud800", "é" * 50]),
    st.text(max_size=5),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=4)
)
objects = st.dictionaries(names, values, max_size=6)
asking = st.builds(  # close to what is right, so that it comes far
    lambda more, options: (
        {"model": "bare", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
        | more
        | {"options": {"num_predict": 2} | options}
    ),
    objects,
    objects,
)
limited = asking.map(lambda body: body | {"max_tokens": 2, "max_output_tokens": 2, "num_predict": 2})
bodies = st.one_of(objects, limited, values).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)


@pytest.fixture(scope="module")
def victim(models, tmp_path_factory):
    server = Served(Settings(models=tmp_path_factory.mktemp("store"), builtin=False))
    yield server
    server.close()


@pytest.fixture
def served(victim, models, monkeypatch):
    """A server of its own, as some of the bodies delete models; and no registry is asked."""
    for verb in ("pull", "push"):
        monkeypatch.setattr(f"numllama.engine.serve.engine.{verb}", lambda *args: iter([{"status": "success"}]))
    victim.add("m", models / "chat.gguf", parameters={"num_predict": 8})
    victim.add("bare", models / "bare.gguf", parameters={"num_predict": 8})
    return victim


def check(served, route, body):
    method, path = route
    answer = served.client.request(method, path, content=body)
    assert answer.status_code in STATUSES, (answer.status_code, answer.text)
    assert "internal error" not in answer.text
    if answer.status_code >= 400:
        assert "error" in answer.json()


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_any_body_gets_a_documented_status(served, route):
    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def holds(body):
        check(served, route, body)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_ten_thousand_bodies_get_documented_statuses(served, route):
    @settings(max_examples=10_000 // len(ROUTES), suppress_health_check=list(HealthCheck))
    @given(bodies)
    def holds(body):
        check(served, route, body)

    holds()


# --- the same with bodies that schemathesis makes of the routes' own types


def json_schema(hint: Any) -> dict[str, Any]:
    """What JSON the type of a request takes; {} where its own class looks at the value."""
    if get_origin(hint) is UnionType:
        return {"anyOf": [json_schema(one) for one in get_args(hint)]}
    if get_origin(hint) is list or hasattr(hint, "item"):
        return {"type": "array", "items": json_schema(getattr(hint, "item", None) or get_args(hint)[0])}
    if get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": json_schema(get_args(hint)[1])}
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        known = {f.metadata.get("json", f.name): json_schema(hints[f.name]) for f in fields(hint)}
        if "model" in known:
            known["model"] = {"anyOf": [{"enum": ["bare", "m"]}, {"type": "string"}]}
        return {"type": "object", "properties": known}
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", bytes: "string", type(None): "null"}
    return {"type": plain[hint]} if hint in plain else {}


def openapi() -> dict[str, Any]:
    """All routes and the bodies that they take, in OpenAPI's terms."""
    paths: dict[str, Any] = {}
    for (method, path), request in REQUESTS.items():
        content = {"application/json": {"schema": json_schema(request)}}
        told = {"requestBody": {"content": content, "required": True}, "responses": {"200": {"description": "fine"}}}
        paths.setdefault(path, {})[method.lower()] = told
    return {"openapi": "3.1.0", "info": {"title": "numllama", "version": "0"}, "paths": paths}


def test_types_become_schemas():
    body = openapi()["paths"]["/api/chat"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["stream"] == {"type": "boolean"} and body["properties"]["think"]["anyOf"][1] == {
        "type": "null"
    }
    assert body["properties"]["messages"]["items"]["properties"]["images"] == {
        "type": "array",
        "items": {"type": "string"},
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_ten_thousand_bodies_of_schemathesis_get_documented_statuses(served, route, mode):
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis (pip install '.[test]')")
    operation = schemathesis.openapi.from_dict(openapi())[route[1]][route[0]]
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode])

    @settings(max_examples=10_000 // (2 * len(ROUTES)), suppress_health_check=list(HealthCheck), database=None)
    @given(cases)
    def holds(case):
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
        check(served, route, body)

    holds()
