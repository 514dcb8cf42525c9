"""Strings equals a list in every way that is used, in less memory."""

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.gguf.read import GGUF
from numllama.engine.gguf.strings import Strings
from numllama.engine.gguf.write import write_gguf

# what reading a file gives: any text, and lone surrogates for bytes that are not UTF-8
lists = st.lists(st.binary(max_size=9).map(lambda raw: raw.decode("utf-8", "surrogateescape")), max_size=8)


@given(lists, st.slices(8))
def test_strings_equal_the_list(expected, part):
    got = Strings.of(expected)
    assert list(got) == expected and got == expected and expected == got and len(got) == len(expected)
    assert got[part] == expected[part] and isinstance(got[part], Strings)
    for i in range(-len(expected), len(expected)):
        assert got[i] == expected[i]
    for i in (-len(expected) - 1, len(expected)):
        with pytest.raises(IndexError):
            got[i]
    assert b"".join(got.encoded()) == "".join(expected).encode("utf-8", "surrogateescape")
    assert got.sizes().tolist() == [len(text.encode("utf-8", "surrogateescape")) for text in expected]
    assert repr(got) == repr(expected) and pickle.loads(pickle.dumps(got)) == got


def test_strings_differ_from_other_lists():
    got = Strings.of(["a", "bc"])
    assert got != ["ab", "c"] and got != ["a"] and got != ["a", "bc", ""] and got != "abc"


def test_an_open_file_takes_a_few_bytes_for_each_string(tmp_path):
    """A list of them took 70 bytes: 18 MiB for Gemma 3's vocabulary."""
    tokens = [f"piece {i}" for i in range(20_000)]
    write_gguf(tmp_path / "a.gguf", {"tokenizer.ggml.tokens": tokens}, [])
    tracemalloc.start()
    gguf = GGUF.open(tmp_path / "a.gguf")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(tokens) < 20  # 11 of text, 4 for its end
    assert gguf.kv["tokenizer.ggml.tokens"] == tokens
