"""Ids equals the dictionary from pieces to ids."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.gguf.strings import Strings
from numllama.engine.tokenizer import Vocab
from numllama.engine.tokenizer.ids import Ids
from tiny import spm_vocabulary


class OneHash(str):
    """Texts that all have the same hash."""

    def __hash__(self):
        return -7


@given(st.lists(st.text(max_size=3), max_size=20), st.sampled_from([str, OneHash]))
def test_ids_equal_the_dictionary(texts, kind):
    pieces = [kind(text) for text in texts]
    expected = {text: id for id, text in enumerate(texts)}
    got = Ids(pieces)
    assert {text: got[kind(text)] for text in texts} == expected
    assert all((kind(text) in got) == (text in expected) for text in ("", "a", "none of them"))
    with pytest.raises(KeyError):
        got[kind("none of them")]
    again = [id for id, text in enumerate(texts) if expected[text] != id]
    assert got.repeated() == (again[0] if again else None)


def test_a_vocabulary_takes_a_few_bytes_for_each_piece():
    """A dictionary and a second list took 115: 2 MiB for SmolLM2, 30 for Gemma 3, with the strings that they kept."""
    kv = spm_vocabulary()
    n = 20_000
    kv["tokenizer.ggml.tokens"] = Strings.of([*kv["tokenizer.ggml.tokens"], *(f"piece {i}" for i in range(n))])
    kv["tokenizer.ggml.scores"] = np.zeros(len(kv["tokenizer.ggml.tokens"]), np.float32)
    kv["tokenizer.ggml.token_type"] = np.ones(len(kv["tokenizer.ggml.tokens"]), np.int32)
    tracemalloc.start()
    vocab = Vocab.from_gguf(kv)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / n < 30  # 8 of attributes, 12 of ids
    assert vocab.ids["piece 7"] == len(vocab.tokens) - n + 7
