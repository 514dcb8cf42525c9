"""Every set of kernels compared with the float64 definition, operation by operation."""

from dataclasses import fields

import numpy as np
import pytest

from numllama.kernels import SETS, Attention, Kernels, Rope, Tensor, numpy_kernels
from numllama.kernels.quants import FORMATS_BY_NAME, quantize

F64 = numpy_kernels(np.float64)
OPERATIONS = [
    field.name
    for field in fields(Kernels)
    if field.name not in ("name", "inside", "layers")  # layers: see tests/engine/model/test_whole.py
]


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def weight(*shape, format="F32"):
    return Tensor("w", FORMATS_BY_NAME[format], shape, quantize(FORMATS_BY_NAME[format], random(*shape)))


ARGUMENTS = {
    "rows": (weight(40, 64, format="Q8_0"), np.array([3, 0, 39, 3], np.int32)),
    "matmul": (weight(48, 64), random(5, 64)),
    "experts": (weight(4, 48, 64), random(5, 64), np.array([2, 0, 2, 3, 2], np.int32)),
    "rms_norm": (random(5, 64), random(64, seed=1), 1e-5),
    "layer_norm": (random(5, 70) + 3, random(70, seed=1), random(70, seed=2), 1e-5),
    "rope": (random(5, 4, 16), np.arange(7, 12, dtype=np.int32), Rope("norm", 16)),
    "attention": (random(3, 4, 16), random(8, 2, 16), random(8, 2, 16, seed=1), 5, Attention(0.25)),
    "softmax": (random(5, 33),),
    "silu_mul": (random(5, 64), random(5, 64, seed=1)),
    "gelu_mul": (random(5, 70) * 3, random(5, 70, seed=1)),
    "gelu": (random(5, 70) * 3,),
    "gelu_erf": (random(5, 70) * 3,),
    "quick_gelu": (random(5, 70) * 3,),
    "resize": (np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8), 6, 20),
    "patch_embd": (
        weight(40, 3, 4, 4),
        np.arange(288, dtype=np.uint8).reshape(8, 12, 3),
        np.full(3, 0.5),
        np.full(3, 2.0),
    ),
    "depthwise": (random(6, 6, 8), random(8, 3, 3), 2),
}
ROUNDED_TO_HALF = [("ggml", name) for name in ("gelu_mul", "gelu", "quick_gelu", "patch_embd", "depthwise")]
ROUNDED_TO_HALF += [
    (set_name, name) for set_name in ("numba", "llamacpp", "llamacpp-avx2") for _, name in ROUNDED_TO_HALF
]  # ggml's tables and convolutions have float16 inputs
ROUNDED_TO_HALF += [
    (name, "attention") for name in ("llamacpp", "llamacpp-avx2")
]  # flash attention with keys and values in float16


def test_every_operation_has_arguments_here():
    assert set(ARGUMENTS) == set(OPERATIONS)


@pytest.mark.parametrize("set_name", SETS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_the_float64_definition(set_name, operation):
    arguments = ARGUMENTS[operation]
    got = getattr(SETS[set_name], operation)(*arguments)
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a for a in arguments]
    expected = getattr(F64, operation)(*wide)
    # a float32 rounding is 6e-8; sums of 64 terms, and ggml's float32 angles at position 11, have about ten roundings.
    # float16 has 11 bits: half a step of 2^-10 at the input, which gelu scales by at most 1.2, and one at the output
    rtol, atol = (2e-3, 2e-3) if (set_name, operation) in ROUNDED_TO_HALF else (1e-5, 2e-6)
    np.testing.assert_allclose(got, expected, rtol, atol)


BATCH_INVARIANT = [name for name in ("exact", "ggml", "numba") if name in SETS]  # sums do not depend on the batch


@pytest.mark.parametrize("set_name", BATCH_INVARIANT)
@pytest.mark.parametrize("format", ["F32", "F16", "Q4_0", "Q8_0"])
def test_a_token_has_the_same_bits_in_any_batch(set_name, format):
    w, x = weight(70, 96, format=format), random(9, 96)
    matmul = SETS[set_name].matmul
    np.testing.assert_array_equal(np.concatenate([matmul(w, x[t : t + 1]) for t in range(9)]), matmul(w, x))


@pytest.mark.parametrize("set_name", BATCH_INVARIANT)
@pytest.mark.parametrize("format", ["F32", "Q4_0", "Q8_0"])
def test_a_row_s_bits_do_not_depend_on_the_experts_of_other_rows(set_name, format):
    w, x, chosen = weight(5, 70, 96, format=format), random(40, 96), np.random.default_rng(0).integers(0, 4, 40)
    experts, matmul = SETS[set_name].experts, SETS[set_name].matmul
    alone = [matmul(w.matrices[e], x[i : i + 1]) for i, e in enumerate(chosen)]
    np.testing.assert_array_equal(np.concatenate(alone), experts(w, x, chosen))


@pytest.mark.parametrize("set_name", BATCH_INVARIANT)
@pytest.mark.parametrize("cache_type", [np.float32, np.float16])
def test_a_query_has_the_same_bits_in_any_span(set_name, cache_type):
    q, k, v = random(6, 4, 16), random(9, 2, 16).astype(cache_type), random(9, 2, 16, seed=1).astype(cache_type)
    attention = SETS[set_name].attention
    one_by_one = [attention(q[t : t + 1], k[: 4 + t], v[: 4 + t], 3 + t, Attention(0.25)) for t in range(6)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), attention(q, k, v, 3, Attention(0.25)))


@pytest.mark.parametrize("format", ["Q4_0", "Q8_0"])
def test_ggml_matmul_errs_by_at_most_half_a_step_of_the_activations(format):
    w, x = weight(48, 64, format=format), random(5, 64)
    blocks = np.abs(x.reshape(5, 2, 32))
    step = np.repeat(blocks.max(-1), 32, axis=-1).reshape(5, 64) / 127
    # a code errs by half a step; the f16 scale by 2^-11 of up to 127 steps, which is another 0.063 of a step
    bound = (0.5 + 0.063) * step @ np.abs(w.dequantize()).T
    error = np.abs(SETS["ggml"].matmul(w, x) - SETS["exact"].matmul(w, x))
    assert (error <= bound).all() and error.max() > 1e-4  # activations were rounded
