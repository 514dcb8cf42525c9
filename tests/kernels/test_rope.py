import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core import config

from numllama.kernels.rope import Rope, rope_ggml, rope_numba, rope_numpy, yarn_ramp, yarn_stretch

compiled = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")
POSITION = st.integers(-4096, 4096)


def heads(style, position, x, **more):
    return rope_numpy(np.array([[x]], np.float64), np.array([position]), Rope(style, len(x), **more))[0, 0]


def test_worked_example():
    # with base 1 every pair rotates by one radian per position: (1, 0) becomes (cos 2, sin 2) at position 2
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
def test_negative_positions_rotate_back(p, back):
    x = [0.3, -1.0, 2.0, 0.7]
    turned = rope_numpy(heads("norm", p, x)[None, None], np.array([-back]), Rope("norm", 4))[0, 0]
    np.testing.assert_allclose(turned, heads("norm", p - back, x), atol=1e-9)


def test_components_from_n_rot_on_are_unchanged():
    x = np.arange(8.0)[None, None]
    assert (rope_numpy(x, np.array([5]), Rope("norm", 4))[..., 4:] == x[..., 4:]).all()


def test_factors_and_scale_lower_the_frequencies():
    factors = np.array([2.0, 8.0], np.float32)
    np.testing.assert_allclose(Rope("norm", 4, 100.0, 0.5, factors).freqs, [0.25, 0.1 / 16])


@pytest.mark.parametrize("factors", [None, np.array([1, 1, 2, 8], np.float32)])
def test_ggml_angles_drift_by_float32_only(factors):
    x = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    positions, rope = np.array([0, 100, 2000], np.int32), Rope("neox", 8, 500000.0, 1.0, factors)
    # the float32 angle at position 2000 has an error of about 2000 * 6e-8
    np.testing.assert_allclose(rope_ggml(x, positions, rope), rope_numpy(x, positions, rope), atol=1e-3)


def test_yarn_keeps_high_frequencies_and_lowers_low_ones():
    # 8 pairs of 10000 ** (-i / 8), trained on 1000 positions: pair 1 makes 1000 * 0.316 / (2 pi) = 50 turns, pair 2
    # 15.9, pair 5 0.5.  32 turns correspond to i = 1.39, rounded down to 1; one turn to 4.40, rounded up to 5
    ramp = yarn_ramp(16, 10000.0, 1000)
    np.testing.assert_allclose(ramp, [1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
    rope = Rope("norm", 16, scale=0.25, ramp=ramp)
    plain = Rope("norm", 16).freqs
    np.testing.assert_allclose(rope.freqs, plain * [1, 1, 0.8125, 0.625, 0.4375, 0.25, 0.25, 0.25])
    assert yarn_stretch(1.0) == 1 and yarn_stretch(np.e**5) == 1.5


@pytest.mark.parametrize("kernel", [rope_ggml, pytest.param(rope_numba, marks=compiled)])
def test_ggml_s_angles_with_ramp_and_factor_equal_the_definition(kernel):
    rope = Rope("neox", 16, scale=0.25, ramp=yarn_ramp(16, 10000.0, 1000), attn_factor=1.5)
    x, positions = np.random.default_rng(0).standard_normal((3, 2, 20)).astype(np.float32), np.array([0, 7, 300])
    expected = rope_numpy(x.astype(np.float64), positions, rope)
    np.testing.assert_allclose(kernel(x, positions, rope), expected, atol=3e-5)  # float32 angles at 300
    np.testing.assert_allclose(expected[0, :, :16], 1.5 * x[0, :, :16])
    np.testing.assert_array_equal(expected[..., 16:], x[..., 16:])


@compiled
@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize(("d", "n_rot"), [(8, 8), (64, 64), (80, 80), (48, 34), (96, 32), (20, 4)])
def test_vectors_give_the_bits_of_the_definition_with_ggml_s_angles(style, d, n_rot):
    """Heads of whole vectors, of a rest beside them, and of a rest alone."""
    x, positions = (
        np.random.default_rng(0).standard_normal((3, 2, d)).astype(np.float32),
        np.array([9, 0, 700], np.int32),
    )
    rope = Rope(style, n_rot, attn_factor=1.5)
    assert rope_numba(x, positions, rope).tobytes() == rope_ggml(x, positions, rope).tobytes()


def test_unstretched_rotates_back_without_the_factor():
    rope, x = Rope("neox", 16, attn_factor=1.5), np.ones((1, 1, 16))
    there = rope_numpy(x, np.array([5]), rope)
    back = rope_numpy(there, np.array([-5]), rope.unstretched)
    np.testing.assert_allclose(back, 1.5 * x)
    plain = Rope("neox", 16)
    assert plain.unstretched is plain
