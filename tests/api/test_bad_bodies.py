"""Any request body gets one of the documented statuses, and quickly."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from itertools import product
from random import Random
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Served

from numllama.api.anthropic import schema as anthropic_schema
from numllama.api.openai import schema as openai_schema
from numllama.api.wire import schema
from numllama.engine.go.json import MAX_DEPTH, DecodeError, loads
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf

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
    ("POST", "/api/look/run"): schema.LookAgainRequest,
    ("POST", "/api/detokenize"): schema.DetokenizeRequest,
    ("POST", BLOB): bytes,
    ("POST", "/v1/chat/completions"): openai_schema.ChatCompletionRequest,
    ("POST", "/v1/completions"): openai_schema.CompletionRequest,
    ("POST", "/v1/responses"): openai_schema.ResponsesRequest,
    ("POST", "/v1/messages"): anthropic_schema.MessagesRequest,
    ("POST", "/v1/messages/count_tokens"): anthropic_schema.MessagesRequest,
}
ROUTES = [*REQUESTS]
STATUSES = {200, 201, 400, 403, 404, 413, 501}

NAMES = (
    "model name prompt messages role content options stream format raw system template context images tools think"
    " keep_alive truncate shift suffix logprobs top_logprobs from files adapters tokens text source destination input"
    " num_predict num_ctx temperature stop seed max_tokens function parameters type tool_calls arguments".split()
)
TEXTS = ["", "bare", "m", "user", "assistant", "json", "5m", "a/b:c", "../x", "\ud800", "é" * 50]
ODD = [*TEXTS, None, True, False, -1, 0, 2, 40, 2**31, 2**63, 10**30, -0.5, 1e300, float("nan"), float("inf"), [], {}]
names = st.sampled_from(NAMES)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=5),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=4)
)
objects = st.dictionaries(names, values, max_size=6)
asking = st.builds(  # almost valid, to get past the first checks
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
    """Start a separate server without registry access, as some of the bodies delete models."""
    for verb in ("pull", "push"):
        monkeypatch.setattr(
            f"numllama.engine.store.registry.transfer.{verb}", lambda *args: iter([{"status": "success"}])
        )
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


def places(value, path=()):
    """Return the paths of all values within `value`, its own first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, one in inner for p in places(one, (*path, key)))]


def variant(value, random):
    """Return a copy of a JSON value in which one to three places have another value, or are missing or there twice."""
    value = json.loads(json.dumps(value))
    for _ in range(random.randint(1, 3)):
        *path, key = random.choice(places(value)) or (None,)
        if key is None:
            value = random.choice(ODD)
            continue
        holder = value
        for step in path:
            holder = holder[step]
        match random.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key] = [holder[key]] * random.randint(0, 3)
            case 2:
                holder[key] = {random.choice(NAMES): holder[key]}
            case 3 if isinstance(holder, dict):
                holder[random.choice(NAMES)] = holder.pop(key)
            case _:
                holder[key] = random.choice(ODD)
    return value


def check_variants(served, route, body, seed):
    """Send a body, and nine variants where it is JSON: drawing a body takes many times as long as an answer."""
    check(served, route, body)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    random = Random(seed)
    for _ in range(9):
        check(served, route, json.dumps(variant(value, random)).encode())


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_any_body_gets_a_documented_status(served, route):
    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def holds(body):
        check(served, route, body)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_very_many_bodies_get_documented_statuses(served, route, n_inputs):
    @settings(max_examples=n_inputs // (10 * len(ROUTES)), suppress_health_check=list(HealthCheck))
    @given(bodies, st.integers(0))
    def holds(body, seed):
        check_variants(served, route, body, seed)

    holds()


# --- bodies generated by schemathesis from the request classes


def json_schema(hint: Any) -> dict[str, Any]:
    """Convert a type annotation to a JSON schema; {} for a class that parses its own values."""
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
    """Describe all routes and their bodies in OpenAPI."""
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
def test_very_many_bodies_of_schemathesis_get_documented_statuses(served, route, mode, n_inputs):
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis (pip install '.[test]')")
    operation = schemathesis.openapi.from_dict(openapi())[route[1]][route[0]]
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode])

    @settings(max_examples=n_inputs // (20 * len(ROUTES)), suppress_health_check=list(HealthCheck), database=None)
    @given(cases, st.integers(0))
    def holds(case, seed):
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
        check_variants(served, route, body, seed)

    holds()


# --- nested bodies

NEAR = [MAX_DEPTH - 9, MAX_DEPTH - 8, MAX_DEPTH - 7]  # with what surrounds the value, up to the limit or just over it
DEPTHS = [*range(1, 1200, 7), *NEAR, *range(1200, 100_000, 9_000), 100_000]
# Templates that print all that they are given, in every way in which they can
JINJA = CHAT_TEMPLATE + "{{ tools | tojson(indent=2) }}{{ tools }}{{ messages | tojson }}{{ messages }}"
GO = "{{ .Tools }}{{ json .Tools }}{{ .Messages }}{{ json .Messages }}"
BRACKETS = [("[", "]"), ('{"type":"object","properties":{"a":', "}}"), ('[{"items":', "}]")]
TOOL = (
    '{"type": "function", "name": "f", "parameters": @, "input_schema": @, "function": {"name": "f", "parameters": @}}'
)
PLACES = [  # @: the value, $: its JSON in a string
    "@",
    '{"x": @}',
    '{"prompt": @, "input": @, "tokens": @, "content": @, "files": @, "messages": @}',
    '{"messages": [{"role": "user", "content": @}], "input": [{"role": "user", "content": @}], "license": @}',
    '{"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": @}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": @}}}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": $}}]}]}',
    '{"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": @}]}]}',
    '{"input": [{"type": "function_call", "name": "f", "arguments": $, "call_id": "1"}]}',
    '{"format": @, "info": @, "parameters": @}',
    '{"response_format": {"type": "json_schema", "json_schema": {"schema": @}}, "options": @}',
    '{"output_config": {"format": {"type": "json_schema", "schema": @}}}',
    '{"text": {"format": {"type": "json_schema", "name": "a", "schema": @}}}',
    f'{{"tools": [{TOOL}]}}',
    f'{{"tools": [{TOOL}], "tool_choice": "required"}}',
    f'{{"tools": [{TOOL}], "tool_choice": {{"type": "any"}}}}',
]


def nested(depth, brackets, inner="{}"):
    before, after = brackets
    n = (depth - 1) // sum(map(before.count, "[{"))
    return before * n + inner + after * n


@pytest.fixture(scope="module")
def printing(models, tmp_path_factory):
    """Start a server whose models print all parts of a request."""
    folder = tmp_path_factory.mktemp("store")
    printing = tiny_gguf(folder / "jinja.gguf", chat_template=JINJA)
    server = Served(Settings(models=folder, builtin=False))
    server.add("jinja", printing)
    server.add("go", models / "bare.gguf", template=GO)
    yield server
    server.close()


def check_nested(server, route, depths):
    """Send a body for each place and depth, to one model after the other."""
    method, path = route
    names = ["jinja", "go"] if "chat" in path or "messages" in path or "responses" in path else ["not there"]
    for (i, depth), place in product(enumerate(depths), PLACES):
        name = names[i % len(names)]
        value = nested(depth, BRACKETS[depth % len(BRACKETS)])
        valid = {"model": name, "prompt": "a", "input": "a", "messages": [{"role": "user", "content": "a"}]}
        head = json.dumps(valid | {"max_tokens": 1, "options": {"num_predict": 1}}).removesuffix("}")
        text = place.replace("$", json.dumps('{"a": ' + value + "}")).replace("@", value)
        body = text if place == "@" else f"{head}, {text[1:]}"  # the last of several members with one name counts
        answer = server.client.request(method, path, content=body.encode())
        assert answer.status_code in (200, 400, 404), (depth, place, answer.text)


def test_no_more_levels_than_the_limit_are_decoded():
    for depth, brackets in product([*DEPTHS, *range(MAX_DEPTH - 5, MAX_DEPTH + 5)], BRACKETS):
        text = nested(depth, brackets, "[]")
        try:
            loads(text.encode())
            accepted = True
        except DecodeError as error:
            assert str(error) == "exceeded max depth"
            accepted = False
        assert accepted == (sum(map(text.count, "[{")) <= MAX_DEPTH)


@pytest.mark.parametrize("route", [route for route in ROUTES if route[1] != BLOB], ids=" ".join)
def test_a_body_nested_near_the_limit_or_far_over_it_is_used_or_refused(printing, route):
    check_nested(printing, route, [*NEAR, 900])


@pytest.mark.slow
@pytest.mark.parametrize("route", [route for route in ROUTES if route[1] != BLOB], ids=" ".join)
def test_a_body_of_any_depth_is_used_or_refused(printing, route):
    check_nested(printing, route, DEPTHS)
