"""Lists, steps and metrics of replicas, merged."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from numllama.api.scale.merge import merged_metrics, merged_ps, merged_steps


def entry(name, size, expires_at):
    return {"name": name, "digest": f"of {name}", "size": size, "expires_at": expires_at}


def test_a_model_of_several_replicas_is_one_entry_with_the_sum_of_memory_and_the_latest_end():
    early, late = "2026-01-01T12:00:00.123456789+01:00", "2026-01-01T11:30:00.5Z"
    got = merged_ps([[entry("a", 10, late), entry("b", 1, early)], [entry("a", 20, early)], []])
    assert got == [entry("a", 30, late) | {"replicas": 2}, entry("b", 1, early)]


def test_steps_of_a_model_are_told_apart_by_replica():
    assert merged_steps([("r1", {"a": [1], "b": [2]}), ("r2", {"a": [3]})]) == {"a (r1)": [1], "b": [2], "a (r2)": [3]}


DOOR = b"""# HELP numllama_requests_total HTTP requests
# TYPE numllama_requests_total counter
numllama_requests_total{status="200"} 3.0
# HELP numllama_sampled_tokens_total Sampled tokens
# TYPE numllama_sampled_tokens_total counter
numllama_sampled_tokens_total 0.0
"""
REPLICA = """# HELP numllama_requests_total HTTP requests
# TYPE numllama_requests_total counter
numllama_requests_total{status="200"} 3.0
# HELP numllama_sampled_tokens_total Sampled tokens
# TYPE numllama_sampled_tokens_total counter
numllama_sampled_tokens_total 7.0
# HELP numllama_model_slots Slots
# TYPE numllama_model_slots gauge
numllama_model_slots{model="a"} 4.0
"""


def test_metrics_of_replicas_have_a_label_and_requests_count_once():
    text = merged_metrics(DOOR, [("r1", REPLICA), ("r2", REPLICA)]).decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples == {
        ("numllama_requests_total", ("status", "200")): 3,
        ("numllama_sampled_tokens_total",): 0,
        ("numllama_sampled_tokens_total", ("replica", "r1")): 7,
        ("numllama_sampled_tokens_total", ("replica", "r2")): 7,
        ("numllama_model_slots", ("model", "a"), ("replica", "r1")): 4,
        ("numllama_model_slots", ("model", "a"), ("replica", "r2")): 4,
    }
    assert text.count("# TYPE numllama_sampled_tokens_total counter") == 1
