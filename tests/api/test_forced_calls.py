"""`tool_choice`: required calls of models whose weights spell a call in the form of their template."""

from __future__ import annotations

import json

import pytest
from scripted import WEATHER, scripted_gguf

CHAT = "/v1/chat/completions"
LINE = "<0x0A>"
PARIS = ['{"name": "', "get_weather", '", "arguments": ', '{"city": "', "Paris", '"}', "}"]
GO = (
    "{{ if .Tools }}{{ .Tools }}{{ end }}{{ range .Messages }}{{ if .ToolCalls }}OPEN{{ range .ToolCalls }}"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}CLOSE'
    "{{ else }}{{ .Content }}{{ end }}{{ end }}"
)
FORMS = {  # form -> (TEMPLATE, the pieces that the model generates)
    "qwen": (
        GO.replace("OPEN", "<tool_call>\n").replace("CLOSE", "\n</tool_call>"),
        ["<tool_call>", LINE, *PARIS, "</tool_call>"],
    ),
    "mistral": (GO.replace("OPEN", "[TOOL_CALLS] [").replace("CLOSE", "]"), ["[TOOL_CALLS]", " [", *PARIS, "]"]),
    "llama": (
        GO.replace("OPEN", "").replace("CLOSE", "").replace("arguments", "parameters"),
        [*PARIS[:2], '", "parameters": ', *PARIS[3:]],
    ),
    "plain": ("{{ if .Tools }}{{ end }}{{ range .Messages }}{{ .Content }}{{ end }}", PARIS),
}


@pytest.fixture(scope="module")
def speaker(served, models):
    for name, (template, pieces) in FORMS.items():
        served.add(name, scripted_gguf(models / f"{name}.gguf", {"hello": pieces}), template=template)
    return served


def ask(name, **more):
    tools = [{"type": "function", "function": {"name": "get_time"}}, WEATHER]
    return {"model": name, "messages": [{"role": "user", "content": "<hello>"}], "tools": tools} | more


@pytest.mark.parametrize("name", FORMS)
def test_a_required_call_has_the_form_that_the_model_was_trained_for(speaker, name):
    """The grammar lets the model's own text pass, token by token, so that what it learnt decides."""
    required, free = (
        speaker.ok(CHAT, **ask(name, tool_choice=choice, logprobs=True))["choices"][0]
        for choice in ("required", "auto")
    )
    [call] = required["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city":"Paris"}'}
    assert (required["message"]["content"], required["finish_reason"]) == ("", "tool_calls")
    tokens = [[entry["token"] for entry in choice["logprobs"]["content"]] for choice in (required, free)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("name", FORMS)
def test_a_required_call_is_made_by_a_model_that_would_say_something_else(speaker, name):
    """The scripted text names another tool; the required one is called, with a name that JSON has to escape."""
    schema = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": 'say "n"', "parameters": schema}}]
    chosen = {"type": "function", "function": {"name": 'say "n"'}}
    body = ask(name, tools=tools, tool_choice=chosen, max_tokens=400, temperature=0)
    whole = speaker.ok(CHAT, **body)["choices"][0]
    [call] = whole["message"]["tool_calls"]
    assert call["function"] == {"name": 'say "n"', "arguments": '{"n":7}'}
    assert (whole["message"]["content"], whole["finish_reason"]) == ("", "tool_calls")
    chunks = speaker.post(CHAT, **body, stream=True).text.split("\n\n")[:-2]
    deltas = [json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"] for chunk in chunks]
    streamed = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert streamed == [call["function"]] and not any(delta.get("content") for delta in deltas)


def test_an_integer_beyond_64_bits_keeps_its_digits(speaker):
    """Also when it is sent back in the next turn."""
    schema = {"type": "object", "properties": {"n": {"const": 2**65 + 1}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    body = ask("llama", tools=tools, tool_choice="required", max_tokens=400)
    message = speaker.ok(CHAT, **body)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"n":36893488147419103233}'
    body["messages"] += [message, {"role": "tool", "content": "1", "tool_call_id": message["tool_calls"][0]["id"]}]
    assert speaker.post(CHAT, **body | {"max_tokens": 1, "tool_choice": "auto"}).status_code == 200


def test_an_unusable_schema_is_refused_as_the_tools(speaker):
    for parameters in (5, {"type": "object", "properties": {"a": 5}}, {"type": "string"}, {"type": ["null"]}):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        answer = speaker.post(CHAT, **ask("llama", tools=tools, tool_choice="required"))
        assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("tools: ")
