"""`format` over HTTP, with a tiny random model."""

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
    """Add a model `th` with thinking and tools, for which </think> is as likely as any other token."""
    vocabulary = spm_vocabulary()
    pieces, types = (vocabulary[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    pieces[-1], types[-1] = "</think>", 4  # user-defined, as in qwen3 and deepseek-r1
    kv = {key.replace(".", "__"): value for key, value in vocabulary.items()}
    tiny_gguf(models / "thinks.gguf", seed=6, chat_template=THINKS, **kv)
    served.add("th", models / "thinks.gguf")
    return served


# numbers in brackets are those of docs/compatibility.md


@pytest.mark.parametrize("seed", range(3))
def test_format_json_gives_an_object(served, seed):
    """[46]  An object is complete, or the reason is "length" and the text is the prefix of an object."""
    answer = generate(served, {**WHOLE, "seed": seed, "num_predict": 300}, format="json")
    if answer["done_reason"] == "stop":
        assert isinstance(json.loads(answer["response"]), dict)
    else:
        assert answer["done_reason"] == "length" and follow(answer["response"].encode()) is not None


@pytest.mark.parametrize("format", ["", None])
def test_an_empty_format_does_not_constrain(served, format):
    """[47]"""
    greedy = {"temperature": 0}
    assert generate(served, greedy, format=format)["response"] == generate(served, greedy)["response"]


@pytest.mark.parametrize(("format", "quoted"), [("xml", r'"\"xml\""'), (1, '"1"'), (["json"], r'"[\"json\"]"')])
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_an_invalid_format_is_a_400(served, path, format, quoted):
    """[48]"""
    answer = served.post(path, model="m", prompt="hello", messages=HELLO, format=format)
    assert answer.status_code == 400
    assert answer.json()["error"] == f'invalid format: {quoted}; expected "json" or a valid JSON Schema object'


def test_an_empty_prompt_loads_the_model_with_any_format(served):
    """docs/compatibility.md, "Checks of generate": an empty prompt (m) is answered before the format is checked (o)."""
    assert served.ok("/api/generate", model="m", format="xml", stream=False)["done_reason"] == "load"


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_validates_and_has_the_schemas_key_order(served, seed):
    """[49]"""
    for answer in (generate(served, {**WHOLE, "seed": seed}, format=SCHEMA), chat(served, format=SCHEMA)):
        said = json.loads(answer["message"]["content"] if "message" in answer else answer["response"])
        jsonschema.validate(said, SCHEMA)
        assert list(said) == [key for key in SCHEMA["properties"] if key in said]
        assert answer["done"] and answer["done_reason"] == "stop"


@pytest.mark.parametrize(
    ("keyword", "value"), [("not", {"pattern": "a"}), ("uniqueItems", True), ("$dynamicRef", "#a"), ("minItems", "1")]
)
def test_an_unsupported_keyword_is_a_400_that_names_it(served, keyword, value):
    schema = {"type": "object", "properties": {"a": {keyword: value}}}
    answer = served.post("/api/chat", model="m", messages=HELLO, format=schema)
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"format: {keyword}: ")


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"const": -(2**63)}]},  # llguidance recurses without end
        {"$ref": "#/$defs/0", "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(1000)}},
        {"type": "integer", "multipleOf": 2**31},  # or computes without end
    ],
)
def test_a_schema_that_breaks_the_compiler_costs_one_400(served, schema):
    answer = served.post("/api/generate", model="m", prompt="hello", format=schema)
    assert answer.status_code == 400 and answer.json()["error"].startswith("format: ")
    assert generate(served, format={"const": 1})["response"] == "1"


@pytest.mark.parametrize("format", ["json", SCHEMA])
def test_a_stream_has_the_same_text(served, format):
    whole, lines = generate(served, format=format), streamed(served, "/api/generate", prompt="hello", format=format)
    assert "".join(line["response"] for line in lines) == whole["response"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert all(lines[-1][figure] == whole[figure] for figure in ("done_reason", "eval_count"))
    lines = streamed(served, "/api/chat", messages=HELLO, format=format)
    assert "".join(line["message"]["content"] for line in lines) == chat(served, format=format)["message"]["content"]


def test_a_format_applies_to_raw_prompts_and_contexts(served):
    jsonschema.validate(json.loads(generate(served, format=SCHEMA, raw=True)["response"]), SCHEMA)
    context = generate(served, format=SCHEMA)["context"]
    jsonschema.validate(json.loads(generate(served, format=SCHEMA, context=context)["response"]), SCHEMA)


def test_a_truncated_answer_has_reason_length_and_is_a_prefix(served):
    whole = generate(served, format=SCHEMA)["response"]
    for num_predict in (1, 5):
        cut = generate(served, {**WHOLE, "num_predict": num_predict}, format=SCHEMA)
        assert cut["done_reason"] == "length" and cut["eval_count"] == num_predict
        assert whole.startswith(cut["response"])


def test_a_stop_string_ends_a_constrained_answer(served):
    cut = generate(served, {**WHOLE, "stop": ['"age"']}, format=SCHEMA)
    assert cut["done_reason"] == "stop" and "age" not in cut["response"]
    assert json.loads(cut["response"] + '"age": 1}').keys() == {"name", "age"}


def test_logprobs_are_computed_before_the_grammar(served):
    """docs/compatibility.md, "Log-probabilities": a token that the grammar forces has a probability below one."""
    answer = chat(served, format={"const": "ab"}, logprobs=True)
    assert "".join(entry["token"] for entry in answer["logprobs"]) == answer["message"]["content"] == '"ab"'
    assert all(entry["logprob"] < -0.01 for entry in answer["logprobs"])


def test_a_format_applies_after_the_thinking(thinker):
    """[100]"""
    anything = {"temperature": 5, "top_k": 0, "top_p": 1, "seed": 2, "num_predict": 3000}
    message = chat(thinker, "th", anything, format=SCHEMA)["message"]
    jsonschema.validate(json.loads(message["content"]), SCHEMA)
    assert message["thinking"]
    cut = chat(thinker, "th", {**anything, "num_predict": 10}, format=SCHEMA)
    assert cut["done_reason"] == "length" and cut["message"]["content"] == ""
    assert message["thinking"].startswith(cut["message"]["thinking"])


def test_a_format_applies_at_once_without_thinking(thinker):
    message = chat(thinker, "th", format={"const": "x"}, think=False)["message"]
    assert message == {"role": "assistant", "content": '"x"'}


def test_a_structured_answer_is_not_parsed_as_a_tool_call(thinker):
    call = {"const": {"name": "get_weather", "arguments": {}}}
    message = chat(thinker, "th", format=call, tools=[WEATHER], think=False)["message"]
    assert json.loads(message["content"]) == call["const"] and "tool_calls" not in message


def test_rendering_a_prompt_ignores_the_format(served):
    rendered = served.ok("/api/chat", model="m", messages=HELLO, format="json", _debug_render_only=True, stream=False)
    assert rendered["_debug_info"]["rendered_template"]
