"""The setting of a pass: kernels and model, of all layers or of one; a hypothesis is a change of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ...kernels import SETS, Kernels, Tensor
from ..model.model import Model
from .values import VALUES, split_label

TILE_ROWS = 2048


def matmul_tiled(w: Tensor, x: np.ndarray) -> np.ndarray:
    """Compute x w^T in the type of `x`, with few rows of the weight dequantized at a time.  -> [n_tok, n_out]"""
    if w.shape[0] <= TILE_ROWS:
        return np.asarray(x @ w.dequantize().astype(x.dtype, copy=False).T)
    y = np.empty((len(x), w.shape[0]), x.dtype)
    for r in range(0, w.shape[0], TILE_ROWS):
        rows = w.dequantize(np.arange(r, min(r + TILE_ROWS, w.shape[0])))
        y[:, r : r + TILE_ROWS] = x @ rows.astype(x.dtype, copy=False).T
    return y


def experts_tiled(w: Tensor, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Compute experts_numpy with one product for each chosen expert."""
    y = np.empty((len(x), w.shape[1]), x.dtype)
    for e in np.unique(chosen):
        y[chosen == e] = x[chosen == e] @ w.matrices[e].dequantize().astype(x.dtype, copy=False).T
    return y


F64 = replace(SETS["numpy-float64"], matmul=matmul_tiled, experts=experts_tiled)


@dataclass(frozen=True, eq=False)
class Setting:
    """The kernels and the model of a pass.

    values     name -> (our value, the values before it by name) -> the value under a hypothesis
    n_prompt   tokens before the first decode step; 0: without decode steps
    whole, il  where `model` is a single layer of it: the model with all layers, and the layer's number
    """

    kernels: Kernels
    model: Model
    values: Mapping[str, Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]] = field(default_factory=dict)
    n_prompt: int = 0
    whole: Model | None = None
    il: int = -1


def one_layer(setting: Setting, il: int) -> Setting:
    """Return a model with layer `il` alone; -1: without layers."""
    model, hp = setting.model, setting.model.hparams
    part = slice(il, il + 1) if il >= 0 else slice(0, 0)
    hparams = replace(
        hp,
        n_layer=1 if il >= 0 else 0,
        attention=hp.attention[part],
        rope=hp.rope[part],
        rope_long=hp.rope_long[part],
    )
    weights = replace(model.weights, blk=model.weights.blk[part])  # type: ignore[arg-type]
    return replace(setting, model=replace(model, hparams=hparams, weights=weights), whole=model, il=il)


def without_unused_products(setting: Setting, target: str, complete: set[str]) -> Setting:
    """Skip the products of weights that do not reach `target`, since the dump has the values in between."""
    name, il = split_label(target)
    makes = {
        w: value
        for value, entry in VALUES.items()
        for w in entry.weights
        if not value.endswith(("_unnormed", "_normed", "_pre_rope"))
    }
    blk = setting.model.weights.blk
    unused: set[int] = set()
    for w, value in makes.items():
        if blk and hasattr(blk[0], w) and f"{value}-{il}" in complete and w not in VALUES[name].weights:
            unused.add(id(getattr(blk[0], w)))
    unused -= {id(getattr(blk[0], w, None)) for w in VALUES[name].weights if blk}
    k = setting.kernels

    def matmul(w: Tensor, x: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), w.shape[0]), x.dtype) if id(w) in unused else k.matmul(w, x)

    def experts(w: Tensor, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), w.shape[1]), x.dtype) if id(w) in unused else k.experts(w, x, chosen)

    return replace(setting, kernels=replace(k, matmul=matmul, experts=experts))
