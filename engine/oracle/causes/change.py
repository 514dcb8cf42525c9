"""Changes of a setting: of a kernel, of hyperparameters, of weights, of a value itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Kernels, Tensor
from ..setting import Setting
from .cause import Change


def other_kernel(name: str, change: Callable[[Kernels], Callable[..., np.ndarray]]) -> Change:
    """Replace the kernel `name`."""
    return lambda s: Setting(replace(s.kernels, **{name: change(s.kernels)}), s.model)  # type: ignore[arg-type]


def hparams(**changes: Callable[[Any], Any]) -> Change:
    """Change hyperparameters; a change that leaves all equal does not apply."""

    def changed(s: Setting) -> Setting | None:
        hp = s.model.hparams
        new = {name: change(hp) for name, change in changes.items()}
        if all(getattr(hp, name) == value for name, value in new.items()):
            return None
        return Setting(s.kernels, replace(s.model, hparams=replace(hp, **new)))

    return changed


def constant(value: float) -> Callable[[Any], Any]:
    return lambda hp: value


def block(**changes: Callable[[Any], Any]) -> Change:
    """Change fields of the block, out of the block; it does not apply if one of them is missing."""

    def changed(s: Setting) -> Setting | None:
        blk = s.model.weights.blk[0] if s.model.weights.blk else None
        if blk is None or any(getattr(blk, name, None) is None for name in changes):
            return None
        return with_fields(s, {name: change(blk) for name, change in changes.items()})

    return changed


def missing(*names: str) -> Change:
    """Drop fields of the block; it does not apply if the block has none of them."""

    def changed(s: Setting) -> Setting | None:
        blk = s.model.weights.blk[0] if s.model.weights.blk else None
        present = [name for name in names if getattr(blk, name, None) is not None]
        return with_fields(s, dict.fromkeys(present)) if present else None

    return changed


def with_fields(s: Setting, fields: Mapping[str, Any]) -> Setting:
    """Return the setting with other fields in its only block."""
    weights = replace(s.model.weights, blk=(replace(s.model.weights.blk[0], **fields),))  # type: ignore[arg-type]
    return Setting(s.kernels, replace(s.model, weights=weights))


def other_values(**changes: Callable[[Any, Mapping[str, Any]], Any]) -> Change:
    """Change values themselves, given ours and those before it by name."""
    return lambda s: replace(s, values=changes)


def norms(change: Callable[[Kernels, Any, Any, float], np.ndarray]) -> Change:
    """Replace the RMS norm by a function of the kernels, x, weight and eps."""
    return other_kernel("rms_norm", lambda k: lambda x, weight, eps: change(k, x, weight, eps))


def weights(change: Callable[[Tensor, np.ndarray], np.ndarray]) -> Change:
    """Change the dequantized weights of all products and lookups.  A stack of experts keeps its first axis."""

    def changed(s: Setting) -> Setting:
        def whole(w: Tensor) -> np.ndarray:
            return change(w, w.dequantize())

        def experts(w: Tensor, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            y = np.empty((len(x), w.shape[1]), x.dtype)
            for e in np.unique(chosen):
                y[chosen == e] = x[chosen == e] @ whole(w.matrices[e]).astype(x.dtype).T
            return y

        return Setting(
            replace(
                s.kernels,
                matmul=lambda w, x: x @ whole(w).astype(x.dtype).T,
                experts=experts,
                rows=lambda w, ids: whole(w)[ids].astype(np.float64),
            ),
            s.model,
        )

    return changed


def bf16(x: Any) -> Any:
    """Round to the nearest bfloat16, ties to even.  -> f32"""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def f16(x: Any) -> Any:
    return np.asarray(x).astype(np.float16).astype(np.float32)
