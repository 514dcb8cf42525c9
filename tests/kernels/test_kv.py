"""The KV cache: fast writing equals the reference to the bit, and rounding errs by half a step."""

import mmap
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numllama.kernels.kv import BLOCK, CACHE_TYPES, in_blocks, n_kept, new_cache, numbers, write, write_numpy

TYPES = pytest.mark.parametrize("name", CACHE_TYPES)
BLOCKS = pytest.mark.parametrize("name", [name for name in CACHE_TYPES if in_blocks(CACHE_TYPES[name])])


def cache_of(name, x):
    """Return a part of a cache with room for `x` [n, n_head_kv, n_head_dim]."""
    n, n_head_kv, n_head_dim = x.shape
    return new_cache(2, n + 3, n_head_kv, n_head_dim, CACHE_TYPES[name])[1, 1 : n + 1]


@TYPES
@pytest.mark.parametrize("n_head_dim", [8, 20, 64])
def test_writing_changes_only_the_given_positions(name, n_head_dim):
    blocks = in_blocks(CACHE_TYPES[name])
    x = np.random.default_rng(0).standard_normal((4, 3, 64 if blocks else n_head_dim), np.float32)
    if not blocks:
        x[0, 0, :4] = np.inf, -np.nan, 1e-7, 65520  # as f16: unchanged, unchanged, a subnormal, infinity
        if name == "bf16":
            x[0, 0, 1] = (
                1.00390625  # halfway between two bf16 numbers; the fast path keeps other NaNs than the reference
            )
    expected, got = cache_of(name, x), cache_of(name, x)
    with np.errstate(all="ignore"):
        write_numpy(expected, x)
        write(got, x)
    assert got.base.tobytes() == expected.base.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of resident pages")
def test_a_position_takes_memory_for_itself_and_not_for_the_positions_beside_it():
    """NumPy asks for pages of 2 MiB from 4 MiB on: the first token of a model with 60 such arrays took 120 MiB."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    caches = [new_cache(4, 4096, 4, 64, CACHE_TYPES["f16"]) for _ in range(8)]  # 8 MiB each
    before = resident()
    for cache in caches:
        cache[1, 0] = 1
    assert resident() - before < 4 << 20  # 8 * 4 pages, and what else the process does; large pages would take 16 MiB


@BLOCKS
@given(x=arrays(np.float32, (3, 2, 64), elements=st.floats(-3e4, 3e4, width=32)), small=st.integers(-30, 0))
def test_written_blocks_equal_the_reference_to_the_bit(name, x, small):
    x[np.abs(x) < 1e-9] = 0  # below 4e-37 the f16 scale is zero and codes may differ, though all decode to 0
    x *= np.float32(2.0**small)
    expected, got = cache_of(name, x), cache_of(name, x)
    write_numpy(expected, x)
    write(got, x)
    assert got.tobytes() == expected.tobytes()


@TYPES
def test_reading_returns_the_written_numbers_up_to_rounding(name):
    x = np.random.default_rng(0).standard_normal((5, 2, 64))
    cache = cache_of(name, x)
    write(cache, x.astype(np.float64 if name == "f64" else np.float32))
    largest = np.abs(x.reshape(-1, BLOCK)).max(axis=1).repeat(BLOCK).reshape(x.shape)
    steps = {"f16": 2**-11, "bf16": 2**-8, "f32": 2**-24, "f64": 0, "q8_0": 0.51 / 127}  # relative to the maximum
    steps |= {"q4_0": 1.01 / 8, "q5_0": 1.01 / 16, "q4_1": 1.01 / 15, "q5_1": 1.01 / 31, "iq4_nl": 0.2}
    # q4_0 and q5_0 clip the other sign at 7/8 and 15/16; from the least to the most is at most twice the maximum
    assert (np.abs(numbers(cache, np.float64) - x) <= steps[name] * largest).all()


def test_a_worked_example():
    x = np.zeros((1, 1, 32), np.float32)
    x[0, 0, :3] = 127, -1, 0.4  # the maximum is 127 steps of 1
    cache = cache_of("q8_0", x)
    write(cache, x)
    assert cache[0, 0, 0]["d"] == 1
    assert numbers(cache, np.float32)[0, 0, :4].tolist() == [127, -1, 0, 0]


@BLOCKS
def test_heads_that_do_not_fill_whole_blocks_are_refused(name):
    with pytest.raises(ValueError, match="blocks of 32 numbers cannot keep heads of 80"):
        n_kept(CACHE_TYPES[name], 80)
