"""Malformed GGUF files: each gives a one-line error with the file, the byte, what was found and what was expected."""

import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numllama.engine.errors import BadGGUF, EngineError, ModelError, ModelNotFound
from numllama.engine.gguf.read import ARR, BOOL, F32, MAX_NESTING, STR, U8, U16, U32, read_gguf
from numllama.engine.gguf.write import write_gguf
from numllama.kernels.quants import FORMATS_BY_NAME
from numllama.kernels.quants.types import GGMLType
from tiny import tiny_gguf

HUGE = 2**64 - 1


def head(n_tensors=0, n_kv=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_kv)


def text(raw, length=None):
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def kv(type, value, key=b"k"):
    return text(key) + struct.pack("<I", type) + value


def array(of, n, items=b""):
    return struct.pack("<IQ", of, n) + items


def tensor(name=b"w", shape=(2,), type=GGMLType.F32, offset=0, n_dims=None):
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        text(name)
        + struct.pack("<I", len(shape) if n_dims is None else n_dims)
        + dims
        + struct.pack("<IQ", type, offset)
    )


def model(*entries, size=64, keys=()):
    """Return a file with these tensors and `size` bytes of data."""
    raw = head(len(entries), len(keys)) + b"".join(keys) + b"".join(entries)
    return raw + bytes(-len(raw) % 32 + size)


CASES = {
    # not a GGUF file
    "empty": (b"", 0, "found an empty file, expected b'GGUF'"),
    "three bytes": (b"GGU", 0, "found b'GGU', expected b'GGUF'"),
    "ggml": (b"lmgg" + bytes(60), 0, "found b'lmgg' (a GGML file, from before GGUF), expected b'GGUF'"),
    "ggjt": (b"tjgg" + bytes(60), 0, "a GGJT file, from before GGUF"),
    "lora": (b"algg" + bytes(60), 0, "a GGLA adapter"),
    "safetensors": (struct.pack("<Q", 40) + b'{"w":{"dtype":"F32","shape":[2]}}' + bytes(20), 0, "(safetensors)"),
    "metadata": (struct.pack("<Q", 40) + b'{"__metadata__":{"format":"pt"}}' + bytes(20), 0, "(safetensors)"),
    "html": (b"\n<!DOCTYPE html><html>Not found</html>", 0, "HTML; perhaps a web page was downloaded"),
    "json": (b'{"error":"not found"}', 0, "(JSON)"),
    "zip": (b"PK\x03\x04" + bytes(60), 0, "a zip archive"),
    "pickle": (b"\x80\x02}q\x00." + bytes(60), 0, "a Python pickle"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", 0, "a Git LFS pointer"),
    "zeros": (bytes(4096), 0, "zeros; perhaps an unfinished download"),
    "text": (b"once upon a time", 0, "found b'once', expected b'GGUF'"),
    # header
    "magic alone": (b"GGUF", 0, "magic and version: found the end of the file after 4 bytes, expected 8"),
    "version 0": (head(version=0), 4, "found GGUF version 0, expected 2 or 3"),
    "version 1": (head(version=1), 4, "found GGUF version 1, expected 2 or 3"),
    "version 4": (head(version=4), 4, "found GGUF version 4, expected 2 or 3"),
    "version 1 big": (b"GGUF" + struct.pack(">IQQ", 1, 0, 0), 4, "found GGUF version 1, expected 2 or 3"),
    "no counts": (head()[:16], 16, "n_kv: found the end of the file after 0 bytes, expected 8"),
    "huge n_tensors": (head(HUGE), 8, "found 18446744073709551615 tensors and 0 key-values, expected no more than fit"),
    "huge n_kv": (head(0, 2**61), 8, "found 0 tensors and 2305843009213693952 key-values, expected no more than fit"),
    "n_kv by one": (head(0, 2) + kv(U8, b"\1"), 8, "expected no more than fit into the 14 bytes that follow"),
    # keys
    "key cut": (head(0, 1) + text(b"k", 20) + bytes(12), 32, "key 0 of 1: found the end of the file after 13 bytes"),
    "key length wraps": (head(0, 1) + text(b"k", HUGE) + bytes(12), 32, "expected 18446744073709551615"),
    "empty key": (head(0, 1) + kv(U32, bytes(4), b""), 24, "key 0 of 1 is '', expected a unique name"),
    "same key": (head(0, 2) + kv(U8, b"\1") * 2, 38, "key 1 of 2 is 'k' again, expected a unique name"),
    # values
    "type 13": (head(0, 1) + kv(13, bytes(8)), 33, "key 'k' has value type 13, expected 0 (u8) to 12 (f64)"),
    "value cut": (head(0, 1) + kv(12, bytes(7)), 37, "key 'k': found the end of the file after 7 bytes, expected 8"),
    "string cut": (head(0, 1) + kv(STR, text(b"ab", 3)), 45, "key 'k': found the end of the file after 2 bytes"),
    "string length wraps": (head(0, 1) + kv(STR, text(b"ab", HUGE - 7)), 45, "expected 18446744073709551608"),
    "bool 2": (head(0, 1) + kv(BOOL, b"\2"), 37, "key 'k': found a bool of 2, expected 0 or 1"),
    "item type": (head(0, 1) + kv(ARR, array(99, 0)), 37, "an item of key 'k' has value type 99, expected 0 (u8)"),
    "array cut": (
        head(0, 1) + kv(ARR, array(U16, 3, bytes(5))),
        41,
        "found an array of 3 u16, expected no more than fit",
    ),
    "array n wraps": (
        head(0, 1) + kv(ARR, array(F32, 2**62, bytes(5))),
        41,
        "found an array of 4611686018427387904 f32",
    ),
    "strings huge": (
        head(0, 1) + kv(ARR, array(STR, 2**61, bytes(64))),
        41,
        "found an array of 2305843009213693952 str",
    ),
    "strings cut": (
        head(0, 1) + kv(ARR, array(STR, 2, text(b"abcdefgh") + b"1234567")),
        65,
        "length of key 'k'[1]: found the end of the file after 7 bytes, expected 8",
    ),
    "strings wrap": (
        head(0, 1) + kv(ARR, array(STR, 2, text(b"ab") + text(b"c", HUGE))),
        67,
        "key 'k'[1]: found the end of the file after 1 bytes, expected 18446744073709551615",
    ),
    "bools": (head(0, 1) + kv(ARR, array(BOOL, 3, b"\0\1\3")), 51, "key 'k': found a bool of 3, expected 0 or 1"),
    "nested cut": (
        head(0, 1) + kv(ARR, array(ARR, 2, array(U8, 1, b"\1") + bytes(11))),
        66,
        "n of key 'k': found the end",
    ),
    "nested huge": (
        head(0, 1) + kv(ARR, array(ARR, 2**60, array(U8, 0))),
        41,
        "found an array of 1152921504606846976 arr",
    ),
    "nested deep": (
        head(0, 1) + kv(ARR, array(ARR, 1) * 100_000),
        37 + 12 * MAX_NESTING,
        f"key 'k': found arrays nested deeper than {MAX_NESTING}",
    ),
    # alignment
    "alignment 0": (
        model(keys=[kv(U32, bytes(4), b"general.alignment")]),
        53,
        "general.alignment is 0, expected a power",
    ),
    "alignment 48": (
        model(keys=[kv(U32, b"\x30\0\0\0", b"general.alignment")]),
        53,
        "general.alignment is 48, expected a power of two as u32",
    ),
    "alignment u8": (
        model(keys=[kv(U8, b"\x20", b"general.alignment")]),
        53,
        "general.alignment is u8, expected a power",
    ),
    "alignment str": (
        model(keys=[kv(STR, text(b"32"), b"general.alignment")]),
        53,
        "general.alignment is str, expected",
    ),
    "alignment past": (
        model(tensor(), keys=[kv(U32, b"\0\0\0\x80", b"general.alignment")]),
        57,
        "takes at least 8 bytes from byte 2147483648, expected to end by byte",
    ),
    # tensors
    "name cut": (head(1) + text(b"w", 30) + bytes(28), 32, "tensor 0 of 1: found the end of the file after 29 bytes"),
    "no name": (model(tensor(b"")), 24, "tensor 0 of 1 is '', expected a unique name"),
    "same name": (model(tensor(), tensor(offset=32)), 57, "tensor 1 of 2 is 'w' again, expected a unique name"),
    "5 dimensions": (model(tensor(shape=(1,) * 5)), 33, "tensor 'w' has 5 dimensions, expected at most 4"),
    "huge n_dims": (model(tensor(n_dims=2**32 - 1)), 33, "tensor 'w' has 4294967295 dimensions, expected at most 4"),
    "dims cut": (head(1) + tensor(b"w" * 8, n_dims=4)[:-5], 52, "dims of tensor 'wwwwwwww': found the end"),
    "huge dim": (model(tensor(shape=(HUGE,))), 37, "has shape (18446744073709551615,), expected at most 2**59 weights"),
    "product wraps": (model(tensor(shape=(2**32, 2**32))), 37, "expected at most 2**59 weights"),
    "product wraps to 0": (model(tensor(shape=(0, 2**40, 2**40))), 37, "expected at most 2**59 weights"),
    "type 43": (model(tensor(type=43)), 45, "tensor 'w' has ggml type id 43, which this build does not know"),
    "type huge": (
        model(tensor(type=2**32 - 1)),
        45,
        "tensor 'w' has ggml type id 4294967295, which this build does not",
    ),
    "half a block": (
        model(tensor(shape=(48,), type=GGMLType.Q4_0)),
        45,
        "tensor 'w' has rows of 48 weights, expected a multiple of Q4_0's block of 32",
    ),
    "offset cut": (head(1) + tensor(b"ww")[:-1], 50, "offset of tensor 'ww': found the end of the file after 7 bytes"),
    "offset 8": (model(tensor(offset=8)), 49, "tensor 'w' has offset 8, expected a multiple of the alignment, 32"),
    "offset wraps": (
        model(tensor(offset=2**64 - 32)),
        24,
        "from byte 18446744073709551648, expected to end by byte 128",
    ),
    "data past the end": (
        model(tensor(shape=(17,))),
        24,
        "tensor 'w' takes at least 68 bytes from byte 64, expected to end by byte 128, where the end of the file is",
    ),
    "no data": (head(1) + tensor(), 24, "from byte 64, expected to end by byte 57, where the end of the file is"),
    "overlap": (
        model(tensor(b"a", (9,)), tensor(b"b", (1,), offset=32)),
        24,
        "tensor 'a' takes at least 36 bytes from byte 96, expected to end by byte 128, where tensor 'b' is",
    ),
    "same data": (model(tensor(b"a"), tensor(b"b")), 24, "tensor 'a' takes at least 8 bytes from byte 96"),
    **{
        f"type {id}": (model(tensor(type=id)), 45, f"tensor 'w' has ggml type id {id}, {name}, which was removed")
        for id, name in ((4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (32, "Q4_0_4_8"), (33, "Q4_0_8_8"))
    },
    **{
        f"type {id}": (model(tensor(type=id)), 45, f"tensor 'w' has ggml type id {id}, {name}, which was removed")
        for id, name in ((36, "IQ4_NL_4_4"), (37, "IQ4_NL_4_8"), (38, "IQ4_NL_8_8"))
    },
    "a scalar of a block": (
        model(tensor(shape=(), type=GGMLType.Q4_0)),
        37,
        "tensor 'w' has rows of 1 weights, expected a multiple of Q4_0's block of 32",
    ),
    "long name": (model(tensor(b"w" * 500, n_dims=9)), 532, "tensor '" + "w" * 67 + "...' has 9 dimensions"),
    "line break": (model(tensor(b"a\nb", n_dims=9)), 35, r"tensor 'a\nb' has 9 dimensions"),
}


def measured(path):
    """Open `path`; return the error or None, the peak of allocated bytes, and the seconds it took."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        read_gguf(path)
        error = None
    except BadGGUF as caught:
        error = caught
    finally:
        seconds = time.perf_counter() - began
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return error, allocated, seconds


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_file_gives_a_one_line_error(tmp_path, case):
    data, offset, message = CASES[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    error, allocated, seconds = measured(path)
    assert error is not None
    assert (error.path, error.offset) == (str(path), offset), str(error)
    assert str(error).startswith(f"{path}: at byte {offset}: ")
    assert message in str(error)
    assert "\n" not in str(error) and len(str(error)) < 400
    assert allocated < len(data) + 100_000
    assert seconds < 1


def test_a_folder_a_pipe_and_a_missing_file_give_different_errors(tmp_path):
    with pytest.raises(ModelError, match="is a directory, expected a GGUF file"):
        read_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(ModelError, match="is not a regular file, expected a GGUF file"):
        read_gguf(tmp_path / "pipe")
    with pytest.raises(ModelNotFound, match=r"missing\.gguf': no such file"):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(ModelError, match="null byte"):
        read_gguf("a\0b")


def test_an_error_of_the_system_is_one_line(tmp_path):
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    with pytest.raises(ModelError, match=r"loop\.gguf': Too many levels of symbolic links"):
        read_gguf(loop)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_line(tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    path.chmod(0)
    with pytest.raises(ModelError, match="Permission denied"):
        read_gguf(path)


# ---- random damage


@pytest.fixture(scope="module", params=["<", ">"], ids=["little", "big"])
def small(request, tmp_path_factory):
    """Return a file of a kilobyte with every kind of value, and the byte where its last tensor ends."""
    values = {
        "general.alignment": 32,
        "numbers": np.arange(20, dtype="u2"),
        "bools": [True, False, True],
        "texts": ["", "once", "upon"],
        "nested": [[1, 2], ["a"], [[0.5]]],
        "i": -1,
        "f": 0.5,
        "b": True,
        "text": "a time",
    }
    q8_0, f32 = FORMATS_BY_NAME["Q8_0"], FORMATS_BY_NAME["F32"]
    table = [
        ("q", q8_0, (2, 32), np.zeros((2, 1), q8_0.layout)),
        ("w", f32, (2, 3), np.ones((2, 3), "<f4")),
        ("v", f32, (5,), np.ones(5, "<f4")),
    ]
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write_gguf(path, values, table, byteorder=request.param)
    data = path.read_bytes()
    return path.with_name("damaged.gguf"), data, len(data) - 32 + 20


def test_every_truncation_is_detected(small):
    path, data, end = small
    path.write_bytes(data)
    os.truncate(path, end)
    assert len(read_gguf(path).tensors) == 3
    for n in reversed(range(end)):
        os.truncate(path, n)
        with pytest.raises(BadGGUF) as caught:
            read_gguf(path)
        assert caught.value.offset <= n


def test_any_single_byte_may_be_changed(small):
    path, data, _ = small
    path.write_bytes(data)
    refused = 0
    with open(path, "r+b", buffering=0) as file:
        for i in range(len(data)):
            for byte in (0, 0xFF, data[i] ^ 1, data[i]):
                file.seek(i)
                file.write(bytes([byte]))
                try:
                    read_gguf(path)
                except BadGGUF:
                    refused += 1
    assert refused > len(data)


bites = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [struct.pack(order + "Q", n) for order in "<>" for n in (HUGE, 2**63, 2**63 - 1, 2**61, 2**32, 2**31, 2**20, 0, 1)]
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a model whose first half is metadata."""
    path = tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", tokenizer="bpe", quant="Q4_0", tied=True, n_layer=1)
    data = path.read_bytes()
    return path.with_name("damaged.gguf"), data


@settings(max_examples=400)
@given(damage=st.lists(st.tuples(st.floats(0, 1), bites), min_size=1, max_size=4), keep=st.floats(0, 1) | st.just(1.0))
def test_random_damage_costs_little_time_and_memory(tiny, damage, keep):
    path, data = tiny
    damaged = bytearray(data)
    for place, bite in damage:
        i = int(place * place * (len(data) - len(bite)))  # more often near the beginning
        damaged[i : i + len(bite)] = bite
    path.write_bytes(damaged[: int(keep * len(data))])
    _, allocated, seconds = measured(path)
    assert allocated < len(data) + 200_000  # strings take 49 bytes of Python each
    assert seconds < 20  # milliseconds on a quiet machine; what a count in the file would cost is hours


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_open_or_give_an_error(tmp_path_factory, raw, magic):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(head()[:8] + raw if magic else raw)
    try:
        read_gguf(path)
    except EngineError as error:
        assert isinstance(error, BadGGUF)
