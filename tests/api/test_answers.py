"""generate and chat over HTTP: shapes, key order, and the effect of each request field.

Numbers in brackets are those of docs/compatibility.md.
"""

from __future__ import annotations

import json
import re
import threading

import pytest

from numllama.engine.tokenizer import Tokenizer

STATISTICS = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]
CACHED = "prompt_eval_cached_count"
HEAD = ["model", "created_at", "response", "done"]


def lines(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def rendered(served, path="/api/generate", **body):
    return served.ok(path, **body, _debug_render_only=True)["_debug_info"]["rendered_template"]


def test_a_stream_is_chunks_and_a_final_object(served):
    *chunks, last = lines(served.post("/api/generate", model="m", prompt="once upon"))
    assert all(list(chunk) == HEAD and not chunk["done"] and chunk["response"] for chunk in chunks)
    assert list(last) == [*HEAD, "done_reason", "context", *STATISTICS, CACHED]
    assert last["done"] and last["done_reason"] == "length" and last["response"] == ""
    assert all(last[name] > 0 for name in STATISTICS) and last["eval_count"] == 8
    parts = ["load_duration", "prompt_eval_duration", "eval_duration"]
    assert sum(last[part] for part in parts) <= last["total_duration"]


def test_a_single_object_equals_the_joined_stream(served):
    chunks = lines(served.post("/api/generate", model="m", prompt="once upon"))
    whole = served.ok("/api/generate", model="m", prompt="once upon", stream=False)
    assert whole["response"] == "".join(chunk["response"] for chunk in chunks)
    for key in ("context", "done_reason", "eval_count", "prompt_eval_count"):
        assert whole[key] == chunks[-1][key]
    assert list(whole) == [*HEAD, "done_reason", "context", *STATISTICS, CACHED]


def test_a_chat_streams_assistant_messages(served):
    *chunks, last = lines(served.post("/api/chat", model="m", messages=[{"role": "user", "content": "hello"}]))
    assert all(chunk["message"]["role"] == "assistant" and chunk["message"]["content"] for chunk in chunks)
    assert list(chunks[0]) == ["model", "created_at", "message", "done"]
    assert list(last) == ["model", "created_at", "message", "done", "done_reason", *STATISTICS, CACHED]
    assert last["message"] == {"role": "assistant", "content": ""}
    whole = served.ok("/api/chat", model="m", messages=[{"role": "user", "content": "hello"}], stream=False)
    assert whole["message"]["content"] == "".join(chunk["message"]["content"] for chunk in chunks)


def test_the_answer_echoes_the_name_as_it_was_sent(served):
    assert served.ok("/api/generate", model="M:Latest", prompt="a", stream=False)["model"] == "M:Latest"


def test_created_at_is_utc(served):
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", served.ok("/api/generate", model="m")["created_at"]
    )


def test_text_is_escaped_for_html_as_in_go(served, script):
    script("<b>&é")
    answer = served.post("/api/generate", model="m", prompt="a", stream=False)
    assert r'"response":"\u003cb\u003e\u0026é"' in answer.text


def test_generate_uses_the_template_of_the_gguf(served):
    assert rendered(served, model="m", prompt="P") == "<|user|>P\n<|assistant|>"
    assert rendered(served, model="m", prompt="P", system="X") == "<|system|>X\n<|user|>P\n<|assistant|>"


def test_the_models_system_and_messages_come_first(served):
    """[38], [85], [86]"""
    before = "<|system|>S\n<|user|>u1\n<|assistant|>a1\n"
    assert rendered(served, model="h", prompt="P") == before + "<|user|>P\n<|assistant|>"
    assert rendered(served, model="h", prompt="P", context=[]) == "<|system|>S\n<|user|>P\n<|assistant|>"
    messages = [{"role": "user", "content": "P"}]
    assert rendered(served, "/api/chat", model="h", messages=messages) == before + "<|user|>P\n<|assistant|>"
    messages = [{"role": "system", "content": "X"}, *messages]
    expected = "<|user|>u1\n<|assistant|>a1\n<|system|>X\n<|user|>P\n<|assistant|>"
    assert rendered(served, "/api/chat", model="h", messages=messages) == expected


def test_raw_and_template_less_prompts_are_untouched(served):
    """[41]"""
    assert rendered(served, model="m", prompt="P", raw=True) == "P"
    assert rendered(served, model="bare", prompt="P", system="X") == "P"


def test_a_chat_without_any_template_is_chatml(served):
    got = rendered(served, "/api/chat", model="bare", messages=[{"role": "user", "content": "P"}])
    assert got == "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n"


def test_a_final_assistant_message_is_continued(served):
    """[87]"""
    messages = [{"role": "user", "content": "P"}, {"role": "assistant", "content": "I th"}]
    assert rendered(served, "/api/chat", model="m", messages=messages) == "<|user|>P\n<|assistant|>I th"


def test_a_long_chat_drops_its_oldest_turns_but_no_system_message(served):
    """[88]"""
    turns = [{"role": "user", "content": f"n{i} " + "x" * 20} for i in range(8)]
    messages = [{"role": "system", "content": "S"}, *turns]
    got = rendered(served, "/api/chat", model="m", messages=messages, options={"num_ctx": 200})
    assert "<|system|>S\n" in got and "n7" in got and "n0" not in got
    everything = rendered(served, "/api/chat", model="m", messages=messages, options={"num_ctx": 200}, truncate=False)
    assert "n0" in everything


def test_context_continues_after_the_last_answer(served):
    """[37]"""
    first = served.ok("/api/generate", model="bare", prompt="once", stream=False)
    second = served.ok("/api/generate", model="bare", prompt=" upon", context=first["context"], stream=False)
    assert second["prompt_eval_count"] > first["prompt_eval_count"] + first["eval_count"]
    shown = rendered(served, model="bare", prompt=" upon", context=first["context"])
    assert shown.startswith(" once" + first["response"]) and shown.endswith(" upon")  # SPM adds the space


def test_raw_returns_no_context(served):
    """[36]"""
    assert "context" not in served.ok("/api/generate", model="bare", prompt="once", raw=True, stream=False)


def test_context_outside_the_vocabulary_is_named(served):
    answer = served.post("/api/generate", model="bare", prompt="a", context=[999999])
    assert answer.status_code == 400 and "999999" in answer.json()["error"]


def test_a_stop_string_ends_the_text_before_it(served):
    whole = served.ok("/api/generate", model="bare", prompt="once", raw=True, stream=False)["response"]
    stop = whole[3:5]
    cut = served.ok("/api/generate", model="bare", prompt="once", raw=True, stream=False, options={"stop": [stop]})
    assert cut["response"] == whole[: whole.index(stop)] and cut["done_reason"] == "stop"


def test_logprobs_are_one_entry_for_each_token_that_ends_between_characters(served):
    """[71], recorded in dialect.json.  The entries' texts are the answer's."""
    body = {"model": "bare", "prompt": "once", "raw": True, "logprobs": True, "top_logprobs": 3}
    whole = served.ok("/api/generate", **body, stream=False)
    assert "".join(entry["token"] for entry in whole["logprobs"]) == whole["response"]
    for entry in whole["logprobs"]:
        assert list(entry)[:2] == ["token", "logprob"] and entry["logprob"] <= 0
        assert bytes(entry["bytes"]).decode() == entry["token"]
        top = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and entry["logprob"] == top[0]  # greedy
    streamed = [entry for line in lines(served.post("/api/generate", **body)) for entry in line.get("logprobs", [])]
    assert streamed == whole["logprobs"]


def test_logprobs_are_sent_only_on_request(served):
    assert "logprobs" not in served.ok("/api/generate", model="m", prompt="a", top_logprobs=3, stream=False)


def test_a_seed_gives_the_same_text_again(served):
    body = {"model": "m", "prompt": "a", "stream": False, "options": {"temperature": 1.5, "seed": 7, "num_predict": 20}}
    assert served.ok("/api/generate", **body)["response"] == served.ok("/api/generate", **body)["response"]


def test_a_full_window_without_shift_ends_the_answer(served):
    """[76]"""
    body = {"model": "bare", "prompt": "once upon", "raw": True, "stream": False, "shift": False}
    got = served.ok("/api/generate", **body, options={"num_ctx": 16, "num_predict": 100, "temperature": 2, "seed": 3})
    assert got["done_reason"] == "length" and got["prompt_eval_count"] + got["eval_count"] == 16


LOAD = [("/api/generate", {"response": ""}), ("/api/chat", {"message": {"role": "assistant", "content": ""}})]


@pytest.mark.parametrize(("path", "text"), LOAD)
def test_an_empty_request_loads_or_unloads(served, path, text):
    for keep_alive, reason in ((None, "load"), (0, "unload"), ("0s", "unload")):
        answer = served.post(path, model="m", keep_alive=keep_alive)
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        got = answer.json()
        assert got.pop("created_at") and got == {"model": "m", **text, "done": True, "done_reason": reason}
        loaded = [entry["name"] for entry in served.client.get("/api/ps").json()["models"]]
        assert ("m:latest" in loaded) == (reason == "load")


def test_ps_lists_loaded_models(served):
    served.ok("/api/generate", model="m", keep_alive=-1, options={"num_ctx": 32})
    [entry] = [e for e in served.client.get("/api/ps").json()["models"] if e["name"] == "m:latest"]
    keys = ["name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"]
    assert list(entry) == keys
    assert entry["context_length"] == 32 and entry["size"] > 100_000 and entry["expires_at"] > "2200"
    served.ok("/api/generate", model="m", keep_alive="1m")
    [entry] = [e for e in served.client.get("/api/ps").json()["models"] if e["name"] == "m:latest"]
    assert entry["context_length"] == 256 and entry["expires_at"] < "2200"  # the default, as num_ctx is not set


REFUSED = [
    ("/api/generate", {"prompt": "a"}, 404, "model '' not found"),
    ("/api/generate", {"model": "nope", "prompt": "a"}, 404, "model 'nope' not found"),
    ("/api/generate", {"model": "-x", "prompt": "a"}, 400, "invalid model name"),
    (
        "/api/generate",
        {"model": "x:cloud", "prompt": "a"},
        403,
        "ollama cloud is disabled: remote model is unavailable",
    ),
    ("/api/generate", {"model": "m", "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    (
        "/api/generate",
        {"model": "m", "prompt": "a", "raw": True, "system": "x"},
        400,
        "raw mode does not support template, system, or context",
    ),
    ("/api/generate", {"model": "m", "prompt": "a", "think": True}, 400, '"m" does not support thinking'),
    (
        "/api/generate",
        {"model": "m", "prompt": "a", "think": "ultra"},
        400,
        'invalid think value: "ultra" (must be "high", "medium", "low", "max", true, or false)',
    ),
    ("/api/generate", {"model": "e", "prompt": "a"}, 400, '"e" does not support generate'),
    (
        "/api/generate",
        {"model": "m", "prompt": "a", "suffix": "b"},
        400,
        "registry.ollama.ai/library/m:latest does not support insert",
    ),
    ("/api/generate", {"model": "m", "prompt": "a", "images": ["AAAA"]}, 400, '"m" does not support images'),
    (
        "/api/generate",
        {"model": "m", "prompt": "a", "options": {"num_ctx": "x"}},
        400,
        'option "num_ctx" must be of type integer',
    ),
    (
        "/api/generate",
        {"model": "m", "prompt": "a", "format": "xml"},
        400,
        'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object',
    ),
    (
        "/api/generate",
        {"model": "m", "prompt": "x" * 300, "truncate": False},
        400,
        "the input length exceeds the context length",
    ),
    ("/api/generate", {"model": "m", "prompt": "a", "template": "{{ .Prompt"}, 500, "template: :1: unclosed action"),
    (
        "/api/generate",
        {"model": "m", "prompt": "a", "template": "{{ .Prompt.x }}"},
        500,
        'template: :1:10: executing "" at <.Prompt.x>: can\'t evaluate field x in type interface {}',
    ),
    ("/api/chat", {"messages": [{"content": "a"}]}, 400, "model is required"),
    ("/api/chat", {"model": "e", "messages": [{"content": "a"}]}, 400, '"e" does not support chat'),
    (
        "/api/chat",
        {"model": "m", "messages": [{"content": "a"}], "tools": [{"type": "function"}]},
        400,
        "registry.ollama.ai/library/m:latest does not support tools",
    ),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "body", "status", "text"), REFUSED, ids=lambda x: str(x)[:40])
def test_invalid_requests_get_a_status_and_a_text(served, path, body, status, text, stream):
    """[39], [44], [65], [66], [75], [89] and others."""
    answer = served.post(path, **body, stream=stream)
    assert (answer.status_code, answer.json()) == (status, {"error": text})
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_empty_fields_are_not_refused(served):
    """[40], [65]"""
    assert served.ok("/api/generate", model="m", prompt="a", raw=True, context=[], stream=False)["done"]
    assert served.ok("/api/generate", model="m", prompt="a", think=False, stream=False)["done"]


def test_a_prompt_can_be_rendered_without_an_answer(served):
    """[74]"""
    answer = served.ok("/api/generate", model="m", prompt="P", _debug_render_only=True)
    assert answer.pop("created_at") and answer == {
        "model": "m",
        "response": "",
        "done": False,
        "_debug_info": {"rendered_template": "<|user|>P\n<|assistant|>"},
    }


def test_a_prompt_beyond_the_context_is_truncated(served):
    """[75]"""
    body = {"model": "bare", "raw": True, "stream": False, "options": {"num_ctx": 64, "num_predict": 1}}
    for n in (100, 1000):
        assert 32 < served.ok("/api/generate", prompt="x" * n, **body)["prompt_eval_count"] <= 64


def test_a_request_can_replace_the_models_template(served):
    def prompt(**asked):
        answer = served.ok("/api/generate", **asked, _debug_render_only=True)
        return answer["_debug_info"]["rendered_template"]

    assert prompt(model="go", prompt="a") == "a"
    assert prompt(model="go", prompt="a", template="<{{ .Prompt }}>{{ .Response }}tail") == "<a>"
    assert prompt(model="m", prompt="a", system="S", template="{{ .System }}{{ .Prompt }}{{ .Think }}") == "Safalse"
    assert served.ok("/api/generate", model="go", prompt="a", raw=True, stream=False)["done"]


def test_an_error_during_the_stream_is_the_last_line(served, script):
    script("a", error=RuntimeError("secret detail"))
    *_, last = lines(served.post("/api/generate", model="m", prompt="a"))
    assert last == {"error": "internal error: RuntimeError"}
    answer = served.post("/api/generate", model="m", prompt="a", stream=False)
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error: RuntimeError"})


@pytest.mark.parametrize(
    "error, expected",
    [
        (MemoryError("Unable to allocate"), "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply for this program"),
        (OSError(5, "Input/output error", "/m/blob"), "/m/blob: input/output error"),
        (OSError(28, "No space left on device"), "no space left on device"),
    ],
    ids=["memory", "nesting", "file", "disk"],
)
def test_an_error_of_the_machine_is_no_internal_error(served, script, error, expected):
    script("a", error=error)
    *_, last = lines(served.post("/api/generate", model="m", prompt="a"))
    assert last == {"error": expected}
    answer = served.post("/api/generate", model="m", prompt="a", stream=False)
    assert (answer.status_code, answer.json()) == (500, {"error": expected})


def test_the_event_loop_encodes_no_text(served, monkeypatch):
    """A long prompt would keep all other clients waiting."""
    threads, encode = set(), Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda *args, **more: threads.add(threading.current_thread().name) or encode(*args, **more)
    )
    for path in ("/api/generate", "/api/chat", "/v1/completions", "/api/embed", "/api/tokenize"):
        texts = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "input": "a", "content": "a"}
        for stream in (False, True):
            assert served.post(path, model="m", stream=stream, options={"num_predict": 1}, **texts).status_code == 200
    assert threads and all(name.startswith("request") for name in threads)
