"""A weight as stored in the file: named, possibly quantized, read-only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from threading import Lock
from typing import Any

import numpy as np

from .quants import QuantFormat

_form_lock = Lock()


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array of `shape`, stored as `blocks` of `format`.

    shape     NumPy order, the file's fastest axis last: [n_out, n_in] for a matrix, [n_expert, n_out, n_in] for a stack
    blocks    [*shape[:-1], n_in / format.block_size] of format.layout; usually a view of the mapped file
    low_rank  LoRA terms of adapters.  Kernels ignore them; engine/model/linear.py adds their products
    """

    name: str
    format: QuantFormat
    shape: tuple[int, ...]
    blocks: np.ndarray
    low_rank: tuple[LowRank, ...] = ()
    _forms: dict[Callable[[Tensor], Any], Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"<Tensor {self.name}: {self.format.name} {list(self.shape)}>"

    @cached_property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.blocks.nbytes

    @cached_property
    def matrices(self) -> tuple[Tensor, ...]:
        """The matrices of a stack.  Each has its own forms, so an expert is packed when it is first chosen."""
        return tuple(Tensor(self.name, self.format, self.shape[1:], blocks) for blocks in self.blocks)

    def dequantize(self, rows=None) -> np.ndarray:
        """Dequantize all blocks, or `rows` of the first axis.  -> f32 [*shape], or f32 [len(rows), *shape[1:]]"""
        blocks = self.blocks if rows is None else self.blocks[rows]
        shape = self.shape if rows is None else (len(rows), *self.shape[1:])
        if not blocks.size:
            return np.zeros(shape, np.float32)
        return self.format.dequantize(np.ascontiguousarray(blocks).reshape(-1)).reshape(shape)

    def form(self, pack: Callable[[Tensor], Any]) -> Any:
        """Return `pack(self)`, computed once and kept: the repacked or dequantized form that a kernel works on."""
        if pack not in self._forms:
            with _form_lock:
                if pack not in self._forms:
                    self._forms[pack] = pack(self)
        return self._forms[pack]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A LoRA term: the product of two thin matrices, scale * b a.

    a   [rank, n_in]
    b   [n_out, rank]
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.a.nbytes + self.b.nbytes
