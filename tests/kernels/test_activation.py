import numpy as np

from numllama.kernels.activation import silu_mul_numpy, softmax_numpy


def test_softmax_worked_example():
    np.testing.assert_allclose(softmax_numpy(np.log([[1.0, 2.0, 5.0]])), [[1 / 8, 2 / 8, 5 / 8]])


def test_softmax_of_large_and_hidden_scores():
    np.testing.assert_array_equal(softmax_numpy(np.array([1e4, 1e4, -np.inf], np.float32)), [0.5, 0.5, 0])


def test_silu_mul_worked_example():
    # silu(ln 3) = ln 3 / (1 + 1/3)
    np.testing.assert_allclose(silu_mul_numpy(np.log([3.0]), np.array([4.0])), 3 * np.log(3))


def test_silu_closes_far_below_zero_and_opens_far_above():
    got = silu_mul_numpy(np.array([-1e4, 1e4], np.float32), np.ones(2, np.float32))
    np.testing.assert_array_equal(got, [0, 1e4])
