"""Projectors: from the vision tower's patches to rows in place of token embeddings.

    mlp     two products with a GELU between (LLaVA 1.5, 1.6); also one product alone, and two
            with a layer norm after each (Yi-VL, whose files also say "mlp")
    ldp     MobileVLM: depthwise convolutions over the grid of patches, then a quarter as many patches
    ldpv2   MobileVLM V2: means of 2 x 2 patches, and a convolution that adds their position

A projector is read from a file's tensors and is then a function of rows, x float [n_patch, n_embd] -> as x
[n_patch / reduction, n_out].  Source: llama.cpp 0c1e57098, mtmd models/llava.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import numpy as np

from ...kernels import Kernels
from ..model.affine import LayerNorm, Linear, read_layer_norm, read_linear
from ..model.weights import Tensors


@dataclass(frozen=True, eq=False)
class MLP:
    """second(gelu(first(x))) with an optional norm after each product."""

    first: Linear
    norm: LayerNorm | None
    second: Linear | None
    last_norm: LayerNorm | None
    n_out: int
    reduction: int = 1

    def __call__(self, x: np.ndarray, eps: float, kernels: Kernels) -> np.ndarray:
        x = self.first(x, kernels)
        if self.norm:
            x = self.norm(x, eps, kernels)
        x = kernels.gelu(x)
        if self.second:
            x = self.second(x, kernels)
        return self.last_norm(x, eps, kernels) if self.last_norm else x


def read_mlp(file: Tensors, n_embd: int) -> MLP:
    """Read `mm.0`, and `mm.2` or Yi-VL's `mm.1`, `mm.3`, `mm.4`."""
    first = read_linear(file, "mm.0", None, n_embd)
    if "mm.3.weight" in file.gguf.tensor_offsets:  # Yi-VL: the norms are numbered too
        second = read_linear(file, "mm.3", None, first.n_out)
        norms = read_layer_norm(file, "mm.1", first.n_out), read_layer_norm(file, "mm.4", second.n_out)
        return MLP(first, norms[0], second, norms[1], second.n_out)
    if "mm.2.weight" in file.gguf.tensor_offsets:
        second = read_linear(file, "mm.2", None, first.n_out)
        return MLP(first, None, second, None, second.n_out)
    return MLP(first, None, None, None, first.n_out)


@dataclass(frozen=True, eq=False)
class MobileBlock:
    """An inverted residual block: depthwise convolution, squeeze-and-excite over the whole image, product."""

    window: np.ndarray
    norm: LayerNorm
    squeeze: Linear
    excite: Linear
    mix: Linear
    last_norm: LayerNorm

    def __call__(self, x: np.ndarray, stride: int, eps: float, kernels: Kernels) -> np.ndarray:
        """Apply the block.  x float [h, w, n] -> as x [h / stride, w / stride, n]"""
        x = kernels.depthwise(x, self.window, stride)
        h, w, n = x.shape
        x = hard_swish(self.norm(x.reshape(-1, n), eps, kernels))
        weights = self.squeeze(x.mean(axis=0, keepdims=True), kernels)
        weights = hard_sigmoid(self.excite(np.maximum(weights, 0), kernels))  # [1, n]
        x = self.mix(x * weights, kernels)
        return self.last_norm(x, eps, kernels).reshape(h, w, n)


@dataclass(frozen=True, eq=False)
class LDP:
    """Two products, a residual block, and a block of stride 2 that leaves a quarter of the patches."""

    first: Linear
    second: Linear
    one: MobileBlock
    two: MobileBlock
    n_out: int
    reduction: int = 4

    def __call__(self, x: np.ndarray, eps: float, kernels: Kernels) -> np.ndarray:
        x = square(self.second(kernels.gelu(self.first(x, kernels)), kernels))
        x = x + self.one(x, 1, eps, kernels)
        return self.two(x, 2, eps, kernels).reshape(-1, self.n_out)


def read_ldp(file: Tensors, n_embd: int) -> LDP:
    """Read `mm.model.mlp` and `mm.model.mb_block`."""
    first = read_linear(file, "mm.model.mlp.1", None, n_embd)
    second = read_linear(file, "mm.model.mlp.3", None, first.n_out)
    n = second.n_out

    def block(i: int) -> MobileBlock:
        name = f"mm.model.mb_block.{i}.block"
        squeeze = read_linear(file, f"{name}.1.fc1", None, n)
        return MobileBlock(
            window=read_window(file, f"{name}.0.0.weight", n),
            norm=read_layer_norm(file, f"{name}.0.1", n),
            squeeze=squeeze,
            excite=read_linear(file, f"{name}.1.fc2", n, squeeze.n_out),
            mix=read_linear(file, f"{name}.2.0", n, n),
            last_norm=read_layer_norm(file, f"{name}.2.1", n),
        )

    return LDP(first, second, block(1), block(2), n)


@dataclass(frozen=True, eq=False)
class LDPv2:
    """Two products, means of 2 x 2 patches, and a depthwise convolution that is added to them."""

    first: Linear
    second: Linear
    window: np.ndarray
    bias: np.ndarray
    n_out: int
    reduction: int = 4

    def __call__(self, x: np.ndarray, eps: float, kernels: Kernels) -> np.ndarray:
        x = square(self.second(kernels.gelu(self.first(x, kernels)), kernels))
        side = len(x) // 2
        x = x[: 2 * side, : 2 * side].reshape(side, 2, side, 2, -1).mean(axis=(1, 3))
        x = x + kernels.depthwise(x, self.window) + self.bias.astype(x.dtype)
        return x.reshape(-1, self.n_out)


def read_ldpv2(file: Tensors, n_embd: int) -> LDPv2:
    """Read `mm.model.mlp` and `mm.model.peg`."""
    first = read_linear(file, "mm.model.mlp.0", None, n_embd)
    second = read_linear(file, "mm.model.mlp.2", None, first.n_out)
    n = second.n_out
    peg = read_window(file, "mm.model.peg.0.weight", n)
    return LDPv2(first, second, peg, file.tensor("mm.model.peg.0.bias", (n,)).dequantize(), n)


Projector = MLP | LDP | LDPv2
PROJECTORS: dict[str, Callable[[Tensors, int], Projector]] = {"mlp": read_mlp, "ldp": read_ldp, "ldpv2": read_ldpv2}


def read_window(file: Tensors, name: str, n: int) -> np.ndarray:
    """Read a depthwise convolution's weight; most files omit the axis of its one input channel.  -> f32 [n, 3, 3]"""
    tensor = file.gguf.tensors.get(name)
    one = (1,) if tensor is not None and len(tensor.shape) == 4 else ()
    return file.tensor(name, (n, *one, 3, 3)).dequantize().reshape(n, 3, 3)


def square(x: np.ndarray) -> np.ndarray:
    """Reshape rows of patches to the square grid of the image.  [n_patch, n] -> [side, side, n]"""
    side = isqrt(len(x))
    return x.reshape(side, side, -1)


def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    """Return clip((x + 3) / 6, 0, 1).  Source: Howard et al. 2019, arXiv:1905.02244."""
    return np.clip((x + 3) / 6, 0, 1)


def hard_swish(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = x * hard_sigmoid(x)
    return y
