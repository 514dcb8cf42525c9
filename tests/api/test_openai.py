"""OpenAI's API: requests become requests to Ollama's routes, answers have OpenAI's form (items 194-207)."""

from __future__ import annotations

import json
import math
import re
from itertools import chain

import pytest
from scripted import HELLO, WEATHER
from serving import until

from numllama.api.openai import schema as openai
from numllama.api.openai.map import chat_from_completions
from numllama.engine.go.decode import decode_json
from tiny import tiny_gguf

CHAT = "/v1/chat/completions"
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
USAGE = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def events(answer):
    """Return the data of each event before the final [DONE]."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream" and answer.text.endswith("\n\n")
    *data, last = [block.removeprefix("data: ") for block in answer.text.removesuffix("\n\n").split("\n\n")]
    assert last == "[DONE]"
    return [json.loads(text) for text in data]


def asked(**body):
    """Return the request to /api/chat that a completion is converted to."""
    body = {"messages": HELLO} | body
    return chat_from_completions(decode_json(openai.ChatCompletionRequest, json.dumps(body).encode()))


# --- chat/completions ---


def test_194_a_completion_is_one_object_unless_streamed(model, script):
    script("Hel", "lo")
    answer = model.post(CHAT, model="t", messages=HELLO)
    assert answer.headers["content-type"] == "application/json"
    got = answer.json()
    assert re.fullmatch(r"chatcmpl-\d+", got.pop("id")) and got.pop("created") > 1.7e9
    message = {"role": "assistant", "content": "Hello"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"object": "chat.completion", "model": "t", "system_fingerprint": "fp_ollama"}
    assert got == head | {"choices": [choice], "usage": USAGE}


def test_195_a_stream_has_the_role_once_and_ends_with_an_empty_delta(model, script):
    script("Hel", "lo")
    chunks = events(model.post(CHAT, model="t", messages=HELLO, stream=True))
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "lo"}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)


def test_an_empty_stream_has_a_role(model, script):
    script()
    first, last = [chunk["choices"][0] for chunk in events(model.post(CHAT, model="t", messages=HELLO, stream=True))]
    assert first["delta"] == {"role": "assistant", "content": ""} and last["finish_reason"] == "stop"


def test_196_usage_is_a_separate_chunk_on_request(model, script):
    script("Hel", "lo")
    options = {"include_usage": True}
    *_, last = events(model.post(CHAT, model="t", messages=HELLO, stream=True, stream_options=options))
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_197_temperature_and_top_p_default_to_one(model, script):
    script()
    model.ok(CHAT, model="t", messages=HELLO)
    assert (script.options.temperature, script.options.top_p) == (1.0, 1.0)
    model.ok(CHAT, model="t", messages=HELLO, temperature=0.5, top_p=0, options={"top_k": 3, "temperature": 0.25})
    assert (script.options.temperature, script.options.top_p, script.options.top_k) == (0.25, 0.0, 3)


def test_parameters_become_ollamas_options():
    said = asked(max_tokens=5, seed=7, stop="a", frequency_penalty=0.5, presence_penalty=-1)
    expected = {"num_predict": 5, "seed": 7, "stop": ["a"], "frequency_penalty": 0.5, "presence_penalty": -1.0}
    assert said.options == {"temperature": 1.0, "top_p": 1.0} | expected
    assert asked(stop=["a", 1, "b"]).options["stop"] == ["a", "b"]
    assert asked(max_completion_tokens=6).options["num_predict"] == 6
    assert asked(min_tokens=3, ignore_eos=True).options.items() >= {"min_tokens": 3, "ignore_eos": True}.items()
    assert "stop" not in asked(n=2, user="me", logit_bias={"1": 2}).options


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning": {"effort": "xhigh"}}, "max"),
    ],
)
def test_reasoning_effort_becomes_think(body, think):
    assert asked(**body).think == think


@pytest.mark.parametrize(
    ("response_format", "format"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, {"type": "object"}),
        ({"type": "json_schema", "schema": {"enum": [1]}}, {"enum": [1]}),
        ({"type": "json_object", "schema": {"enum": [1]}}, {"enum": [1]}),
    ],
)
def test_202_response_format_becomes_format(response_format, format):
    assert asked(response_format=response_format).format == format


@pytest.mark.parametrize(
    ("response_format", "problem"),
    [
        ({"type": "jsonschema"}, "unknown type 'jsonschema'; choose from text, json_object, json_schema"),
        ({}, "unknown type ''; choose from text, json_object, json_schema"),
        ({"type": "json_schema"}, "type json_schema requires a schema"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "type json_schema requires a schema"),
    ],
)
def test_a_format_that_constrains_nothing_is_refused(served, response_format, problem):
    answer = served.post(CHAT, model="m", messages=HELLO, response_format=response_format)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"response_format: {problem}")
    if "json_schema" not in response_format:
        answer = served.post("/v1/responses", model="m", input="x", text={"format": response_format})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"text.format: {problem}")
        answer = served.post(
            "/v1/messages", model="m", max_tokens=1, messages=HELLO, output_config={"format": response_format}
        )
        assert answer.status_code == 400 and "output_config.format: " in answer.json()["error"]["message"]


def test_parts_of_a_message_become_messages(model, script):
    script()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    model.ok(CHAT, model="t", messages=[{"role": "user", "content": parts}], reasoning_effort="none")
    assert script.prompt == "<|user|>a\n<|user|>b\n<|assistant|>"


def test_the_role_developer_becomes_system():
    assert asked(messages=[{"role": "developer", "content": "S"}]).messages[0].role == "system"


def test_200_images_are_data_urls_only():
    def part(url):
        return [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]

    for url in ("data:image/png;base64,AAAA", {"url": "data:;base64,AAAA"}):
        assert asked(messages=part(url)).messages[0].images == [b"\0\0\0"]


def test_calls_and_results_reach_the_prompt(model, script):
    script()
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"b": 1, "a": 2}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "reasoning": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    model.ok(CHAT, model="t", messages=messages, reasoning_effort="none")
    assert script.prompt == (
        '<|user|>hello\n<|assistant|><think>hm</think><tool_call>{"name": "get_weather", "arguments": {"b": 1, "a": 2}}'
        "</tool_call>\n<|tool|>sunny from get_weather\n<|assistant|>"
    )


def test_201_arguments_of_a_call_are_a_json_string(model, script):
    script("See: ", CALL)
    [choice] = model.ok(CHAT, model="t", messages=HELLO, tools=[WEATHER])["choices"]
    [call] = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "See: "} and choice["finish_reason"] == "tool_calls"
    assert re.fullmatch("call_[a-z0-9]{8}", call.pop("id"))
    function = {"name": "get_weather", "arguments": '{"city":"Paris"}'}
    assert call == {"index": 0, "type": "function", "function": function}


def test_a_call_is_streamed_in_one_chunk(model, script):
    script("See: ", CALL)
    chunks = events(model.post(CHAT, model="t", messages=HELLO, tools=[WEATHER], stream=True))
    first, second, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": "See: "}
    assert second["delta"]["content"] == "" and len(second["delta"]["tool_calls"]) == 1
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


def test_a_truncated_answer_does_not_finish_with_tool_calls(model, script):
    script(CALL, done_reason="length")
    [choice] = model.ok(CHAT, model="t", messages=HELLO, tools=[WEATHER])["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["tool_calls"]


def test_thinking_becomes_reasoning(model, script):
    script("<think>hm", "</think>yes")
    [choice] = model.ok(CHAT, model="t", messages=HELLO)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "reasoning": "hm"}
    deltas = [c["choices"][0]["delta"] for c in events(model.post(CHAT, model="t", messages=HELLO, stream=True))]
    assert deltas == [{"role": "assistant", "content": "", "reasoning": "hm"}, {"content": "yes"}, {}]


def test_203_max_tokens_gives_finish_reason_length(served):
    got = served.ok(CHAT, model="m", messages=HELLO, max_tokens=3)
    assert got["choices"][0]["finish_reason"] == "length" and got["usage"]["completion_tokens"] == 3


def test_207_a_choice_has_its_log_probabilities(served):
    body = {"model": "m", "messages": HELLO, "max_tokens": 3, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = served.ok(CHAT, **body)["choices"][0]["logprobs"]["content"]
    assert len(whole) == 3 and all(len(entry["top_logprobs"]) == 2 for entry in whole)
    chunks = events(served.post(CHAT, **body, stream=True))
    streamed = [chunk["choices"][0].get("logprobs", {"content": []})["content"] for chunk in chunks]
    assert list(chain.from_iterable(streamed)) == whole


@pytest.mark.parametrize(("top_logprobs", "stream"), [(0, False), (None, True), (0, True)])
def test_entries_without_alternatives_have_an_empty_list(served, top_logprobs, stream):
    """OpenAI's clients require the list.  Ollama's recorded answer to a request that names no number lacks it."""
    body = {"model": "m", "messages": HELLO, "max_tokens": 8, "logprobs": True, "temperature": 0}
    body |= {} if top_logprobs is None else {"top_logprobs": top_logprobs}
    answer = served.post(CHAT, **body, stream=stream)
    choices = [chunk["choices"][0] for chunk in (events(answer) if stream else [answer.json()])]
    entries = [entry for choice in choices for entry in choice.get("logprobs", {}).get("content", [])]
    assert entries and all(entry["top_logprobs"] == [] for entry in entries)


# --- n ---

VARIED = {"model": "m", "temperature": 1.5, "max_tokens": 6}


def choices_of(answer):
    """Join the events of a stream by the index of their choice."""
    texts, reasons = {}, {}
    for chunk in events(answer):
        for choice in chunk["choices"]:
            said = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + said
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
    return texts, reasons


@pytest.mark.parametrize(("path", "ask"), [(CHAT, {"messages": HELLO}), ("/v1/completions", {"prompt": "once upon"})])
def test_n_choices_are_those_of_the_following_seeds(served, path, ask):
    def text(choice):
        return choice["text"] if "text" in choice else choice["message"]["content"]

    alone = [served.ok(path, **VARIED, **ask, seed=5 + i) for i in range(3)]
    expected = [text(whole["choices"][0]) for whole in alone]
    whole = served.ok(path, **VARIED, **ask, seed=5, n=3)
    assert [(choice["index"], text(choice)) for choice in whole["choices"]] == list(enumerate(expected))
    assert len(set(expected)) == 3
    n_prompt, n_sampled = alone[0]["usage"]["prompt_tokens"], sum(one["usage"]["completion_tokens"] for one in alone)
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_sampled, "total_tokens": n_prompt + n_sampled}
    assert whole["usage"] == usage  # the prompt counts once, as in OpenAI's API
    options = {"include_usage": True}
    streamed = served.post(path, **VARIED, **ask, seed=5, n=3, stream=True, stream_options=options)
    texts, reasons = choices_of(streamed)
    assert texts == dict(enumerate(expected)) and reasons == dict.fromkeys(range(3), "length")
    assert events(streamed)[-1]["usage"] == usage and streamed.text.endswith("data: [DONE]\n\n")


def test_without_a_seed_n_choices_differ(served):
    whole = served.ok(CHAT, **VARIED, messages=HELLO, n=4)
    assert len({choice["message"]["content"] for choice in whole["choices"]}) > 1


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("n", [0, -1, 129])
def test_n_has_bounds(served, path, n):
    answer = served.post(path, model="m", messages=HELLO, prompt="x", n=n)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"n must be between 1 and 128, got {n}")


def test_a_disconnect_ends_all_choices(served, slowly):
    body = {"model": "bare", "messages": HELLO, "n": 3, "max_tokens": 100_000, "stream": True, "ignore_eos": True}
    with served.client.stream("POST", CHAT, json=body) as answer:
        next(answer.iter_bytes())
        assert any(loaded.n_using == 3 for loaded in served.engine.pool.loaded())
    until(lambda: not any(loaded.n_using for loaded in served.engine.pool.loaded()))


# --- tool_choice ---


def test_tool_choice_none_removes_the_tools(model, script):
    script(CALL)
    [choice] = model.ok(CHAT, model="t", messages=HELLO, tools=[WEATHER], tool_choice="none")["choices"]
    assert choice["message"]["content"] == CALL and "<tools>" not in script.prompt


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_call_is_parsed_from_the_models_own_form(model, script, tool_choice):
    body = {"model": "t", "messages": HELLO, "tools": [WEATHER], "tool_choice": tool_choice}
    script('<tool_call>{"name": "get_weather", ', '"arguments": {"city": "Rome"}}', "</tool_call>")
    [choice] = model.ok(CHAT, **body)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city":"Rome"}'}
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "tool_calls")
    first, last = [chunk["choices"][0] for chunk in events(model.post(CHAT, **body, stream=True))]
    assert first["delta"]["tool_calls"][0]["function"] == call["function"] and last["finish_reason"] == "tool_calls"


def test_a_truncated_required_call_is_text_like_any_other(model, script):
    script('<tool_call>{"name": "get_wea', done_reason="length")
    [choice] = model.ok(CHAT, model="t", messages=HELLO, tools=[WEATHER], tool_choice="required")["choices"]
    assert choice["message"] == {"role": "assistant", "content": '<tool_call>{"name": "get_wea'}
    assert choice["finish_reason"] == "length"


def test_an_untrained_model_makes_the_required_call(model):
    city = {"type": "string", "enum": ["Oslo", "Rome"]}
    parameters = {"$defs": {"City": city}, "type": "object", "required": ["city"], "additionalProperties": False}
    parameters["properties"] = {"city": {"$ref": "#/$defs/City"}}
    other = {"type": "function", "function": {"name": "get/time", "parameters": {"type": "object"}}}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}, other]
    chosen = {"type": "function", "function": {"name": "get_weather"}}
    body = {"model": "t", "messages": HELLO, "tools": tools, "seed": 1, "reasoning_effort": "none", "max_tokens": 200}
    [choice] = model.ok(CHAT, **body, tool_choice=chosen)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")


# --- errors ---

TEXT = [{"role": "user", "content": "x"}]
PART = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
GIF = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/gif;base64,xx"}}]}]
BROKEN = [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "not json"}}]}]
WORDS = '"minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none"'
REFUSED = [
    (CHAT, {"model": "m", "messages": []}, 400, "[] is too short - 'messages'"),
    (CHAT, {"model": "nope", "messages": TEXT}, 404, "model 'nope' not found"),
    (CHAT, {"messages": TEXT}, 400, "model is required"),
    (CHAT, {"model": "m", "messages": [{"role": "user"}]}, 400, "invalid message content type: <nil>"),
    (CHAT, {"model": "m", "messages": [{"content": 3}]}, 400, "invalid message content type: float64"),
    (CHAT, {"model": "m", "messages": [{"content": [3]}]}, 400, "invalid message format"),
    (
        CHAT,
        {"model": "m", "messages": PART},
        400,
        "image URLs are not currently supported, please use base64 encoded data instead",
    ),
    (CHAT, {"model": "m", "messages": GIF}, 400, "invalid image input"),
    (CHAT, {"model": "m", "messages": BROKEN}, 400, "invalid tool call arguments"),
    (
        CHAT,
        {"model": "m", "messages": TEXT, "temperature": "hot"},
        400,
        "json: cannot unmarshal string into Go struct field ChatCompletionRequest.temperature of type float64",
    ),
    (
        CHAT,
        {"model": "m", "messages": TEXT, "tools": [WEATHER]},
        400,
        "registry.ollama.ai/library/m:latest does not support tools",
    ),
    (
        CHAT,
        {"model": "m", "messages": TEXT, "reasoning_effort": "bogus"},
        400,
        f'invalid reasoning value: "bogus" (must be {WORDS})',
    ),
    (
        CHAT,
        {"model": "t", "messages": TEXT, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        400,
        "tool_choice names unknown tool 'f'; the request has no tools",
    ),
    (
        CHAT,
        {
            "model": "t",
            "messages": TEXT,
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
        400,
        "tool_choice names unknown tool 'f'; choose from get_weather",
    ),
    (
        CHAT,
        {"model": "t", "messages": TEXT, "tool_choice": "required"},
        400,
        "tool_choice 'required' requires at least one tool in tools",
    ),
    (
        CHAT,
        {"model": "t", "messages": TEXT, "tool_choice": "perhaps"},
        400,
        "unknown tool_choice 'perhaps'; choose from auto, none, required, or name a function",
    ),
    (
        "/v1/completions",
        {"model": "m", "prompt": ["x"]},
        400,
        "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string",
    ),
    ("/v1/completions", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
    ("/v1/completions", {"model": "m", "prompt": "x", "stop": [1]}, 400, "invalid type for 'stop' field: float64"),
    (
        "/v1/completions",
        {"model": "m", "prompt": [[0, 99999]]},
        400,
        "unknown token 99999: the vocabulary ends at 416",
    ),
    (
        "/v1/completions",
        {"model": "m", "prompt": "x" * 300, "echo": True},
        400,
        "the input length exceeds the context length",
    ),
    ("/v1/responses", {"model": "nope", "input": "x"}, 404, "model 'nope' not found"),
    ("/v1/responses", {"input": "x"}, 400, "model is required"),
    ("/v1/responses", {"model": "m", "input": [{"type": "what"}]}, 400, "unknown input item type: what"),
    (
        "/v1/responses",
        {"model": "m", "input": "x", "previous_response_id": "resp_1"},
        400,
        "previous_response_id is not supported; send the whole conversation as input",
    ),
    ("/v1/embeddings", {"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
    ("/v1/embeddings", {"model": "e"}, 400, "invalid input"),
    ("/v1/embeddings", {"model": "e", "input": []}, 400, "invalid input"),
    ("/v1/embeddings", {"model": "e", "input": [[1, "a"]]}, 400, "invalid input type"),
    ("/v1/embeddings", {"model": "e", "input": [[]]}, 400, "invalid input type"),
    ("/v1/embeddings", {"model": "e", "input": [1, 99999]}, 400, "unknown token 99999: the vocabulary ends at 416"),
    (
        "/v1/embeddings",
        {"model": "e", "input": "x", "encoding_format": "x"},
        400,
        "Invalid value for 'encoding_format' = x. Supported values: ['float', 'base64'].",
    ),
]
KIND = {400: "invalid_request_error", 404: "not_found_error"}


@pytest.mark.parametrize(("path", "body", "status", "text"), REFUSED, ids=lambda x: str(x)[:40])
def test_198_199_errors_have_openais_form(model, path, body, status, text):
    error = {"message": text, "type": KIND.get(status, "api_error"), "param": None, "code": None}
    for stream in (False, True):
        answer = model.post(path, **body, stream=stream)
        assert (answer.status_code, answer.json()) == (status, {"error": error})


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_an_empty_body_is_an_eof_error(served, path):
    answer = served.client.post(path, content=b"")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "EOF")


def test_unknown_paths_and_methods_get_the_routers_text(served):
    assert served.client.get("/v1/nope").text == "404 page not found"
    assert served.client.get(CHAT).text == "405 method not allowed"


def test_an_error_during_the_stream_is_the_last_event(served, script):
    script("a", error=RuntimeError("secret detail"))
    body = {"model": "m", "messages": HELLO}
    error = {"message": "internal error: RuntimeError", "type": "api_error", "param": None, "code": None}
    answer = served.post(CHAT, **body, stream=True)
    first, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert '"content":"a"' in first and json.loads(last.removeprefix("data: ")) == {"error": error}
    answer = served.post(CHAT, **body)
    assert (answer.status_code, answer.json()) == (500, {"error": error})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO}),
        ("/v1/completions", {"prompt": "once"}),
        ("/v1/responses", {"input": "once", "max_output_tokens": 100_000}),
        ("/v1/messages", {"messages": HELLO}),
    ],
)
def test_a_disconnect_ends_the_answer(served, slowly, monkeypatch, path, body):
    served.ok("/api/generate", model="bare")
    for loaded in served.engine.pool.loaded():
        monkeypatch.setattr(
            loaded.runner.model.tokenizer, "eog", frozenset()
        )  # so that only the disconnect can end the answer
    body = {"model": "bare", "max_tokens": 100_000, "stream": True, "options": {"temperature": 2, "seed": 1}} | body
    with served.client.stream("POST", path, json=body) as answer:
        next(answer.iter_bytes())
        assert any(loaded.n_using for loaded in served.engine.pool.loaded())
    until(lambda: not any(loaded.n_using for loaded in served.engine.pool.loaded()))


# --- completions ---


def test_204_a_completion_has_text(model, script):
    script("Hel", "lo")
    got = model.ok("/v1/completions", model="t", prompt="a")
    assert re.fullmatch(r"cmpl-\d+", got.pop("id")) and got.pop("created")
    head = {"object": "text_completion", "model": "t", "system_fingerprint": "fp_ollama"}
    assert got == head | {"choices": [{"text": "Hello", "index": 0, "finish_reason": "stop"}], "usage": USAGE}


def test_a_completion_streams_its_text(model, script):
    script("Hel", "lo")
    chunks = events(model.post("/v1/completions", model="t", prompt="a", stream=True))
    assert [chunk["choices"][0] for chunk in chunks] == [
        {"text": "Hel", "index": 0, "finish_reason": None},
        {"text": "lo", "index": 0, "finish_reason": None},
        {"text": "", "index": 0, "finish_reason": "stop"},
    ]
    *chunks, last = events(
        model.post("/v1/completions", model="t", prompt="a", stream=True, stream_options={"include_usage": True})
    )
    assert all(chunk["usage"]["total_tokens"] == 0 for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_an_empty_prompt_gives_an_empty_answer(served):
    [choice] = served.ok("/v1/completions", model="m", prompt="")["choices"]
    assert choice == {"text": "", "index": 0, "finish_reason": "stop"}


def score(served, prompt, **more):
    return served.ok("/v1/completions", model="bare", prompt=prompt, echo=True, logprobs=1, **more)["choices"]


def test_an_echo_has_the_prompt_and_its_log_probabilities(served):
    [choice] = score(served, "once upon", max_tokens=0)
    assert (choice["text"], choice["finish_reason"]) == ("once upon", "length")
    told = choice["logprobs"]
    assert told["tokens"] == [" once", " upon"] and told["text_offset"] == [0, 4]
    for token, value, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert value < 0 and top[token] == value and max(top.values()) >= value and len(top) <= 2


def test_an_echo_of_token_ids_has_the_same_tokens(served):
    tokenizer = served.engine.pool.loaded()[0].runner.model.tokenizer
    ids = tokenizer.encode("once upon")
    [text] = score(served, "once upon", max_tokens=1, temperature=0)
    [tokens] = score(served, [ids], max_tokens=1, temperature=0)
    [flat] = score(served, ids, max_tokens=1, temperature=0)
    assert tokens == flat and tokens["text"] == "<s> " + text["text"]
    assert tokens["logprobs"]["tokens"] == ["<s>", *text["logprobs"]["tokens"]]
    assert tokens["logprobs"]["token_logprobs"] == [None, *text["logprobs"]["token_logprobs"]]
    assert tokens["logprobs"]["top_logprobs"][0] is None and len(tokens["logprobs"]["tokens"]) == len(ids) + 1


def test_each_prompt_gets_a_choice(served):
    got = served.ok("/v1/completions", model="bare", prompt=["once", "upon a"], echo=True, logprobs=1, max_tokens=0)
    assert [(choice["index"], choice["text"]) for choice in got["choices"]] == [(0, "once"), (1, "upon a")]
    assert got["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
    assert got["choices"][0]["logprobs"] == score(served, "once", max_tokens=0)[0]["logprobs"]
    [streamed] = events(
        served.post("/v1/completions", model="bare", prompt=["once", "upon a"], echo=True, max_tokens=0, stream=True)
    )
    assert [choice["text"] for choice in streamed["choices"]] == ["once", "upon a"]


@pytest.mark.parametrize("n", [1, 2])
def test_several_texts_are_completed_in_order(served, n):
    """A list with one text keeps Ollama's recorded refusal (REFUSED)."""
    texts, body = ["once", "upon a", "the cat"], VARIED | {"seed": 3, "n": n}
    alone = [served.ok("/v1/completions", **body, prompt=text)["choices"] for text in texts]
    expected = [choice["text"] for choices in alone for choice in choices]
    got = served.ok("/v1/completions", **body, prompt=texts)
    assert [(choice["index"], choice["text"]) for choice in got["choices"]] == list(enumerate(expected))
    streamed = served.post("/v1/completions", **body, prompt=texts, stream=True)
    assert choices_of(streamed)[0] == dict(enumerate(expected)) and streamed.text.endswith("data: [DONE]\n\n")


def test_tokens_that_are_part_of_a_character_are_written_as_bytes(served):
    tokenizer = served.engine.pool.loaded()[0].runner.model.tokenizer
    ids = tokenizer.encode("é☕x", add_special=False)
    [choice] = score(served, [ids], max_tokens=0)
    told = choice["logprobs"]
    assert choice["text"] == " é☕x"
    assert told["tokens"] == [" ", "é", "bytes:\\xe2", "bytes:\\x98", "bytes:\\x95", "x"]
    assert told["text_offset"] == [0, 1, 2, 2, 2, 3]


def test_a_stream_has_log_probabilities(served):
    body = {"model": "bare", "prompt": "once", "max_tokens": 4, "logprobs": 1, "temperature": 0}
    [whole] = served.ok("/v1/completions", **body)["choices"]
    chunks = [chunk["choices"][0] for chunk in events(served.post("/v1/completions", **body, stream=True))]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert list(chain.from_iterable(chunk["logprobs"][name] for chunk in chunks)) == whole["logprobs"][name]


def test_scored_prompts_include_the_closing_token(served, monkeypatch):
    """A scorer uses the tokens between the context and the last entry, so the closing token must be there."""
    tokenizer = served.engine.pool.loaded()[0].runner.model.tokenizer
    monkeypatch.setattr("numllama.engine.run.sequence.Sampler.sample", lambda *_, **__: tokenizer.eos)
    [choice] = score(served, "once upon", max_tokens=1)
    assert choice["finish_reason"] == "stop" and choice["text"] == "once upon"
    assert choice["logprobs"]["tokens"] == [" once", " upon", "</s>"]
    assert all(math.isfinite(value) for value in choice["logprobs"]["token_logprobs"])


# --- models ---


def test_206_models_equal_those_of_api_tags(served):
    got = served.client.get("/v1/models").json()
    tags = [entry["name"] for entry in served.client.get("/api/tags").json()["models"]]
    assert got["object"] == "list" and [entry["id"] for entry in got["data"]] == tags
    assert all((entry["object"], entry["owned_by"]) == ("model", "library") for entry in got["data"])
    one = served.client.get("/v1/models/m").json()
    assert one["id"] == "m" and one["created"] == next(e["created"] for e in got["data"] if e["id"] == "m:latest")


def test_a_models_name_can_contain_slashes(served):
    served.engine.copy("m", "me/mine:v1")
    assert served.client.get("/v1/models/me/mine:v1").json()["owned_by"] == "me"
    served.engine.delete("me/mine:v1")
    answer = served.client.get("/v1/models/none")
    assert answer.status_code == 404 and answer.json()["error"]["message"] == "model 'none:latest' not found"


def test_an_extra_slash_is_redirected(served):
    answer = served.client.get("/v1/models/")
    assert (answer.status_code, answer.headers["location"]) == (301, "/v1/models")


# --- responses ---


def responses(answer):
    """Return the data of each event; check its type and sequence number."""
    blocks = [block.split("\n") for block in answer.text.removesuffix("\n\n").split("\n\n")]
    got = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(name == data["type"] for name, data in got)
    assert [data["sequence_number"] for _, data in got] == list(range(len(got)))
    return [data for _, data in got]


def test_a_response_is_a_list_of_items(model, script):
    script("<think>hm</think>", "See: ", CALL)
    tool = {"type": "function"} | WEATHER["function"]
    got = model.ok("/v1/responses", model="t", input="hello", tools=[tool])
    thought, message, call = got["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert message["content"] == [{"type": "output_text", "text": "See: ", "annotations": [], "logprobs": []}]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "get_weather", '{"city":"Paris"}')
    assert (got["object"], got["status"], got["error"]) == ("response", "completed", None)
    assert got["usage"]["total_tokens"] == 5 and got["tools"][0]["strict"] is None


def test_a_response_streams_item_by_item(model, script):
    script("<think>hm</think>", "See", ": ", CALL)
    tool = {"type": "function"} | WEATHER["function"]
    got = responses(model.post("/v1/responses", model="t", input="hello", tools=[tool], stream=True))
    added, done = "response.output_item.added", "response.output_item.done"
    text, thought = "response.output_text", "response.reasoning_summary_text"
    part, call = "response.content_part", "response.function_call_arguments"
    assert [data["type"] for data in got] == [
        *("response.created", "response.in_progress"),
        *(added, f"{thought}.delta", f"{thought}.done", done),
        *(added, f"{part}.added", f"{text}.delta", f"{text}.delta", f"{text}.done", f"{part}.done", done),
        *(added, f"{call}.delta", f"{call}.done", done),
        "response.completed",
    ]
    assert [data["output_index"] for data in got if data["type"] == "response.output_item.done"] == [0, 1, 2]
    assert [data["item"] for data in got if data["type"] == "response.output_item.done"] == got[-1]["response"][
        "output"
    ]
    assert got[0]["response"]["status"] == "in_progress" and got[-1]["response"]["status"] == "completed"


def test_a_response_that_is_cut_ends_its_stream_as_incomplete(served):
    """A whole answer says completed: so does the one that was recorded from Ollama."""
    body = {"model": "m", "input": "once upon", "max_output_tokens": 3}
    *_, message, last = responses(served.post("/v1/responses", **body, stream=True))
    assert last["type"] == "response.incomplete" and last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["completed_at"] is None and last["response"]["usage"]["output_tokens"] == 3
    assert message["item"]["status"] == "incomplete" and last["response"]["output"] == [message["item"]]
    assert served.ok("/v1/responses", **body)["status"] == "completed"


def test_all_input_items_reach_the_prompt(model, script):
    script()
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    model.ok("/v1/responses", model="t", instructions="S", input=items, reasoning={"effort": "none"})
    assert script.prompt == (
        "<|system|>S\n<|user|>ab\n<|assistant|><think>hm</think>so"
        '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>\n'
        "<|tool|>sunny from get_weather\n<|assistant|>"
    )


def test_a_response_without_input_is_empty(served):
    got = served.ok("/v1/responses", model="m")
    assert got["output"][0]["content"][0]["text"] == "" and got["usage"]["total_tokens"] == 0


def test_a_failing_response_ends_with_an_error_event(served, script):
    script("a", error=RuntimeError("secret detail"))
    *_, last = responses(served.post("/v1/responses", model="m", input="a", stream=True))
    assert (last["type"], last["message"]) == ("error", "internal error: RuntimeError")


def test_logit_bias_applies_to_token_ids(served):
    body = {"model": "bare", "prompt": [[1, 300]], "max_tokens": 3, "temperature": 0, "logprobs": 0}
    [plain] = served.ok("/v1/completions", **body)["choices"]
    [id] = served.ok("/api/tokenize", model="bare", content=plain["logprobs"]["tokens"][0], add_special=False)[
        "tokens"
    ][-1:]
    [banned] = served.ok("/v1/completions", **body, logit_bias={str(id): -100})["choices"]
    assert banned["logprobs"]["tokens"][0] != plain["logprobs"]["tokens"][0]
    [forced] = served.ok("/v1/completions", **body, logit_bias={"301": 100})["choices"]
    assert served.ok("/api/detokenize", model="bare", tokens=[301] * 3)["content"] == forced["text"].strip()
    assert served.ok("/v1/completions", **body, logit_bias=None)["choices"] == [plain]


@pytest.mark.parametrize("bias", [{"x": 1}, {"300": "1"}, {"300": 101}, {"300": True}, {"99999": 1}, [1]])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_an_invalid_logit_bias_is_refused(served, route, bias):
    body = {"model": "m", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    answer = served.post(route, **body, logit_bias=bias)
    assert answer.status_code == 400 and "logit_bias" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_usage_reports_cached_tokens_and_truncation(served, monkeypatch, route, stream):
    def ask(n, **options):
        text = "the cat and the dog " * n
        body = {"prompt": text, "messages": [{"role": "user", "content": text}], "options": {"num_ctx": 256} | options}
        answer = served.post(
            route, model="m", **body, max_tokens=1, stream=stream, stream_options={"include_usage": True}
        )
        return events(answer)[-1] if stream else answer.json()

    assert "prompt_tokens_details" not in ask(8)["usage"] and "truncated" not in ask(8)
    monkeypatch.setattr("numllama.api.openai.map.MIN_CACHED_PROMPT_TOKENS", 8)
    usage = ask(8)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": usage["prompt_tokens"] - 1}
    if route == "/v1/completions":
        cut = ask(80)
        assert cut["truncated"]["kept"] == cut["usage"]["prompt_tokens"] == 256 < cut["truncated"]["prompt_tokens"]


def test_cached_tokens_are_reported_from_512_prompt_tokens_on(served, models):
    served.add("long", tiny_gguf(models / "long.gguf", seed=1, llama__context_length=1024))
    id = 300
    for n, expected in [(511, None), (512, {"cached_tokens": 511})]:
        for _ in range(2):
            got = served.ok("/v1/completions", model="long", prompt=[id] * n, max_tokens=1)["usage"]
        assert (got["prompt_tokens"], got.get("prompt_tokens_details")) == (n, expected)
