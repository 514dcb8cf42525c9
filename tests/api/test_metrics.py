"""The metrics of a server."""

from __future__ import annotations

import re

from serving import until


def figures(served):
    """Return every sample by its name and labels, in the text format."""
    answer = served.client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def grown(served, before):
    """Return the increase of each sample that has grown."""
    after = figures(served)
    return {name: value - before.get(name, 0) for name, value in after.items() if value > before.get(name, 0)}


def test_an_answer_counts_its_tokens_and_their_times(served):
    body = {"model": "bare", "prompt": "the dog and the boy", "stream": False, "options": {"num_predict": 5}}
    before = figures(served)
    said = served.ok("/api/generate", **body)
    more = grown(served, before)
    assert more["numllama_prompt_tokens_total"] == said["prompt_eval_count"]
    assert more["numllama_sampled_tokens_total"] == more["numllama_time_to_first_token_seconds_count"] + 4 == 5
    assert more["numllama_inter_token_seconds_count"] == 4
    served.ok("/api/generate", **body)
    assert grown(served, before)["numllama_prompt_tokens_cached_total"] >= said["prompt_eval_count"] - 1


def test_guesses_are_counted(served):
    before, again = figures(served), {"temperature": 0, "num_predict": 12, "logit_bias": {"300": 100}}
    options = again | {"speculate": "ngram"}
    said = served.ok("/api/generate", model="bare", prompt="the cat", stream=False, options=options)
    more = grown(served, before)
    assert more["numllama_draft_tokens_total"] == said["draft_tokens"]
    assert more["numllama_draft_tokens_accepted_total"] == said["draft_accepted_tokens"] > 0


def test_requests_are_counted_by_known_routes_and_methods_only(served):
    before = figures(served)
    served.client.get("/api/tags"), served.post("/api/generate", model="nope"), served.client.get("/made/up")
    served.client.request("MADEUP", "/api/tags")
    until(lambda: len([name for name in grown(served, before) if "requests_total" in name]) >= 4)
    routes = [name for name in grown(served, before) if "requests_total" in name]
    for route, status in (("/api/tags", 200), ("/api/generate", 404), ("other", 404)):
        assert any(f'route="{route}"' in name and f'status="{status}"' in name for name in routes), route
    assert not any("made" in name.lower() for name in routes)


def test_loaded_models_report_slots_and_memory(served):
    served.ok("/api/generate", model="bare", prompt="a", stream=False)
    now = figures(served)
    assert now['numllama_model_slots{model="bare:latest"}'] == 4
    until(lambda: figures(served)['numllama_model_running{model="bare:latest"}'] == 0)
    assert now['numllama_model_bytes{model="bare:latest"}'] > 100_000 and now["numllama_loaded_models"] >= 1
    assert now["numllama_load_queue"] == 0 and now["process_resident_memory_bytes"] > 1e7
    assert all(re.match(r"(numllama|process)_", name) for name in now)
