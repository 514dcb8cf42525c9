"""Products of the ggml and numba sets against ggml's own: a worked example, and llama.cpp in a wheel."""

import ctypes

import numpy as np
import pytest
from blocks import random_blocks

from numllama.kernels import SETS, Tensor
from numllama.kernels.quants import FORMATS, FORMATS_BY_NAME, quantize

ROUNDED = [name for name in ("ggml", "numba") if name in SETS]
F32_SUMS = 2e-6  # of the terms' sizes: ggml adds their products in float32


@pytest.mark.parametrize("set_name", ROUNDED)
@pytest.mark.parametrize("name", ["Q4_1", "Q5_1"])
def test_a_minimum_meets_the_sum_that_the_activations_block_has(set_name, name):
    """d = 0 and m = 1: the product is s itself, for x = 1, 0.3, ... , 0.3.

    amax is 1, so the codes are 127 and 31 times round(0.3 * 127) = 38, together 1305.  s = f16(1305 / 127 = 10.27559)
    is 10.2734375; the sum of the dequantized block, 1305 * f16(1 / 127), would be 10.27496.
    """
    blocks = np.zeros((1, 1), FORMATS_BY_NAME[name].layout)
    blocks["m"] = 1
    x = np.full((1, 32), 0.3, np.float32)
    x[0, 0] = 1
    got = SETS[set_name].matmul(Tensor("w", FORMATS_BY_NAME[name], (1, 32), blocks), x)
    assert got[0, 0] == np.float16(1305 / 127) == 10.2734375


N_IN = 512
NORMAL = np.random.default_rng(0).standard_normal((1, N_IN)).astype(np.float32)
TOKENS = {
    "normal": NORMAL,
    "zero blocks": np.where(np.arange(N_IN) % 300 < 256, 0, NORMAL),
    "scales below f16's normal numbers": NORMAL * np.float32(1e-6),
    "scales that round to zero": NORMAL * np.float32(1e-9),
    "next to the smallest float32": NORMAL * np.float32(1e-38),
    "large": NORMAL * np.float32(1e4),
    "negative zeros": np.full((1, N_IN), -0.0, np.float32),
    "equal numbers": np.full((1, N_IN), 3.3, np.float32),
    "ties": np.resize(np.array([127, 0.5, 1.5, -2.5], np.float32), (1, N_IN)),
    "outliers": np.where(np.arange(N_IN) % 32 == 0, 1e5 * NORMAL, NORMAL),
}


class Traits(ctypes.Structure):
    """ggml-cpu.h, struct ggml_type_traits_cpu."""

    _fields_ = [
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        (
            "vec_dot",
            ctypes.CFUNCTYPE(
                None,
                ctypes.c_int,
                *(kind for _ in range(3) for kind in (ctypes.c_void_p, ctypes.c_size_t)),
                ctypes.c_int,
            ),
        ),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    ]


@pytest.fixture(scope="module")
def traits():
    """ggml's functions of a type, as xllamacpp has them."""
    library = ctypes.CDLL(pytest.importorskip("xllamacpp.xllamacpp").__file__)
    library.ggml_cpu_init()
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(Traits)
    return lambda type: library.ggml_get_type_traits_cpu(int(type)).contents


def ggml_matmul(traits, w, x):
    """x w^T on the plain path: each row of x to the weight's vec_dot_type, then vec_dot by vec_dot."""
    format, dot_with = traits(w.format.type), FORMATS_BY_NAME[w.format.dot_with]
    assert format.vec_dot_type == dot_with.type
    rows = np.ascontiguousarray(x, np.float32).view(np.uint8)
    if dot_with.name != "F32":
        rows = np.zeros((len(x), x.shape[1] // dot_with.block_size * dot_with.block_bytes), np.uint8)
        for i, row in enumerate(np.ascontiguousarray(x, np.float32)):
            traits(dot_with.type).from_float(row.ctypes.data, rows[i].ctypes.data, row.size)
    y = np.empty((len(x), w.shape[0]), np.float32)
    for i in range(len(x)):
        for r in range(w.shape[0]):
            at = y[i, r:].ctypes.data, 0, w.blocks[r].ctypes.data, 0, rows[i].ctypes.data, 0
            format.vec_dot(x.shape[1], *at, 1)
    return y


@pytest.mark.oracle
@pytest.mark.parametrize("set_name", ROUNDED)
@pytest.mark.parametrize("what", TOKENS)
@pytest.mark.parametrize(
    "format",
    [f for f in FORMATS.values() if f.block_size > 1 and f.name not in ("Q8_1", "Q8_K")],  # those are for activations
    ids=lambda f: f.name,
)
def test_products_are_ggml_s(traits, format, what, set_name):
    blocks = random_blocks(format, 24 * N_IN // format.block_size)
    if format.can_quantize:
        blocks = quantize(format, np.random.default_rng(1).standard_normal((24, N_IN)).astype(np.float32))
    w = Tensor("w", format, (24, N_IN), blocks.reshape(24, -1))
    expected = ggml_matmul(traits, w, TOKENS[what])
    got = SETS[set_name].matmul(w, TOKENS[what])
    terms = np.abs(TOKENS[what]) @ np.abs(w.dequantize()).T
    np.testing.assert_allclose(got, expected, rtol=0, atol=F32_SUMS * terms.max() + 1e-44)  # one subnormal number
