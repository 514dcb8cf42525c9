"""Kernels that index by what a caller computed check it once, and name what was found and expected."""

import numpy as np
import pytest

from numllama.kernels import SETS, Attention, Rope, Tensor
from numllama.kernels.kv import CACHE_TYPES, new_cache, write
from numllama.kernels.quants import FORMATS_BY_NAME, quantize
from numllama.kernels.select import descending, descending_numpy

SETS_WITH_COMPILED_CODE = [name for name in ("exact", "ggml", "numba") if name in SETS]
RULE = Attention(0.25)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def ids(*values):
    return np.array(values, np.int32)


def weight(*shape):
    return Tensor("w", FORMATS_BY_NAME["F32"], shape, quantize(FORMATS_BY_NAME["F32"], zeros(*shape)))


REFUSED = {  # operation, arguments, error
    "a row at the end": ("rows", (weight(40, 64), ids(3, 40)), "rows 3 to 40 of 'w', expected 0 to 39"),
    "a row before the first": ("rows", (weight(40, 64), ids(-1)), "rows -1 to -1 of 'w', expected 0 to 39"),
    "a narrow input": ("matmul", (weight(48, 64), zeros(5, 32)), r"x has shape \(5, 32\) and 'w' \(48, 64\), expected"),
    "an expert at the end": ("experts", (weight(4, 48, 64), zeros(2, 64), ids(0, 4)), "expert 0 to 4 of 'w', exp"),
    "a negative expert": (
        "experts",
        (weight(4, 48, 64), zeros(1, 64), ids(-1)),
        "expert -1 to -1 of 'w', expected 0 to 3",
    ),
    "too few experts": ("experts", (weight(4, 48, 64), zeros(3, 64), ids(0)), "1 experts are chosen, expected one for"),
    "more queries than keys": (
        "attention",
        (zeros(3, 4, 16), zeros(8, 2, 16), zeros(8, 2, 16), 6, RULE),
        "at positions 6 to 8",
    ),
    "a negative position": (
        "attention",
        (zeros(3, 4, 16), zeros(8, 2, 16), zeros(8, 2, 16), -1, RULE),
        "-1 to 1, expected 0",
    ),
    "fewer values": (
        "attention",
        (zeros(3, 4, 16), zeros(8, 2, 16), zeros(7, 2, 16), 5, RULE),
        "as many keys as values",
    ),
    "narrow keys": ("attention", (zeros(3, 4, 16), zeros(8, 2, 8), zeros(8, 2, 8), 5, RULE), "in heads of one size"),
    "heads that do not share": (
        "attention",
        (zeros(3, 4, 16), zeros(8, 3, 16), zeros(8, 3, 16), 5, RULE),
        r"q \(3, 4, 16\)",
    ),
    "few slopes": (
        "attention",
        (zeros(3, 4, 16), zeros(8, 2, 16), zeros(8, 2, 16), 5, Attention(0.25, slopes=zeros(3))),
        "3 slopes and 4 sinks",
    ),
    "few sinks": (
        "attention",
        (zeros(3, 4, 16), zeros(8, 2, 16), zeros(8, 2, 16), 5, Attention(0.25, sinks=zeros(3))),
        "4 slopes and 3 sinks",
    ),
}
REFUSED_BY_NUMBA = {
    "more positions": ("rope", (zeros(2, 4, 16), ids(0, 1, 2), Rope("norm", 16)), "one token for each of 3 positions"),
    "no tokens": ("rope", (zeros(0, 4, 16), ids(-1, -1), Rope("norm", 16)), "one token for each of 2 positions"),
    "small heads": ("rope", (zeros(2, 4, 8), ids(0, 1), Rope("norm", 16)), "heads of 16 numbers or more"),
    "a short norm": (
        "rms_norm",
        (zeros(5, 64), zeros(32), 1e-5),
        r"a weight of shape \(32,\), expected one number for",
    ),
    "a long norm": (
        "rms_norm",
        (zeros(5, 64), zeros(128), 1e-5),
        r"a weight of shape \(128,\), expected one number for",
    ),
    "a short bias": ("layer_norm", (zeros(5, 64), zeros(64), zeros(32), 1e-5), r"a weight of shape \(32,\), expected"),
    "a narrow gate": ("silu_mul", (zeros(5, 32), zeros(5, 64)), r"gate has shape \(5, 32\) and up \(5, 64\)"),
    "a narrow up": ("gelu_mul", (zeros(5, 64), zeros(5, 32)), r"gate has shape \(5, 64\) and up \(5, 32\)"),
    "a grey image": (
        "resize",
        (np.zeros((4, 4, 1), np.uint8), 8, 8),
        r"uint8 \(4, 4, 1\) to resize to 8 x 8, expected",
    ),
    "no width": ("resize", (np.zeros((4, 4, 3), np.uint8), 0, 8), r"uint8 \(4, 4, 3\) to resize to 0 x 8, expected"),
}


@pytest.mark.parametrize("name", SETS_WITH_COMPILED_CODE)
@pytest.mark.parametrize("case", REFUSED)
def test_a_kernel_refuses_what_would_index_outside_its_arrays(case, name):
    operation, arguments, message = REFUSED[case]
    with pytest.raises((ValueError, IndexError), match=message):
        getattr(SETS[name], operation)(*arguments)


@pytest.mark.skipif("numba" not in SETS, reason="nothing is compiled")
@pytest.mark.parametrize("case", REFUSED_BY_NUMBA)
def test_a_compiled_kernel_refuses_what_would_index_outside_its_arrays(case):
    operation, arguments, message = REFUSED_BY_NUMBA[case]
    with pytest.raises((ValueError, IndexError), match=message):
        getattr(SETS["numba"], operation)(*arguments)


@pytest.mark.parametrize("largest", [descending, descending_numpy])
@pytest.mark.parametrize("k", [0, -1, 6])
def test_the_k_largest_of_five_are_one_to_five(largest, k):
    with pytest.raises(ValueError, match=rf"the {k} largest of an array of shape \(5,\), expected 1 to all"):
        largest(zeros(5), k)


@pytest.mark.parametrize("type", CACHE_TYPES)
@pytest.mark.parametrize("shape", [(4, 2, 64), (3, 3, 64), (3, 2, 32), (3, 2, 96)])
def test_a_cache_refuses_other_shapes_than_its_own(type, shape):
    cache = new_cache(1, 8, 2, 64, CACHE_TYPES[type])[0, :3]
    with pytest.raises(ValueError, match=r"x has shape .*, expected the cache's, \(3, 2, 64\)"):
        write(cache, zeros(*shape))
