"""Weights repacked for this machine's vectors, and products with them.

PRODUCTS    by GGMLType: the formats that have integer kernels of their own
pack        a Tensor's blocks in groups of 16 rows; made once and kept, see Tensor.form
matmul      x w^T on such a form
matmul_dequantized      the same for every other format, some rows at a time as F32
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ..quants import FORMATS, GGMLType
from ..rounding import round_activations
from ..tensor import Tensor
from ..threads import run
from . import arena, block32, codebook, floats, k
from .tiles import LANES, Packed


class Product(NamedTuple):
    """How a format is packed and multiplied.

    block           weights in a block of a row
    code_bytes, scale_bytes     of a block of 16 rows
    pack            (team, blocks u8 [...], Packed, its codes as i32)
    matmul          (team, rows f32 [...], codes, scales, n_tok, n_block, y f32 [...])
    """

    block: int
    code_bytes: int
    scale_bytes: int
    pack: Callable
    matmul: Callable


# fmt: off
PRODUCTS = {
    #                      block  codes scales
    GGMLType.Q4_0: Product(   32,   256,    32, block32.pack_q4_0, block32.matmul_q4_0),
    GGMLType.Q4_1: Product(   32,   256,    64, block32.pack_q4_1, block32.matmul_q4_1),
    GGMLType.Q5_0: Product(   32,   320,    32, block32.pack_q5_0, block32.matmul_q5_0),
    GGMLType.Q5_1: Product(   32,   320,    64, block32.pack_q5_1, block32.matmul_q5_1),
    GGMLType.Q8_0: Product(   32,   512,    32, block32.pack_q8_0, block32.matmul_q8_0),
    GGMLType.Q2_K: Product(  256,  1024,   320, k.pack_q2_k, k.matmul_q2_k),
    GGMLType.Q3_K: Product(  256,  1536,   288, k.pack_q3_k, k.matmul_q3_k),
    GGMLType.Q4_K: Product(  256,  2048,   320, k.pack_q4_k, k.matmul_q4_k),
    GGMLType.Q5_K: Product(  256,  2560,   320, k.pack_q5_k, k.matmul_q5_k),
    GGMLType.Q6_K: Product(  256,  3072,   288, k.pack_q6_k, k.matmul_q6_k),
    GGMLType.IQ4_NL: Product( 32,   256,    32, codebook.pack_iq4_nl, codebook.matmul_iq4_nl),
    GGMLType.IQ4_XS: Product(256,  2048,   160, codebook.pack_iq4_xs, codebook.matmul_iq4_xs),
    GGMLType.MXFP4: Product(  32,   256,    16, codebook.pack_mxfp4, codebook.matmul_mxfp4),
    GGMLType.F32:  Product(    1,    64,     0, floats.pack_32_bits, floats.matmul_f32),
    GGMLType.F16:  Product(    1,    32,     0, floats.pack_16_bits, floats.matmul_f16),
    GGMLType.BF16: Product(    1,    32,     0, floats.pack_16_bits, floats.matmul_bf16),
}
# fmt: on


ROWS = 256  # dequantized at a time
AT_ONCE = 8 << 20  # bytes packed before the file's are let go of


def pack(w: Tensor, zeros: Callable[[int], np.ndarray] = arena.zeros) -> Packed:
    """Tensor [n_out, n_in] of a format in PRODUCTS -> its groups, in memory that `zeros` gives

    Some groups at a time, so that little of it is in memory twice.
    """
    product = PRODUCTS[w.format.type]
    n_out, n_in = w.shape
    n_group, n_block = -(-n_out // 16), n_in // product.block
    n_code, n_scale = n_block * product.code_bytes, n_block * product.scale_bytes  # of a group
    form = Packed(zeros(n_group * n_code), zeros(n_group * n_scale), n_group, n_block)
    some = max(1, AT_ONCE // n_code)
    for g in range(0, n_group, some):
        rows, n = w.blocks[16 * g : 16 * (g + some)], min(some, n_group - g)
        blocks = np.ascontiguousarray(rows, w.format.layout).view(np.uint8).reshape(-1)
        blocks.flags.writeable = False  # as in a mapped file: one type, one compilation
        codes, scales = form.codes[g * n_code : (g + n) * n_code], form.scales[g * n_scale : (g + n) * n_scale]
        part = Packed(codes, scales, n, n_block)
        run(product.pack, 16 * n * n_in, blocks, part, codes.view(np.int32))
        arena.let_go(rows)
    return form


def matmul(w: Tensor, x: np.ndarray, form: Packed | None = None) -> np.ndarray:
    """x w^T with the activations rounded as ggml does.

    w Tensor [n_out, n_in], x f32 [n_tok, n_in] -> f32 [n_tok, n_out]; the format is in PRODUCTS
    """
    product, form = PRODUCTS[w.format.type], form or w.form(pack)
    n_tok, n_out = len(x), w.shape[0]
    y = np.empty((1 if n_tok == 1 else -(-n_tok // LANES) * LANES, 16 * form.n_group), np.float32)
    rows = np.ascontiguousarray(x, np.float32).reshape(-1)
    work = n_tok * w.n_elements
    run(product.matmul, work, rows, form.codes, form.scales, n_tok, form.n_block, y.reshape(-1))
    return y if y.shape == (n_tok, n_out) else np.ascontiguousarray(y[:n_tok, :n_out])


def matmul_dequantized(w: Tensor, x: np.ndarray) -> np.ndarray:
    """As `matmul`, for a format without an integer kernel: slow, as every call dequantizes all of `w`."""
    x = round_activations(x, w.format.dot_with)
    y = np.empty((len(x), len(w.blocks)), np.float32)
    for r in range(0, len(w.blocks), ROWS):
        rows = w.dequantize(np.arange(r, min(r + ROWS, len(w.blocks))))
        part = Tensor(w.name, FORMATS[GGMLType.F32], rows.shape, rows)
        y[:, r : r + ROWS] = matmul(part, x, pack(part, partial(np.zeros, dtype=np.uint8)))
    return y
