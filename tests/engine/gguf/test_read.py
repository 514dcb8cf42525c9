"""Reading of GGUF: layout, value types, both byte orders, views instead of copies, split models."""

import gc
import re
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from numllama.engine.errors import BadGGUF
from numllama.engine.gguf.read import BOOL, CODES, F32, STR, U8, U16, U32, ArrayType, ValueType, read_gguf
from numllama.engine.gguf.write import write_gguf
from numllama.kernels.quants import FORMATS, FORMATS_BY_NAME
from numllama.kernels.quants.types import GGMLType
from tiny import tiny_gguf

SMAPS = Path("/proc/self/smaps")

PENCIL = b"".join(
    [
        b"GGUF" + bytes.fromhex("03000000  0100000000000000  0200000000000000"),  # version 3, 1 tensor, 2 key-values
        bytes.fromhex("0100000000000000") + b"a" + bytes.fromhex("04000000  07000000"),  # "a": u32 7
        bytes.fromhex("0100000000000000") + b"s" + bytes.fromhex("08000000  0200000000000000") + b"hi",  # "s": str
        bytes.fromhex("0100000000000000") + b"w" + bytes.fromhex("02000000"),  # tensor "w" of 2 dimensions:
        bytes.fromhex("0300000000000000  0200000000000000"),  # rows of 3, and 2 of them
        bytes.fromhex("00000000  0000000000000000"),  # F32, at the start of the data
        bytes(23),  # 105 bytes so far; the next multiple of 32 is 128
        struct.pack("<6f", 1, 2, 3, 4, 5, 6),
    ]
)


def saved(path, data):
    path.write_bytes(data)
    return path


def test_a_file_assembled_by_hand(tmp_path):
    gguf = read_gguf(saved(tmp_path / "pencil.gguf", PENCIL))
    assert (gguf.version, gguf.byteorder, gguf.alignment) == (3, "<", 32)
    assert gguf.kv == {"a": 7, "s": "hi"}
    assert gguf.kv_types == {"a": U32, "s": STR}
    assert gguf.kv_offsets == {"a": 24 + 8 + 1 + 4, "s": 41 + 8 + 1 + 4}
    assert gguf.tensor_offsets == {"w": 64}
    w = gguf.tensors["w"]
    assert (w.name, w.format.name, w.shape) == ("w", "F32", (2, 3))
    np.testing.assert_array_equal(w.blocks, [[1, 2, 3], [4, 5, 6]])


def test_version_2_has_the_same_layout(tmp_path):
    gguf = read_gguf(saved(tmp_path / "v2.gguf", PENCIL[:4] + b"\2" + PENCIL[5:]))
    assert (gguf.version, gguf.kv) == (2, {"a": 7, "s": "hi"})


def test_a_file_without_tensors_needs_no_padding(tmp_path):
    header = PENCIL[:8] + bytes(16)
    assert read_gguf(saved(tmp_path / "empty.gguf", header)).tensors == {}


def test_the_padding_after_the_last_tensor_may_be_missing(tmp_path):
    assert len(PENCIL) % 32
    read_gguf(saved(tmp_path / "whole.gguf", PENCIL))
    with pytest.raises(BadGGUF):
        read_gguf(saved(tmp_path / "short.gguf", PENCIL[:-1]))


NUMBERS = {
    type: np.array([np.iinfo(code).min, 0, np.iinfo(code).max] if code not in "fd" else [-1.5, 0, 2.0**99], code)
    for type, code in CODES.items()
}


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("type", NUMBERS, ids=str)
def test_numbers_and_their_arrays_are_plain_python_and_native_numpy(tmp_path, type, order):
    kv = {f"x{i}": type(x.item()) for i, x in enumerate(NUMBERS[type])} | {"all": NUMBERS[type]}
    write_gguf(tmp_path / "numbers.gguf", kv, byteorder=order)
    gguf = read_gguf(tmp_path / "numbers.gguf")
    assert gguf.byteorder == order
    for i, x in enumerate(NUMBERS[type].tolist()):
        assert gguf.kv[f"x{i}"] == x
        assert gguf.kv[f"x{i}"].__class__ is x.__class__
        assert gguf.kv_types[f"x{i}"] is type
    assert gguf.kv["all"].dtype == np.dtype(CODES[type]) and gguf.kv["all"].dtype.isnative
    np.testing.assert_array_equal(gguf.kv["all"], NUMBERS[type])
    assert str(gguf.kv_types["all"]) == f"arr[{type}]"


def test_strings_bools_and_nested_arrays_are_lists(tmp_path):
    kv = {
        "bool": True,
        "bools": [True, False],
        "strings": ["", "a\0b", "\u4e16\u754c"],
        "nested": [[1, 2], ["x"], [[True]]],
        "none": ArrayType(STR)([]),
    }
    write_gguf(tmp_path / "lists.gguf", kv)
    gguf = read_gguf(tmp_path / "lists.gguf")
    nested = gguf.kv.pop("nested")
    assert gguf.kv == {"bool": True, "bools": [True, False], "strings": ["", "a\0b", "\u4e16\u754c"], "none": []}
    assert nested[0].tolist() == [1, 2] and nested[1:] == [["x"], [[True]]]
    assert gguf.kv_types["none"] == ArrayType(STR)
    assert gguf.kv_types["nested"] == ArrayType(
        (ArrayType(ValueType.I32), ArrayType(STR), ArrayType((ArrayType(BOOL),)))
    )


def test_bytes_that_are_not_utf_8_survive_a_round_trip(tmp_path):
    data = PENCIL.replace(b"hi", b"\xff\xc0")
    gguf = read_gguf(saved(tmp_path / "bytes.gguf", data))
    assert gguf.kv["s"].encode("utf-8", "surrogateescape") == b"\xff\xc0"
    write_gguf(tmp_path / "again.gguf", gguf.typed, gguf.tensors.values())
    assert (tmp_path / "again.gguf").read_bytes()[: len(data)] == data


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_tensor_data_begins_at_multiples_of_the_alignment(tmp_path, alignment):
    x, y = np.arange(3, dtype="<f4"), np.arange(5, dtype="<f4")
    f32 = FORMATS_BY_NAME["F32"]
    path = tmp_path / "aligned.gguf"
    write_gguf(path, {}, [("x", f32, x.shape, x), ("y", f32, y.shape, y)], alignment=alignment)
    gguf = read_gguf(path)
    assert gguf.alignment == gguf.kv["general.alignment"] == alignment
    for name, expected in (("x", x), ("y", y)):
        np.testing.assert_array_equal(gguf.tensors[name].blocks, expected)
        assert path.read_bytes().index(expected.tobytes()) % alignment == 0


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_big_endian_blocks_have_the_same_values(tmp_path, format):
    n = 2 * format.block_size
    blocks = np.random.default_rng(1).integers(0, 256, 3 * 2 * format.block_bytes, np.uint8).view(format.layout)
    tensor = ("x", format, (3, n), blocks.reshape(3, 2))
    write_gguf(tmp_path / "little.gguf", {}, [tensor])
    write_gguf(tmp_path / "big.gguf", {}, [tensor], byteorder=">")
    little, big = (read_gguf(tmp_path / name).tensors["x"] for name in ("little.gguf", "big.gguf"))
    assert little.shape == big.shape == (3, n)
    np.testing.assert_array_equal(big.dequantize(), little.dequantize())


def test_tensors_are_read_only_views_of_the_map_and_outlive_the_gguf(tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    size = path.stat().st_size
    read_gguf(path)
    tracemalloc.start()
    gguf = read_gguf(path)
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert allocated < size / 4  # of 470 kB; the tensors are most of it
    blocks = gguf.tensors["output.weight"].blocks
    expected = blocks.copy()
    assert not blocks.flags.writeable and not blocks.flags.owndata
    path.unlink()
    del gguf
    gc.collect()
    np.testing.assert_array_equal(blocks, expected)


@pytest.mark.skipif(not SMAPS.exists(), reason="tests Linux's record of memory")
def test_the_pages_of_the_key_values_are_given_back(tmp_path):
    """A vocabulary of 262,000 pieces has 6 MiB of them beside the strings made from them."""
    path = tmp_path / "vocabulary.gguf"
    write_gguf(path, {"tokens": ArrayType(STR)([f"piece {i}" for i in range(100_000)])})
    gguf = read_gguf(path)
    (part,) = [part for part in re.split("(?m)^(?=[0-9a-f]+-)", SMAPS.read_text()) if str(path) in part]
    resident = int(re.search(r"Rss: +(\d+) kB", part)[1])
    assert gguf.mapped[0].nbytes > 1 << 20 and resident <= 64  # KiB: the last page, and its neighbours


def test_tensors_may_lie_in_any_order_with_gaps_between(tmp_path):
    table = b"".join(
        struct.pack("<Q1sIQIQ", 1, name, 1, 2, GGMLType.F32, offset) for name, offset in ((b"x", 96), (b"y", 32))
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + table
    data = bytes(-len(head) % 32) + bytes(32) + struct.pack("<2f", 3, 4) + bytes(56) + struct.pack("<2f", 1, 2)
    gguf = read_gguf(saved(tmp_path / "gaps.gguf", head + data))
    assert {name: tensor.blocks.tolist() for name, tensor in gguf.tensors.items()} == {"x": [1, 2], "y": [3, 4]}


def test_a_tensor_may_be_empty(tmp_path):
    f32 = FORMATS_BY_NAME["F32"]
    empty, one = np.empty((0, 4, 2), "<f4"), np.ones(1, "<f4")
    write_gguf(tmp_path / "empty.gguf", {}, [("e", f32, empty.shape, empty), ("one", f32, one.shape, one)])
    gguf = read_gguf(tmp_path / "empty.gguf")
    assert gguf.tensors["e"].shape == (0, 4, 2) and gguf.tensors["e"].blocks.shape == (0, 4, 2)
    assert gguf.tensors["one"].blocks.tolist() == [1]


def test_a_tensor_without_axes_is_one_number(tmp_path):
    """As in gguf-py, which writes and reads a NumPy scalar so."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIIQ", 1, b"w", 0, 0, 0)
    data = head + bytes(-len(head) % 32) + struct.pack("<f", 1.5) + bytes(28)
    gguf = read_gguf(saved(tmp_path / "scalar.gguf", data))
    assert gguf.tensors["w"].shape == () and gguf.tensors["w"].dequantize() == 1.5
    assert GGUFReader(tmp_path / "scalar.gguf").tensors[0].data == 1.5
    write_gguf(tmp_path / "again.gguf", {}, gguf.tensors.values())
    assert (tmp_path / "again.gguf").read_bytes() == data


# ---- split models


def split(folder, damage=lambda kv, tensors: None):
    """Return a tiny model and its parts, split as by gguf-split, after `damage`."""
    whole = read_gguf(tiny_gguf(folder / "tiny.gguf"))
    keys = [{"split.no": U16(i), "split.count": U16(3), "split.tensors.count": ValueType.I32(21)} for i in range(3)]
    kv = [whole.typed | keys[0], keys[1], keys[2]]
    tensors = [list(whole.tensors.values())[start : start + 8] for start in (0, 8, 16)]
    damage(kv, tensors)
    paths = [folder / f"tiny-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for part in zip(paths, kv, tensors, strict=True):
        write_gguf(*part)
    return whole, paths


@pytest.mark.parametrize("i", [0, 1, 2])
def test_any_part_opens_the_whole_model(tmp_path, i):
    whole, paths = split(tmp_path)
    gguf = read_gguf(paths[i])
    assert gguf.path == paths[0] and gguf.parts == tuple(paths)
    assert list(gguf.tensors) == list(whole.tensors) == list(gguf.tensor_offsets)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(gguf.tensors[name].blocks, tensor.blocks)
    assert gguf.kv["llama.block_count"] == 2


@pytest.mark.parametrize(
    ("damage", "part", "message"),
    [
        (lambda kv, _: kv[1].update({"split.no": U16(2)}), 1, "split.no is 2, expected 1 as in the file's name"),
        (lambda kv, _: kv[2].update({"split.count": U16(4)}), 2, "split.count is 4, expected 3 as in the file's name"),
        (lambda kv, _: kv[0].update({"split.count": "three"}), 0, "split.count is str, expected an integer"),
        (lambda kv, _: kv[1].pop("split.no"), 1, "split.no is missing, expected an integer"),
        (lambda kv, _: kv[0].pop("split.tensors.count"), 0, "split.tensors.count is missing, expected an integer"),
        (lambda _, tensors: tensors[2].append(tensors[1][0]), 2, "'blk.0.ffn_up.weight' is in an earlier part too"),
        (lambda _, tensors: tensors[2].pop(), 0, "found 20 tensors in 3 parts, expected 21"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, damage, part, message):
    _, paths = split(tmp_path, damage)
    with pytest.raises(BadGGUF, match=message) as caught:
        read_gguf(paths[0])
    assert caught.value.path == str(paths[part])


def test_a_missing_part_is_named(tmp_path):
    _, paths = split(tmp_path)
    paths[1].unlink()
    with pytest.raises(BadGGUF, match=r"split\.count is 3, and part 'tiny-00002-of-00003\.gguf' is missing"):
        read_gguf(paths[2])


def test_the_names_of_parts_must_contain_their_number(tmp_path):
    _, paths = split(tmp_path)
    for name in ("renamed.gguf", "tiny-00001-of-00004.gguf"):
        path = saved(tmp_path / name, paths[0].read_bytes())
        with pytest.raises(BadGGUF, match=r"split\.count is 3, expected a file name like model-00001"):
            read_gguf(path)


# ---- real files


def test_every_recorded_model_opens(recordings):
    paths = sorted(recordings.folder.glob("models/*.gguf"))
    assert len(paths) > 1
    for path in paths:
        gguf = read_gguf(path)
        assert gguf.kv["general.architecture"] in ("llama", "clip")
        assert len(gguf.tensors) == len(gguf.tensor_offsets) > 0


def test_a_vocabulary_of_128k_opens_in_a_third_of_a_second(tmp_path):
    """As many pieces and merges as Llama 3 has, and about as long."""
    kv = {
        "tokenizer.ggml.tokens": [f"\u0120{id:06}" for id in range(128256)],
        "tokenizer.ggml.token_type": [1] * 128256,
        "tokenizer.ggml.merges": [f"\u0120{rank:05} {rank % 10}" for rank in range(280147)],
    }
    write_gguf(tmp_path / "vocab.gguf", kv)
    seconds = []
    for _ in range(3):
        began = time.process_time()
        gguf = read_gguf(tmp_path / "vocab.gguf")
        seconds.append(time.process_time() - began)
    assert len(gguf.kv["tokenizer.ggml.tokens"]) == 128256
    assert len(gguf.kv["tokenizer.ggml.merges"]) == 280147
    assert min(seconds) < 0.6  # processor time: 0.2 s on a quiet machine, up to twice that on a busy one


def test_types_have_llama_cpp_s_names():
    assert (str(U8), str(F32), str(ArrayType(BOOL)), str(ArrayType(()))) == ("u8", "f32", "arr[bool]", "arr[arr]")
