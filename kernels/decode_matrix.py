"""A matrix as a record, and the product with it, for kernels that run whole layers.

    PRODUCT     a packed weight, and the kernel that multiplies with it
    MATRIX      the same with a bias and the terms that adapters add (engine/model/lora.py)
    TERM        scale * b a, two thin weights

Arrays are stored as addresses, 0 for one that the file lacks.  engine/model/linear.py defines the computation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import from_dtype, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from . import packed
from .jit import Entry, inner
from .packed.tiles import in_whole_tiles
from .tensor import Tensor
from .threads import MIN_PARALLEL_WORK


def record_fields(*names: str, kind: Any = np.int64) -> list[tuple[str, Any]]:
    """Return (name, type) pairs for a NumPy record type."""
    return [(name, kind) for name in names]


PRODUCT = np.dtype(
    record_fields("matmul", "codes", "n_code", "scales", "n_scale", "n_block", "n_row", "n_out", "n_word", "work")
)
TERM = np.dtype([*record_fields("a", "b", kind=PRODUCT), ("scale", np.float64)])
MATRIX = np.dtype([("weight", PRODUCT), *record_fields("bias", "terms", "n_term")])

BYTES, I32, I64 = (types.Array(kind, 1, "C") for kind in (types.uint8, types.int32, types.int64))
F32, INT = types.Array(types.float32, 1, "C"), types.int64
TERMS = types.Array(from_dtype(TERM), 1, "C")

MATMULS = {
    type: Entry(product.matmul, I64, F32, BYTES, BYTES, INT, INT, I32, F32) for type, product in packed.PRODUCTS.items()
}
call_matmul = next(iter(MATMULS.values())).call

# --- Python side


def has_kernel(w: Tensor) -> bool:
    """Check whether `w`, and what adapters add to it, can be multiplied by compiled code."""
    return all(part.format.type in MATMULS for term in w.low_rank for part in (term.a, term.b)) and (
        w.format.type in MATMULS
    )


def count_weights(w: Tensor) -> int:
    """Count the weights of a matrix, or of one matrix of a stack, with those of adapters."""
    parts = [w, *(part for term in w.low_rank for part in (term.a, term.b))]
    return sum(part.shape[-2] * part.shape[-1] for part in parts)


def matrix_record(w: Tensor, bias: np.ndarray | None, referenced: list[Any]) -> tuple[Any, ...]:
    """Return the MATRIX record of `w` and its bias; append arrays that it refers to to `referenced`."""
    terms = np.zeros(len(w.low_rank), TERM)
    for i, term in enumerate(w.low_rank):
        terms[i] = product_record(term.a, referenced), product_record(term.b, referenced), term.scale
    referenced.append(terms)
    return product_record(w, referenced), address_of(bias, referenced), terms.ctypes.data, len(terms)


def product_record(w: Tensor, referenced: list[Any]) -> tuple[int, ...]:
    """Return the PRODUCT record of `w`, packed."""
    product, form = packed.PRODUCTS[w.format.type], w.form(packed.pack_weight)
    referenced.append(form)
    codes, scales = (a.ctypes.data for a in (form.codes, form.scales))
    sizes = form.n_block, 16 * form.n_group, w.shape[0], form.n_block * product.token_words, w.n_elements
    return MATMULS[w.format.type].address, codes, form.codes.size, scales, form.scales.size, *sizes


def address_of(a: np.ndarray | None, referenced: list[Any]) -> int:
    """Return the address of `a` as f32, 0 for None."""
    if a is None:
        return 0
    referenced.append(a := np.ascontiguousarray(a, np.float32))
    return a.ctypes.data


# --- compiled side


@intrinsic
def array_at(typing, kind, address, n):
    """Return the array of type `kind` with n elements at `address`."""
    kind = kind.instance_type

    def generate(context, builder, sig, args):
        array = context.make_array(kind)(context, builder)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        data = builder.inttoptr(args[1], array.data.type)
        populate_array(array, data=data, shape=(args[2],), strides=(itemsize,), itemsize=itemsize, meminfo=None)
        return array._getvalue()

    return kind(types.TypeRef(kind), types.int64, types.int64), generate


@inner
def multiply(team, one_thread, w, x, n_tok, memory, y):
    """Compute x w^T with the terms of adapters and the bias.

    x f32 [n_tok * n_in], w a MATRIX -> the first n_tok * n_out numbers of `y`
    memory      i32 [tile_size], for x in tiles
    y           f32 [product_size]
    """
    multiply_weight(team, one_thread, w.weight, x, n_tok, memory, y)
    if w.n_term > 0:
        _add_terms(team, one_thread, array_at(TERMS, w.terms, w.n_term), x, n_tok, y)
    if w.bias != 0:
        n_out = w.weight.n_out
        bias = array_at(F32, w.bias, n_out)
        for t in range(n_tok):
            for i in range(n_out):
                y[t * n_out + i] += bias[i]


@inner
def product_size(w, n_tok):
    """Return how many numbers a product writes: rows in whole groups, of tokens in whole tiles.  w PRODUCT"""
    return in_whole_tiles(n_tok) * w.n_row


@inner
def tile_size(w, n_tok):
    """Return how many i32 of memory a product needs for its activations.  w PRODUCT"""
    return in_whole_tiles(n_tok) * w.n_word


@inner
def multiply_weight(team, one_thread, w, x, n_tok, memory, y):
    """Compute x w^T into the first n_tok * n_out numbers of `y`.  w PRODUCT"""
    codes, scales = array_at(BYTES, w.codes, w.n_code), array_at(BYTES, w.scales, w.n_scale)
    chosen = team if n_tok * w.work >= MIN_PARALLEL_WORK else one_thread
    call_matmul(w.matmul, (chosen, x, codes, scales, n_tok, w.n_block, memory, y))
    if w.n_row != w.n_out:
        for t in range(1, n_tok):
            for i in range(w.n_out):
                y[t * w.n_out + i] = y[t * w.n_row + i]


@inner(makes_arrays=True)
def _add_terms(team, one_thread, terms, x, n_tok, y):
    """Add the products with adapters to the n_tok rows of `y`."""
    for i in range(terms.size):
        a, b, scale = terms[i].a, terms[i].b, np.float32(terms[i].scale)
        memory = np.empty(max(tile_size(a, n_tok), tile_size(b, n_tok)), np.int32)
        thin, more = np.empty(product_size(a, n_tok), np.float32), np.empty(product_size(b, n_tok), np.float32)
        multiply_weight(team, one_thread, a, x, n_tok, memory, thin)
        multiply_weight(team, one_thread, b, thin, n_tok, memory, more)
        for j in range(n_tok * b.n_out):
            y[j] += scale * more[j]


@inner(makes_arrays=True)
def new_product(team, one_thread, w, x, n_tok):
    """Compute `multiply` into a new array.  -> f32 [n_tok * n_out]"""
    memory, y = np.empty(tile_size(w.weight, n_tok), np.int32), np.empty(product_size(w.weight, n_tok), np.float32)
    multiply(team, one_thread, w, x, n_tok, memory, y)
    return y[: n_tok * w.weight.n_out]
