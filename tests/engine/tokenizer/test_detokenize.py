"""Streaming detokenization: whole characters only, and no part of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import CONTROL, NORMAL, spm

from numllama.engine.tokenizer import from_gguf
from numllama.engine.tokenizer.detokenize import Detokenizer, is_cut, whole_text

# tokens of a scripted model, and the chunks that Ollama v0.33.0-rc2 sent for them
PIECES = [
    *"caf|é |☕ |好 | fin.|cut |off<|Before |the ST|OP and| aft|er it.|Not S|TO but| ST|OR.| En|d.".split("|"),
    "STOP",
]
TOKENIZER = from_gguf(
    spm(*(piece.replace(" ", "▁") for piece in PIECES), "<|x|>", types=[NORMAL] * len(PIECES) + [CONTROL])
)
N_VOCAB = TOKENIZER.n_vocab


def ids_of(*pieces):
    """Return the ids of text pieces and of bytes."""
    ids = TOKENIZER.vocab.ids
    return [3 + piece if isinstance(piece, int) else ids[piece.replace(" ", "▁")] for piece in pieces]


def stream(ids, stop=(), special=False):
    """Return the text shown after each token, the rest at the end, and the stop string that was found."""
    text = Detokenizer(TOKENIZER, stop, special)
    return [text.push(id) for id in ids], text.flush(), text.met


def raw(ids):
    return b"".join(TOKENIZER.piece(id, special=False) for id in ids)


@pytest.mark.parametrize(
    ("pieces", "stop", "shown", "met"),
    [
        (["caf", "é ", 0xE2, 0x98, 0x95, "好 "], [], ["caf", "é ", "", "", "☕", "好 "], None),
        (["cut ", "off<", 0xE4, 0xBD], [], ["cut ", "off<", "", ""], None),
        (["Before ", "the ST", "OP and", " aft"], ["STOP"], ["Before ", "", "the ", ""], "STOP"),
        (["Before ", "the ST", "OP and", " aft"], ["STOP", "SAY"], ["Before ", "", "the ", ""], "STOP"),
        (["Before ", "the ST", "OP and", " aft"], [" aft"], ["", "Before the ST", "OP and", ""], " aft"),
        (["Not S", "TO but", " ST", "OR.", " En"], ["STOP"], ["", "Not STO but", "", " STOR.", " En"], None),
        (["Before "], ["Be"], [""], "Be"),
    ],
)  # fmt: skip
def test_chunks_are_cut_where_a_recorded_ollama_cut_them(pieces, stop, shown, met):
    assert stream(ids_of(*pieces), stop) == (shown, "", met)


def test_a_control_token_has_no_text_unless_it_is_to_be_shown():
    control = TOKENIZER.controls(["<|x|>cut "])
    assert control == {TOKENIZER.vocab.ids["<|x|>"]}
    ids = [*ids_of("caf"), *control]
    assert stream(ids) == (["caf", ""], "", None)
    text = Detokenizer(TOKENIZER, shown=control)
    assert [text.push(id) for id in ids] == ["caf", "<|x|>"]


def test_text_held_back_for_a_stop_string_is_flushed_at_the_end():
    assert stream(ids_of("the ST"), ["STOP"]) == ([""], "the ST", None)


def test_the_search_for_a_stop_string_is_limited_by_the_text_held_back():
    class Stop(str):
        looked_at = 0

        def __getitem__(self, part):
            self.looked_at += len(text := super().__getitem__(part))
            return text

    stop = Stop("STOP" * 10_000)
    assert stream(ids_of("Not S", "TO but"), [stop]) == (["", "Not STO but"], "", None)
    assert stop.looked_at < 100


def test_invalid_utf8_becomes_one_replacement_for_each_longest_prefix():
    assert stream(ids_of(0xE4, 0xBD, "cut ")) == (["", "", "\ufffdcut "], "", None)
    assert stream(ids_of(0xFF, 0x80)) == (["\ufffd", "\ufffd"], "", None)


def test_control_tokens_are_shown_on_request():
    id = TOKENIZER.vocab.ids["<|x|>"]
    assert stream([id]) == ([""], "", None)
    assert stream([id], special=True) == (["<|x|>"], "", None)


def test_empty_stop_string_never_matches():
    assert stream(ids_of("caf"), [""]) == (["caf"], "", None)


def whole_characters(data):
    """Decode `data` without an incomplete character at its end."""
    for n in (3, 2, 1):
        try:
            data[-n:].decode()
        except UnicodeDecodeError as error:
            if n <= len(data) and error.start == 0 and error.reason == "unexpected end of data":
                return data[:-n].decode(errors="replace")
    return data.decode(errors="replace")


IDS = st.lists(
    st.one_of(st.integers(0, N_VOCAB - 1), st.sampled_from(ids_of(0xE2, 0x98, 0x95, 0xF0, 0x9F, "好 ", "STOP"))),
    max_size=40,
)


@given(IDS)
def test_the_shown_pieces_are_the_whole_text(ids):
    shown, rest, _ = stream(ids)
    assert "".join(shown) + rest == whole_characters(raw(ids))


@given(IDS, st.lists(st.text("STOP caf☕好\ufffd", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(ids, stops):
    shown, rest, met = stream(ids, stops)
    so_far = [whole_characters(raw(ids[: n + 1])) for n in range(len(ids))]
    ended = next((text for text in so_far if any(stop in text for stop in stops)), None)
    if ended is None:
        assert met is None
        assert "".join(shown) + rest == (so_far or [""])[-1]
    else:
        assert met in stops
        assert rest == ""
        assert "".join(shown) == ended[: min(ended.find(stop) for stop in stops if stop in ended)]


@given(IDS, st.lists(st.text("STOP caf☕好", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_shown_piece_ends_in_the_beginning_of_a_stop_string(ids, stops):
    text, shown = Detokenizer(TOKENIZER, stops), ""
    for id in ids:
        shown += text.push(id)
        if text.stopped:
            break
        assert not any(shown.endswith(stop[:n]) for stop in stops for n in range(1, len(stop) + 1))


@given(
    st.lists(st.text("abc", max_size=4), max_size=6),
    st.lists(st.sampled_from([*"abc", "ab", "bca"]), max_size=8),
)
def test_stop_strings_are_found_as_by_trying_each(stops, pieces):
    tokenizer = from_gguf({"general.architecture": "llama"} | spm(*"abc", "ab", "bca"))
    detokenizer, whole, shown = Detokenizer(tokenizer, stops), "", ""
    for piece in pieces:
        whole += piece
        shown += detokenizer.push(tokenizer.vocab.ids[piece])
        found = [(whole.find(stop), stop) for stop in stops if stop and stop in whole]
        if found:
            assert (len(shown + detokenizer.flush()), detokenizer.met) == min(found)
            return
        assert not detokenizer.stopped
        starts = [stop[:n] for stop in stops for n in range(1, len(stop))]
        assert (shown == whole) == (not any(whole[len(shown) :].endswith(start) or start == "" for start in starts))


def test_very_many_stop_strings_take_no_longer_than_one():
    """A step of all sequences waits for the text of each: 400,000 took 0.2 s per token."""
    tokenizer = from_gguf({"general.architecture": "llama"} | spm("a"))

    class Counted(str):
        n = 0

        def startswith(self, *args):
            Counted.n += 1
            return super().startswith(*args)

    detokenizer = Detokenizer(tokenizer, [Counted(f"b{i}") for i in range(10_000)])
    assert [detokenizer.push(tokenizer.vocab.ids["a"]) for _ in range(100)] == ["a"] * 100
    assert Counted.n <= 100


@pytest.mark.parametrize(
    ("raw", "text", "cut"),
    [(b"\xd5", "", True), (b"a\xf0\x9f", "a", True), (b"\x9e", "\ufffd", False), (b"\xd5 '", "\ufffd '", False)],
)
def test_a_character_that_has_begun_is_left_out_and_other_bytes_are_replaced(raw, text, cut):
    """Recorded: alternatives and entries of dialect.json, steps 13 and 28."""
    assert (whole_text(raw), is_cut(raw)) == (text, cut)
