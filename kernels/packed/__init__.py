"""Weights repacked for this machine's vectors, and products with them.

PRODUCTS        by GGMLType: the formats that have kernels of their own
pack_weight     a Tensor's blocks in groups of 16 rows; made once and kept, see Tensor.form
matmul          x w^T on such a form
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
from . import arena, floats
from .formats import LAYOUTS
from .pack import pack_for
from .products import matmul_for
from .tiles import Packed, padded_tokens, words_of_block


class Product(NamedTuple):
    """A format's kernels, and the size of what they work on.

    code_bytes, scale_bytes     of a block of 16 rows
    token_words     i32 of memory for a token's block
    pack            (team, blocks u8 [...], codes, scales, codes as i32, n_group, n_block)
    matmul          (team, rows f32 [...], codes, scales, n_tok, n_block, memory i32 [...], y f32 [...]); memory and y
                    have room for padded_tokens(n_tok)
    """

    code_bytes: int
    scale_bytes: int
    token_words: int
    pack: Callable
    matmul: Callable


PRODUCTS = {
    GGMLType[format.__name__]: Product(
        layout.n_sub * layout.code_bytes,
        layout.n_sub * layout.scale_bytes,
        layout.n_sub * words_of_block(layout.parts),
        pack_for(format, layout.file_bytes),
        matmul_for(format, layout),
    )
    for format, layout in LAYOUTS.items()
} | {
    GGMLType[format.__name__]: Product(n, 0, 1, pack_for(format, n // 16), floats.matmul_for_numbers(format))
    for format, n in floats.CODE_BYTES.items()
}

ROWS = 256  # dequantized at a time
PACK_CHUNK_BYTES = 1 << 20  # packed before the pages of the file are released


def pack_weight(w: Tensor, zeros: Callable[[int], np.ndarray] = arena.zeros) -> Packed:
    """Pack a Tensor [n_out, n_in] of a format in PRODUCTS, into memory that `zeros` gives.

    A few groups at a time, so that few of its bytes are in memory twice.
    """
    product = PRODUCTS[w.format.type]
    n_out, n_in = w.shape
    n_group, n_block = -(-n_out // 16), n_in // w.format.block_size
    n_code, n_scale = n_block * product.code_bytes, n_block * product.scale_bytes  # of a group
    form = Packed(zeros(n_group * n_code), zeros(n_group * n_scale), n_group, n_block)
    chunk = max(1, PACK_CHUNK_BYTES // n_code)
    for g in range(0, n_group, chunk):
        rows, n = w.blocks[16 * g : 16 * (g + chunk)], min(chunk, n_group - g)
        blocks = np.ascontiguousarray(rows, w.format.layout).view(np.uint8).reshape(-1)
        blocks.flags.writeable = False  # as in a mapped file: one type, one compilation
        codes, scales = form.codes[g * n_code : (g + n) * n_code], form.scales[g * n_scale : (g + n) * n_scale]
        run(product.pack, 16 * n * n_in, blocks, codes, scales, codes.view(np.int32), n, n_block)
        # with the chunk before: reading a page maps those around it, too
        arena.release_pages(w.blocks[16 * max(0, g - chunk) : 16 * (g + chunk)])
    return form


def matmul(w: Tensor, x: np.ndarray, form: Packed | None = None) -> np.ndarray:
    """Compute x w^T with the activations rounded as ggml does.

    w Tensor [n_out, n_in], x f32 [n_tok, n_in] -> f32 [n_tok, n_out]; the format is in PRODUCTS
    """
    product, form = PRODUCTS[w.format.type], form or w.form(pack_weight)
    n_tok, n_out = len(x), w.shape[0]
    n = padded_tokens(n_tok)
    memory, y = np.empty(n * product.token_words * form.n_block, np.int32), np.empty((n, 16 * form.n_group), np.float32)
    rows = np.ascontiguousarray(x, np.float32).reshape(-1)
    sizes = n_tok, form.n_block
    run(product.matmul, n_tok * w.n_elements, rows, form.codes, form.scales, *sizes, memory, y.reshape(-1))
    return y if y.shape == (n_tok, n_out) else np.ascontiguousarray(y[:n_tok, :n_out])


def matmul_dequantized(w: Tensor, x: np.ndarray) -> np.ndarray:
    """As `matmul`, for a format without a kernel of its own: slow, as every call dequantizes all of `w`."""
    x = round_activations(x, w.format.dot_with)
    y = np.empty((len(x), len(w.blocks)), np.float32)
    for r in range(0, len(w.blocks), ROWS):
        rows = w.dequantize(np.arange(r, min(r + ROWS, len(w.blocks))))
        part = Tensor(w.name, FORMATS[GGMLType.F32], rows.shape, rows)
        y[:, r : r + ROWS] = matmul(part, x, pack_weight(part, partial(np.zeros, dtype=np.uint8)))
    return y
