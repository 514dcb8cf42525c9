"""The operations of the forward pass: arrays in, arrays out.  A NumPy reference and a faster version in the same file.

Kernels     a record of functions, one per operation of the forward pass
NUMPY       the definition, in float32;  numpy_kernels(np.float64) is the same in float64
EXACT       the same values at real model sizes: weights dequantized tile by tile, sums independent of the batch
GGML        activations rounded as in ggml's CPU code: explains llama.cpp's numbers
LLAMACPP    llama.cpp's default computation on a CPU with AVX-512: flash attention, and its order of sums
LLAMACPP_AVX2   the same with AVX2, as published builds have it
NUMBA       the values of GGML up to the order of float32 sums, at speed: the set used for serving
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numba import config

from .activation import (
    gelu_erf_numba,
    gelu_erf_numpy,
    gelu_ggml,
    gelu_mul_ggml,
    gelu_mul_numba,
    gelu_mul_numpy,
    gelu_numba,
    gelu_numpy,
    quick_gelu_ggml,
    quick_gelu_numba,
    quick_gelu_numpy,
    silu_mul_numba,
    silu_mul_numpy,
    softmax_numba,
    softmax_numpy,
)
from .attention import Attention, attention_exact, attention_ggml, attention_numba, attention_numpy
from .decode_layer import layers_numba
from .experts import experts_exact, experts_ggml, experts_numba, experts_numpy
from .image import (
    depthwise_ggml,
    depthwise_numpy,
    patch_embd_ggml,
    patch_embd_numba,
    patch_embd_numpy,
    resize_numba,
    resize_numpy,
)
from .llamacpp.flash import attention_llamacpp
from .llamacpp.sums import (
    AVX2,
    experts_llamacpp,
    matmul_llamacpp,
    rope_llamacpp,
    silu_mul_llamacpp,
    softmax_llamacpp,
)
from .matmul import matmul_exact, matmul_ggml, matmul_numba, matmul_numpy
from .norm import layer_norm_ggml, layer_norm_numba, layer_norm_numpy, rms_norm_ggml, rms_norm_numba, rms_norm_numpy
from .rope import Rope, rope_ggml, rope_numba, rope_numpy, yarn_ramp, yarn_stretch
from .rows import rows_numba, rows_numpy
from .tensor import LowRank, Tensor

__all__ = [
    "EXACT",
    "GGML",
    "LLAMACPP",
    "LLAMACPP_AVX2",
    "NUMBA",
    "NUMPY",
    "SETS",
    "Attention",
    "Kernels",
    "LowRank",
    "Rope",
    "Tensor",
    "numpy_kernels",
    "yarn_ramp",
    "yarn_stretch",
]


@dataclass(frozen=True)
class Kernels:
    """One implementation of every operation.

    rows       (w, ids) -> x [n_tok, n_embd]
    matmul     (w, x) -> x w^T [n_tok, n_out]
    experts    (w, x, chosen) -> [n, n_out]: each row of x times the matrix w[chosen] of its own expert
    rms_norm   (x, weight, eps) -> as x
    layer_norm (x, weight, bias, eps) -> as x
    rope       (x [n_tok, n_head, n_head_dim], positions, rope) -> as x
    attention  (q, k, v, first, rule: Attention, tap) -> [n_tok, n_head * n_head_dim]
    softmax    (x) -> as x
    silu_mul   (gate, up) -> as gate; gelu_mul likewise
    gelu       (x) -> as x; gelu_erf and quick_gelu likewise
    resize     (image u8 [h, w, 3], width, height) -> u8 [height, width, 3]
    patch_embd (w, image u8 [h, w, 3], mean, std) -> x [n_patch, n_embd]
    depthwise  (x [h, w, n], weight [n, 3, 3], stride) -> [h / stride, w / stride, n]
    layers     (layers, x, places) -> x: whole layers for one token of each sequence (decode_layer.py), or None
    inside     names of the values within attention that are passed to `tap`, for traces
    """

    name: str
    rows: Callable[..., np.ndarray]
    matmul: Callable[..., np.ndarray]
    experts: Callable[..., np.ndarray]
    rms_norm: Callable[..., np.ndarray]
    layer_norm: Callable[..., np.ndarray]
    rope: Callable[..., np.ndarray]
    attention: Callable[..., np.ndarray]
    softmax: Callable[..., np.ndarray]
    silu_mul: Callable[..., np.ndarray]
    gelu_mul: Callable[..., np.ndarray]
    gelu: Callable[..., np.ndarray]
    gelu_erf: Callable[..., np.ndarray]
    quick_gelu: Callable[..., np.ndarray]
    resize: Callable[..., np.ndarray]
    patch_embd: Callable[..., np.ndarray]
    depthwise: Callable[..., np.ndarray]
    layers: Callable[..., np.ndarray] | None = None
    inside: frozenset[str] = frozenset()


def numpy_kernels(dtype: type = np.float32) -> Kernels:
    """Return the NumPy set that computes in `dtype`.

    The embedding lookup returns `dtype`; every later operation keeps the type of its input.
    """
    return Kernels(
        name=f"numpy-{np.dtype(dtype).name}",
        rows=partial(rows_numpy, dtype=dtype),
        matmul=matmul_numpy,
        experts=experts_numpy,
        rms_norm=rms_norm_numpy,
        layer_norm=layer_norm_numpy,
        rope=rope_numpy,
        attention=attention_numpy,
        softmax=softmax_numpy,
        silu_mul=silu_mul_numpy,
        gelu_mul=gelu_mul_numpy,
        gelu=gelu_numpy,
        gelu_erf=gelu_erf_numpy,
        quick_gelu=quick_gelu_numpy,
        resize=resize_numpy,
        patch_embd=partial(patch_embd_numpy, dtype=dtype),
        depthwise=depthwise_numpy,
        inside=frozenset({"kq", "kq_soft_max"}),
    )


NUMPY = numpy_kernels()
EXACT = replace(
    NUMPY,
    name="exact",
    matmul=matmul_exact,
    experts=experts_exact,
    attention=attention_exact,
    inside=frozenset(),
)
GGML = replace(
    EXACT,
    name="ggml",
    matmul=matmul_ggml,
    experts=experts_ggml,
    rms_norm=rms_norm_ggml,
    layer_norm=layer_norm_ggml,
    rope=rope_ggml,
    attention=attention_ggml,
    gelu_mul=gelu_mul_ggml,
    gelu=gelu_ggml,
    quick_gelu=quick_gelu_ggml,
    patch_embd=patch_embd_ggml,
    depthwise=depthwise_ggml,
)
LLAMACPP = replace(
    GGML,
    name="llamacpp",
    matmul=matmul_llamacpp,
    experts=experts_llamacpp,
    rope=rope_llamacpp,
    attention=attention_llamacpp,
    softmax=softmax_llamacpp,
    silu_mul=silu_mul_llamacpp,
)
LLAMACPP_AVX2 = replace(
    LLAMACPP,
    name="llamacpp-avx2",
    matmul=partial(matmul_llamacpp, width=AVX2),
    experts=partial(experts_llamacpp, width=AVX2),
    attention=partial(attention_llamacpp, width=AVX2),
    softmax=partial(softmax_llamacpp, width=AVX2),
    silu_mul=partial(silu_mul_llamacpp, width=AVX2),
)
NUMBA = replace(
    GGML,
    name="numba",
    rows=rows_numba,
    matmul=matmul_numba,
    experts=experts_numba,
    rms_norm=rms_norm_numba,
    layer_norm=layer_norm_numba,
    rope=rope_numba,
    attention=attention_numba,
    softmax=softmax_numba,
    silu_mul=silu_mul_numba,
    gelu_mul=gelu_mul_numba,
    gelu=gelu_numba,
    gelu_erf=gelu_erf_numba,
    quick_gelu=quick_gelu_numba,
    resize=resize_numba,
    patch_embd=patch_embd_numba,
    layers=layers_numba,
)
SETS = {
    kernels.name: kernels for kernels in (NUMPY, numpy_kernels(np.float64), EXACT, GGML, LLAMACPP, LLAMACPP_AVX2, NUMBA)
}
if config.DISABLE_JIT:  # these need LLVM's vectors, which plain Python lacks
    del SETS["llamacpp"], SETS["llamacpp-avx2"], SETS["numba"]
