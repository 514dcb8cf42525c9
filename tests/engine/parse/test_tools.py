"""Content and tool calls, independent of how the text is cut.

Numbers in brackets are those of docs/compatibility.md.
"""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.parse import ParsedCall, ToolParser

NAMES = ["get_weather", "get", "get_time"]


def split(tag, text, cuts=(), names=NAMES):
    """Return the content of `text` and its calls as (name, arguments), cut into pieces at `cuts`."""
    parser = ToolParser(tag, names)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    parts = [parser.push(text[a:b]) for a, b in pairwise(edges)] + [parser.flush()]
    calls = [call for _, some in parts for call in some]
    assert [call.index for call in calls] == list(range(len(calls)))
    return "".join(content for content, _ in parts), [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    "tag, text, content, calls",
    [
        ("<c>", 'So: <c>{"name": "get", "arguments": {"b": 1, "a": 2}}</c>', "So: ", [("get", {"b": 1, "a": 2})]),
        ("<c>", '<c>{"name": "get_time", "arguments": {}}</c> tail', "", [("get_time", {})]),
        ("<c>", '<c>{"name": "get", "parameters": "{\\"a\\": 1}"}', "", [("get", {"a": 1})]),
        ("<c>", '<c>{"get": {"a": "}"}}', "", [("get", {"a": "}"})]),
        ("<c>", '<c>get_weather\n```json\n{"a": 1}\n```', "", [("get_weather", {"a": 1})]),
        ("<c>", '<c>{"a": 1} get', "", [("get", {"a": 1})]),  # might have become get_time
        ("<c>", '<c>{"calls": [{"name": "get", "arguments": {"a": 1}}]}', "", [("get", {"a": 1})]),
        ("<c>", '<c>{"name": "get"}<c>{"name": "get_time", "arguments": {}}', "", [("get_time", {})]),
        ("<c>", '<c>{not JSON} {"name": "get", "arguments": {}}', "", [("get", {})]),
        ("<c>", '<c>{"name": "get", "arguments": {"a": 1', "", []),  # never closed
        ("<c>", "a <c and b", "a <c and b", []),
        ("<c>", "1 <", "1 <", []),
        ("c", '{"name": "get"}', '{"name": "get"}', []),
        ("<get>", '<get>{"name": "get_time", "arguments": {}}', "", [("get_time", {})]),  # the tag names no tool
        ("{", ' {"name": "get", "parameters": {"a": 1}} tail', " ", [("get", {"a": 1})]),
        ("{", '{"name": "nope", "parameters": {}} {}', '{"name": "nope", "parameters": {}} {}', []),
        ("{", 'x {"name": "get", "arguments": {}}', 'x {"name": "get", "arguments": {}}', []),
        ("{", '{"name": "get", "arg', '{"name": "get", "arg', []),
        ("[", '[{"name": "get", "arguments": {}}, {"get_time": {}}]', "", [("get", {}), ("get_time", {})]),
        ("[", '[1, "]", 2] {"get": {}}', '[1, "]", 2] {"get": {}}', []),
    ],
)
def test_a_name_and_an_object_make_a_call(tag, text, content, calls):
    """[91], [94], [172]"""
    assert split(tag, text) == (content, calls)
    assert split(tag, text, range(len(text))) == (content, calls)


def test_a_call_is_returned_as_soon_as_it_is_complete():
    parser = ToolParser("<c>", NAMES)
    pushed = [parser.push(text) for text in ("a <", 'c>{"name": "get"', ', "arguments": {}', "}", "</c> b")]
    assert [content for content, _ in pushed] == ["a ", "", "", "", ""]
    assert [len(calls) for _, calls in pushed] == [0, 0, 0, 1, 0]


def test_the_order_of_arguments_is_kept_and_numbers_stay_whole():
    [(_, arguments)] = split("{", '{"name": "get", "arguments": {"z": 1, "a": 1.5, "m": 9007199254740993, "e": 1e30}}')[
        1
    ]
    assert list(arguments.items()) == [("z", 1), ("a", 1.5), ("m", 9007199254740993), ("e", 1e30)]
    assert type(arguments["z"]) is int


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "01"])
def test_a_number_that_is_not_json_makes_no_call(number):
    assert split("<c>", f'<c>{{"name": "get", "arguments": {{"n": {number}}}}}') == ("", [])


def test_an_integer_beyond_64_bits_keeps_its_digits():
    [(_, arguments)] = split("<c>", f'<c>get {{"n": {2**65 + 1}, "m": -{10**300 + 1}}}')[1]
    assert arguments == {"n": 2**65 + 1, "m": -(10**300) - 1} and type(arguments["n"]) is int


def test_ids_are_ollamas():
    ids = {ParsedCall("f", {}).id for _ in range(100)}
    assert len(ids) == 100 and all(re.fullmatch("call_[a-z0-9]{8}", id) for id in ids)


words = ["<c>", "<", "c>", "{", "}", "[", "]", '"', "\\", ":", ",", " ", "1", "get", "_time", "get_", "x"]
words += ['"name":', '"arguments":', '{"name": "get", "arguments": {"a": 1}}', '{"a": "}]"}', "{}"]
texts = st.lists(st.sampled_from(words), max_size=25).map("".join)


@given(st.sampled_from(["<c>", "{", "[", ""]), texts, st.lists(st.integers(0, 60)))
def test_cuts_change_nothing(tag, text, cuts):
    whole = split(tag, text)
    assert split(tag, text, cuts) == whole
    assert split(tag, text, range(len(text))) == whole


@given(st.sampled_from(["<c>", "{", "["]), texts)
def test_content_is_the_text_before_the_tag_or_all_of_it(tag, text):
    content, calls = split(tag, text)
    before, found, _ = text.partition(tag)
    if tag == "<c>":
        assert content == before
        assert found or not calls
    else:
        assert content == (before if calls else text)


@pytest.mark.parametrize("tag", ["<c>", "{", "["])
@pytest.mark.parametrize("text", ["{", "[", '{"', "{}", "{}get_", "get ", "\\", '{"name":"get"}'])
def test_ten_thousand_pieces_take_linear_time(tag, text):
    parser = ToolParser(tag, NAMES)
    parser.push(tag)
    began = time.process_time()
    for _ in range(10_000):
        parser.push(text)
    parser.flush()
    assert (
        time.process_time() - began < 2
    )  # takes 0.05 to 0.4 s; a search of the whole text for each piece would take over 10 s


@pytest.mark.parametrize(
    "text", ["{" * 10**6, '{"a":' * 10**5 + "{}" + "}" * 10**5, "[" * 10**6, '{"a":"' + "x" * 10**6]
)
def test_a_megabyte_in_one_piece_takes_little_time(text):
    began = time.process_time()
    assert split("<c>", "<c>get " + text) == ("", [])
    assert time.process_time() - began < 5
