"""Merge by merge: cases to check with a pencil, and the libraries against plain Python on any text."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Trained
from tokenizers import models, pre_tokenizers, trainers
from vocabularies import CONTROL, NORMAL, USER_DEFINED, bpe, spm

from numllama.engine.tokenizer import Tokenizer, from_gguf
from numllama.engine.tokenizer.explain import Merge, merge

GOLDEN = Path(__file__).parents[2] / "golden"


def steps(words):
    return [[str(step) for step in word.merges] for word in words]


def test_spm_merges_the_pair_with_the_highest_score():
    kv = spm("l", "o", "w", "e", "r", "▁", "ow", "er", "low", "lower", "wer")
    kv["tokenizer.ggml.scores"] = np.array([0.0] * 259 + [-9.0] * 6 + [-1, -2, -3, -4, -1.5], np.float32)
    tokenizer = from_gguf(kv | {"tokenizer.ggml.add_space_prefix": False})
    # l o w e r: "ow" has -1, better than "er"; then "er" -2 ("wer" needs a "w", now merged); "low" -3; "lower" -4
    (word,) = tokenizer.explain("lower")
    assert [str(step) for step in word.merges] == ["o w (-1)", "e r (-2)", "l ow (-3)", "low er (-4)"]
    assert word.symbols == ["lower"]
    assert word.ids == tokenizer.encode("lower", add_special=False) == [268]


def test_spm_encodes_a_character_without_a_piece_as_bytes():
    (word,) = from_gguf(spm("a", add_space_prefix=False)).explain("aé")
    assert word.symbols == ["a", "é"]
    assert word.ids == [259, 3 + 0xC3, 3 + 0xA9]


def test_bpe_merges_in_the_order_of_the_list_and_within_words():
    tokenizer = from_gguf(bpe("Ġt", "ing", "in", merges=["t h", "i n", "Ġ t", "in g", "th e"]))
    words = tokenizer.explain("the thing")
    assert [word.symbols for word in words] == [["the"], ["Ġ", "th", "ing"]]
    assert steps(words) == [["t h (0)", "th e (4)"], ["t h (0)", "i n (1)", "in g (3)"]]
    assert [id for word in words for id in word.ids] == tokenizer.encode("the thing")


def test_a_word_that_is_a_piece_is_one_token_with_ignore_merges():
    assert steps(from_gguf(bpe(pre="llama-bpe")).explain("the")) == [[]]
    assert steps(from_gguf(bpe(pre="qwen2")).explain("the")) == [["t h (0)", "th e (1)"]]


def test_special_token_is_a_word_without_merges():
    words = from_gguf(bpe("<|x|>", types=[CONTROL])).explain("the<|x|>")
    assert [(word.text, word.ids) for word in words] == [("the", [257]), ("<|x|>", [258])]


def test_the_leftmost_of_equal_merges_goes_first():
    symbols, merges = merge(list("aaaaa"), lambda left, right: 0 if len(left + right) == 2 else None)
    assert symbols == ["aa", "aa", "a"]
    assert merges == [Merge("a", "a", 0)] * 2


SPECIAL = {"<|x|>": CONTROL, "<|x|><|y|>": USER_DEFINED, "  ": USER_DEFINED}


def trained(byte_level, pre):
    """Return a vocabulary trained on a few lines, with every byte and three special tokens."""
    model = Trained(models.BPE())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = cut if byte_level else pre_tokenizers.Split("\n", "isolated")
    text = "the thing, the Thing's thing! 1234 ab\n\n\n  na\u00efve 你好 aaaa aaaaaaa مرحبا 🙂 It's 12\u00a0we'll\u3000"
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    lines = [text if byte_level else text.replace(" ", "▁")] * 3
    model.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=380, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    found = json.loads(model.to_str())["model"]
    pieces = [*sorted(found["vocab"], key=found["vocab"].get), *SPECIAL]
    kinds = [*[NORMAL] * len(found["vocab"]), *SPECIAL.values()]
    merges = [" ".join(pair) for pair in found["merges"]]
    if byte_level:
        kv = {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": np.array(kinds, np.int32)}
        return kv | {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.merges": merges,
        }
    return spm(*pieces, types=kinds, model="gemma4", merges=merges, bos_token_id=1)


def spm512():
    kv = json.loads((GOLDEN / "tokens_spm.json").read_text())["kv"]
    kv["tokenizer.ggml.tokens"] = [*kv["tokenizer.ggml.tokens"], *SPECIAL]
    kv["tokenizer.ggml.scores"] = [*kv["tokenizer.ggml.scores"], 0.0, 0.0, 0.0]
    kv["tokenizer.ggml.token_type"] = [*kv["tokenizer.ggml.token_type"], *SPECIAL.values()]
    return kv


VOCABULARIES = {
    "spm": spm512,
    "gemma4": lambda: trained(byte_level=False, pre=None),
    **{
        pre: (lambda pre=pre: trained(byte_level=True, pre=pre))
        for pre in (
            "default gpt-2 llama-bpe qwen2 qwen35 falcon deepseek-llm deepseek-coder starcoder gpt-4o tekken"
        ).split()
    },
}
TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8),  # unassigned: see pre.py
        st.text(st.characters(codec="ascii"), max_size=12),
        st.sampled_from(
            [*SPECIAL, "<|y|>", "the thing", "It's", "WE'LL", "'\u017f", "你好", "▁", "\u3000\u3000", "🙂👩\u200d👧"]
        ),
        st.builds(lambda c, n: c * n, st.sampled_from("a 1.\n\t\u00a0ß🙂"), st.integers(1, 30)),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_library_and_plain_python_agree_on_any_text(name):
    engine = from_gguf(VOCABULARIES[name]())
    plain = Tokenizer(engine.vocab)

    @given(TEXT, st.booleans())
    def agree(text, parse_special):
        ids = engine.encode(text, parse_special=parse_special)
        assert ids == plain.encode(text, parse_special=parse_special)
        if engine.vocab.model != "llama" or not engine.vocab.add_space_prefix:
            whole = b"".join(engine.piece(id) for id in ids[engine.add_bos :])
            assert whole == text.replace("▁", " ").encode() if engine.vocab.spm_blanks else whole == text.encode()

    agree()
