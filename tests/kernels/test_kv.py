"""What a cache keeps: the fast writing is the reference's to the bit, and rounding errs by half a step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numllama.kernels.kv import BLOCK, CACHE_TYPES, in_blocks, n_kept, new_cache, numbers, write, write_numpy

TYPES = pytest.mark.parametrize("name", CACHE_TYPES)
BLOCKS = pytest.mark.parametrize("name", ["q8_0", "q4_0"])


def cache_of(name, x):
    """A cache's part that `x` [n, n_head_kv, n_head_dim] would fit into."""
    n, n_head_kv, n_head_dim = x.shape
    return new_cache(2, n + 3, n_head_kv, n_head_dim, CACHE_TYPES[name])[1, 1 : n + 1]


@TYPES
@pytest.mark.parametrize("n_head_dim", [8, 20, 64])
def test_a_head_is_written_in_its_place_and_nowhere_else(name, n_head_dim):
    blocks = in_blocks(CACHE_TYPES[name])
    x = np.random.default_rng(0).standard_normal((4, 3, 64 if blocks else n_head_dim), np.float32)
    if not blocks:
        x[0, 0, :4] = np.inf, -np.nan, 1e-7, 65520  # f16: as it is, as it is, a subnormal, infinity
    expected, got = cache_of(name, x), cache_of(name, x)
    with np.errstate(all="ignore"):
        write_numpy(expected, x)
        write(got, x)
    assert got.base.tobytes() == expected.base.tobytes()


@BLOCKS
@given(x=arrays(np.float32, (3, 2, 64), elements=st.floats(-3e4, 3e4, width=32)), small=st.integers(-30, 0))
def test_what_is_written_is_the_reference_s_to_the_bit(name, x, small):
    x[np.abs(x) < 1e-9] = 0  # below 4e-37 the scale is zero as f16 and the codes differ: it means 0 all the same
    x *= np.float32(2.0**small)
    expected, got = cache_of(name, x), cache_of(name, x)
    write_numpy(expected, x)
    write(got, x)
    assert got.tobytes() == expected.tobytes()


@TYPES
def test_what_is_read_is_what_was_written_up_to_its_rounding(name):
    x = np.random.default_rng(0).standard_normal((5, 2, 64))
    cache = cache_of(name, x)
    write(cache, x.astype(np.float64 if name == "f64" else np.float32))
    largest = np.abs(x.reshape(-1, BLOCK)).max(axis=1).repeat(BLOCK).reshape(x.shape)
    steps = {"f16": 2**-11, "f32": 2**-24, "f64": 0, "q8_0": 0.51 / 127, "q4_0": 1.01 / 8}  # parts of the largest
    assert (np.abs(numbers(cache, np.float64) - x) <= steps[name] * largest).all()  # q4_0 cuts at 7/8 of the other sign


def test_a_worked_example():
    x = np.zeros((1, 1, 32), np.float32)
    x[0, 0, :3] = 127, -1, 0.4  # the largest is 127 steps of 1
    cache = cache_of("q8_0", x)
    write(cache, x)
    assert cache[0, 0, 0]["d"] == 1
    assert numbers(cache, np.float32)[0, 0, :4].tolist() == [127, -1, 0, 0]


@BLOCKS
def test_heads_that_are_no_whole_blocks_are_refused(name):
    with pytest.raises(ValueError, match="blocks of 32 numbers cannot keep heads of 80"):
        n_kept(CACHE_TYPES[name], 80)
