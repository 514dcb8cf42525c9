"""Models whose config names a renderer or a parser, over HTTP."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scripted import HELLO

from numllama.engine.parse.named import PARSERS
from numllama.engine.store import ModelName
from numllama.engine.store.manifest import Manifest, ManifestLayer
from numllama.engine.template.renderer import RENDERERS
from tiny import CHAT_TEMPLATE, tiny_gguf


def create(server, name, **more):
    return server.post("/api/create", model=name, **{"from": "m"}, stream=False, **more)


@pytest.fixture(scope="module")
def named(served):
    """Add a model r-NAME for every renderer and p-NAME for every parser; return the server."""
    for name in RENDERERS:
        assert create(served, f"r-{name}", renderer=name).status_code == 200
    for name in PARSERS:
        assert create(served, f"p-{name}", parser=name).status_code == 200
    return served


@pytest.fixture(scope="module")
def wide(served, models):
    """Add a model with a window for whole prompts."""
    served.add("wide", tiny_gguf(models / "wide.gguf", seed=1, n_ctx=4096, chat_template=CHAT_TEMPLATE))
    return served


def rendered(server, model, messages, **more):
    answer = server.ok("/api/chat", model=model, messages=messages, **more, truncate=False, _debug_render_only=True)
    return answer["_debug_info"]["rendered_template"]


@pytest.mark.parametrize("name", [name for name in RENDERERS if name not in ("gemma4", "glimmer")])
def test_prompts_are_the_recorded_ones(named, kept, name):
    assert create(named, "both", renderer=name, parser="qwen3.5").status_code == 200  # a parser with thinking and tools
    recorded = kept.json("renderers/conversations")
    cases = [case for case in kept.json(f"renderers/{name}") if case["think"] is not None and "text" in case]
    cases = [case for case in cases if "image" not in case["conversation"]][:12]
    assert cases
    for case in cases:
        messages, tools = recorded["conversations"][case["conversation"]], recorded["tools"][case["tools"]] or []
        assert rendered(named, "both", messages, tools=tools, think=case["think"]) == case["text"], case


@pytest.mark.parametrize("name", PARSERS)
def test_answers_are_read_as_recorded(named, script, kept, name):
    tools, said = kept.json("parsers/tools"), 0
    for case in kept.json(f"parsers/{name}"):
        if case["think"] is None or (case["think"] and not PARSERS[name].thinking) or case.get("prefill"):
            continue
        if (case["tools"] and not PARSERS[name].tools) or not case["result"] or case["result"][-1][0] == "error":
            continue
        script(*case["text"])
        offered = tools if case["tools"] else []
        message = named.ok(
            "/api/chat", model=f"p-{name}", messages=HELLO, tools=offered, think=case["think"], stream=False
        )["message"]
        texts = {
            kind: "".join(part[1] for part in case["result"] if part[0] == kind) for kind in ("content", "thinking")
        }
        calls = [part[1:] for part in case["result"] if part[0] == "call"]
        if case.get("depends_on_cut"):
            continue
        assert message["content"] == texts["content"] and message.get("thinking", "") == texts["thinking"], case
        made = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", [])]
        assert json.dumps(made) == json.dumps(calls), case
        said += 1
        if said == 8:
            return
    assert said


def test_capabilities_follow_the_parser_and_show_names_both(named):
    assert create(named, "n", renderer="qwen3-coder", parser="qwen3-coder").status_code == 200
    shown = named.ok("/api/show", model="n")
    assert (shown["renderer"], shown["parser"]) == ("qwen3-coder", "qwen3-coder")
    assert shown["capabilities"] == ["completion", "tools"]
    assert "RENDERER qwen3-coder\nPARSER qwen3-coder\n" in shown["modelfile"]
    able = named.ok("/api/show", model="p-qwen3.5")
    assert able["capabilities"] == ["completion", "tools", "thinking"] and "renderer" not in able


def test_a_modelfile_names_them(named):
    text = "FROM m\nRENDERER cohere\nPARSER cohere\n"
    assert named.post("/api/create", model="f", modelfile=text, stream=False).status_code == 200
    assert rendered(named, "f", HELLO).endswith("<|CHATBOT_TOKEN|><|START_THINKING|>")


def test_gemma_4_is_large_by_its_name_or_size(named, kept):
    recorded = kept.json("renderers/conversations")
    for model, info, name in (
        ("gemma4-31b", {}, "gemma4-large"),
        ("gemma4-e4b", {"parameter_size": "31.0B"}, "gemma4-small"),
        ("g", {"parameter_size": "12.0B"}, "gemma4-large"),
        ("g", {"parameter_size": "300.5M"}, "gemma4-small"),
    ):
        assert create(named, model, renderer="gemma4", parser="gemma4", info=info).status_code == 200
        case = next(
            case
            for case in kept.json(f"renderers/{name}")
            if case["conversation"] == "hello" and case["think"] is False
        )
        messages, tools = recorded["conversations"]["hello"], recorded["tools"][case["tools"]] or []
        assert rendered(named, model, messages, tools=tools, think=False) == case["text"]


@pytest.mark.parametrize("kind", ["renderer", "parser"])
def test_an_unknown_name_is_refused_when_made_and_named_when_run(named, kind):
    refused = create(named, "u", **{kind: "kimi-9"})
    assert (refused.status_code, refused.json()["error"]) == (400, f'unknown {kind} "kimi-9"')
    store = named.engine.store
    model = store.resolve("m")
    more = replace(model.config, more={**model.config.more, kind: "kimi-9"})
    written = ManifestLayer(model.manifest.config.media_type, *store.put_blob([more.to_bytes()]))
    store.write_manifest(ModelName.parse("odd"), Manifest(written, model.manifest.layers))
    answer = named.post("/api/chat", model="odd", messages=HELLO, stream=False)
    assert (answer.status_code, answer.json()["error"]) == (500, f'unknown {kind} "kimi-9"')


def test_a_request_with_its_own_template_has_no_renderer(named):
    asked = {"model": "r-cohere", "prompt": "hi", "template": "<{{ .Prompt }}>", "_debug_render_only": True}
    assert named.ok("/api/generate", **asked)["_debug_info"]["rendered_template"] == "<hi>"


@pytest.mark.parametrize("name", ["cogito", "cohere", "laguna", "qwen3.5"])
def test_a_required_call_is_made_and_read(wide, name):
    answer = wide.post("/api/create", model="f", **{"from": "wide"}, stream=False, renderer=name, parser=name)
    assert answer.status_code == 200
    n = {"type": "boolean"} if name in ("laguna", "qwen3.5") else {"const": 7}
    schema = {
        "type": "object",
        "properties": {"n": n},
        "required": ["n"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "count", "parameters": schema}}]
    body = {"messages": HELLO, "tools": tools, "max_tokens": 400, "temperature": 0, "reasoning_effort": "none"}
    choice = wide.ok("/v1/chat/completions", model="f", **body, tool_choice="required")["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "count" and "n" in json.loads(call["function"]["arguments"])
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "tool_calls")
