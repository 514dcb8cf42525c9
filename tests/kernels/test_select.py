"""The fast selection equals the reference, including ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.kernels.select import MAX_INSERTION_K, descending, descending_numpy


@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 2000),
    k=st.integers(1, MAX_INSERTION_K + 9),
    n_value=st.sampled_from([1, 2, 30, 10**9]),  # many equal values, or none
    order=st.sampled_from(["any", "up", "down"]),
)
def test_the_result_is_a_prefix_of_a_stable_sort(seed, n, k, n_value, order):
    x = np.random.default_rng(seed).integers(-n_value // 2, n_value, n).astype(np.float32)
    x[x == x.min()] = -np.inf  # as for forbidden tokens
    x = {"any": x, "up": np.sort(x), "down": np.sort(x)[::-1]}[order]
    k = min(k, n)
    expected = np.argsort(-x, kind="stable")[:k]
    np.testing.assert_array_equal(descending_numpy(x, k), expected)
    np.testing.assert_array_equal(descending(x, k), expected)


@pytest.mark.parametrize("n", [63, 64, 65, 128, 128_256])
def test_the_first_and_last_elements_are_found(n):
    for i in (0, n - 1):
        x = np.zeros(n, np.float32)
        x[i] = 1
        assert descending(x, 3).tolist() == [i, *[j for j in range(4) if j != i][:2]]
