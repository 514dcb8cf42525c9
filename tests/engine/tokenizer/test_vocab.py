"""Vocabularies: attributes and roles of tokens, and errors for invalid arrays."""

import numpy as np
import pytest
from vocabularies import CONTROL, NORMAL, UNUSED, USER_DEFINED, bpe, spm, without

from numllama.engine.errors import ModelError, UnsupportedArchitecture
from numllama.engine.tokenizer import Tokenizer, Vocab, from_gguf
from numllama.engine.tokenizer.vocab import BYTE_ALPHABET
from tiny import bpe_vocabulary, spm_vocabulary


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        ({}, "'tokenizer.ggml.model' is missing"),
        (without(spm(), "tokens"), "'tokenizer.ggml.tokens' is missing"),
        (without(bpe(), "merges"), "'tokenizer.ggml.merges' is missing"),
        (spm(tokens=[]), "'tokenizer.ggml.tokens' is empty"),
        (spm(tokens=np.arange(3)), "'tokenizer.ggml.tokens' is not an array of strings"),
        (spm(tokens="abc"), "'tokenizer.ggml.tokens' is not an array of strings"),
        (spm(scores=np.zeros(259, np.uint8)), "'tokenizer.ggml.scores' is an array of uint8, expected float32"),
        (spm(scores=np.zeros(259)), "'tokenizer.ggml.scores' is an array of float64, expected float32"),
        (spm(token_type=np.ones(259, np.uint8)), "'tokenizer.ggml.token_type' is an array of uint8, expected int32"),
        (spm(token_type=np.ones(259, int)), "'tokenizer.ggml.token_type' is an array of int64, expected int32"),
        (spm(scores=np.zeros(3, np.float32)), "'tokenizer.ggml.scores' has 3 elements, 'tokenizer.ggml.tokens' has"),
        (spm(scores=np.full(259, np.nan, np.float32)), "'tokenizer.ggml.scores' is not a number for token 0"),
        (bpe(token_type=np.zeros(3, np.int32)), "'tokenizer.ggml.token_type' has 3 elements"),
        (bpe(token_type=["x"] * 258), "'tokenizer.ggml.token_type' is not an array of integers"),
        (spm("a", "a"), "'tokenizer.ggml.tokens' has 'a' twice, as 259 and as 260"),
        (spm(eos_token_id="x"), "'tokenizer.ggml.eos_token_id' is 'x', expected the id of a token"),
        (spm(add_bos_token=3), "'tokenizer.ggml.add_bos_token' is 3, expected a bool"),
        (bpe(pre="glm4", add_bos_token=True), "is set, but the vocabulary has no BOS token"),
    ],
)  # fmt: skip
def test_an_invalid_vocabulary_gives_a_one_line_error(kv, message):
    with pytest.raises(ModelError) as caught:
        from_gguf(kv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["bos", "eos", "unknown", "padding", "mask"])
@pytest.mark.parametrize("id", [259, 32000, -2])
def test_a_special_token_outside_the_vocabulary_is_replaced_by_the_default_with_a_warning(role, id, caplog):
    got, expected = from_gguf(spm(**{f"{role}_token_id": id})).vocab, from_gguf(spm()).vocab
    assert (got.roles, got.eog) == (expected.roles, expected.eog)
    assert f"'tokenizer.ggml.{role}_token_id' is {id}, but the vocabulary has 259 tokens" in caplog.text


def test_elements_after_the_last_token_are_dropped():
    more = {"scores": np.arange(262, dtype=np.float32)[::-1] - 3, "token_type": np.ones(262, np.int32)}
    vocab = from_gguf(spm(**more)).vocab
    np.testing.assert_array_equal(vocab.scores, np.arange(259, dtype=np.float32)[::-1])
    assert len(vocab.attr) == 259


def test_spm_without_scores_merges_from_the_left():
    """llama.cpp 0c1e57098 reads each missing score as 0; its ids are those of tests/tiny.py's vocabulary."""
    tokenizer = from_gguf(without(spm_vocabulary(), "scores"))
    assert tokenizer.encode("hello world the then") == [1, 288, 292, 261, 262]
    assert tokenizer.encode("once upon a time aaaa") == [1, 269, 273, 274, 277, 274, 386, 386, 386]


@pytest.mark.parametrize(
    ("merges", "text", "expected"),
    [
        (["th"], "the th", [83, 71, 68, 257]),
        (["#version: 0.2"], "#version: 0.2 th", [2, 85, 68, 81, 82, 72, 78, 77, 25, 220, 15, 13, 17, 257]),
        (["zz h"], "hello world qqzz", [71, 68, 75, 75, 78, 289, 220, 80, 80, 89, 89]),
        (["t q"], "hello world qqzz", [71, 68, 75, 75, 78, 289, 220, 80, 80, 89, 89]),
        (["Ġ q", "Ã ©"], "tq qzx the qz q é qé", [83, 80, 80, 89, 87, 258, 80, 89, 80, 220, 80]),
        (["Ġ q", "Ã ©"], "été q", [83, 80]),
    ],
)
def test_merges_that_name_no_piece_are_accepted(merges, text, expected):
    """Expected ids are llama.cpp's.  A merged pair that is not a piece keeps its ASCII letters."""
    kv = bpe_vocabulary()
    kv["tokenizer.ggml.merges"] = [*merges, *kv["tokenizer.ggml.merges"]]
    tokenizer = from_gguf(kv)
    assert tokenizer.encode(text, add_special=False) == expected
    assert Tokenizer(tokenizer.vocab).encode(text, add_special=False) == expected


@pytest.mark.parametrize("kv", [spm(model="rwkv"), spm(model=["llama"]), bpe(pre="no-such"), bpe(pre=np.ones(2))])
def test_unknown_kind_of_vocabulary_is_unsupported(kv):
    with pytest.raises(UnsupportedArchitecture) as caught:
        from_gguf(kv | {"general.architecture": "llama"})
    assert caught.value.architecture == "llama"


def test_a_missing_pre_is_the_default_with_a_warning(caplog):
    tokenizer = from_gguf(without(bpe(), "pre"))
    assert tokenizer.vocab.pre == from_gguf(bpe(pre="default")).vocab.pre
    assert "'tokenizer.ggml.pre' is missing" in caplog.text


def test_spm_defaults():
    tokenizer = from_gguf(spm("▁", "a"))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos, tokenizer.add_eos) == (1, 2, True, False)
    assert tokenizer.encode("a") == [1, 259, 260]  # a blank is prepended
    assert tokenizer.encode("a</s>a") == [1, 259, 260, 2, 259, 260]  # and after each special token
    assert tokenizer.encode("a</s>a", add_special=False, parse_special=False)[2:3] != [2]


def test_bpe_defaults():
    assert from_gguf(bpe()).encode("the") == [257]
    llama3 = from_gguf(bpe(pre="llama-bpe"))
    assert (llama3.bos, llama3.eos, llama3.encode("the")) == (11, 11, [11, 257])


def test_the_file_decides_about_bos_and_eos():
    tokenizer = from_gguf(spm("a", bos_token_id=2, eos_token_id=1, add_bos_token=False, add_eos_token=True))
    assert tokenizer.encode("</s>") == [2, 1]
    assert from_gguf(spm(bos_token_id=0xFFFFFFFF)).bos == 1  # -1: not set


def test_gemma4_adds_bos_whatever_its_file_says():
    kv = spm("▁", "a", model="gemma4", merges=[], bos_token_id=2, add_bos_token=False)
    assert from_gguf(kv).encode("a") == [2, 260]


def test_user_defined_tokens_are_always_parsed_and_control_tokens_only_on_request():
    tokenizer = from_gguf(bpe("<|x|>", "<|y|>", types=[CONTROL, USER_DEFINED]))
    assert tokenizer.encode("<|x|><|y|>", parse_special=True) == [258, 259]
    assert tokenizer.encode("<|x|><|y|>", parse_special=False)[-1] == 259
    assert 258 not in tokenizer.encode("<|x|><|y|>", parse_special=False)


def test_the_longest_special_token_is_cut_out_first():
    tokenizer = from_gguf(bpe("ab", "bcd", types=[USER_DEFINED, USER_DEFINED]))
    assert tokenizer.encode("abcd") == [*tokenizer.encode("a"), 259]


def test_phi3_drops_the_blanks_after_its_special_tokens():
    kv = spm("▁", "a", "<|user|>", types=[NORMAL, NORMAL, CONTROL]) | {"general.name": "Phi-3 mini"}
    tokenizer = from_gguf(kv)
    assert tokenizer.encode("<|user|>\n a<s> a") == [1, 261, 259, 260, 1, 259, 259, 260]
    assert len(from_gguf(kv | {"general.name": "other"}).encode("<|user|>\n a")) > 4


def test_modern_bert_drops_the_blanks_before_its_mask():
    kv = bpe("[MASK]", types=[CONTROL]) | {"general.name": "modern-bert"}
    assert from_gguf(kv).encode("the \t[MASK] the")[:2] == [257, 258]


@pytest.mark.parametrize(
    ("spelled", "types", "kv", "expected"),
    [
        (["<|im_end|>", "<|eot_id|>"], [NORMAL, USER_DEFINED], {}, {"<|im_end|>", "<|eot_id|>"}),
        (["<|fim_pad|>", "<|fim_prefix|>"], [CONTROL, CONTROL], {}, {"<|fim_pad|>"}),
        (["my end"], [CONTROL], {"eot_token_id": 258}, {"my end"}),
        (["<|end|>", "<|return|>", "<|call|>"], [CONTROL] * 3, {}, {"<|return|>", "<|call|>"}),  # gpt-oss
        (["<|end|>", "<|return|>"], [CONTROL] * 2, {}, {"<|end|>", "<|return|>"}),
        (["</s>", "<|tool_response>"], [NORMAL, CONTROL], {}, {"<|tool_response>"}),  # gemma4 writes HTML
    ],
)
def test_spelling_determines_the_end_of_generation_tokens(spelled, types, kv, expected):
    vocab = Vocab.from_gguf(bpe(*spelled, types=types, eos_token_id=0, **kv))
    assert {vocab.tokens[id] for id in vocab.eog} == expected | {vocab.tokens[0]}
    for text in expected - {"my end"}:
        assert vocab.piece(vocab.ids[text], special=False) == b""  # control, whatever the file says


def test_gpt_oss_channels_are_always_shown():
    vocab = Vocab.from_gguf(bpe("<|channel|>", types=[CONTROL]))
    assert vocab.piece(258, special=False) == b"<|channel|>"


def test_pieces_are_bytes():
    vocab = Vocab.from_gguf(spm("▁a", "▁b", "x", types=[NORMAL, USER_DEFINED, UNUSED]))
    assert [vocab.piece(id) for id in (0, 1, 3 + 0xE2, 259, 260, 261)] == [
        b"<unk>",
        b"<s>",
        b"\xe2",
        b" a",
        "▁b".encode(),
        b"",
    ]
    assert [vocab.piece(id, special=False) for id in (0, 1)] == [b"", b""]
    assert Vocab.from_gguf(bpe("Ġâĺ")).piece(258) == b" \xe2\x98"


def test_every_byte_has_a_character_of_its_own_in_gpt2s_alphabet():
    assert sorted(BYTE_ALPHABET) == list(range(256))
    assert len(set(BYTE_ALPHABET.values())) == 256
    assert (BYTE_ALPHABET[32], BYTE_ALPHABET[10], BYTE_ALPHABET[65]) == ("Ġ", "Ċ", "A")


def test_decode_removes_the_tokens_that_encode_added():
    tokenizer = from_gguf(spm("▁", "a", "b"))
    assert tokenizer.decode(tokenizer.encode("a b", add_special=False)) == "a b"
    assert tokenizer.decode(tokenizer.encode("a b")) == "<s> a b"
    assert tokenizer.decode(tokenizer.encode("a b"), special=False) == " a b"  # as llama_detokenize


def test_clean_spaces_removes_blanks_before_punctuation():
    text = "it 's , we 're ' x ' t . 't"
    clean, exact = from_gguf(bpe(pre="gpt-2")), from_gguf(bpe(pre="qwen2"))
    assert exact.decode(exact.encode(text)) == text
    assert clean.decode(clean.encode(text)) == "it's, we're'x't. 't"


def test_a_vocabulary_that_sentencepiece_refuses_works_in_plain_python():
    few = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a"],
        "tokenizer.ggml.scores": np.array([0, 0, 0, -3, -2, -1], np.float32),
    }
    assert from_gguf(few).encode("a aé") == [1, 5, 5, 0, 0]  # é is two bytes without tokens
    assert from_gguf(spm("a\0b", "a", "\0b", add_space_prefix=False)).encode("a") == [1, 260]
    assert from_gguf(spm("a" * 10_000, "a", add_space_prefix=False)).encode("a") == [1, 260]


def test_plain_tokenizer_needs_no_library():
    vocab = Vocab.from_gguf(bpe())
    assert Tokenizer(vocab).encode("the") == [257]
