"""Thinking and content, independent of how the text is cut."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.parse import ThinkingParser, without_old_thoughts


def split(text, cuts=(), **more):
    """Return thinking and content of `text`, cut into pieces at `cuts`."""
    parser = ThinkingParser("<think>", "</think>", **more)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    parts = [parser.push(text[a:b]) for a, b in pairwise(edges)] + [parser.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    "text, thinking, content",
    [
        ("<think>abc</think>def", "abc", "def"),
        ("  <think>\n\n abc</think>\n\ndef", "abc", "def"),
        ("hello <think>x</think>", "", "hello <think>x</think>"),
        ("<think>a</thinkx</think> b", "a</thinkx", "b"),
        (" plain", "", " plain"),
        ("<think></think>x", "", "x"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("<think>only", "only", ""),
        ("<think>half</thi", "half</thi", ""),  # not a tag, so part of the thinking
        ("<thi", "", "<thi"),
        ("  ", "", "  "),
        ("\x1c<think>a", "", "\x1c<think>a"),  # white space for Python, not for Go
        ("\u2003<think>\x85a", "a", ""),
    ],
)
def test_a_tag_before_everything_else_opens_thinking(text, thinking, content):
    assert split(text) == (thinking, content)
    assert split(text, range(len(text))) == (thinking, content)


def test_thinking_may_be_open_from_the_start():
    assert split("\n so</think>\nyes", is_open=True) == ("so", "yes")
    assert split("<think>so</think>yes", is_open=True) == ("<think>so", "yes")


def test_a_possible_beginning_of_a_tag_is_held_back():
    parser = ThinkingParser("<think>", "</think>")
    pushed = [parser.push(text) for text in ("<th", "ink>a</", "think", ">b")]
    assert pushed == [("", ""), ("a", ""), ("", ""), ("", "b")]
    assert [parser.push("</think"), parser.flush()] == [("", "</think"), ("", "")]


texts = st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", "think>", " ", "\n", "a", "é"])).map("".join)


@given(texts, st.lists(st.integers(0, 40)), st.booleans())
def test_cuts_change_nothing_and_nothing_is_lost(text, cuts, is_open):
    thinking, content = split(text, cuts, is_open=is_open)
    assert (thinking, content) == split(text, is_open=is_open)
    if not is_open and not text.lstrip().startswith("<think>"):
        assert (thinking, content) == ("", text)
    else:
        syntax = [word for word in ("<think>" * (not is_open), "</think>") if word]
        assert "</think>" not in thinking
        rest = text if is_open else text.lstrip().removeprefix(syntax[0])
        thought, tag, answer = rest.lstrip().partition("</think>")
        assert (thinking, content) == (thought, answer.lstrip() if tag else "")


@pytest.mark.parametrize("text", [" ", "<think>", "</think", "a"])
def test_many_small_pieces_take_linear_time(text):
    parser = ThinkingParser("<think>", "</think>")
    parser.push("<think>" if text != " " else "")
    began = time.process_time()
    n = sum(len(part) for _ in range(100_000) for part in parser.push(text)) + sum(map(len, parser.flush()))
    assert n == 100_000 * len(text)
    assert time.process_time() - began < 3  # takes 0.3 s; a scan of all blanks for each piece would take 5 s


def test_only_thinking_before_the_last_user_message_is_removed():
    said = {"role": "assistant", "content": "<think>hm</think>\nyes", "tool_calls": [{"id": "x"}]}
    asked = {"role": "user", "content": "<think>mine</think>"}
    assert without_old_thoughts([asked, said, asked, said]) == [asked, {**said, "content": "yes"}, asked, said]
    assert said["content"] == "<think>hm</think>\nyes"
