"""Quantization formats: their bytes compared with llama.cpp's, their floats with the gguf package's."""

import json
import runpy
from hashlib import sha256
from pathlib import Path

import gguf
import numpy as np
import pytest
from blocks import noise, random_blocks, rows_by_formula
from ggml import Ggml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from numllama.kernels.quants import FORMATS, FORMATS_BY_NAME, CannotQuantize, GGMLType, dequantize, quantize
from numllama.kernels.quants.arithmetic import extreme, nearest_int, round_half_away, sum_in_order, truncate
from numllama.kernels.quants.bits import pack, unpack
from numllama.kernels.quants.iq_grids import CODEBOOKS, codebook

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/quants.json").read_text())


def formats(condition=lambda format: True):
    chosen = [format for format in FORMATS.values() if condition(format)]
    return pytest.mark.parametrize("format", chosen, ids=lambda format: format.name)


def in_gguf(format):
    """Check whether the gguf package can dequantize the format; it cannot convert F64 and integers."""
    type = gguf.GGMLQuantizationType.__members__.get(format.name)
    return type in gguf.quants._type_traits or format.name in ("F32", "F16")


def from_gguf(format, blocks):
    with np.errstate(all="ignore"):
        raw = blocks.reshape(len(blocks), -1).view(np.uint8)
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[format.name])


# ----------------------------------------------------------------------------------------------------------- the table


def test_every_type_that_is_not_retired_has_a_format():
    retired = {t for t in GGMLType if t.name in ("Q4_2", "Q4_3") or t.name.startswith(("Q4_0_", "IQ4_NL_"))}
    assert set(FORMATS) == set(GGMLType) - retired


@pytest.mark.parametrize("type", gguf.GGMLQuantizationType, ids=lambda type: type.name)
def test_ids_and_sizes_are_those_of_the_gguf_package(type):
    format = FORMATS_BY_NAME[type.name]
    assert format.type == type
    if type.name != "Q8_1":  # gguf has 40 bytes here, the size of an older Q8_1 with float32 scales
        assert (format.block_size, format.block_bytes) == gguf.GGML_QUANT_SIZES[type]


def test_a_row_that_does_not_divide_into_blocks_is_refused():
    with pytest.raises(ValueError, match="Q4_K has 256 weights per block; 64 is not a multiple"):
        quantize(FORMATS_BY_NAME["Q4_K"], np.zeros((3, 64), np.float32))


def test_the_page_of_formats_is_up_to_date():
    written = runpy.run_path(str(ROOT / "scripts/formats.py"))["document"]()
    assert (ROOT / "docs/formats.md").read_text() == written, "run scripts/formats.py"
    assert all(f"\n## {format.name}\n" in written for format in FORMATS.values() if format.block_size > 1)


@formats(lambda format: not format.can_quantize)
def test_quantizing_to_a_format_without_an_encoder_raises(format):
    with pytest.raises(CannotQuantize, match=f"cannot quantize to {format.name}: "):
        quantize(format, np.zeros(256, np.float32))


# ----------------------------------------------------------------------------------------------------- worked examples


def test_q4_0_by_hand():
    x = np.arange(-16, 16, dtype=np.float32)  # extreme value -16: d = -16 / -8 = 2, q = floor(x / 2 + 8.5)
    blocks = quantize(FORMATS_BY_NAME["Q4_0"], x)
    assert blocks["d"] == 2
    assert [int(byte) & 15 for byte in blocks["qs"][0]] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]
    assert [int(byte) >> 4 for byte in blocks["qs"][0]] == [8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15]
    assert blocks.tobytes()[:4] == bytes([0x00, 0x40, 0x80, 0x91])  # 2 as f16, then weights 0 and 16, 1 and 17
    assert dequantize(FORMATS_BY_NAME["Q4_0"], blocks)[:4].tolist() == [-16, -14, -14, -12]


def test_q2_k_by_hand():
    blocks = np.zeros(1, FORMATS_BY_NAME["Q2_K"].layout)
    blocks["d"], blocks["dmin"] = 0.5, 0.25
    blocks["scales"][0, 0] = 3 | 2 << 4  # group 0: scale 3, min 2
    blocks["qs"][0, 1] = 0b11_10_01_00  # weights 1, 33, 65, 97 have codes 0, 1, 2, 3
    blocks["scales"][0, 2] = 1
    x = FORMATS_BY_NAME["Q2_K"].dequantize(blocks)[0]
    assert x[1] == 0.5 * 3 * 0 - 0.25 * 2
    assert x[33] == 0.5 * 1 * 1


def test_mxfp4_by_hand():
    blocks = quantize(FORMATS_BY_NAME["MXFP4"], np.array([6, -3, 0.5, 0.2] + [0] * 28, np.float32))
    assert blocks["e"] == 127  # 6 is in 4..8, the range of E2M1's largest exponent: 6 = 2**(127 - 127) * 6
    assert [int(byte) & 15 for byte in blocks["qs"][0][:4]] == [0b0_11_1, 0b1_10_1, 0b0_00_1, 0]


def test_tq1_0_packs_five_digits_in_a_byte():
    x = np.zeros(256, np.float32)
    x[[0, 32, 64, 96, 128]] = [1, 0, -1, 1, 1]  # digits 2 1 0 2 2: 2*81 + 1*27 + 0*9 + 2*3 + 2 = 197 of 243
    assert quantize(FORMATS_BY_NAME["TQ1_0"], x)["qs"][0, 0] == -(-197 * 256 // 243)


def test_q1_0_and_q2_0_by_hand():
    x = np.resize([0.5, -1.5], 128).astype(np.float32)
    assert dequantize(FORMATS_BY_NAME["Q1_0"], quantize(FORMATS_BY_NAME["Q1_0"], x))[:2].tolist() == [1, -1]
    blocks = np.zeros(1, FORMATS_BY_NAME["Q2_0"].layout)
    blocks["d"], blocks["qs"][0, 0] = 0.5, 0b11_10_01_00
    assert dequantize(FORMATS_BY_NAME["Q2_0"], blocks)[:4].tolist() == [-0.5, 0, 0.5, 1]


def test_packed_codes_have_the_documented_order():
    assert pack(np.arange(12, dtype=np.uint8)[None], bits=4, run=3).tolist() == [[0x30, 0x41, 0x52, 0x96, 0xA7, 0xB8]]


@given(st.sampled_from([(1, 1), (1, 32), (2, 1), (2, 4), (2, 32), (4, 1), (4, 8), (4, 16), (4, 64)]), st.data())
def test_unpacking_undoes_packing(bits_run, data):
    bits, run = bits_run
    packed = data.draw(hnp.arrays(np.uint8, (2, 64)))
    np.testing.assert_array_equal(pack(unpack(packed, bits, run), bits, run), packed)


@pytest.mark.parametrize("name, n_points", {"IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ1_S": 2048}.items())
def test_a_codebook_has_a_point_for_every_code(name, n_points):
    assert codebook(name).shape == (n_points, 8)
    assert set(np.unique(codebook(name))) == set(CODEBOOKS[name].values)


def test_arithmetic_rounds_as_c_does():
    half = np.array([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 8388609], np.float32)
    assert round_half_away(half).tolist() == [1, -1, 2, 3, -3, 0, 8388609]
    assert nearest_int(half[:5]).tolist() == [0, 0, 2, 2, -2]
    with np.errstate(invalid="ignore"):
        assert truncate(np.array([1.9, -1.9, 3e9, -np.inf, np.nan], np.float32)).tolist() == [1, -1] + 3 * [-(2**31)]
    assert extreme(np.array([[1, -3, 3, np.nan]], np.float32), axis=1) == -3
    assert sum_in_order(np.array([1, 2**24, -(2**24)], np.float32)) == 0  # 1 + 2**24 rounds to 2**24


# --------------------------------------------------------------------------------------------- dequantize, bit for bit


@formats(in_gguf)
def test_random_blocks_dequantize_as_in_the_gguf_package(format):
    blocks = random_blocks(format, n=300)
    expected = from_gguf(format, blocks).reshape(300, -1)
    got = format.dequantize(blocks)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@formats(in_gguf)
def test_infinite_and_nan_scales_give_no_warnings(format):
    blocks = np.random.default_rng(1).integers(0, 256, (4000, format.block_bytes), np.uint8).view(format.layout)[:, 0]
    for field, (dtype, _) in (format.layout.fields or {}).items():
        if dtype == np.dtype("<f2"):
            blocks[field] = np.resize([np.inf, -np.inf, np.nan], 4000)
    np.testing.assert_array_equal(format.dequantize(blocks).reshape(-1), from_gguf(format, blocks).reshape(-1))


@formats()
def test_big_endian_blocks_dequantize_to_the_same_weights(format):
    blocks = random_blocks(format, n=50)
    swapped = blocks.astype(format.layout.newbyteorder(">"))
    np.testing.assert_array_equal(format.dequantize(swapped), format.dequantize(blocks))


@formats()
def test_rows_are_independent_and_keep_their_shape(format):
    blocks = random_blocks(format, n=24).reshape(2, 3, 4)
    x = dequantize(format, blocks)
    assert x.shape == (2, 3, 4 * format.block_size)
    np.testing.assert_array_equal(x[1, 2], dequantize(format, blocks[1, 2]))
    if format.can_quantize:
        assert quantize(format, x)[1, 2].tobytes() == quantize(format, x[1, 2]).tobytes()


# --------------------------------------------------------------------------------------------- quantize, byte for byte


@pytest.mark.parametrize("name", GOLDEN["weights"])
def test_blocks_equal_ggml_s_bytes(name):
    rows = {kind: quantize(FORMATS_BY_NAME[name], x) for kind, x in rows_by_formula().items()}
    got = {kind: sha256(blocks.tobytes()).hexdigest()[:16] for kind, blocks in rows.items()}
    assert got == GOLDEN["weights"][name]


@pytest.fixture(scope="module")
def recorded(kept):
    """Return the record of llama-quantize's output for two models, and their weights {tensor name: f32}."""
    golden = kept.json("quantize_tiny256")

    def weights(path):
        tensors = gguf.GGUFReader(path).tensors
        return {tensor.name: np.array(tensor.data, np.float32) for tensor in tensors}

    return golden, weights(kept.model("tiny256-F16")), weights(kept.path("quantize_edge.gguf"))


PURE = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_S Q4_K_S Q5_K_S Q6_K IQ4_NL IQ4_XS F16 BF16".split()


@pytest.mark.parametrize("file_type", PURE)
def test_a_layer_equals_llama_quantize_s_bytes(recorded, file_type):
    golden, weights, _ = recorded
    expected = {name: v for name, v in golden["pure"][file_type]["tensors"].items() if name.startswith("blk.0.")}
    got = {}
    for name, (type, _) in expected.items():
        blocks = quantize(FORMATS_BY_NAME[type], weights[name])
        got[name] = [type, sha256(blocks.tobytes()).hexdigest()]
    assert got == expected


@pytest.mark.parametrize("file_type", [name for name in PURE if name != "F16"])
def test_special_rows_equal_llama_quantize_s_bytes(recorded, file_type):
    golden, _, weights = recorded
    for name, expected in golden["edge"]["types"][file_type].items():
        blocks = quantize(FORMATS_BY_NAME[expected["type"]], weights[name])
        got = [sha256(row.tobytes()).hexdigest()[:16] for row in blocks]
        rows = golden["edge"]["rows"]
        assert dict(enumerate(zip(rows, got, strict=True))) == dict(
            enumerate(zip(rows, expected["row_sha256_16"], strict=True))
        )


# ---------------------------------------------------------------------------------------------------------- properties

# Formats whose scale is an exact fraction of one weight, or is rounded enough to be reproduced.  A Q8_K scale is 1 / x
# of a float32 and may differ by one bit; a K-quant searches its scales.
IDEMPOTENT = "F32 F64 F16 BF16 Q4_0 Q5_0 Q8_0 Q8_1 TQ1_0 TQ2_0 Q1_0 Q2_0 MXFP4".split()
weights = hnp.arrays(np.float32, (1, 256), elements=st.floats(-1000, 1000, width=32))


@formats(lambda format: format.can_quantize)
def test_zero_block_quantizes_to_zero(format):
    for zero in (0.0, -0.0):
        x = np.full((1, format.block_size), zero, np.float32)
        assert not format.dequantize(format.quantize(x)).any()


@pytest.mark.parametrize("name", IDEMPOTENT)
@given(weights)
def test_quantizing_dequantized_weights_reproduces_them(name, x):
    format = FORMATS_BY_NAME[name]
    once = dequantize(format, quantize(format, x))
    np.testing.assert_array_equal(dequantize(format, quantize(format, once)), once)


@given(weights)
def test_a_weight_errs_by_less_than_a_step(x):
    amax = np.abs(x.reshape(-1, 32)).max(axis=1, keepdims=True)
    span = np.ptp(x.reshape(-1, 32), axis=1, keepdims=True)
    half_float = np.float32(2**-10)  # error from rounding the scale (and the minimum) to f16, relative to amax
    for name, step in {
        "Q4_0": amax / 8,
        "Q5_0": amax / 16,
        "Q8_0": amax / 254,
        "Q4_1": span / 30,
        "Q5_1": span / 62,
    }.items():
        format = FORMATS_BY_NAME[name]
        error = np.abs(dequantize(format, quantize(format, x)) - x).reshape(-1, 32)
        assert (error <= step + amax * half_float + 1e-5).all(), name


def test_more_bits_err_less():
    """Relative root mean square error on noise: about 2**-bits; a K-quant is better than its plain neighbour."""
    x = noise(64, 256)

    def error(name):
        format = FORMATS_BY_NAME[name]
        return np.sqrt(np.mean((dequantize(format, quantize(format, x)) - x) ** 2) / np.mean(x**2))

    names = "Q2_K Q3_K Q4_0 IQ4_XS Q4_K Q5_0 Q5_K Q6_K Q8_0 BF16 F16".split()
    errors = [error(name) for name in names]
    assert errors == sorted(errors, reverse=True)
    assert 0.2 < errors[0] < 0.4
    assert errors[-1] < 3e-4


# ------------------------------------------------------------------------------------------------------- a native ggml


@pytest.fixture(scope="module")
def ggml():
    return Ggml.from_environment() or pytest.skip("needs NUMLLAMA_LLAMA_CPP, a folder with libggml-base.so")


def block_format(format):
    return format.block_size > 1 and format.name not in ("Q8_1", "Q8_K")


@pytest.mark.peer
@formats(block_format)
def test_ggml_dequantizes_to_the_same_floats(ggml, format):
    blocks = random_blocks(format, n=2000, seed=2)
    np.testing.assert_array_equal(
        format.dequantize(blocks).view(np.uint32), ggml.dequantize(format, blocks).view(np.uint32)
    )


@pytest.mark.peer
@formats(lambda format: block_format(format) and format.can_quantize)
@given(hnp.arrays(np.float32, (4, 256), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_ggml_quantizes_any_floats_to_the_same_bytes(ggml, format, x):
    x = x.reshape(-1, format.block_size)
    assert quantize(format, x).tobytes() == ggml.quantize(format, x).tobytes()


@pytest.mark.peer
@formats(lambda format: block_format(format) and format.can_quantize)
def test_ggml_quantizes_noise_to_the_same_bytes(ggml, format):
    for exponent in (-60, -3, 0, 9, 63):
        x = np.ldexp(noise(2000, 256, stream=exponent % 64), exponent).reshape(-1, format.block_size)
        assert quantize(format, x).tobytes() == ggml.quantize(format, x).tobytes()
