"""Pieces with thinking, text and tool calls apart."""

from numllama.engine.parse import ThinkingParser, ToolParser
from numllama.engine.run.piece import Piece, Timings
from numllama.engine.run.split import Split

END = Piece("", done_reason="stop", timings=Timings())


def shown(split, texts, end=END):
    """(thinking, text, names of calls) of what comes out, and the last piece."""
    pieces = [piece for text in texts for piece in split(Piece(text, token=1))] + list(split(end))
    assert all(piece.done_reason is None for piece in pieces[:-1])
    told = [(piece.thinking, piece.text, [call.name for call in piece.tool_calls]) for piece in pieces]
    return [part for part in told if any(part)], pieces[-1]


def both():
    return Split(ThinkingParser("<think>", "</think>"), ToolParser("<c>", ["f", "g"]))


def test_what_is_thought_said_and_called_comes_apart_and_in_order():
    texts = ["<thi", "nk>so</think>", "I see", '. <c>{"f": {}}{"g"', ': {"a": 1}}', "</c>"]
    assert shown(both(), texts)[0] == [
        ("so", "", []),
        ("", "I see", []),
        ("", ". ", []),
        ("", "", ["f"]),
        ("", "", ["g"]),
    ]


def test_nothing_to_tell_apart_changes_no_piece():
    assert shown(Split(), ["<think>a", "<c>"])[0] == [("", "<think>a", []), ("", "<c>", [])]


def test_the_last_piece_brings_what_was_held_back():
    assert shown(both(), ["<think>a</thi"])[0] == [("a", "", []), ("</thi", "", [])]
    assert shown(both(), ["1 <"])[0] == [("", "1 ", []), ("", "<", [])]
    told, last = shown(both(), ["a "], Piece("<", done_reason="length", timings=Timings()))
    assert told == [("", "a ", []), ("", "<", [])] and last.done_reason == "length"


def test_a_call_that_is_never_closed_is_dropped_and_a_thought_is_kept():
    assert shown(both(), ['a <c>{"f": {"x": 1}'])[0] == [("", "a ", [])]
    assert shown(both(), ["<think>hm ", '<c>{"f": {}}'])[0] == [("hm ", "", []), ('<c>{"f": {}}', "", [])]


def test_all_that_was_said_is_remembered():
    split = both()
    shown(split, texts := ["<think>a</think>b", '<c>{"f": {}}'])
    assert "".join(split.said) == "".join(texts)


def test_a_token_and_its_logprob_come_out_once():
    split = both()
    pieces = [piece for text in ("<c>", '{"f": {}}', "") for piece in split(Piece(text, token=7))]
    assert [piece.token for piece in pieces] == [7, 7, 7]
