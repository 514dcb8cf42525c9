"""Answers read by the parsers that have a name, as Ollama v0.33.0-rc2 reads them.

Where Ollama ends an answer with an error, all that came before is the same, and what it cannot read is text here.
"""

import json
import random
import time

import pytest

from numllama.engine.parse import AnswerParser
from numllama.engine.parse.named import PARSERS


def read(shape, tools, pieces):
    """Return the parts of an answer in Ollama's notation, neighbours joined."""
    parser = AnswerParser(shape, tools)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.flush()
    joined = []
    for part in parts:
        said = [["thinking", part.thinking], ["content", part.text]]
        for kind, text in said:
            if text and joined and joined[-1][0] == kind:
                joined[-1][1] += text
            elif text:
                joined.append([kind, text])
        if part.call:
            joined.append(["call", part.call.name, part.call.arguments])
    return joined


def cut(text, seed):
    """Cut `text` into pieces of 1 to 7 characters."""
    pieces, source = [], random.Random(seed)
    while text:
        n = source.randint(1, 7)
        pieces, text = [*pieces, text[:n]], text[n:]
    return pieces


def agrees(got, case):
    """Return whether `got` is what Ollama read, in this order also of arguments."""
    expected = case["result"]
    if not expected or expected[-1][0] != "error":
        return json.dumps(got) == json.dumps(expected)
    *before, last = [*expected[:-1], ["content", ""]]
    if before and before[-1][0] == "content":
        last = before.pop()
    n = len(before)
    return json.dumps(got[:n]) == json.dumps(before) and got[n][0] == "content" and got[n][1].startswith(last[1])


def test_every_parser_of_ollama_is_here_and_does_the_same(kept):
    names = {name: facts for name, facts in kept.json("parsers/names").items() if facts["parser"]}
    assert names.keys() == PARSERS.keys()
    for name, facts in names.items():
        parser = PARSERS[name]
        expected = (facts["thinking"], facts["tools"], {*(facts["preserved"] or ())})
        assert (parser.thinking, parser.tools, {*parser.tags}) == expected, name


@pytest.mark.parametrize("name", PARSERS)
def test_recorded_answers_are_read_as_by_ollama(kept, name):
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in kept.json("parsers/tools")}
    cases = kept.json(f"parsers/{name}")
    assert len(cases) >= 20
    for i, case in enumerate(cases):
        shape = PARSERS[name].shape(case["think"], bool(case.get("prefill")), case["tools"])
        offered = tools if case["tools"] else {}
        got = read(shape, offered, [case["text"]])
        pieces = case["text"] if i % 5 == 0 else cut(case["text"], seed=i)  # a piece a character, or up to seven
        assert got == read(shape, offered, pieces), case
        assert case.get("depends_on_cut") or agrees(got, case), case


@pytest.mark.parametrize("name", ["cohere", "glm-4.7", "laguna", "ministral", "qwen3.5"])
@pytest.mark.parametrize("text", [" ", "<", "{", "<tool_call>", "[TOOL_CALLS]x[ARGS]{"])
def test_many_small_pieces_take_linear_time(name, text):
    parser = AnswerParser(PARSERS[name].shape(True, False, True), {"x": {}})
    began = time.process_time()
    for _ in range(5000):
        parser.push(text)
    parser.flush()
    assert time.process_time() - began < 3  # takes 0.01 to 0.3 s; searching all for each piece would take far more
