"""How hard a model shall think: each wire's words for it reach the template alike."""

from __future__ import annotations

import pytest
from scripted import HELLO

EFFORTS = ["low", "medium", "high", "max"]
BUDGETS = {"low": 1024, "medium": 8192, "high": 32768, "max": 131072}
MESSAGES = {"model": "t", "messages": HELLO, "max_tokens": 9}


def wires(word):
    """Return a request for the effort `word` on every wire."""
    effort, asks = {"effort": word}, {"model": "t", "messages": HELLO}
    return [
        ("/api/chat", asks | {"think": word, "stream": False}),
        ("/api/generate", {"model": "t", "prompt": "hello", "think": word, "stream": False}),
        ("/v1/chat/completions", asks | {"reasoning_effort": word}),
        ("/v1/chat/completions", asks | {"reasoning": effort}),
        ("/v1/responses", {"model": "t", "input": "hello", "reasoning": effort}),
        ("/v1/messages", MESSAGES | {"output_config": effort}),
        ("/v1/messages", MESSAGES | {"output_config": effort, "thinking": {"type": "adaptive"}}),
        ("/v1/messages", MESSAGES | {"thinking": {"type": "enabled", "budget_tokens": BUDGETS[word]}}),
    ]


@pytest.mark.parametrize("word", EFFORTS)
def test_an_effort_reaches_the_template_the_same_way_on_every_wire(model, script, word):
    script("hm")
    for path, body in wires(word):
        model.ok(path, **body)
        assert script.prompt.endswith(f"<|assistant|>({word})"), (path, body)


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({}, "<|assistant|>"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "<|assistant|>"),
        ({"thinking": {"type": "adaptive"}}, "<|assistant|>()"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}, "output_config": {"effort": "high"}}, "(high)"),
    ],
)
def test_a_message_is_thought_about_only_when_asked(model, script, more, end):
    script("hm")
    model.ok("/v1/messages", **MESSAGES, **more)
    assert script.prompt.endswith(end)


def test_an_unknown_effort_is_refused(model):
    answer = model.post("/v1/messages", **MESSAGES, output_config={"effort": "huge"})
    assert answer.status_code == 400 and 'invalid reasoning value: "huge"' in answer.json()["error"]["message"]


def test_a_model_that_always_thinks_has_its_thoughts_apart(served, models, script):
    """Its prompt does not say whether to think, so it cannot be asked not to."""
    served.add("always", models / "bare.gguf", template="{{ range .Messages }}<think>{{ .Thinking }}</think>{{ end }}")
    script("<think>hm</think>so")
    kinds = [block["type"] for block in served.ok("/v1/messages", **MESSAGES | {"model": "always"})["content"]]
    assert kinds == ["thinking", "text"]
