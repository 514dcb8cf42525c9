import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from numllama.kernels.norm import rms_norm_ggml, rms_norm_numpy


def test_worked_example():
    # mean of squares of (3, -4, 0, 0) is 25/4, so each is divided by 5/2
    got = rms_norm_numpy(np.array([[3.0, -4.0, 0.0, 0.0]]), np.array([1, 1, 10, 10]), eps=0)
    np.testing.assert_allclose(got, [[1.2, -1.6, 0, 0]])


def test_eps_stands_inside_the_root():
    np.testing.assert_allclose(rms_norm_numpy(np.zeros((1, 4)) + 3.0, np.ones(4), eps=7), 3 / 4)


@given(st.floats(2**-10, 2**10))
def test_scaling_the_input_changes_nothing(scale):
    x = np.array([[1.0, 2.0, -3.0, 0.5]])
    np.testing.assert_allclose(rms_norm_numpy(x * scale, np.ones(4), 0), rms_norm_numpy(x, np.ones(4), 0), rtol=1e-12)


def test_a_zero_row_stays_zero():
    for rms_norm in (rms_norm_numpy, rms_norm_ggml):
        assert not rms_norm(np.zeros((2, 8), np.float32), np.ones(8, np.float32), 1e-5).any()
