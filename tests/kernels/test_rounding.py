"""Quantized activations, compared with those of ggml's CPU code on x86."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from blocks import noise, rows_by_formula
from ggml import Ggml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from numllama.kernels.quants import FORMATS, FORMATS_BY_NAME
from numllama.kernels.rounding import quantize_activations, round_activations

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/quants.json").read_text())["activations"]
DOT_WITH = sorted({format.dot_with for format in FORMATS.values()})


@pytest.mark.parametrize("name", GOLDEN)
def test_activations_equal_the_bytes_of_ggml_s_cpu_code(name):
    rows = {kind: quantize_activations(x, name) for kind, x in rows_by_formula().items()}
    got = {kind: sha256(blocks.tobytes()).hexdigest()[:16] for kind, blocks in rows.items()}
    assert got == GOLDEN[name]


def test_ties_go_to_even_for_activations_and_away_from_zero_for_files():
    x = np.resize(np.array([127, 0.5, 1.5, -2.5], np.float32), 32)  # d = 1: codes are x rounded
    assert quantize_activations(x, "Q8_0")["qs"][0, :4].tolist() == [127, 0, 2, -2]
    assert FORMATS_BY_NAME["Q8_0"].quantize(x[None])["qs"][0, :4].tolist() == [127, 1, 2, -3]


def test_stored_sums_equal_the_sums_of_the_codes():
    x = noise(3, 256)
    q8_1 = quantize_activations(x, "Q8_1")
    expected = q8_1["qs"].sum(axis=-1) * q8_1["d"].astype(np.float32)
    np.testing.assert_allclose(q8_1["s"], expected, rtol=2e-3)  # s is computed from d before d is rounded to f16
    q8_k = quantize_activations(x, "Q8_K")
    np.testing.assert_array_equal(q8_k["bsums"], q8_k["qs"].reshape(3, 1, 16, 16).sum(axis=-1))


@pytest.mark.parametrize("dot_with", DOT_WITH)
def test_every_dot_format_errs_by_at_most_half_a_step(dot_with):
    x = noise(3, 512).reshape(3, 1, 512)
    rounded = round_activations(x, dot_with)
    assert rounded.shape == x.shape and rounded.dtype == np.float32
    step = {"F32": 0, "F16": 2**-11, "BF16": 2**-8}.get(dot_with, 1 / 127)
    assert np.abs(rounded - x).max() <= step / 2 * 1.05  # x is in -1..1; an f16 scale has an error of up to 5e-4


@pytest.mark.peer
@pytest.mark.parametrize("name", GOLDEN)
@given(hnp.arrays(np.float32, (4, 256), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_ggml_quantizes_any_floats_to_the_same_bytes(name, x):
    ggml = Ggml.from_environment() or pytest.skip("needs NUMLLAMA_LLAMA_CPP, a folder with libggml-cpu.so")
    format = FORMATS_BY_NAME[name]
    expected = ggml.activations(format, x.reshape(-1, format.block_size))
    assert quantize_activations(x, name).tobytes() == expected.tobytes()
