"""Thinking and tools over HTTP, with scripted model output; everything else is real.

Numbers in brackets are those of docs/compatibility.md.
"""

from __future__ import annotations

import json
import re

import pytest
from scripted import HELLO, WEATHER

from tiny import tiny_gguf


def chat(server, messages=HELLO, **more):
    return server.ok("/api/chat", model="t", messages=messages, stream=False, **more)


def messages_of(answer):
    return [json.loads(line)["message"] for line in answer.text.splitlines()]


def test_the_model_can_think_and_call_tools(model):
    assert model.ok("/api/show", model="t")["capabilities"] == ["completion", "tools", "thinking"]


def test_thinking_and_content_are_separated(model, script):
    """[98]"""
    script("<thi", "nk>\nTwo and", " two.</thi", "nk>\n\nThe", " answer.")
    whole = chat(model)
    assert whole["message"] == {"role": "assistant", "content": "The answer.", "thinking": "Two and two."}
    streamed = messages_of(model.post("/api/chat", model="t", messages=HELLO))
    assert streamed == [
        {"role": "assistant", "content": "", "thinking": "Two and"},
        {"role": "assistant", "content": "", "thinking": " two."},
        {"role": "assistant", "content": "The"},
        {"role": "assistant", "content": " answer."},
        {"role": "assistant", "content": ""},
    ]


def test_generate_separates_thinking_and_its_context_has_all_tokens(model, script):
    script("<think>hm</think>", "yes")
    whole = model.ok("/api/generate", model="t", prompt="a", stream=False)
    assert list(whole)[2:6] == ["response", "thinking", "done", "done_reason"]
    assert (whole["response"], whole["thinking"]) == ("yes", "hm")
    engine = model.engine.pool.loaded()[0].runner.model.tokenizer
    assert engine.decode(whole["context"]).endswith("<think>hm</think>yes")


def test_without_thinking_tags_are_text(model, script):
    """[99]"""
    script("<think>hm</think>yes")
    assert chat(model, think=False)["message"] == {"role": "assistant", "content": "<think>hm</think>yes"}


@pytest.mark.parametrize(
    ("think", "end"),
    [(None, "()"), (True, "()"), ("high", "(high)"), (False, "")],
    ids=["absent", "true", "high", "false"],
)
def test_think_reaches_the_template(model, think, end):
    answer = chat(model, think=think, _debug_render_only=True)
    assert answer["_debug_info"]["rendered_template"] == f"<|user|>hello\n<|assistant|>{end}"


@pytest.mark.parametrize("done_reason", ["stop", "length"])
def test_unfinished_thinking_leaves_no_content(model, script, done_reason):
    script("<think>I wonder", " whether</th", done_reason=done_reason)
    whole = chat(model)
    assert whole["message"] == {"role": "assistant", "content": "", "thinking": "I wonder whether</th"}
    assert whole["done_reason"] == done_reason


def test_a_call_is_removed_from_the_text(model, script):
    """[90], [92], [93], [96]"""
    script(
        "Let me see.\n<tool_",
        'call>{"name": "get_',
        'weather", "arguments": {"city": "<P>", "a": 1}',
        "}",
        "</tool_call>",
    )
    message = chat(model, tools=[WEATHER])["message"]
    [call] = message.pop("tool_calls")
    assert message == {"role": "assistant", "content": "Let me see.\n"}
    assert re.fullmatch("call_[a-z0-9]{8}", call.pop("id"))
    assert call == {"function": {"index": 0, "name": "get_weather", "arguments": {"city": "<P>", "a": 1}}}
    assert list(call["function"]["arguments"]) == ["city", "a"]
    streamed = messages_of(model.post("/api/chat", model="t", messages=HELLO, tools=[WEATHER]))
    assert [message["content"] for message in streamed] == ["Let me see.\n", "", ""]
    assert [len(message.get("tool_calls", ())) for message in streamed] == [0, 1, 0]


def test_a_call_after_thinking(model, script):
    script("<think>use it</think>", '<tool_call>{"name": "get_weather", "arguments": {}}', "</tool_call>")
    message = chat(model, tools=[WEATHER])["message"]
    assert (message["thinking"], message["content"]) == ("use it", "")
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("name", [None, 5])
def test_a_tool_without_a_name_gives_no_server_error(model, script, path, name):
    script("yes")
    body = {
        "model": "t",
        "messages": HELLO,
        "stream": False,
        "tools": [{"type": "function", "function": {"name": name}}],
    }
    assert model.post(path, **body).status_code == (200 if name is None else 400)


def test_an_unfinished_call_is_text(model, script):
    script("So: ", call := '<tool_call>{"name": "get_weather", "arguments": {"city": "Lim', done_reason="length")
    whole = chat(model, tools=[WEATHER])
    assert (whole["message"], whole["done_reason"]) == ({"role": "assistant", "content": f"So: {call}"}, "length")


def test_without_tools_a_call_is_text(model, script):
    script(text := '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>')
    assert chat(model)["message"]["content"] == text


def test_calls_and_results_reach_the_prompt(model):
    """[95], [96]"""
    call = {"id": "call_12345678", "function": {"index": 0, "name": "get_weather", "arguments": {"b": 1, "a": 2}}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_name": "get_weather", "tool_call_id": "call_12345678"},
    ]
    answer = chat(model, messages, tools=[WEATHER], think=False, truncate=False, _debug_render_only=True)
    assert answer["_debug_info"]["rendered_template"] == (
        f"<tools>{json.dumps([WEATHER])}</tools><|user|>hello\n<|assistant|><think>hm</think>"
        '<tool_call>{"name": "get_weather", "arguments": {"b": 1, "a": 2}}</tool_call>\n'
        "<|tool|>sunny from get_weather\n<|assistant|>"
    )


def test_a_conversation_that_the_template_refuses_is_a_bad_request(served, models):
    """The template's own words; a template that is broken stays an error of the server, as in Ollama."""
    for name, text, expected in [
        ("alternates", "{{ raise_exception('roles must alternate') }}", (400, "roles must alternate")),
        ("broken", "{{ messages.no_such_method() }}", (500, None)),
    ]:
        served.add(name, tiny_gguf(models / f"{name}.gguf", chat_template=text))
        answer = served.post("/api/chat", model=name, messages=HELLO)
        assert answer.status_code == expected[0] and expected[1] in (None, answer.json()["error"])
        assert served.post("/v1/chat/completions", model=name, messages=HELLO).status_code == expected[0]


def test_deepseek_r1_does_not_get_earlier_thinking(model, models):
    messages = [*HELLO, {"role": "assistant", "content": "<think>hm</think>\n\nyes"}, *HELLO]
    shown = "<|user|>hello\n<|assistant|>{}yes\n<|user|>hello\n<|assistant|>"
    model.add("deepseek-r1:7b", models / "tools.gguf")
    for name, said in [("t", "<think>hm</think>\n\n"), ("deepseek-r1:7b", "")]:
        answer = model.ok("/api/chat", model=name, messages=messages, think=False, _debug_render_only=True)
        assert answer["_debug_info"]["rendered_template"] == shown.format(said)
