"""From pixels to patch embeddings: resizing as in Pillow, and CLIP's first layer.

An image is u8 [height, width, 3], red green blue.

         width 6, patch 2          row 0 of `patches`: the 4 red, 4 green, 4 blue values of patch 0,
      +----+----+----+             each colour row by row
      | 0  | 1  | 2  |
      +----+----+----+
      | 3  | 4  | 5  |
      +----+----+----+
"""

import numpy as np

from .jit import inner, kernel
from .matmul import matmul_ggml, matmul_numba, matmul_numpy
from .quants import FORMATS_BY_NAME
from .tensor import Tensor
from .threads import parallel_for, run

# --- resizing: first every row to the new width, then every column to the new height
#
# An output pixel is a weighted mean of the input pixels around its position.  Weights are integers, so every machine
# gets the same bytes.  Source: Pillow's Resample.c; llama.cpp 0c1e57098 mtmd-image.cpp computes the same.

BITS = 22  # a weight w is stored as round(w * 2^22): with a pixel's 8 bits and 2 spare bits it fits into 32
HALF = np.int32(1 << (BITS - 1))


def bicubic(x):
    """Compute Keys' cubic with a = -0.5, the weight of a pixel at distance `x`; 0 from 2 on.  float [...] -> as x"""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def taps(n_in, n_out):
    """Return which of `n_in` pixels form each of `n_out`.  -> first i64 [n_out], weights i32 [n_out, n_tap]

    Output pixel o is the sum over t of weights[o, t] * input pixel first[o] + t.  When an image shrinks, the cubic is
    stretched by n_in / n_out, so that each mean covers more pixels.
    """
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    center = (np.arange(n_out) + 0.5) * scale
    first = np.maximum(center - 2 * stretch + 0.5, 0).astype(np.int64)
    end = np.minimum((center + 2 * stretch + 0.5).astype(np.int64), n_in)
    at = first[:, None] + np.arange((end - first).max())
    weights = np.where(at < end[:, None], bicubic((at - center[:, None] + 0.5) * (1 / stretch)), 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds in order, as C does
    return first, np.trunc(weights * (1 << BITS) + np.copysign(0.5, weights)).astype(np.int32)


def resize_numpy(image, width, height):
    """Resize `image`, byte for byte as Pillow's BICUBIC, along the rows first.

    u8 [h, w, 3] -> u8 [height, width, 3]
    Pillow 12 and later begin with the columns if that is less work; the rounding then differs.
    """
    return resample_numpy(resample_numpy(image, 1, width), 0, height)


def resample_numpy(image, axis, n):
    """Resample `image` to `n` pixels along `axis`, 0 or 1.  u8 [h, w, 3] -> u8 [h, w, 3], with one of h and w now n"""
    if image.shape[axis] == n:
        return image
    first, weights = taps(image.shape[axis], n)
    lines = image.swapaxes(0, axis)
    total = np.full((n, *lines.shape[1:]), HALF)
    for t in range(weights.shape[1]):
        place = np.minimum(first + t, len(lines) - 1)  # the weight of a pixel past the end is 0
        total += lines[place].astype(np.int32) * weights[:, t, None, None]
    return np.clip(total >> BITS, 0, 255).astype(np.uint8).swapaxes(0, axis)


def resize_numba(image, width, height):
    """Compute resize_numpy in compiled code.  u8 [h, w, 3] -> u8 [height, width, 3]

    Raises: ValueError for an image of another kind, or an empty one
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(*image.shape, width, height) < 1:
        found = f"found {image.dtype} {image.shape} to resize to {width} x {height}"
        raise ValueError(f"{found}, expected u8 [h, w, 3] and sizes from 1")
    h, w, _ = image.shape
    rows = _resampled(np.ascontiguousarray(image), h, w, 3, width).reshape(h, width, 3)
    return _resampled(rows, 1, h, 3 * width, height).reshape(height, width, 3)


def _resampled(image, n_outer, n_in, n_inner, n_out):
    """Resample the middle axis.  [n_outer, n_in, n_inner] -> [n_outer, n_out, n_inner]"""
    if n_in == n_out:
        return image
    first, weights = taps(n_in, n_out)
    y = np.empty(n_outer * n_out * n_inner, np.uint8)
    run(_resample, y.size * weights.shape[1], image.reshape(-1), n_in, n_inner, first, weights, y)
    return y


@kernel
def _resample(team, image, n_in, n_inner, first, weights, y):
    parallel_for(team, _resample_lines, (image, n_in, n_inner, first, weights, y), y.size // n_inner)


@inner(makes_arrays=True)
def _resample_lines(image, n_in, n_inner, first, weights, y, begun, ended):
    n_out, n_tap = weights.shape
    total = np.empty(n_inner, np.int32)
    for line in range(begun, ended):
        o, base = line % n_out, line // n_out * n_in
        total[:] = HALF
        for t in range(min(n_tap, n_in - first[o])):
            start = (base + first[o] + t) * n_inner
            pixels, weight = image[start : start + n_inner], weights[o, t]
            for i in range(n_inner):
                total[i] += np.int32(pixels[i]) * weight
        out = y[line * n_inner : (line + 1) * n_inner]
        for i in range(n_inner):
            out[i] = min(max(total[i] >> BITS, 0), 255)


# --- patch embedding: a convolution without overlapping windows, hence a matrix product


def patches(image, size, mean, std, dtype=np.float32):
    """Cut `image` into squares, each a row of numbers (pixel / 255 - mean) / std.

    image u8 [h, w, 3], both multiples of size; mean and std f32 [3] -> dtype [h / size * w / size, 3 * size * size]
    """
    h, w, _ = image.shape
    x = (image.astype(dtype) / dtype(255) - mean.astype(dtype)) / std.astype(dtype)
    squares = x.reshape(h // size, size, w // size, size, 3).transpose(0, 2, 4, 1, 3)  # [down, across, colour, y, x]
    return squares.reshape(-1, 3 * size * size)


def patch_embd_numpy(w, image, mean, std, dtype=np.float32):
    """Multiply each normalized square of `image` by the weight; left to right, top to bottom.

    w Tensor [n_embd, 3, size, size], image u8 [h, w, 3], mean and std f32 [3] -> dtype [n_patch, n_embd]
    Source: Dosovitskiy et al. 2020, arXiv:2010.11929.
    """
    return matmul_numpy(as_matrix(w), patches(image, w.shape[-1], mean, std, dtype))


def patch_embd_ggml(w, image, mean, std):
    """Compute patch_embd_numpy with both operands rounded to f16 as in ggml_conv_2d, even if the weight is F32.

    w Tensor [n_embd, 3, size, size], image u8 [h, w, 3], mean and std f32 [3] -> f32 [n_patch, n_embd]
    Source: ggml.c ggml_conv_2d, llama.cpp 0c1e57098.
    """
    return matmul_ggml(w.form(as_half_matrix), patches(image, w.shape[-1], mean, std))


def patch_embd_numba(w, image, mean, std):
    """Compute patch_embd_ggml with matmul_numba.

    w Tensor [n_embd, 3, size, size], image u8 [h, w, 3], mean and std f32 [3] -> f32 [n_patch, n_embd]
    """
    return matmul_numba(w.form(as_half_matrix), patches(image, w.shape[-1], mean, std))


def as_matrix(w):
    """Reshape the weight of a convolution to [n_out, product of the other axes]."""
    return Tensor(w.name, w.format, (w.shape[0], w.n_elements // w.shape[0]), w.blocks.reshape(w.shape[0], -1))


def as_half_matrix(w):
    """Reshape as as_matrix, and convert F32 to F16."""
    if w.format.name != "F32":
        return as_matrix(w)
    format = FORMATS_BY_NAME["F16"]
    half = w.dequantize().reshape(w.shape[0], -1).astype(format.layout)
    return Tensor(w.name, format, half.shape, half)


# --- depthwise convolution, used by MobileVLM's projectors


def depthwise_numpy(x, weight, stride=1):
    """Convolve each channel of `x` with its own 3 x 3 window, with zeros around the edge.

    x float [h, w, n], weight f32 [n, 3, 3] -> as x [h / stride, w / stride, n], rounded up
    Source: Howard et al. 2017, arXiv:1704.04861.
    """
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    weight = weight.astype(x.dtype, copy=False)
    y = np.zeros_like(x[::stride, ::stride])
    for i in range(3):
        for j in range(3):
            y += padded[i : i + h : stride, j : j + w : stride] * weight[:, i, j]
    return y


def depthwise_ggml(x, weight, stride=1):
    """Compute depthwise_numpy with both operands rounded to f16.  Source: ggml.c ggml_conv_2d_dw, llama.cpp 0c1e57098.

    x f32 [h, w, n], weight f32 [n, 3, 3] -> f32 [h / stride, w / stride, n]
    """
    return depthwise_numpy(*(a.astype(np.float16).astype(np.float32) for a in (x, weight)), stride)
