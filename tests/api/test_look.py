"""`look` on /api/generate and /api/chat: every line carries its tokens, and the text is the text without."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

LOOK = {"attention": "*", "lens": 3, "sampler": True, "logits": 5, "residual": True, "neurons": 2, "time": True}
LOOK |= {"cache": True, "merges": True, "values": ["l_out-1"], "keep": True}
QUESTION = {"messages": [{"role": "user", "content": "the cat and the dog"}]}


def lines(answer):
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def steps(found):
    return [step for line in found for step in line.get("look", {}).get("steps", [])]


@pytest.mark.parametrize(("path", "body"), [("/api/generate", {"prompt": "the cat"}), ("/api/chat", QUESTION)])
def test_every_token_has_a_step_and_the_text_is_the_same(served, path, body):
    options = {"seed": 1, "temperature": 1, "num_predict": 7}
    plain = lines(served.post(path, model="m", options=options, **body))
    looked = lines(served.post(path, model="m", options=options, look=LOOK, **body))
    timed = {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration", "look"}
    timed |= {"prompt_eval_cached_count"}

    def text(found):
        return [{key: value for key, value in line.items() if key not in timed} for line in found]

    assert text(looked) == text(plain) and not any("look" in line for line in plain)
    prompt, found = looked[0]["look"]["prompt"], steps(looked)
    assert len(found) == len(prompt["tokens"]) + looked[-1]["eval_count"] - 1
    assert [step["position"] for step in found] == list(range(len(found)))
    assert [step["token"] for step in found[1:]] == [step["next"] for step in found[:-1]]
    (span,) = prompt["spans"]
    assert span[2] == "user" and prompt["text"][span[0] : span[1]] in json.dumps(body)
    assert prompt["seed"] == 1 and prompt["job"] > 0 and prompt["cache"]["type"] == "f16"
    one = found[-1]
    assert len(one["attention"]) == len(prompt["heads"]) == 8 and len(one["attention"][0]) == one["position"] + 1
    assert [len(top) for top in one["lens"]["top"]] == [3, 3] and len(one["residual"]["adds"]) == 5
    assert one["sampler"][-1]["top"][0][:2] == one["next"] and len(one["logits"]["top"]) == 5
    assert len(one["values"]["l_out-1"]) == 64 and one["time"]["n_tok"] == 1


def test_the_ledger_is_of_the_draw_that_the_grammar_allowed(served):
    body = {"model": "m", "prompt": "the cat", "format": "json", "stream": False, "logprobs": True}
    body["options"] = {"seed": 3, "temperature": 1, "num_predict": 9}
    plain, looked = (served.ok("/api/generate", **body, **look) for look in ({}, {"look": LOOK}))
    assert (looked["response"], looked["logprobs"]) == (plain["response"], plain["logprobs"])
    sampled = [step for step in looked["look"]["steps"] if step["sampled"]]
    for step in sampled:
        assert [one["name"] for one in step["sampler"]].count("dist") == 1
        assert step["sampler"][-1]["top"][0][:2] == step["next"]
    first = sampled[0]["sampler"][0]
    assert first["name"] == "logits" and first["n"] < 100  # few tokens can begin a JSON value


def test_one_object_carries_all_steps(served):
    body = {"model": "m", "prompt": "the cat", "look": LOOK, "options": {"num_predict": 4}}
    streamed, whole = lines(served.post("/api/generate", **body)), served.ok("/api/generate", stream=False, **body)
    timing = {"time", "sampler"}

    def without_times(found):
        return [{key: value for key, value in step.items() if key not in timing} for step in found]

    assert without_times(whole["look"]["steps"]) == without_times(steps(streamed))


def test_arrays_come_as_halves_on_request(served):
    body = {"model": "m", "prompt": "the cat", "options": {"num_predict": 2, "temperature": 0}, "stream": False}
    numbers = served.ok("/api/generate", look={"attention": "*"}, **body)["look"]["steps"]
    halves = served.ok("/api/generate", look={"attention": "*", "encoding": "f16"}, **body)["look"]["steps"]
    for exact, half in zip(numbers, halves, strict=True):
        packed = half["attention"]
        got = np.frombuffer(base64.b64decode(packed["f16"]), "<f2").reshape(packed["shape"])
        np.testing.assert_allclose(got, exact["attention"], atol=6e-4)  # four digits, and halves of numbers up to 1


def test_all_logits_come_in_the_order_of_ids(served):
    body = {"model": "m", "prompt": "the cat", "options": {"num_predict": 2, "temperature": 0}, "stream": False}
    for step in served.ok("/api/generate", look={"logits": -1}, **body)["look"]["steps"]:
        if step["sampled"]:
            row = np.frombuffer(base64.b64decode(step["logits"]["f32"]), "<f4")
            assert row.argmax() == step["next"][0]


def test_the_first_line_says_what_is_changed(served):
    body = {"model": "m", "prompt": "the cat", "stream": False}
    ablate = [{"layer": 1, "head": 2}, {"layer": 0, "block": "ffn"}]
    got = served.ok("/api/generate", look={"ablate": ablate}, **body)
    assert got["look"]["prompt"]["changed"] == ["without layer 1, head 2", "without layer 0, ffn"]
    assert got["response"] != served.ok("/api/generate", **body)["response"]


def test_neurons_of_one_layer_are_those_of_all_layers(served):
    body = {"model": "m", "prompt": "the cat", "options": {"num_predict": 3}, "stream": False}

    def neurons(**look):
        steps = served.ok("/api/generate", look={"neurons": 2, **look}, **body)["look"]["steps"]
        return [step["residual"]["neurons"] for step in steps]

    whole, last = neurons(), neurons(neuron_layers=[-1])
    assert [len(rows) for rows in whole] == [4] * len(last)
    assert last == [[row for row in rows if row[0] == 1] for rows in whole]


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (5, "look: expected an object with some of attention, lens, sampler"),
        ({"attention": [[7, 0]]}, 'look.attention: layer 7 does not exist, expected 0 to 1 or "*"'),
        ({"neurons": 2, "neuron_layers": [-3]}, "look.neuron_layers: layer -3 does not exist, expected -2 to 1"),
        ({"neuron_layers": 1}, "look.neuron_layers: expected a list of layers, got 1"),
        ({"layers": 1}, "look: unknown field 'layers'"),
        (
            {"patch": [{"name": "l_out", "layer": 0, "row": 70, "from": "a"}]},
            "look.patch: the other prompt has no token 70",
        ),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_look_is_a_400(served, look, message, stream):
    for path, body in (("/api/generate", {"prompt": "a"}), ("/api/chat", QUESTION)):
        answer = served.post(path, model="m", look=look, stream=stream, **body)
        assert answer.status_code == 400 and answer.json()["error"].startswith(message)


def test_a_look_over_the_limit_is_a_400_that_names_the_sizes(served, monkeypatch):
    monkeypatch.setattr(served.engine, "settings", served.engine.settings.__class__(look_limit=0))
    answer = served.post("/api/generate", model="m", prompt="a", look={"attention": "*", "lens": 2})
    assert (
        answer.status_code == 400
        and "over the limit of 0.0 MiB (OLLAMA_LOOK_LIMIT=1 allows it)" in answer.json()["error"]
    )


def test_other_apis_ignore_it(served):
    body = {"model": "m", "messages": QUESTION["messages"], "look": LOOK, "max_tokens": 3}
    for path in ("/v1/chat/completions", "/v1/messages"):
        answer = served.post(path, **body)
        assert answer.status_code == 200 and "look" not in answer.json()
