import numpy as np
import pytest

from numllama.kernels import SETS
from numllama.kernels.activation import (
    gelu_erf_numpy,
    gelu_ggml,
    gelu_numpy,
    quick_gelu_numpy,
    silu_mul_numpy,
    softmax_numpy,
    swiglu_oai,
)


def test_softmax_worked_example():
    np.testing.assert_allclose(softmax_numpy(np.log([[1.0, 2.0, 5.0]])), [[1 / 8, 2 / 8, 5 / 8]])


def test_softmax_of_large_and_hidden_scores():
    np.testing.assert_array_equal(softmax_numpy(np.array([1e4, 1e4, -np.inf], np.float32)), [0.5, 0.5, 0])


def test_silu_mul_worked_example():
    # silu(ln 3) = ln 3 / (1 + 1/3)
    np.testing.assert_allclose(silu_mul_numpy(np.log([3.0]), np.array([4.0])), 3 * np.log(3))


def test_silu_is_zero_far_below_zero_and_the_identity_far_above():
    got = silu_mul_numpy(np.array([-1e4, 1e4], np.float32), np.ones(2, np.float32))
    np.testing.assert_array_equal(got, [0, 1e4])


LINE = np.linspace(-12, 12, 1001, dtype=np.float32)  # 1001 is not a multiple of 16: the tail is tested too
compiled = pytest.mark.skipif("numba" not in SETS, reason="vectors need the compiler")


def normal_below(z):
    """Compute the probability that a normal variate is below z, by the midpoint rule in float64, within 1e-9."""
    step = 1e-4
    edges = np.arange(-14, 14, step)
    density = np.exp(-((edges + step / 2) ** 2) / 2) / np.sqrt(2 * np.pi)
    return np.interp(z, edges + step, np.cumsum(density) * step)


def test_gelu_erf_is_z_times_the_normal_distribution_function():
    np.testing.assert_allclose(gelu_erf_numpy(LINE.astype(np.float64)), LINE * normal_below(LINE), atol=1e-7)


def test_gelu_by_tanh_worked_example_and_its_distance_from_the_exact_gelu():
    # u = sqrt(2/pi) (1 + 0.044715) = 0.833565;  gelu(1) = (1 + tanh(u)) / 2
    np.testing.assert_allclose(gelu_numpy(np.array([1.0, -1.0])), [0.841192, -0.158808], atol=1e-6)
    z = LINE.astype(np.float64)
    np.testing.assert_allclose(gelu_numpy(z), gelu_erf_numpy(z), atol=5e-4)


def test_quick_gelu_worked_example():
    # 1.702 z = ln 3
    z = np.log(3) / 1.702
    np.testing.assert_allclose(quick_gelu_numpy(np.array([z, -z])), [z * 3 / 4, -z / 4])


def test_ggml_s_gelu_table_covers_minus_ten_to_ten():
    x = np.array([1.0, 1.0002, 10.001, 1000.3, -10.0, -70000.0], np.float32)  # 1.0002 rounds to 1 in float16
    got = gelu_ggml(x)
    assert got[0] == got[1] == np.float32(np.float16(0.841192))
    np.testing.assert_array_equal(got[2:], [*x[2:4], 0, 0])


@compiled
@pytest.mark.parametrize("name", ["gelu", "quick_gelu"])
def test_numba_rounds_to_float16_where_ggml_does(name):
    expected, got = getattr(SETS["ggml"], name)(LINE), getattr(SETS["numba"], name)(LINE)
    # a value near a tie may round the other way, by one step of float16; tanh loses 1e-7 far below zero
    np.testing.assert_allclose(got, expected, rtol=2**-10, atol=1e-6)
    assert np.mean(np.abs(got - expected) > 1e-6) < 0.01


@compiled
def test_gelu_erf_in_vectors_is_within_float32_of_the_definition():
    np.testing.assert_allclose(SETS["numba"].gelu_erf(LINE), gelu_erf_numpy(LINE.astype(np.float64)), atol=1e-6)


def test_gpt_oss_s_gated_product_bounds_its_inputs():
    gate, up = np.float32([[1, 9, -9, 7]]), np.float32([[1, 9, -9, -7]])
    silu = [
        1 / (1 + np.exp(-1.702)),
        7 / (1 + np.exp(-1.702 * 7)),
        -9 / (1 + np.exp(1.702 * 9)),
        7 / (1 + np.exp(-1.702 * 7)),
    ]
    np.testing.assert_allclose(swiglu_oai(gate, up), [np.multiply(silu, [2, 8, -6, -6])], rtol=1e-6)
