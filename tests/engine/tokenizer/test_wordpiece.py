"""WordPiece: cases to check with a pencil, Google's rules where llama.cpp follows them, llama.cpp's everywhere."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_vocab import LlamaVocab
from tokenizers import Tokenizer as HuggingFace
from vocabularies import ALIKE, without, wordpiece

from numllama.engine.errors import ModelError
from numllama.engine.gguf.write import write_gguf
from numllama.engine.tokenizer import from_gguf
from numllama.engine.tokenizer.export import tokenizer_json
from numllama.engine.tokenizer.wordpiece import normalized_words

UNK, CLS, SEP, MASK = 1, 2, 3, 4


def test_the_longest_piece_is_taken_first():
    tokenizer = from_gguf(wordpiece("_un", "_unaff", "aff", "able", "a", "ble"))
    (word,) = tokenizer.explain("unaffable")
    assert word.symbols == ["▁unaff", "able"]
    assert word.ids == [6, 8]
    assert tokenizer.encode("unaffable") == [CLS, 6, 8, SEP]


def test_a_word_that_pieces_do_not_cover_is_unknown_as_a_whole():
    tokenizer = from_gguf(wordpiece("_un", "able", "_a"))
    assert tokenizer.encode("a unfable a", add_special=False) == [7, UNK, 7]
    assert tokenizer.encode("", add_special=False) == []


def test_words():
    vocab = from_gguf(wordpiece("_a")).vocab
    assert normalized_words(vocab, "Ünïts, 漢字!") == ["units", ",", "漢", "字", "!"]
    assert normalized_words(vocab, "It's $5 ©2") == ["it", "'", "s", "$", "5", "©2"]  # © is a symbol outside ASCII
    assert normalized_words(vocab, "a\u200db\x00c\ufffd \u00a0\u3000 d\x85e") == ["abc", "d", "e"]


def test_llama_cpp_keeps_the_first_code_point_of_a_decomposition():
    vocab = from_gguf(wordpiece("_a")).vocab
    assert normalized_words(vocab, "한국") == ["\u1112\u1100"]  # two syllables, their leading consonants
    assert normalized_words(vocab, "हिन्दी") == ["हनद"]  # vowel signs are marks, Mc as well as Mn


def test_case_and_accents_are_kept_if_the_file_says_so():
    for lowercase, strip_accents, expected in (
        (False, None, "Émile"),  # accents follow case unless the file has a key for them
        (False, True, "Emile"),
        (True, False, "émile"),
        (True, None, "emile"),
    ):
        flags = {"normalizer.lowercase": lowercase, "normalizer.strip_accents": strip_accents}
        kv = wordpiece("_a", **{key: value for key, value in flags.items() if value is not None})
        assert normalized_words(from_gguf(kv).vocab, "Émile") == [expected]


def test_special_tokens_are_put_around_a_text_and_parsed_within_it():
    tokenizer = from_gguf(wordpiece("_[", "_a", "_mask", "_]", add_bos_token=False))
    assert (tokenizer.first, tokenizer.last) == (CLS, SEP)
    assert tokenizer.encode("a [MASK] a") == [CLS, 6, MASK, 6, SEP]
    assert tokenizer.encode("[MASK]", parse_special=False) == [CLS, 5, 7, 8, SEP]


def test_decoding_puts_a_blank_before_each_word_but_not_before_a_full_stop():
    tokenizer = from_gguf(wordpiece("_un", "able", "_.", "_a"))
    assert tokenizer.decode(tokenizer.encode("unable a ."), special=False) == " unable a."


@pytest.mark.parametrize("role", ["unknown", "bos", "seperator"])
def test_a_vocabulary_without_a_required_token_is_refused(role):
    with pytest.raises(ModelError, match=r"requires a token for (UNK|SEP)|has no BOS"):
        from_gguf(without(wordpiece("_a"), f"{role}_token_id"))


@given(text=st.text(st.sampled_from("abcdeéÜñ\u0301 \t\n.,!?'[]$~漢字\u4e01Жд\u0000\ufffd") | ALIKE))
def test_the_ids_are_those_of_googles_rules(text):
    letters = {unicodedata.normalize("NFD", chr(code).lower())[0] for code in [*range(33, 256), 0x416, 0x434]}
    ours = from_gguf(wordpiece(*(f"_{x}" for x in letters), *letters, "_ab", "abc", "_漢"))
    theirs = HuggingFace.from_str(json.dumps(tokenizer_json(ours.vocab)))
    assert theirs.encode(text).ids == ours.encode(text)


@pytest.mark.peer
@pytest.mark.parametrize("flags", [{}, {"normalizer.lowercase": False}, {"normalizer.strip_accents": False}], ids=str)
def test_every_character_is_normalized_as_by_llama_cpp(tmp_path, flags):
    """Check each code point of Python's tables, between two letters, with a piece for each; takes a few seconds."""
    codes = [code for code in range(1, 0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    codes.remove(ord("_"))  # wordpiece() replaces it with U+2581
    kv = wordpiece(*map(chr, codes), "_a", **flags)
    needed = dict.fromkeys(["block_count", "context_length", "embedding_length", "feed_forward_length"], 1)
    needed |= {"attention.head_count": 1, "attention.layer_norm_epsilon": 1e-12}
    kv |= {"general.architecture": "bert"} | {f"bert.{key}": value for key, value in needed.items()}
    write_gguf(tmp_path / "vocab.gguf", kv)
    peer = LlamaVocab(tmp_path / "vocab.gguf")
    ours = from_gguf(kv)
    for n in range(0, len(codes), 500):
        texts = [f"a{chr(code)}b" for code in codes[n : n + 500]]
        if peer.encode(" ".join(texts)) != ours.encode(" ".join(texts)):
            assert [ours.encode(text) for text in texts] == [peer.encode(text) for text in texts]
    peer.close()
