"""Products on repacked weights: the values of the GGML set, and a token's bits whatever is computed beside it."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import config

from numllama.kernels import packed, threads
from numllama.kernels.matmul import matmul_ggml, matmul_numba
from numllama.kernels.quants import FORMATS, quantize
from numllama.kernels.rounding import round_activations
from numllama.kernels.tensor import Tensor

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")
PACKED = [FORMATS[type] for type in packed.PRODUCTS]


def random_weight(format, n_out, n_in, seed=0):
    w = np.random.default_rng(seed).standard_normal((n_out, n_in), np.float32)
    return Tensor("w", format, (n_out, n_in), quantize(format, w))


def random_tokens(n_tok, n_in, seed=1):
    return np.random.default_rng(seed).standard_normal((n_tok, n_in), np.float32)


def odd_rows(n_in):
    """Rows that rounding treats by themselves: nothing, equal largest values of both signs, tiny and large ones."""
    rows = random_tokens(8, n_in)
    rows[0] = 0
    rows[1, 40::64], rows[1, 10::64] = 4.5, -4.5  # the first of equals gives Q8_K its sign
    rows[2, 40::64], rows[2, 10::64] = -4.5, 4.5
    rows[3], rows[4] = rows[3] * 1e-39, -np.abs(rows[4])
    rows[5] *= 1e3
    rows[6, :64] = 0
    rows[7] = -0.0
    return rows


def test_odd_rows_are_rounded_alike_in_whole_tiles_and_alone(weight):
    rows = odd_rows(512)
    together, alone = matmul_numba(weight, rows), np.concatenate([matmul_numba(weight, row[None]) for row in rows])
    assert together.tobytes() == alone.tobytes()
    expected = matmul_ggml(weight, rows)
    rest = np.abs(together - expected).max(axis=1)
    assert (rest <= 512 * 2**-24 * np.abs(expected).max(axis=1)).all()  # n float32 sums


@pytest.fixture(scope="module", params=PACKED, ids=lambda format: format.name)
def weight(request):
    return random_weight(request.param, n_out=40, n_in=512)  # 40 rows: the third group is not full


def test_a_product_has_the_values_of_the_ggml_set(weight):
    x = random_tokens(19, 512)  # 12 tokens at a time, then tiles of 4, the last with one lane empty
    x[3] = 0
    expected = matmul_ggml(weight, x)
    got = matmul_numba(weight, x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=512 * 2**-24 * np.abs(expected).max())  # n float32 sums


@given(data=st.data(), n_tok=st.integers(2, 40), n_thread=st.integers(1, 2))
@settings(deadline=None, max_examples=20)
def test_a_token_s_bits_do_not_depend_on_the_batch_or_the_threads(weight, data, n_tok, n_thread):
    x = random_tokens(n_tok, 512, seed=n_tok)
    t = data.draw(st.integers(0, n_tok - 1))
    threads.limit(1)
    alone = matmul_numba(weight, x[t : t + 1])
    threads.limit(n_thread)
    try:
        together = matmul_numba(weight, x)
    finally:
        threads.limit(None)
    assert together[t].tobytes() == alone[0].tobytes()


def test_codes_and_scales_at_their_limits(weight):
    """Tokens whose codes are all -127 or 127 against the weight's largest: sums that 16 bits would not hold."""
    x = np.ones((2, 512), np.float32)
    x[1] = -1
    extreme = np.where(np.arange(512) % 64 < 32, 4.0, -4.0).astype(np.float32)[None].repeat(16, axis=0)
    w = Tensor("w", weight.format, (16, 512), quantize(weight.format, extreme))
    np.testing.assert_allclose(matmul_numba(w, x), matmul_ggml(w, x), rtol=0, atol=512 * 2**-24 * 4 * 512)


@pytest.mark.parametrize(
    "format", [f for f in FORMATS.values() if f not in PACKED and f.can_quantize], ids=lambda f: f.name
)
def test_every_other_format_is_dequantized(format):
    n_in = 256 if format.name != "I8" else 64
    w = random_weight(format, n_out=300, n_in=n_in)
    x = random_tokens(3, n_in)
    expected = round_activations(x, format.dot_with).astype(np.float64) @ w.dequantize().T.astype(np.float64)
    got = matmul_numba(w, x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=256 * 2**-24 * max(1, np.abs(expected).max()))
    assert got[2].tobytes() == matmul_numba(w, x[2:])[0].tobytes()


def test_a_byte_swapped_file_packs_to_the_same_groups(weight):
    swapped = weight.blocks.astype(weight.format.layout.newbyteorder(">"))
    big = Tensor("w", weight.format, weight.shape, swapped)
    x = random_tokens(2, 512)
    np.testing.assert_array_equal(matmul_numba(big, x), matmul_numba(weight, x))


@pytest.mark.parametrize("at_once", [1, 2000])  # bytes: a group at a time, and one or two
def test_what_is_packed_at_once_changes_no_bit(weight, monkeypatch, at_once):
    whole = packed.pack_weight(weight)
    monkeypatch.setattr(packed, "PACK_CHUNK_BYTES", at_once)
    parts = packed.pack_weight(weight)
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_array_equal(parts.scales, whole.scales)


def test_a_packed_file_s_pages_can_be_read_again(weight, tmp_path):
    (tmp_path / "w").write_bytes(weight.blocks.tobytes() * 8)
    blocks = np.memmap(tmp_path / "w", weight.format.layout, "r", shape=(320, *weight.blocks.shape[1:]))
    mapped = Tensor("w", weight.format, (320, 512), blocks)
    got = matmul_numba(mapped, random_tokens(1, 512))
    np.testing.assert_array_equal(got, np.tile(matmul_numba(weight, random_tokens(1, 512)), 8))
    assert blocks.tobytes() == weight.blocks.tobytes() * 8


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's count of resident pages")
def test_a_packed_weight_leaves_few_pages_of_its_file_in_memory(tmp_path):
    """Each chunk ends within a page, and reading it maps pages around it; the peak has one chunk besides."""
    weight = random_weight(FORMATS[packed.GGMLType.Q8_0], 64, 512)
    (tmp_path / "w").write_bytes(weight.blocks.tobytes() * 128)
    blocks = np.memmap(tmp_path / "w", weight.format.layout, "r", shape=(64 * 128, *weight.blocks.shape[1:]))
    packed.pack_weight(Tensor("w", weight.format, (64 * 128, 512), blocks))
    maps = Path("/proc/self/smaps").read_text().split(str(tmp_path / "w"))[1]
    (resident,) = re.findall(r"^Rss: +(\d+) kB", maps, re.M)[:1]
    assert int(resident) < blocks.nbytes / 1024 / 10  # KiB
