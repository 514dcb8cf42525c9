import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from numllama.kernels.norm import layer_norm_ggml, layer_norm_numpy, rms_norm_ggml, rms_norm_numpy


def test_worked_example():
    # the mean of the squares of (3, -4, 0, 0) is 25/4, so each number is divided by 5/2
    got = rms_norm_numpy(np.array([[3.0, -4.0, 0.0, 0.0]]), np.array([1, 1, 10, 10]), eps=0)
    np.testing.assert_allclose(got, [[1.2, -1.6, 0, 0]])


def test_eps_is_added_inside_the_root():
    np.testing.assert_allclose(rms_norm_numpy(np.zeros((1, 4)) + 3.0, np.ones(4), eps=7), 3 / 4)


@given(st.floats(2**-10, 2**10))
def test_scaling_the_input_changes_nothing(scale):
    x = np.array([[1.0, 2.0, -3.0, 0.5]])
    np.testing.assert_allclose(rms_norm_numpy(x * scale, np.ones(4), 0), rms_norm_numpy(x, np.ones(4), 0), rtol=1e-12)


def test_a_zero_row_stays_zero():
    for rms_norm in (rms_norm_numpy, rms_norm_ggml):
        assert not rms_norm(np.zeros((2, 8), np.float32), np.ones(8, np.float32), 1e-5).any()


def test_worked_example_of_layer_norm():
    # (1, 3, 5, 7): mean 4, variance (9 + 1 + 1 + 9)/4 = 5, plus eps is 9
    got = layer_norm_numpy(np.array([[1.0, 3.0, 5.0, 7.0]]), np.array([3, 3, 3, 30]), np.array([0, 0, 1, 0]), eps=4)
    np.testing.assert_allclose(got, [[-3, -1, 2, 30]])


@given(st.floats(-100, 100))
def test_layer_norm_is_invariant_to_a_shift_of_the_row(shift):
    x, one, zero = np.array([[1.0, 2.0, -3.0, 0.5]]), np.ones(4), np.zeros(4)
    np.testing.assert_allclose(layer_norm_numpy(x + shift, one, zero, 0), layer_norm_numpy(x, one, zero, 0), atol=1e-12)


def test_a_constant_row_becomes_the_bias():
    bias = np.arange(8, dtype=np.float32)
    for layer_norm in (layer_norm_numpy, layer_norm_ggml):
        x = np.full((2, 8), 0.1, np.float32)
        np.testing.assert_allclose(layer_norm(x, np.ones(8, np.float32), bias, 1e-5), [bias, bias], atol=1e-5)
