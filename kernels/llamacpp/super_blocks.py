"""Products with super-blocks of 256 weights, in the order of llama.cpp's vector code.

weights                   llama.cpp's code                          sum
Q4_K, 8 n rows            repack.cpp, 8x8, 4 tokens or more         64 codes, scaled, one after the other
Q4_K, 8 n rows            the same, a token alone                   256 codes, scaled, one after the other
Q3_K Q4_K Q5_K Q6_K       tiled.cpp, 8 tokens or more               256 codes, scaled by d, less minima, then scaled
Q3_K Q4_K Q5_K Q6_K       ggml_vec_dot_*_q8_K                       8 lanes of 4 codes in 32, scaled by super-block

Integers are exact, so only the float32 sums over super-blocks have an order.  Minima have a sum of their own.
"""

from typing import NamedTuple

import numpy as np

from ..jit import inner, kernel
from ..quants.bits import unpack
from ..quants.k import unpack_scales_and_mins
from ..rounding import quantize_activations
from .fused import fma32

TOGETHER = 4  # tokens that the repacked product takes at a time
TILED = 8  # tokens, at least, of a tiled product
OFFSET = {"Q6_K": 32}  # subtracted from codes by the sums of activations


class SuperBlocks(NamedTuple):
    """Rows of weights as integers and scales.

    codes    i8 [n, n_in]
    scales   i32 [n, n_in / 256, 16]: of each 16 codes
    mins     i32 [n, n_in / 256, 8], of each 32 codes
    d, dmin  f32 [n, n_in / 256]
    """

    codes: np.ndarray
    scales: np.ndarray
    mins: np.ndarray
    d: np.ndarray
    dmin: np.ndarray


def split_rows_of_blocks(blocks, name):
    """Split blocks [n, n_in / 256] into integers and scales.  -> SuperBlocks"""
    n, flat = len(blocks), blocks.reshape(-1)
    mins, dmin = np.zeros((len(flat), 8), np.int32), np.zeros(len(flat), np.float32)
    if name in ("Q4_K", "Q5_K"):
        scales, mins = unpack_scales_and_mins(flat["scales"])
        scales, dmin = np.repeat(scales, 2, axis=1), flat["dmin"].astype(np.float32)
        codes = unpack(flat["qs"], bits=4, run=32)
        codes = codes if name == "Q4_K" else codes | unpack(flat["qh"], bits=1, run=32) << 4
    elif name == "Q6_K":
        scales = flat["scales"]
        codes = unpack(flat["ql"], bits=4, run=64) | unpack(flat["qh"], bits=2, run=32) << 4
    else:
        packed = flat["scales"]
        scales = (unpack(packed[:, :8], bits=4, run=8) | unpack(packed[:, 8:], bits=2, run=4) << 4).astype(
            np.int32
        ) - 32
        codes = unpack(flat["qs"], bits=2, run=32) | unpack(flat["hmask"], bits=1, run=32) << 2
        codes = codes.astype(np.int8) - 4
    return SuperBlocks(
        codes.astype(np.int8).reshape(n, -1),
        scales.astype(np.int32).reshape(n, -1, 16),
        mins.astype(np.int32).reshape(n, -1, 8),
        flat["d"].astype(np.float32).reshape(n, -1),
        dmin.reshape(n, -1),
    )


def matmul_super_blocks(w, x, together, tile):
    """Compute x w^T for Q3_K, Q4_K, Q5_K or Q6_K; `together`: not as rows of an expert, which are repacked one by one.

    w Tensor [n_out, n_in], x f32 [n_tok, n_in] -> f32 [n_tok, n_out]
    """
    name, (n_tok, n_out) = w.format.name, (len(x), w.shape[0])
    activations = quantize_activations(x, "Q8_K")
    d = activations["d"].astype(np.float32)
    codes = np.ascontiguousarray(activations["qs"]).reshape(n_tok, -1)
    sums = np.ascontiguousarray(activations["bsums"]).astype(np.int32)
    y = np.empty((n_tok, n_out), np.float32)
    repacked = name == "Q4_K" and n_out % 8 == 0
    for r in range(0, n_out, tile):
        rows = split_rows_of_blocks(w.blocks[r : r + tile], name)
        if repacked:
            _dot_repacked(*rows, codes, sums, d, n_tok // TOGETHER * TOGETHER if together else 0, y[:, r : r + tile])
        elif n_tok >= TILED:
            _dot_tiled(*rows, codes, sums, d, OFFSET.get(name, 0), y[:, r : r + tile])
        else:
            _dot_rows_of_blocks(*rows, codes, sums, d, OFFSET.get(name, 0), name == "Q4_K", y[:, r : r + tile])
    return y


@inner
def scaled_sum(w, scales, x, begin, end):
    """Sum scale * code * code exactly over codes begin .. end - 1 of a super-block, in groups of 16.  -> i32"""
    total = np.int32(0)
    for group in range(begin // 16, end // 16):
        s = np.int32(0)
        for i in range(16 * group, 16 * group + 16):
            s += np.int32(w[i]) * np.int32(x[i])
        total += scales[group] * s
    return total


@kernel
def _dot_repacked(w, scales, mins, d, dmin, x, sums, x_d, n_together, y):
    """Compute y[t, r] as the repacked products do: tokens before n_together by four, the others alone."""
    for t in range(len(x)):
        n_part = 4 if t < n_together else 1
        size = 256 // n_part
        for r in range(len(w)):
            total, minimum = np.float32(0), np.float32(0)
            for b in range(d.shape[1]):
                scale, least = d[r, b] * x_d[t, b], dmin[r, b] * x_d[t, b]
                codes, activations = w[r, 256 * b : 256 * b + 256], x[t, 256 * b : 256 * b + 256]
                for part in range(n_part):
                    s = scaled_sum(codes, scales[r, b], activations, part * size, part * size + size)
                    total = fma32(np.float32(s), scale, total)
                    m = np.int32(0)
                    for group in range(part * size // 32, (part + 1) * size // 32):
                        m += mins[r, b, group] * (sums[t, b, 2 * group] + sums[t, b, 2 * group + 1])
                    minimum = fma32(np.float32(m), least, minimum)
            y[t, r] = total - minimum


@kernel
def _dot_tiled(w, scales, mins, d, dmin, x, sums, x_d, offset, y):
    """Compute y[t, r] as tiled-kernel.cpp does: integers for a whole super-block.

    offset   subtracted from each code
    """
    for t in range(len(x)):
        for r in range(len(w)):
            total = np.float32(0)
            for b in range(d.shape[1]):
                codes, activations = w[r, 256 * b : 256 * b + 256], x[t, 256 * b : 256 * b + 256]
                s, m = scaled_sum(codes, scales[r, b], activations, 0, 256), np.int32(0)
                for group in range(16):
                    s -= np.int32(offset) * scales[r, b, group] * sums[t, b, group]
                    m += mins[r, b, group // 2] * sums[t, b, group]
                product = fma32(-dmin[r, b], np.float32(m), np.float32(s) * d[r, b])
                total = fma32(product, x_d[t, b], total)
            y[t, r] = total


@kernel(makes_arrays=True)
def _dot_rows_of_blocks(w, scales, mins, d, dmin, x, sums, x_d, offset, in_lanes, y):
    """Compute y[t, r] as ggml_vec_dot_*_q8_K do with AVX2.

    offset     subtracted from each code
    in_lanes   minima have four sums, else one
    """
    lanes, least = np.empty(8, np.float32), np.empty(4, np.float32)
    whole = np.empty(8, np.int32)
    for t in range(len(x)):
        for r in range(len(w)):
            lanes[:], least[:] = np.float32(0), np.float32(0)
            minimum = np.float32(0)
            for b in range(d.shape[1]):
                for j in range(8):
                    whole[j] = np.int32(0)
                    if offset:
                        s = sums[t, b, 2 * j] * scales[r, b, 2 * j] + sums[t, b, 2 * j + 1] * scales[r, b, 2 * j + 1]
                        whole[j] -= np.int32(offset) * s
                    for chunk in range(8):
                        at, s = 256 * b + 32 * chunk + 4 * j, np.int32(0)
                        for i in range(at, at + 4):
                            s += np.int32(w[r, i]) * np.int32(x[t, i])
                        whole[j] += scales[r, b, 2 * chunk + j // 4] * s
                scale, negative = x_d[t, b] * d[r, b], -x_d[t, b] * dmin[r, b]
                for j in range(8):
                    lanes[j] = fma32(scale, np.float32(whole[j]), lanes[j])
                total = np.int32(0)
                for j in range(4):
                    m = np.int32(0)
                    for group in range(2 * j, 2 * j + 2):
                        m += mins[r, b, group] * (sums[t, b, 2 * group] + sums[t, b, 2 * group + 1])
                    if in_lanes:
                        least[j] = fma32(negative, np.float32(m), least[j])
                    total += m
                minimum = fma32(negative, np.float32(total), minimum)
            s0, s1 = lanes[0] + lanes[4], lanes[1] + lanes[5]
            s2, s3 = lanes[2] + lanes[6], lanes[3] + lanes[7]
            y[t, r] = (s0 + s2) + (s1 + s3)
            if in_lanes:
                y[t, r] += (least[0] + least[2]) + (least[1] + least[3])
            else:
                y[t, r] += minimum
