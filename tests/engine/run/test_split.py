"""Splitting of pieces into thinking, text and tool calls."""

from numllama.engine.parse import TaggedParser, ThinkingParser, ToolParser
from numllama.engine.run.piece import Piece, Timings
from numllama.engine.run.split import Split

END = Piece("", done_reason="stop", timings=Timings())


def shown(split, texts, end=END):
    """Return (thinking, text, names of calls) of each piece that comes out, and the last piece."""
    pieces = [piece for text in texts for piece in split(Piece(text, token=1))] + list(split(end))
    assert all(piece.done_reason is None for piece in pieces[:-1])
    parts = [(piece.thinking, piece.text, [call.name for call in piece.tool_calls]) for piece in pieces]
    return [part for part in parts if any(part)], pieces[-1]


def both():
    return Split(TaggedParser(ThinkingParser("<think>", "</think>"), ToolParser("<c>", ["f", "g"])))


def test_thinking_text_and_calls_are_split_in_order():
    texts = ["<thi", "nk>so</think>", "I see", '. <c>{"f": {}}{"g"', ': {"a": 1}}', "</c>"]
    assert shown(both(), texts)[0] == [
        ("so", "", []),
        ("", "I see", []),
        ("", ". ", []),
        ("", "", ["f"]),
        ("", "", ["g"]),
    ]


def test_without_parsers_pieces_are_unchanged():
    assert shown(Split(), ["<think>a", "<c>"])[0] == [("", "<think>a", []), ("", "<c>", [])]


def test_the_last_piece_releases_held_back_text():
    assert shown(both(), ["<think>a</thi"])[0] == [("a", "", []), ("</thi", "", [])]
    assert shown(both(), ["1 <"])[0] == [("", "1 ", []), ("", "<", [])]
    parts, last = shown(both(), ["a "], Piece("<", done_reason="length", timings=Timings()))
    assert parts == [("", "a ", []), ("", "<", [])] and last.done_reason == "length"


def test_an_unclosed_call_is_dropped_and_unclosed_thinking_is_kept():
    assert shown(both(), ['a <c>{"f": {"x": 1}'])[0] == [("", "a ", [])]
    assert shown(both(), ["<think>hm ", '<c>{"f": {}}'])[0] == [("hm ", "", []), ('<c>{"f": {}}', "", [])]


def test_the_raw_text_is_kept():
    split = both()
    shown(split, texts := ["<think>a</think>b", '<c>{"f": {}}'])
    assert "".join(split.texts) == "".join(texts)


def test_each_token_comes_out_once():
    split = both()
    pieces = [piece for text in ("<c>", '{"f": {}}', "") for piece in split(Piece(text, token=7))]
    assert [piece.token for piece in pieces] == [7, 7, 7]
