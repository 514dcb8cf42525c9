"""`format` over HTTP: a tiny random model, held to JSON."""

from __future__ import annotations

import json

import jsonschema
import pytest

from numllama.engine.sampling.json_mode import follow
from tiny import spm_vocabulary, tiny_gguf

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
}
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
WHOLE = {"temperature": 0.8, "seed": 5, "num_predict": 1000}


def chat(server, model="m", options=WHOLE, **more):
    return server.ok("/api/chat", model=model, messages=HELLO, options=options, stream=False, **more)


def generate(server, options=WHOLE, **more):
    return server.ok("/api/generate", model="m", prompt="hello", options=options, stream=False, **more)


def streamed(server, path, **more):
    answer = server.post(path, model="m", options=WHOLE, **more)
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.fixture(scope="module")
def thinker(served, models):
    """The server with a model `th`, which may think and call tools, and says </think> as often as anything."""
    vocabulary = spm_vocabulary()
    pieces, types = (vocabulary[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    pieces[-1], types[-1] = "</think>", 4  # user-defined, as in qwen3 and deepseek-r1
    kv = {key.replace(".", "__"): value for key, value in vocabulary.items()}
    tiny_gguf(models / "thinks.gguf", seed=6, chat_template=THINKS, **kv)
    served.add("th", models / "thinks.gguf")
    return served


# numbers in brackets are those of docs/compatibility.md


@pytest.mark.parametrize("seed", range(3))
def test_json_is_an_object(served, seed):
    """[46]  A model that closes it; one that does not says "length", and what it said is the beginning of one."""
    answer = generate(served, {**WHOLE, "seed": seed, "num_predict": 300}, format="json")
    if answer["done_reason"] == "stop":
        assert isinstance(json.loads(answer["response"]), dict)
    else:
        assert answer["done_reason"] == "length" and follow(answer["response"].encode()) is not None


@pytest.mark.parametrize("format", ["", None])
def test_no_format_is_no_constraint(served, format):
    """[47]"""
    greedy = {"temperature": 0}
    assert generate(served, greedy, format=format)["response"] == generate(served, greedy)["response"]


@pytest.mark.parametrize(("format", "quoted"), [("xml", r'"\"xml\""'), (1, '"1"'), (["json"], r'"[\"json\"]"')])
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_what_is_no_format_is_a_400(served, path, format, quoted):
    """[48]"""
    answer = served.post(path, model="m", prompt="hello", messages=HELLO, format=format)
    assert answer.status_code == 400
    assert answer.json()["error"] == f'invalid format: {quoted}; expected "json" or a valid JSON Schema object'


def test_a_model_is_loaded_whatever_the_format(served):
    """docs/compatibility.md, "Checks of generate": an empty prompt (m) is answered before the format is read (o)."""
    assert served.ok("/api/generate", model="m", format="xml", stream=False)["done_reason"] == "load"


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_validates_and_its_keys_come_in_order(served, seed):
    """[49]"""
    for answer in (generate(served, {**WHOLE, "seed": seed}, format=SCHEMA), chat(served, format=SCHEMA)):
        said = json.loads(answer["message"]["content"] if "message" in answer else answer["response"])
        jsonschema.validate(said, SCHEMA)
        assert list(said) == [key for key in SCHEMA["properties"] if key in said]
        assert answer["done"] and answer["done_reason"] == "stop"


@pytest.mark.parametrize("keyword", ["not", "uniqueItems", "dependentRequired", "contains"])
def test_a_keyword_that_cannot_be_kept_to_is_a_400_that_names_it(served, keyword):
    schema = {"type": "object", "properties": {"a": {keyword: {}}}}
    answer = served.post("/api/chat", model="m", messages=HELLO, format=schema)
    assert answer.status_code == 400 and answer.json()["error"] == f'format: Unimplemented keys: ["{keyword}"]'


@pytest.mark.parametrize("format", ["json", SCHEMA])
def test_a_stream_says_the_same_and_ends(served, format):
    whole, lines = generate(served, format=format), streamed(served, "/api/generate", prompt="hello", format=format)
    assert "".join(line["response"] for line in lines) == whole["response"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert all(lines[-1][figure] == whole[figure] for figure in ("done_reason", "eval_count"))
    lines = streamed(served, "/api/chat", messages=HELLO, format=format)
    assert "".join(line["message"]["content"] for line in lines) == chat(served, format=format)["message"]["content"]


def test_a_raw_prompt_and_a_context_are_answered_so_too(served):
    jsonschema.validate(json.loads(generate(served, format=SCHEMA, raw=True)["response"]), SCHEMA)
    context = generate(served, format=SCHEMA)["context"]
    jsonschema.validate(json.loads(generate(served, format=SCHEMA, context=context)["response"]), SCHEMA)


def test_an_answer_cut_short_says_length_and_is_a_beginning(served):
    whole = generate(served, format=SCHEMA)["response"]
    for num_predict in (1, 5):
        cut = generate(served, {**WHOLE, "num_predict": num_predict}, format=SCHEMA)
        assert cut["done_reason"] == "length" and cut["eval_count"] == num_predict
        assert whole.startswith(cut["response"])


def test_a_stop_string_cuts_it(served):
    cut = generate(served, {**WHOLE, "stop": ['"age"']}, format=SCHEMA)
    assert cut["done_reason"] == "stop" and "age" not in cut["response"]
    assert json.loads(cut["response"] + '"age": 1}').keys() == {"name", "age"}


def test_logprobs_are_of_the_whole_vocabulary(served):
    """docs/compatibility.md, "Log-probabilities": a token that the grammar forces is not certain."""
    answer = chat(served, format={"const": "ab"}, logprobs=True)
    assert "".join(entry["token"] for entry in answer["logprobs"]) == answer["message"]["content"] == '"ab"'
    assert all(entry["logprob"] < -0.01 for entry in answer["logprobs"])


def test_a_model_that_thinks_is_held_once_it_has_thought(thinker):
    """[100]"""
    anything = {"temperature": 5, "top_k": 0, "top_p": 1, "seed": 2, "num_predict": 3000}
    message = chat(thinker, "th", anything, format=SCHEMA)["message"]
    jsonschema.validate(json.loads(message["content"]), SCHEMA)
    assert message["thinking"]
    cut = chat(thinker, "th", {**anything, "num_predict": 10}, format=SCHEMA)
    assert cut["done_reason"] == "length" and cut["message"]["content"] == ""
    assert message["thinking"].startswith(cut["message"]["thinking"])


def test_a_model_told_not_to_think_is_held_at_once(thinker):
    message = chat(thinker, "th", format={"const": "x"}, think=False)["message"]
    assert message == {"role": "assistant", "content": '"x"'}


def test_an_answer_that_was_asked_for_as_json_is_no_tool_call(thinker):
    call = {"const": {"name": "get_weather", "arguments": {}}}
    message = chat(thinker, "th", format=call, tools=[WEATHER], think=False)["message"]
    assert json.loads(message["content"]) == call["const"] and "tool_calls" not in message


def test_a_prompt_alone_needs_no_format(served):
    rendered = served.ok("/api/chat", model="m", messages=HELLO, format="json", _debug_render_only=True, stream=False)
    assert rendered["_debug_info"]["rendered_template"]
