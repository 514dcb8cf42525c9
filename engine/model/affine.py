"""Building blocks of vision towers and projectors: products with a bias, and layer norms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...kernels import Kernels, Tensor
from .weights import Tensors


@dataclass(frozen=True, eq=False)
class Linear:
    """An affine map: x w^T + bias."""

    weight: Tensor
    bias: np.ndarray | None = None

    def __call__(self, x: np.ndarray, kernels: Kernels) -> np.ndarray:
        y = kernels.matmul(self.weight, x)
        if self.bias is not None:
            y += self.bias.astype(y.dtype, copy=False)
        return y

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """A layer norm with its weight and bias."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray, eps: float, kernels: Kernels) -> np.ndarray:
        return kernels.layer_norm(x, self.weight, self.bias, eps)


def read_linear(file: Tensors, name: str, n_out: int | None, n_in: int) -> Linear:
    """Read `name`.weight, and `name`.bias if the file has one.  n_out None accepts any number of rows."""
    weight = file.tensor(f"{name}.weight", (n_out, n_in))
    return Linear(weight, read_vector(file, f"{name}.bias", weight.shape[0]))


def read_layer_norm(file: Tensors, name: str, n: int) -> LayerNorm:
    """Read `name`.weight and `name`.bias; a missing bias is 0."""
    bias = read_vector(file, f"{name}.bias", n)
    weight = file.tensor(f"{name}.weight", (n,)).dequantize()
    return LayerNorm(weight, np.zeros(n, np.float32) if bias is None else bias)


def read_vector(file: Tensors, name: str, n: int) -> np.ndarray | None:
    """Read a vector of `n` numbers; None if the file lacks it."""
    return file.tensor(name, (n,)).dequantize() if name in file.gguf.tensor_offsets else None
