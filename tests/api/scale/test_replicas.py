"""Replicas on a Ray cluster: pytest -m ray."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from clusters import running, told, two_doors
from serving import until

from numllama.api.scale.door import open_door
from numllama.engine.distributed.cluster import check_reachable
from numllama.engine.distributed.replicas import Scale, join_directly
from numllama.engine.errors import EngineError, RequestError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]  # Ray's own
ray = pytest.importorskip("ray")

ENDLESS = {
    "num_predict": -1,
    "ignore_eos": True,
    "temperature": 3,
    "seed": 1,
}  # 40,960 tokens; a low temperature ends in a loop


@pytest.fixture(scope="module")
def doors(cluster, tmp_path_factory):
    with two_doors(cluster.address, tmp_path_factory.mktemp("replicas")) as doors:
        yield doors


def wait_for_two(door, other_than=()):
    """Wait until two replicas answer, none of them of those names."""

    def are_there():
        try:
            return len(pids := told(door.replicas, "pid")) == 2 and not set(pids) & set(other_than)
        except EngineError:  # none at the moment
            return False

    until(are_there, 60)


def prompt(i, n_words=60):
    """Return a long prompt whose first words are its own."""
    return f"{i} " + " ".join(str((i + 1) * k % 97) for k in range(n_words))


def generate(client, i, **options):
    """Ask for an answer at temperature 0.  -> the text"""
    body = {
        "model": "m",
        "prompt": prompt(i),
        "stream": False,
        "options": {"temperature": 0, "num_predict": 12} | options,
    }
    answer = client.post("/api/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["response"]


@contextmanager
def begun(door, i):
    """Ask for an endless answer to prompt `i`, and read its first line.  -> its other lines, the name of its replica"""
    body = {"model": "m", "prompt": prompt(i), "options": ENDLESS}
    with door.client.stream("POST", "/api/generate", json=body) as answer:
        lines = answer.iter_lines()
        assert not json.loads(next(lines))["done"]
        until(lambda: sum(running(door.replicas).values()) == 1)
        (name,) = (name for name, n in running(door.replicas).items() if n)
        yield lines, name


def test_answers_have_the_bits_of_one_process_whichever_replica_computes_them(doors):
    alone, door = doors
    expected = [generate(alone.client, i, seed=i, temperature=1.5) for i in range(24)]
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda i: generate(door.client, i, seed=i, temperature=1.5), range(24)))
    assert got == expected
    texts = told(door.replicas, "metrics").values()
    n_sampled = [float(re.search(r"^numllama_sampled_tokens_total (.*)$", text, re.MULTILINE)[1]) for text in texts]
    assert len(n_sampled) == 2 and all(n_sampled)
    body = {"model": "e", "input": [prompt(i) for i in range(300)]}  # more than a piece of a message
    assert door.ok("/api/embed", **body)["embeddings"] == alone.ok("/api/embed", **body)["embeddings"]


def test_a_known_beginning_meets_its_cache(doors):
    _, door = doors
    for i in range(100, 108):
        body = {"model": "m", "prompt": prompt(i), "stream": False, "options": {"num_predict": 1}}
        first, again = door.ok("/api/generate", **body), door.ok("/api/generate", **body)
        assert first["prompt_eval_count"] > 100
        assert again["prompt_eval_cached_count"] >= again["prompt_eval_count"] - 1


def test_lines_come_as_they_are_computed_and_a_client_that_leaves_frees_the_slot(doors):
    _, door = doors
    with door.client.stream("POST", "/api/generate", json={"model": "m", "prompt": "b", "options": ENDLESS}) as answer:
        lines = answer.iter_lines()
        assert [json.loads(next(lines))["done"] for _ in range(5)] == [False] * 5
        until(lambda: sum(running(door.replicas).values()) == 1)
    until(lambda: not sum(running(door.replicas).values()), 10)


def test_what_is_stored_and_loaded_is_told_of_the_cluster(doors):
    alone, door = doors
    for i in range(200, 204):
        generate(door.client, i)
    assert door.client.get("/api/tags").json() == alone.client.get("/api/tags").json()
    assert "m:latest" in [entry["name"] for entry in door.client.get("/api/ps").json()["models"]]
    door.ok("/api/generate", model="m", keep_alive=0)
    assert "m:latest" not in [entry["name"] for entry in door.client.get("/api/ps").json()["models"]]


def test_a_killed_replica_costs_what_had_begun_and_nothing_else(doors):
    alone, door = doors
    whole = {"num_predict": 3000, "ignore_eos": True, "temperature": 3}
    expected = [generate(alone.client, 300, **whole, seed=i) for i in range(4)]
    wait_for_two(door)
    with ThreadPoolExecutor(4) as threads:
        with begun(door, 300) as (lines, name):
            got = [threads.submit(generate, door.client, 300, **whole, seed=i) for i in range(4)]
            until(lambda: running(door.replicas)[name] > 1, 20)  # with the same beginning, they meet there
            began = time.monotonic()
            os.kill(told(door.replicas, "pid")[name], signal.SIGKILL)
            *_, last = lines
            assert json.loads(last) == {"error": "the process that computed this answer ended; ask again"}
            assert time.monotonic() - began < 20
        assert [future.result() for future in got] == expected
    wait_for_two(door, [name])
    assert generate(door.client, 300, **whole, seed=0) == expected[0]


def test_a_replica_that_is_silent_counts_as_ended(doors, monkeypatch):
    alone, door = doors
    expected = generate(alone.client, 301)
    wait_for_two(door)
    monkeypatch.setattr("numllama.engine.distributed.replicas.SILENT_S", 7.0)
    monkeypatch.setattr("numllama.engine.distributed.router.ACCEPT_S", 2.0)
    with begun(door, 301) as (lines, name):
        pid = told(door.replicas, "pid")[name]
        os.kill(pid, signal.SIGSTOP)
        try:
            *_, last = lines
            error = "the process that computed this answer was silent for 7 s; ask again"
            assert json.loads(last) == {"error": error}
            assert (
                generate(door.client, 301) == expected
            )  # known best by the one that is stopped, and then by the other
        finally:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
    wait_for_two(door, [name])


def test_replicas_are_added_removed_and_replaced_under_load_without_a_wrong_byte(doors, cluster):
    alone, door = doors
    expected = {i: generate(alone.client, i) for i in range(400, 408)}
    wait_for_two(door)
    before, is_over, wrong, n_right = told(door.replicas, "pid"), threading.Event(), [], [0] * 8

    def ask(i):
        with httpx.Client(base_url=door.url) as client:
            while not is_over.is_set():
                try:
                    got = generate(client, i)
                    wrong.extend([got] if got != expected[i] else [])
                    n_right[i - 400] += 1
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in expected]
    for thread in threads:
        thread.start()
    try:
        open_door(door.engine, cluster.address, Scale(1, 1))
        until(lambda: len(told(door.replicas, "pid")) == 1, 30)
        kept = told(door.replicas, "pid")
        assert set(kept.items()) < set(before.items())
        open_door(door.engine, cluster.address, Scale(2, 2))
        wait_for_two(door)
        assert set(kept) < set(told(door.replicas, "pid"))
        others = SimpleNamespace(settings=replace(door.engine.settings, kv_cache_ram=7))
        names = told(door.replicas, "pid")
        open_door(others, cluster.address, Scale(2, 2))  # other settings: a rolling update
        wait_for_two(door, names)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not wrong and all(n_right)


@pytest.mark.parametrize(
    "address, expected",
    [
        ("somewhere", "Ray cluster 'somewhere', expected HOST:PORT, auto or local"),
        ("http://127.0.0.1:1", "Ray cluster 'http://127.0.0.1:1', expected HOST:PORT, auto or local"),
        ("127.0.0.1:1", "no Ray cluster at '127.0.0.1:1': connection refused; `ray start --head` starts one"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(address, expected):
    with pytest.raises(RequestError) as caught:
        check_reachable(address)
    assert str(caught.value) == expected


def test_the_address_of_rays_client_is_refused_as_it_cannot_stream():
    with pytest.raises(RequestError, match=r"^Ray cluster 'ray://a:1', a client's address; replicas need HOST:PORT"):
        join_directly("ray://a:1")
