"""Rotation by a Hadamard matrix: its definition, its inverse, and what it does to a cache in blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.kernels.hadamard import key_group, rotate_groups, rotate_groups_numpy
from numllama.kernels.kv import CACHE_TYPES, new_cache, numbers, write


def matrix(n):
    """Sylvester's construction, as llama.cpp's ggml_gen_hadamard has it."""
    h = np.array([[1.0 / np.sqrt(n)]])
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


@pytest.mark.parametrize("group", [64, 128, 256])
def test_the_rotation_is_a_product_with_the_matrix_and_its_own_inverse(group):
    x = np.random.default_rng(0).standard_normal((5, 3, 2 * group))
    expected = (x.reshape(-1, group) @ matrix(group)).reshape(x.shape)
    got = rotate_groups(x, group)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)  # 1 / sqrt(n) is rounded to float32
    np.testing.assert_allclose(rotate_groups(got, group), x, rtol=0, atol=1e-6)
    np.testing.assert_allclose((got**2).sum(), (x**2).sum(), rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([64, 128, 256]), st.integers(-40, 40), st.integers(1, 3))
def test_the_fast_rotation_equals_the_reference_to_the_bit(seed, group, exponent, n):
    x = (np.random.default_rng(seed).standard_normal((2, n * group)) * 2.0**exponent).astype(np.float32)
    before = x.copy()
    np.testing.assert_array_equal(rotate_groups(x, group), rotate_groups_numpy(x, group))
    np.testing.assert_array_equal(x, before)


def error(x, cache_type, group):
    """The rms error of `x` kept in blocks, rotated or not."""
    cache = new_cache(1, *x.shape, CACHE_TYPES[cache_type])[0]
    write(cache, rotate_groups(x, group) if group else x)
    kept = numbers(cache, np.float32)
    return float(np.sqrt(np.mean(((rotate_groups(kept, group) if group else kept) - x) ** 2)))


@pytest.mark.parametrize("cache_type", ["q8_0", "q4_0"])
def test_a_large_component_costs_the_others_less_precision(cache_type):
    """Keys of large models have a few such components.  Of numbers that are all alike, nothing is gained or lost."""
    x = np.random.default_rng(0).standard_normal((200, 1, 128)).astype(np.float32)
    assert error(x, cache_type, 128) == pytest.approx(error(x, cache_type, 0), rel=0.1)
    x[:, :, ::32] *= 30  # one in each block
    assert error(x, cache_type, key_group(128)) < 0.6 * error(x, cache_type, 0)  # measured 0.42 and 0.41
