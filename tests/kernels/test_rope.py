import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.kernels.rope import Rope, rope_ggml, rope_numpy

POSITION = st.integers(-4096, 4096)


def heads(style, position, x, **more):
    return rope_numpy(np.array([[x]], np.float64), np.array([position]), Rope(style, len(x), **more))[0, 0]


def test_worked_example():
    # base 1 makes every pair turn by one radian per position: (1, 0) becomes (cos 2, sin 2) at position 2
    c, s = np.cos(2), np.sin(2)
    np.testing.assert_allclose(heads("norm", 2, [1, 0, 0, 1], base=1.0), [c, s, -s, c], atol=1e-15)
    np.testing.assert_allclose(heads("neox", 2, [1, 0, 0, 1], base=1.0), [c, -s, s, c], atol=1e-15)


@pytest.mark.parametrize("style", ["norm", "neox"])
@given(a=POSITION, b=POSITION, c=POSITION)
def test_a_dot_product_depends_on_the_distance_only(style, a, b, c):
    q, k = [0.3, -1.0, 2.0, 0.7], [1.5, 0.2, -0.4, 1.0]
    here = heads(style, a, q) @ heads(style, b, k)
    moved = heads(style, a + c, q) @ heads(style, b + c, k)
    np.testing.assert_allclose(moved, here, atol=1e-9)


@given(p=POSITION, back=POSITION)
def test_turning_back_undoes(p, back):
    x = [0.3, -1.0, 2.0, 0.7]
    turned = rope_numpy(heads("norm", p, x)[None, None], np.array([-back]), Rope("norm", 4))[0, 0]
    np.testing.assert_allclose(turned, heads("norm", p - back, x), atol=1e-9)


def test_components_beyond_n_rot_stay():
    x = np.arange(8.0)[None, None]
    assert (rope_numpy(x, np.array([5]), Rope("norm", 4))[..., 4:] == x[..., 4:]).all()


def test_factors_and_scale_slow_the_turning():
    factors = np.array([2.0, 8.0], np.float32)
    np.testing.assert_allclose(Rope("norm", 4, 100.0, 0.5, factors).freqs, [0.25, 0.1 / 16])


@pytest.mark.parametrize("factors", [None, np.array([1, 1, 2, 8], np.float32)])
def test_ggml_angles_drift_by_float32_only(factors):
    x = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    positions, rope = np.array([0, 100, 2000], np.int32), Rope("neox", 8, 500000.0, 1.0, factors)
    # position 2000 in float32 is an angle good to 2000 * 6e-8
    np.testing.assert_allclose(rope_ggml(x, positions, rope), rope_numpy(x, positions, rope), atol=1e-3)
