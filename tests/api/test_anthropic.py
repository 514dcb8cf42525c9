"""Anthropic's API: blocks in, blocks out."""

from __future__ import annotations

import json
import re

import pytest
from scripted import HELLO, WEATHER

PATH = "/v1/messages"
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOL = {"name": "get_weather", "description": "d", "input_schema": WEATHER["function"]["parameters"]}
ASK = {"model": "t", "max_tokens": 50, "messages": HELLO}
THINKS = {"thinking": {"type": "adaptive"}}


def events(answer):
    """Return the data of each event; check that its type equals the event's name."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    blocks = [block.split("\n") for block in answer.text.removesuffix("\n\n").split("\n\n")]
    got = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(name == data["type"] for name, data in got)
    return [data for _, data in got]


def test_a_message_has_a_block_for_each_kind_of_content(model, script):
    script("<think>hm</think>", "See: ", CALL)
    answer = model.post(PATH, **ASK, **THINKS, tools=[TOOL])
    assert answer.headers["content-type"] == "application/json"
    got = answer.json()
    thought, text, call = got.pop("content")
    assert re.fullmatch("msg_[0-9a-f]{24}", got.pop("id"))
    assert thought == {"type": "thinking", "thinking": "hm"} and text == {"type": "text", "text": "See: "}
    assert re.fullmatch("call_[a-z0-9]{8}", call.pop("id"))
    assert call == {"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}
    usage = {"input_tokens": 2, "output_tokens": 3}
    assert got == {"type": "message", "role": "assistant", "model": "t", "stop_reason": "tool_use", "usage": usage}


def test_a_message_streams_block_by_block(model, script):
    script("<think>hm</think>", "See", ": ", CALL)
    start, *blocks, delta, stop = events(model.post(PATH, **ASK, **THINKS, tools=[TOOL], stream=True))
    assert (start["message"]["stop_reason"], start["message"]["stop_sequence"]) == (None, None)
    assert start["message"]["content"] == [] and start["message"]["usage"]["output_tokens"] == 0
    assert start["message"]["usage"]["input_tokens"] > 20  # the length of the prompt, before prefill
    names = {"content_block_start": "start", "content_block_delta": "delta", "content_block_stop": "stop"}
    assert [(data["index"], names[data["type"]]) for data in blocks] == [
        *((0, "start"), (0, "delta"), (0, "stop")),
        *((1, "start"), (1, "delta"), (1, "delta"), (1, "stop")),
        *((2, "start"), (2, "delta"), (2, "stop")),
    ]
    deltas = [data["delta"] for data in blocks if data["type"] == "content_block_delta"]
    assert deltas == [
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "text_delta", "text": "See"},
        {"type": "text_delta", "text": ": "},
        {"type": "input_json_delta", "partial_json": '{"city":"Paris"}'},
    ]
    call = next(data["content_block"] for data in blocks if data["index"] == 2)
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "get_weather", {})
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None} and delta["usage"] == {
        "input_tokens": 2,
        "output_tokens": 4,
    }
    assert stop == {"type": "message_stop"}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, {"stop_reason": "end_turn"}),
        ({"done_reason": "length"}, {"stop_reason": "max_tokens"}),
        ({"met": "STOP"}, {"stop_reason": "stop_sequence", "stop_sequence": "STOP"}),
        ({"met": "its own"}, {"stop_reason": "end_turn"}),
    ],
)
def test_the_stop_reason_is_mapped(model, script, said, reason):
    script("a", **said)
    got = model.ok(PATH, **ASK, stop_sequences=["STOP"])
    assert {key: got[key] for key in got if key.startswith("stop")} == reason
    streamed = events(model.post(PATH, **ASK, stop_sequences=["STOP"], stream=True))[-2]["delta"]
    assert streamed == {"stop_sequence": None} | reason


def test_a_stop_sequence_is_named(served):
    body = {"model": "m", "messages": HELLO, "max_tokens": 8, "temperature": 0}
    [block] = served.ok(PATH, **body)["content"]
    stop = block["text"][2:4]
    got = served.ok(PATH, **body, stop_sequences=[stop, "unlikely"])
    assert got["content"] == [{"type": "text", "text": block["text"].partition(stop)[0]}]
    assert (got["stop_reason"], got["stop_sequence"]) == ("stop_sequence", stop)


def test_an_empty_answer_has_no_blocks(model, script):
    script()
    assert model.ok(PATH, **ASK)["content"] == []
    kinds = [data["type"] for data in events(model.post(PATH, **ASK, stream=True))]
    assert kinds == ["message_start", "message_delta", "message_stop"]


def test_all_blocks_of_the_conversation_reach_the_prompt(model, script):
    script()
    use = {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"b": 1, "a": 2}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    system = [{"type": "text", "text": "S"}]
    model.ok(PATH, model="t", max_tokens=5, messages=messages, system=system, thinking={"type": "disabled"})
    assert script.prompt == (
        "<|system|>S\n<|user|>ab\n<|assistant|><think>hm</think>so"
        '<tool_call>{"name": "get_weather", "arguments": {"b": 1, "a": 2}}</tool_call>\n'
        "<|tool|>sunny from get_weather\n<|user|>and?\n<|assistant|>"
    )


def test_parameters_become_ollamas_options(model, script):
    script()
    model.ok(PATH, **ASK, temperature=0.5, top_p=0.25, top_k=3, stop_sequences=["a"], options={"seed": 1})
    o = script.options
    assert (o.num_predict, o.temperature, o.top_p, o.top_k, o.stop, o.seed) == (50, 0.5, 0.25, 3, ("a",), 1)


@pytest.mark.parametrize("kind", ["enabled", "adaptive", "disabled"])
def test_thinking_is_ignored_for_a_model_without_it(served, kind):
    thinking = {"type": kind, "budget_tokens": 1024}
    assert served.ok(PATH, model="m", max_tokens=2, messages=HELLO, thinking=thinking)["type"] == "message"


@pytest.mark.parametrize(
    ("choice", "kind"), [({"type": "any"}, "tool_use"), ({"type": "tool", "name": "get_weather"}, "tool_use")]
)
def test_tool_choice_can_require_a_call(model, script, choice, kind):
    script('<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>')
    got = model.ok(PATH, **ASK, tools=[TOOL], tool_choice=choice)
    assert got["content"][0]["input"] == {"city": "Rome"} and got["stop_reason"] == kind


def test_tools_are_rendered_unless_tool_choice_is_none(model, script):
    script()
    model.ok(PATH, **ASK, tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}])
    assert '"name": "get_weather"' in script.prompt and "web_search" not in script.prompt
    model.ok(PATH, **ASK, tools=[TOOL], tool_choice={"type": "none"})
    assert "get_weather" not in script.prompt


def test_an_output_format_constrains_the_answer(served):
    schema = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"], "additionalProperties": False}
    config = {"format": {"type": "json_schema", "schema": schema}}
    [block] = served.ok(PATH, model="m", max_tokens=80, messages=HELLO, output_config=config)["content"]
    assert json.loads(block["text"]) == {"n": 7}


REFUSED = [
    ({}, 400, "model is required"),
    ({"model": "m"}, 400, "max_tokens is required and must be positive"),
    ({"model": "m", "max_tokens": 0, "messages": HELLO}, 400, "max_tokens is required and must be positive"),
    ({"model": "m", "max_tokens": 5}, 400, "messages is required"),
    ({"model": "nope", "max_tokens": 5, "messages": HELLO}, 404, "model 'nope' not found"),
    (
        {"model": "m", "max_tokens": 5, "messages": [{"content": 3}]},
        400,
        "content must be a string or a list of blocks",
    ),
    (
        {"model": "m", "max_tokens": "many"},
        400,
        "json: cannot unmarshal string into Go struct field MessagesRequest.max_tokens of type int",
    ),
    (
        {"model": "m", "max_tokens": 5, "messages": HELLO, "tools": [TOOL]},
        400,
        "registry.ollama.ai/library/m:latest does not support tools",
    ),
]


@pytest.mark.parametrize(("body", "status", "text"), REFUSED, ids=lambda x: str(x)[:40])
def test_errors_have_anthropics_form(served, body, status, text):
    kind = {400: "invalid_request_error", 404: "not_found_error"}[status]
    for stream in (False, True):
        answer = served.post(PATH, **body, stream=stream)
        got = answer.json()
        assert re.fullmatch("req_[0-9a-f]{24}", got.pop("request_id"))
        assert (answer.status_code, got) == (status, {"type": "error", "error": {"type": kind, "message": text}})


def test_an_empty_body_is_an_eof_error(served):
    assert served.client.post(PATH, content=b" ").json()["error"]["message"] == "EOF"


def test_a_thread_is_refused_with_the_code_that_clients_fall_back_on(served):
    answer = served.post(PATH, model="m", max_tokens=5, messages=HELLO, thread={"type": "create"})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}


def test_an_error_during_the_stream_is_the_last_event(served, script):
    script("a", error=RuntimeError("secret detail"))
    *_, last = events(served.post(PATH, model="m", max_tokens=5, messages=HELLO, stream=True))
    assert last["error"] == {"type": "api_error", "message": "internal error: RuntimeError"}


def test_the_tokens_of_a_prompt_are_counted(served):
    """As many as the answer then reports; the conversation is not cut to the window, and nothing is generated."""
    ask = {"model": "m", "messages": HELLO, "system": "S", "options": {"num_ctx": 256}}
    counted = served.ok(f"{PATH}/count_tokens", **ask)
    assert counted == {"input_tokens": served.ok(PATH, **ask, max_tokens=1)["usage"]["input_tokens"]}
    long = [{"role": "user", "content": "hello"}, {"role": "user", "content": "the cat and the dog " * 100}]
    assert served.ok(f"{PATH}/count_tokens", **ask | {"messages": long})["input_tokens"] > 500
    assert all(not loaded.n_using for loaded in served.engine.pool.loaded())


def test_tools_count(model):
    ask = {"model": "t", "messages": HELLO}
    plain, offered, chosen = (
        model.ok(f"{PATH}/count_tokens", **ask, **more)["input_tokens"]
        for more in ({}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": {"type": "none"}})
    )
    assert plain == chosen < offered
    answer = model.post(f"{PATH}/count_tokens", model="t")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "messages is required")
