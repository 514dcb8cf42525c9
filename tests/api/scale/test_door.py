"""The door of a cluster, with replicas in this process: answers, retries, errors, and what all are asked."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial

import pytest
from registries import DOCKER_REGISTRY, DockerRegistry, Registry
from serving import Served, until

from numllama.api.scale.door import MAX_TRIES, Door
from numllama.api.scale.replica import ForwardedRequest, Replica, in_pieces
from numllama.engine.distributed.affinity import Beginning
from numllama.engine.errors import CacheLost, Cancelled
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf


class LocalCall:
    """As ReplicaCall; the replica "ends" after `n_sent` messages."""

    def __init__(self, source, n_sent):
        self.source, self.n_left, self.is_cancelled = source, n_sent, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.n_left == 0:
            await self.source.aclose()
            raise CacheLost("the process that computed this answer ended; ask again")
        got = await anext(self.source)
        if self.n_left > 0:
            got = got[: self.n_left]
            self.n_left -= len(got)
        if self.is_cancelled:
            await self.source.aclose()
            raise Cancelled
        return got

    def cancel(self):
        self.is_cancelled = True


class LocalReplicas:
    """As Replicas, without Ray.  `n_sent` says for each call when its replica ends; -1: never."""

    def __init__(self, settings, n):
        self.replicas, self.n_sent, self.calls = [Replica(settings) for _ in range(n)], [], []

    def answer(self, beginning, request):
        replica = self.replicas[len(self.calls) % len(self.replicas)]
        self.calls.append(LocalCall(replica.answer(beginning, request), self.n_sent.pop(0) if self.n_sent else -1))
        return self.calls[-1]

    async def broadcast(self, method, *arguments):
        return [await getattr(replica, method)(*arguments) for replica in self.replicas]


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """Start a server alone, and one with a door and two replicas, over one store."""
    folder = tmp_path_factory.mktemp("door")
    settings = Settings(models=folder / "models", builtin=False)
    replicas = LocalReplicas(settings, 2)
    alone, door = Served(settings), Served(settings, lambda engine: partial(Door, engine=engine, replicas=replicas))
    door.replicas = replicas
    parameters = {"temperature": 0, "num_predict": 8}
    alone.add("m", tiny_gguf(folder / "m.gguf", seed=1, chat_template=CHAT_TEMPLATE, n_ctx=4096), parameters=parameters)
    alone.add("e", tiny_gguf(folder / "e.gguf", seed=3, llama__pooling_type=1))
    yield alone, door
    alone.close()
    door.close()
    for replica in replicas.replicas:
        replica._engine.close()


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
REQUESTS = [
    ("/api/generate", {"model": "m", "prompt": "a", "stream": False}),
    ("/api/generate", {"model": "m", "prompt": "a"}),
    ("/api/chat", CHAT),
    ("/api/chat", CHAT | {"stream": False, "logprobs": True}),
    ("/api/embed", {"model": "e", "input": ["a", "b"]}),
    ("/api/embeddings", {"model": "e", "prompt": "a"}),
    ("/v1/chat/completions", CHAT | {"stream": True, "logprobs": True, "temperature": 0}),
    ("/v1/completions", {"model": "m", "prompt": ["a", "b"], "max_tokens": 4, "temperature": 0}),
    ("/v1/responses", {"model": "m", "input": "hi", "stream": True, "temperature": 0}),
    ("/v1/messages", CHAT | {"max_tokens": 5, "stream": True}),
    ("/v1/messages/count_tokens", CHAT),
    ("/v1/embeddings", {"model": "e", "input": "a"}),
    ("/api/generate", {"model": "nope"}),
    ("/api/chat", {"model": "m", "messages": 7}),
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": 7}]}),
    ("/v1/messages", {"model": "m"}),
]


DIFFERS = re.compile(
    r'"(created_at|created|completed_at|id|item_id|request_id|\w+_duration|prompt_eval_cached_count)": ?("[^"]*"|\d+),?'
)


def said(answer):
    """Return an answer's status, type and text, without what differs between two runs."""
    return answer.status_code, answer.headers["content-type"], DIFFERS.sub("", answer.text)


@pytest.mark.parametrize("path, body", REQUESTS, ids=lambda value: value if isinstance(value, str) else "")
def test_answers_through_the_door_are_those_of_a_server(doors, path, body):
    alone, door = doors
    for _ in door.replicas.replicas:  # each in turn
        assert said(door.post(path, **body)) == said(alone.post(path, **body))


def test_malformed_json_and_unknown_methods_get_the_same_answers(doors):
    for send in (
        lambda client: client.post("/api/chat", content=b'{"model": '),
        lambda client: client.post("/api/chat", content=b""),
        lambda client: client.get("/api/chat"),
        lambda client: client.put("/v1/messages", content=b"{}"),
        lambda client: client.post("/api/chat/", content=b"{}"),
        lambda client: client.options("/api/chat", headers={"Origin": "http://localhost"}),
        lambda client: client.post("/api/chat", headers={"Origin": "http://evil.example"}),
        lambda client: client.post("/api/generate", json={"model": "nope"}, headers={"Origin": "http://localhost:3"}),
    ):
        expected, got = (send(served.client) for served in doors)
        assert (got.status_code, got.content) == (expected.status_code, expected.content)
        headers = [{k: v for k, v in answer.headers.items() if k != "date"} for answer in (got, expected)]
        assert headers[0] == headers[1]


def test_a_request_whose_replica_ends_before_the_answer_begins_is_answered_by_another(doors):
    alone, door = doors
    body = CHAT | {"stream": False}
    door.replicas.n_sent = [0, 0]
    n_before = len(door.replicas.calls)
    assert said(door.post("/api/chat", **body)) == said(alone.post("/api/chat", **body))
    assert len(door.replicas.calls) - n_before == 3


def test_a_request_that_ends_every_replica_is_refused_in_one_line(doors):
    _, door = doors
    door.replicas.n_sent = [0] * MAX_TRIES
    for path, found in (("/api/chat", lambda x: x["error"]), ("/v1/chat/completions", lambda x: x["error"]["message"])):
        door.replicas.n_sent = [0] * MAX_TRIES
        answer = door.post(path, **CHAT)
        assert answer.status_code == 503
        assert found(answer.json()) == f"{MAX_TRIES} processes ended while they computed this answer"


ENDED = "the process that computed this answer ended; ask again"


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/api/chat", {"error": ENDED}),
        ("/v1/chat/completions", {"error": {"message": ENDED, "type": "api_error", "param": None, "code": None}}),
        ("/v1/messages", {"type": "error", "error": {"type": "api_error", "message": ENDED}}),
        ("/v1/responses", {"type": "error", "code": "api_error", "message": ENDED, "param": None}),
    ],
)
def test_an_answer_that_has_begun_ends_with_an_error_in_the_form_of_its_stream(doors, path, expected):
    _, door = doors
    body = {"model": "m", "input": "hi"} if "responses" in path else CHAT
    body = body | {"stream": True} | ({"max_tokens": 9} if "messages" in path else {})
    door.replicas.n_sent = [2]  # the head, and the first line or event
    n_before = len(door.replicas.calls)
    answer = door.post(path, **body)
    assert answer.status_code == 200 and len(door.replicas.calls) - n_before == 1
    *sent, last = [line for line in answer.text.splitlines() if line and not line.startswith("event: ")]
    got = json.loads(last.removeprefix("data: "))
    got.pop("request_id", None)
    if "responses" in path:
        assert got.pop("sequence_number") == len(sent)
    assert got == expected and sent


def test_a_client_that_disconnects_cancels_its_request(doors):
    _, door = doors
    options = {"num_predict": -1, "ignore_eos": True, "temperature": 3, "seed": 1}
    with door.client.stream("POST", "/api/generate", json={"model": "m", "prompt": "b", "options": options}) as answer:
        next(answer.iter_lines())
    until(lambda: door.replicas.calls[-1].is_cancelled)
    runners = [entry.runner for replica in door.replicas.replicas for entry in replica._engine.pool.loaded()]
    until(lambda: all(runner.scheduler.idle for runner in runners))


def test_ps_and_metrics_speak_for_all_and_unload_is_asked_of_all(doors):
    _, door = doors
    for _ in range(2):
        door.ok("/api/generate", model="m", prompt="a", stream=False)
    (entry,) = [entry for entry in door.client.get("/api/ps").json()["models"] if entry["name"] == "m:latest"]
    sizes = [
        entry["size"]
        for replica in door.replicas.replicas
        for entry in replica._engine.ps()
        if entry["name"] == "m:latest"
    ]
    assert entry["replicas"] == 2 and entry["size"] == sum(sizes)
    assert (
        'numllama_requests_total{method="POST",route="/api/generate",status="200"}' in door.client.get("/metrics").text
    )
    assert door.ok("/api/generate", model="m", keep_alive=0)["done_reason"] == "unload"
    assert not [entry for entry in door.client.get("/api/ps").json()["models"] if entry["name"] == "m:latest"]


def test_a_deleted_model_is_deleted_before_the_answer(doors):
    alone, door = doors
    alone.ok("/api/chat", model="m", stream=False)
    alone.client.post("/api/copy", json={"source": "m", "destination": "gone"})
    assert door.client.request("DELETE", "/api/delete", json={"model": "gone"}).status_code == 200
    assert door.post("/api/generate", model="gone").status_code == 404
    assert door.client.request("DELETE", "/api/delete", json={"model": "gone"}).status_code == 404


def test_a_large_body_is_sent_in_pieces_that_make_it_up():
    body = bytes(range(256)) * 10_000
    for more in (True, False):
        pieces = in_pieces({"type": "http.response.body", "body": body, "more_body": more})
        assert len(pieces) == 3 and b"".join(piece["body"] for piece in pieces) == body
        assert [piece["more_body"] for piece in pieces] == [True, True, more]


def test_a_replica_gives_signs_of_life_while_it_computes(doors, monkeypatch):
    _, door = doors
    monkeypatch.setattr("numllama.api.scale.replica.TICK_S", 0.02)
    options = {"num_predict": 2000, "ignore_eos": True, "temperature": 3, "seed": 1}
    body = json.dumps({"model": "m", "prompt": "b", "stream": False, "options": options}).encode()
    scope = {"type": "http", "method": "POST", "path": "/api/generate", "query_string": b"", "headers": []}

    async def sizes():
        request = ForwardedRequest.of(scope, body)
        return [len(part) async for part in door.replicas.replicas[0].answer(Beginning.of("m"), request)]

    *ticks, last = asyncio.run(sizes())
    assert len(ticks) > 3 and not any(ticks) and last == 3  # head, body, and the log


def test_a_healthy_replica_passes_its_check_and_reports_its_models(doors):
    alone, door = doors
    door.ok("/api/generate", model="m"), door.ok("/api/generate", model="m")
    weights = alone.engine.store.resolve("m").weights_digest.replace(":", "-")
    for replica in door.replicas.replicas:
        asyncio.run(replica.check_health())
        assert weights in asyncio.run(replica.record_routing_stats())["models"]


@pytest.fixture(params=[Registry, DockerRegistry])
def registry(request, tmp_path):
    """Start a registry."""
    if request.param is DockerRegistry and not DOCKER_REGISTRY:
        pytest.skip("Debian's package docker-registry is not installed")
    registry = request.param(tmp_path) if request.param is DockerRegistry else Registry()
    yield registry
    registry.close()


@pytest.fixture
def apart(tmp_path, registry, monkeypatch):
    """Start a door and a replica whose node has a store of its own, and push the model m to the registry."""
    settings = Settings(models=tmp_path / "door", builtin=False, insecure_registries=(registry.host,))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "node"))
    replicas = LocalReplicas(settings, 1)
    monkeypatch.delenv("OLLAMA_MODELS")
    door = Served(settings, lambda engine: partial(Door, engine=engine, replicas=replicas))
    door.node = replicas.replicas[0]._engine.store
    door.name = f"{registry.host}/lab/m:latest"
    door.add(door.name, tiny_gguf(tmp_path / "m.gguf", seed=1), parameters={"temperature": 0, "num_predict": 4})
    yield door
    door.close()
    replicas.replicas[0]._engine.close()


def test_a_node_with_its_own_store_pulls_what_it_lacks_by_digest(apart, registry):
    assert apart.ok("/api/push", model=apart.name, insecure=True, stream=False)["status"] == "success"
    assert not apart.node.list()
    for _ in range(2):
        assert apart.ok("/api/generate", model=apart.name, prompt="a", stream=False)["eval_count"] == 4
    assert [model.digest for model in apart.node.list()] == [model.digest for model in apart.engine.store.list()]
    assert not registry.asked("GET", "/manifests/")
    weights = apart.node.list()[0].weights_digest
    assert len(registry.asked("GET", weights)) == 1
    answer = apart.client.request("DELETE", "/api/delete", json={"model": apart.name})
    assert answer.status_code == 200 and not apart.node.list()


def test_a_model_that_no_registry_has_is_one_clear_error(apart):
    answer = apart.post("/api/generate", model=apart.name, prompt="a")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error.startswith(f"this node lacks model '{apart.name}', and pulling ") and "\n" not in error
    assert error.endswith("share the folder of models, or push the model")
