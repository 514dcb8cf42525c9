"""Whatever a client sends, it gets one of the statuses that are documented, and soon."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Served

from numllama.engine.settings import Settings

ROUTES = [
    ("POST", "/api/generate"),
    ("POST", "/api/chat"),
    ("POST", "/api/show"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/create"),
    ("POST", "/api/tokenize"),
    ("POST", "/api/detokenize"),
    ("POST", "/api/blobs/sha256:1"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
]
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
def served(victim, models):
    """A server of its own, as some of the bodies delete models."""
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
