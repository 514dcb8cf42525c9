"""Writing of GGUF: files are reproduced byte for byte, and gguf-py agrees in both directions."""

import math
import tempfile
from pathlib import Path

import gguf as gguf_py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.gguf.read import ARR, BOOL, CODES, F32, STR, U8, U32, ArrayType, TypedValue, ValueType, read_gguf
from numllama.engine.gguf.write import Streamed, gguf_chunks, value_type, write_gguf
from numllama.kernels.quants import FORMATS, FORMATS_BY_NAME
from numllama.kernels.quants.types import GGMLType
from tiny import CHAT_TEMPLATE, tiny_gguf


def written_back(path, target):
    gguf = read_gguf(path)
    write_gguf(target, gguf.typed, gguf.tensors.values(), gguf.version, gguf.byteorder)
    return target.read_bytes()


TINY = {
    "spm": {},
    "bpe": {"tokenizer": "bpe", "quant": "Q8_0", "chat_template": CHAT_TEMPLATE, "bias": True, "rope_factors": "freqs"},
    "aligned": {"general__alignment": 128, "tied": True, "quant": "Q4_0"},
}


@pytest.mark.parametrize("kind", TINY)
def test_a_file_that_was_read_is_written_to_the_same_bytes(tmp_path, kind):
    path = tiny_gguf(tmp_path / "tiny.gguf", **TINY[kind])
    assert written_back(path, tmp_path / "again.gguf") == path.read_bytes()


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    one, two = (tiny_gguf(tmp_path / name, seed=3).read_bytes() for name in ("one.gguf", "two.gguf"))
    assert one == two
    assert tiny_gguf(tmp_path / "three.gguf", seed=4).read_bytes() != one


def test_recorded_models_are_written_back_byte_for_byte(recordings, tmp_path):
    """By gguf-py and by llama.cpp's programs."""
    whole = sorted(recordings.folder.rglob("*.gguf"))
    assert len(whole) > (15 if recordings.whole else 2)
    for path in whole:
        assert written_back(path, tmp_path / "again.gguf") == path.read_bytes(), path.name


def test_a_file_may_be_replaced_by_its_own_content(tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    before = path.read_bytes()
    gguf = read_gguf(path)
    write_gguf(path, gguf.typed | {"general.name": "renamed"}, gguf.tensors.values())
    again = read_gguf(path)
    assert again.kv["general.name"] == "renamed"
    for name, tensor in gguf.tensors.items():  # still the old file's
        np.testing.assert_array_equal(again.tensors[name].blocks, tensor.blocks)
    assert before != path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_other_versions_and_byte_orders_are_refused(tmp_path):
    for version, order in ((1, "<"), (4, "<"), (3, "=")):
        with pytest.raises(ValueError, match="expected 2 or 3, '<' or '>'"):
            write_gguf(tmp_path / "x.gguf", {}, version=version, byteorder=order)


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_gguf(path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---- types


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (7, "u32"),
        (-7, "i32"),
        (2**32, "u64"),
        (-(2**31) - 1, "i64"),
        (0.5, "f32"),
        (True, "bool"),
        ("", "str"),
        (np.float64(0.5), "f64"),
        (np.uint8(1), "u8"),
        (np.array([1, 2], ">i2"), "arr[i16]"),
        (np.array([True]), "arr[bool]"),
        ([1, 2], "arr[i32]"),
        ([1, 2**31], "arr[u32]"),
        ([-1, 2**31], "arr[i64]"),
        ([2**63], "arr[u64]"),
        ([0.5, 1.0], "arr[f32]"),
        (["a"], "arr[str]"),
        ((True, False), "arr[bool]"),
        ([["a"], [1]], "arr[arr]"),
    ],
)
def test_a_plain_value_has_a_default_type(value, type):
    assert str(value_type(value)) == type


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        ({"": 1}, "found an empty key"),
        ({"x": None}, "key 'x' cannot be written: None has no unique type"),
        ({"x": []}, "has no unique type; specify one"),
        ({"x": [1, "a"]}, "the items are u32, str, expected one type"),
        ({"x": [["a"], "a"]}, "expected one type"),
        ({"x": 2**64}, "more than 64 bits"),
        ({"x": [2**63, -1]}, "more than 64 bits"),
        ({"x": U8(256)}, "key 'x' cannot be written"),
        ({"x": U32(0.5)}, "key 'x' cannot be written"),
        ({"x": F32(1e39)}, "key 'x' cannot be written"),
        ({"x": BOOL(2)}, "key 'x' cannot be written"),
        ({"x": STR(b"a")}, "key 'x' cannot be written"),
        ({"x": ARR([1])}, "key 'x' cannot be written"),
        ({"x": "\ud800"}, "key 'x' cannot be written"),
        ({"x": ArrayType(U8)([256])}, "a number does not fit uint8"),
        ({"x": ArrayType(U8)(np.array([-1]))}, "a number does not fit uint8"),
        ({"x": ArrayType(U8)([0.5])}, "found float64 of shape .*, expected a row of numbers"),
        ({"x": ArrayType(F32)([1e39])}, "key 'x' cannot be written"),
        ({"x": np.zeros((2, 2), "f4")}, "found float32 of shape .2, 2., expected a row of numbers"),
        ({"x": np.zeros(2, "f2")}, "key 'x' cannot be written"),
        ({"general.alignment": 0}, "general.alignment is 0, expected a power of two as u32"),
        ({"general.alignment": 48}, "general.alignment is 48, expected a power of two as u32"),
        ({"general.alignment": ValueType.U64(32)}, "expected a power of two as u32"),
    ],
)
def test_a_key_value_that_the_format_cannot_hold_is_refused(tmp_path, kv, message):
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "x.gguf", kv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "format", "shape", "blocks", "message"),
    [
        ("", "F32", (2,), np.zeros(2, "<f4"), "expected a name, at most 4 axes"),
        ("w", "F32", (1, 1, 1, 1, 1), np.zeros((1, 1, 1, 1, 1), "<f4"), "expected a name, at most 4 axes"),
        ("w", "Q4_0", (33,), np.zeros(1, FORMATS_BY_NAME["Q4_0"].layout), "rows of whole Q4_0 blocks"),
        ("w", "Q4_0", (64,), np.zeros(1, FORMATS_BY_NAME["Q4_0"].layout), "has Q4_0 blocks of shape .1,."),
        ("w", "F32", (2,), np.zeros(2), "has blocks of float64, expected F32's layout"),
        ("twice", "F32", (2,), np.zeros(2, "<f4"), "two tensors have the same name"),
    ],
)
def test_a_tensor_that_the_format_cannot_hold_is_refused(tmp_path, name, format, shape, blocks, message):
    twice = ("twice", FORMATS_BY_NAME["F32"], (2,), np.zeros(2, "<f4"))
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "x.gguf", {}, [twice, (name, FORMATS_BY_NAME[format], shape, blocks)])
    assert not list(tmp_path.iterdir())


# ---- round trip


def numbers(type):
    code = CODES[type]
    if code in "fd":
        return st.floats(width=8 * np.dtype(code).itemsize)
    return st.integers(np.iinfo(code).min, np.iinfo(code).max)


texts = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
scalars = {type: numbers(type) for type in CODES} | {BOOL: st.booleans(), STR: texts}
flat = st.sampled_from(list(scalars)).flatmap(
    lambda type: st.lists(scalars[type], max_size=5).map(
        lambda items: ArrayType(type)(np.array(items, CODES[type]) if type in CODES else items)
    )
)


def nest(arrays):
    return st.lists(arrays, max_size=4).map(
        lambda items: ArrayType(tuple(item.type for item in items))([item.value for item in items])
    )


arrays = st.recursive(flat, nest, max_leaves=6)
values = st.sampled_from(list(scalars)).flatmap(lambda type: scalars[type].map(type)) | arrays


@st.composite
def tensors(draw):
    format = draw(st.sampled_from(list(FORMATS.values())))
    *rows, n = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    raw = np.random.default_rng(draw(st.integers(0, 99))).bytes(math.prod([*rows, n]) * format.block_bytes)
    return format, (*rows, n * format.block_size), np.frombuffer(raw, format.layout).reshape(*rows, n)


def assert_same(got, expected):
    if isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for pair in zip(got, expected, strict=True):
            assert_same(*pair)
    else:
        assert got.__class__ is expected.__class__
        assert got == expected or (got != got and expected != expected)


@given(
    kv=st.dictionaries(texts.filter(bool), values, max_size=6).filter(lambda kv: "general.alignment" not in kv),
    table=st.dictionaries(texts.filter(bool), tensors(), max_size=4),
    order=st.sampled_from("<>"),
    version=st.sampled_from([2, 3]),
    alignment=st.sampled_from([None, 1, 8, 256]),
)
def test_any_written_file_is_read_back(kv, table, order, version, alignment):
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder, "a.gguf"), Path(folder, "b.gguf")
        write_gguf(path, kv, [(name, *tensor) for name, tensor in table.items()], version, order, alignment)
        gguf = read_gguf(path)
        assert (gguf.version, gguf.byteorder, gguf.alignment) == (version, order, alignment or 32)
        assert list(gguf.kv) == list(kv) + (["general.alignment"] if alignment else [])
        for key, typed in kv.items():
            assert gguf.kv_types[key] == typed.type
            assert_same(gguf.kv[key], typed.value)
        assert list(gguf.tensors) == list(table)
        for name, (format, shape, blocks) in table.items():
            got = gguf.tensors[name]
            assert (got.format, got.shape) == (format, shape)
            assert got.blocks.astype(format.layout).tobytes() == blocks.tobytes()
        assert written_back(path, again) == path.read_bytes()


# ---- gguf-py


def test_gguf_py_reads_our_files(tmp_path):
    kv = {"general.architecture": "llama"}
    kv |= {f"x.{type}": type(3) for type in CODES}
    kv |= {f"list.{type}": ArrayType(type)([1, 2, 3]) for type in CODES}
    kv |= {"yes": True, "bools": [True, False], "text": "\u4e16", "texts": ["", "b"]}
    random = np.random.default_rng(0)
    known = {int(type) for type in gguf_py.GGMLQuantizationType} - {GGMLType.Q8_1}  # of 40 bytes in gguf-py, 36 in ggml
    table = []
    for format in (format for format in FORMATS.values() if format.type in known):
        raw = random.integers(0, 256, 3 * 2 * format.block_bytes, np.uint8)
        table.append((format.name, format, (3, 2 * format.block_size), raw.view(format.layout).reshape(3, 2)))
    path = tmp_path / "ours.gguf"
    write_gguf(path, kv, table)

    reader = gguf_py.GGUFReader(path)
    for key, value in kv.items():
        field = reader.get_field(key)
        type = value.type if isinstance(value, TypedValue) else value_type(value)
        types = [ARR, type.of] if isinstance(type, ArrayType) else [type]
        assert [int(type) for type in field.types] == types
        assert field.contents() == (value.value if isinstance(value, TypedValue) else value)
    assert len(reader.tensors) == len(table) > 10
    for tensor, (name, format, shape, blocks) in zip(reader.tensors, table, strict=True):
        assert (tensor.name, int(tensor.tensor_type)) == (name, format.type)
        assert tuple(tensor.shape) == shape[::-1]
        assert tensor.data.tobytes() == blocks.tobytes()


def gguf_py_file(path, endian=gguf_py.GGUFEndian.LITTLE, **more):
    writer = gguf_py.GGUFWriter(path, "llama", endianess=endian, **more)
    for type in gguf_py.GGUFValueType:
        if type in gguf_py.GGUFReader.gguf_scalar_to_np:
            writer.add_key_value(f"x.{type.name}", 1, type)
    writer.add_array("ints", [1, -2])
    writer.add_array("floats", [0.5])
    writer.add_array("bools", [True, False])
    writer.add_array("texts", ["", "\u4e16"][::-1])
    for i in range(5):
        writer.add_tensor(f"w{i}", np.arange(6, dtype=np.float32).reshape(2, 3) + i)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("endian", gguf_py.GGUFEndian)
def test_files_of_gguf_py_are_read(tmp_path, endian):
    path = gguf_py_file(tmp_path / "theirs.gguf", endian)
    gguf = read_gguf(path)
    assert gguf.byteorder == ("<" if endian == gguf_py.GGUFEndian.LITTLE else ">")
    for type in scalars:
        if type is not STR:
            theirs = gguf_py.GGUFValueType(type).name
            assert gguf.kv_types[f"x.{theirs}"] is type
            assert gguf.kv[f"x.{theirs}"] == 1
    assert gguf.kv["ints"].tolist() == [1, -2]
    assert gguf.kv["floats"].tolist() == [0.5]
    assert gguf.kv["bools"] == [True, False]
    assert gguf.kv["texts"] == ["\u4e16", ""]
    for i in range(5):
        np.testing.assert_array_equal(gguf.tensors[f"w{i}"].dequantize(), np.arange(6).reshape(2, 3) + i)
    assert written_back(path, tmp_path / "again.gguf") == path.read_bytes()


def test_a_model_split_by_gguf_py_is_read_whole(tmp_path):
    gguf_py_file(tmp_path / "theirs.gguf", split_max_tensors=2)
    gguf = read_gguf(tmp_path / "theirs-00001-of-00003.gguf")
    assert list(gguf.tensors) == [f"w{i}" for i in range(5)]
    assert len(gguf.parts) == gguf.kv["split.count"] == 3


def test_a_tensor_may_be_streamed_in_pieces(tmp_path):
    format, shape = FORMATS_BY_NAME["Q4_0"], (3, 64)
    blocks = np.frombuffer(np.random.default_rng(0).bytes(6 * 18), format.layout)
    write_gguf(
        tmp_path / "whole.gguf",
        {},
        [("x", format, shape, blocks.reshape(3, 2)), ("y", format, shape, blocks.reshape(3, 2))],
    )
    pieces = (blocks[i : i + 4] for i in (0, 4))
    streamed = [Streamed("x", format, shape, pieces), Streamed("y", format, shape, [blocks])]
    assert b"".join(gguf_chunks({}, streamed)) == (tmp_path / "whole.gguf").read_bytes()


def test_a_tensor_with_a_piece_missing_leaves_no_file(tmp_path):
    format = FORMATS_BY_NAME["F32"]
    with pytest.raises(ValueError, match="'x' has 4 bytes, expected 8"):
        write_gguf(tmp_path / "x.gguf", {}, [Streamed("x", format, (2,), [np.zeros(1, "<f4")])])
    assert list(tmp_path.iterdir()) == []
