"""A long text in chunks has the ids of the whole text, and special tokens are found in one pass."""

from __future__ import annotations

import time
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import CONTROL, USER_DEFINED, bpe, spm, wordpiece

from numllama.engine.errors import RequestError
from numllama.engine.tokenizer import from_gguf
from numllama.engine.tokenizer.bpe import pre_tokenizer
from numllama.engine.tokenizer.chunks import CHUNK_CHARS, chunks, word_boundary
from numllama.engine.tokenizer.pre import PRE
from numllama.engine.tokenizer.special import SpecialTokens
from numllama.engine.tokenizer.vocab import Attr
from tiny import bpe_vocabulary, spm_vocabulary

KINDS = {pre: name for name, pre in reversed(PRE.items())}  # a name for each
WITHOUT_WORDS = {pre for pre in KINDS if not pre.byte_level}

TEXT = st.lists(
    st.one_of(
        st.text(
            st.sampled_from("aBz \n\r\t<>(){}[]\",;=|.:/'-_0123é¹яЖ中文字한글ก\u0301\u3002\uff0c\u3000\u2028🙂"),
            max_size=6,
        ),
        st.sampled_from(
            [
                "it's",
                "WE'LL",
                "fooBar",
                "<b>x</b>",
                "<sentinel:12>",
                "IMGIMGABCZ",
                "a b",
                "  c",
                "\n\n d",
                "x\n",
                "1234567",
            ]
        ),
        st.builds(lambda c, n: c * n, st.sampled_from("a 1.\n\t中"), st.integers(1, 9)),
    ),
    max_size=10,
).map("".join)


@pytest.mark.parametrize("name", [name for pre, name in KINDS.items() if pre not in WITHOUT_WORDS])
def test_words_are_the_same_in_chunks(name):
    library = pre_tokenizer(PRE[name])

    def words(text):
        return [word for word, _ in library.pre_tokenize_str(text)]

    boundary = word_boundary(lambda text: {end for _, (_, end) in library.pre_tokenize_str(text)})
    assert boundary and len(list(chunks("a <b> c = d; (e) f\n" * 99, boundary, 30))) > 30

    @settings(max_examples=80)
    @given(TEXT, st.integers(1, 4))
    def agree(text, size):
        assert [word for chunk in chunks(text, boundary, size) for word in words(chunk)] == words(text)

    agree()


MERGED = [*"abceh", "▁", "\n", "ab", "▁a", "▁ab", "a▁", "c▁", "c▁a", "▁▁", "▁▁▁", "\n▁", "\n\n", "b\n", "h▁e"]
VOCABULARIES = {
    "spm": spm(*MERGED),
    "gemma4": spm(*MERGED)
    | {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.bos_token_id": 1}
    | {"tokenizer.ggml.merges": [f"{x[:-1]} {x[-1]}" for x in MERGED if len(x) > 1 and x[:-1] in MERGED]},
    "bpe": bpe("\u0120t", "\u0120the", merges=("t h", "th e", "\u0120 t", "\u0120 the")),
    "wordpiece": wordpiece("_a", "_ab", "b", "c", "_c", "_h", "e"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_ids_are_the_same_in_chunks(kind):
    encoder = from_gguf({"general.architecture": "llama"} | VOCABULARIES[kind])._encoder

    def agree(text, size):
        text = text if kind in ("bpe", "wordpiece") else text.replace(" ", "▁")
        parts = list(chunks(text, encoder.boundary, size))
        assert "".join(parts) == text
        assert [id for chunk in parts for id in encoder.encode(chunk)] == encoder.encode(text)
        return len(parts)

    assert agree("abceht \n\r<é中 " * 3, 1) > 2

    @settings(max_examples=200)
    @given(st.text(st.sampled_from("abceht \n\r<é中"), max_size=40), st.integers(1, 3))
    def check(text, size):
        agree(text, size)

    check()


def test_a_cancelled_request_ends_between_chunks():
    tokenizer, calls = from_gguf({"general.architecture": "llama"} | VOCABULARIES["bpe"]), []

    def check():
        calls.append(None)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tokenizer.encode("the " * CHUNK_CHARS * 100, check=check)
    assert len(calls) == 3


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_no_token_has_more_characters_than_said(kind):
    tokenizer = from_gguf({"general.architecture": "llama"} | VOCABULARIES[kind])
    most = tokenizer.max_chars_per_token
    assert (most is None) == (kind == "wordpiece")
    longest = max((x for x in tokenizer.vocab.tokens if "<" not in x), key=len).replace("Ġ", " ").replace("▁", " ")
    for text in ("the " * 99, " " * 99, "\n" * 99, "字" * 99, longest * 99):
        assert most is None or len(tokenizer.encode(text)) * most >= len(text)


# special tokens


def one_by_one(vocab, ids, text):
    """Cut out one token after the other, as llama.cpp does (tokenizer_st_partition)."""
    parts = [text] if text else []
    for id in ids:
        parts = [x for part in parts for x in ([part] if isinstance(part, int) else cut(vocab, part, id))]
    return parts


def cut(vocab, text, id):
    attr, blanks = vocab.attr[id], " \t\n\v\f\r"
    first, *rest = text.split(vocab.tokens[id])
    stretches = [first, *(part.lstrip(blanks) for part in rest)] if attr & Attr.RSTRIP else [first, *rest]
    for n, part in enumerate(stretches):
        last = n == len(stretches) - 1
        part = part.rstrip(blanks) if attr & Attr.LSTRIP and not last else part
        yield from [part] if part else []
        yield from [] if last else [id]


PIECES = [
    "<a>",
    "<b>",
    "<ab",
    "ab>",
    "a>b",
    "b",
    "aa",
    "aaa",
    "\n",
    "\n\n\n",
    " ",
    "<a><b>",
    "aba",
    "ab",
    "<|",
    "|>",
    "\n<",
]


@given(
    st.lists(st.sampled_from(PIECES), unique=True, min_size=1),
    st.lists(st.sampled_from([0, int(Attr.LSTRIP), int(Attr.RSTRIP), int(Attr.LSTRIP | Attr.RSTRIP)]), min_size=99),
    st.text(st.sampled_from("<ab>|\n \t"), max_size=30),
)
@settings(max_examples=200)
def test_special_tokens_are_cut_out_as_one_by_one(pieces, absorbs, text):
    vocab = from_gguf({"general.architecture": "llama"} | spm(*pieces, types=[USER_DEFINED] * len(pieces))).vocab
    for id, attr in zip(vocab.specials, absorbs, strict=False):
        vocab.attr[id] |= attr
    assert SpecialTokens(vocab, vocab.specials).partition(text) == one_by_one(vocab, vocab.specials, text)


def test_a_prompt_of_all_special_tokens_takes_no_minute():
    """Gemma 3 has 6,414; each one in a text of 90 kB took two minutes when they were cut out one by one."""
    marks = [f"<unused{i}>" for i in range(6414)]
    tokenizer = from_gguf(
        {"general.architecture": "llama"} | spm("▁", "x", *marks, types=[1, 1, *[CONTROL] * len(marks)])
    )
    text, began = " x ".join(marks), time.process_time()
    ids = tokenizer.encode(text)
    assert time.process_time() - began < 5  # takes 0.1 s
    assert [id for id in ids if id > 260] == list(range(261, 261 + len(marks)))


def test_a_text_of_line_ends_is_cut_into_the_longest_tokens():
    runs = ["\n" * n for n in range(2, 32)]
    tokenizer = from_gguf({"general.architecture": "llama"} | spm(*runs, types=[USER_DEFINED] * len(runs)))
    longest = tokenizer.vocab.ids["\n" * 31]
    assert tokenizer.encode("\n" * 31 * 9999)[-9999:] == [longest] * 9999


def test_a_word_of_any_length_is_read_once():
    tokenizer = from_gguf({"general.architecture": "bert"} | wordpiece("_a", "a", "aa"))
    began = time.process_time()
    assert len(tokenizer.encode("a" * 400_000)) == 200_002 + 1
    assert time.process_time() - began < 10  # 0.3 s; copying the rest of the word for each piece took time squared


@pytest.mark.parametrize("vocabulary", [bpe_vocabulary(), spm_vocabulary(), wordpiece("_a", "a", "aa")])
def test_a_word_that_nothing_could_cancel_for_long_is_refused(monkeypatch, vocabulary):
    """Between chunks a request can be cancelled; a word is one chunk."""
    tokenizer = from_gguf({"general.architecture": "bert"} | vocabulary)
    monkeypatch.setattr(import_module("numllama.engine.tokenizer.chunks"), "MAX_UNCUT_CHARS", 100_000)
    assert tokenizer.encode("a" * 99_999) and tokenizer.encode("aa aa " * 50_000)
    with pytest.raises(RequestError, match=r"the text has 10000\d characters in a row where no token ends, at most"):
        tokenizer.encode("a" * 100_001)


def test_a_text_of_more_tokens_than_any_window_holds_is_refused(monkeypatch):
    tokenizer = from_gguf({"general.architecture": "llama"} | spm_vocabulary())
    monkeypatch.setattr("numllama.engine.tokenizer.MAX_TOKENS", 50_000)
    assert len(tokenizer.encode("a " * 20_000)) > 20_000
    with pytest.raises(RequestError, match="the text has more than 50000 tokens"):
        tokenizer.encode("a " * 1_000_000)
