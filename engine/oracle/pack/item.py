"""An item of a pack: what a program is given, and what it must return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..injection import SHAKE
from .numbers import WIDE, Numbers

Arrays = Mapping[str, np.ndarray]
FLOAT32_BITS = 16.0  # elementwise operations in float32 have 20 and more; some exponentials less
ROUNDED_BITS = 5.0  # products and attention may round what they read, to 8 bits and fewer


@dataclass(frozen=True, eq=False)
class Item:
    """An item.

    name         "dequantize/Q4_0": its operation and variant
    how          how it was made, in a sentence
    given        arrays of the input file; none: the input is JSON
    parameters   of the operation: numbers, texts and lists
    expected     arrays of the output file, or the members of a JSON object
    moved        for each expected array, how far its rows move if inputs or outputs change by 2^-20
    bits         at least so many make a right answer
    """

    name: str
    how: str
    given: Arrays = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)
    moved: Arrays = field(default_factory=dict)
    bits: float = FLOAT32_BITS

    @property
    def operation(self) -> str:
        return self.name.partition("/")[0]

    @property
    def returns_arrays(self) -> bool:
        return any(isinstance(value, np.ndarray) for value in self.expected.values())


def rms(x: np.ndarray) -> np.ndarray:
    """Return the root mean square over the last axis."""
    return np.asarray(np.sqrt(np.mean(np.square(np.asarray(x, WIDE)), axis=-1)))


def sensitivity(
    name: str, compute: Callable[[Arrays], Arrays], given: Arrays, n_copies: int = 6
) -> tuple[Arrays, Arrays]:
    """Compute an operation, and how far its results move if its inputs change by a relative 2^-20.

    compute   arrays of `given`, floats in WIDE -> arrays
    -> results, f64; moved, f32 with a number for each row (the last axis) of each float result
    """
    wide = {key: x.astype(WIDE) if x.dtype.kind == "f" else x for key, x in given.items()}
    plain = compute(wide)
    numbers = Numbers(f"shaken {name}")
    squares = {key: np.zeros(x.shape[:-1], WIDE) for key, x in plain.items() if x.dtype.kind == "f"}
    for _ in range(n_copies):
        shaken = {
            key: x * (1 + SHAKE * WIDE(3) ** 0.5 * numbers.uniform(*x.shape)) if x.dtype.kind == "f" else x
            for key, x in wide.items()
        }
        for key, y in compute(shaken).items():
            if key in squares:
                squares[key] += rms(y - plain[key]) ** 2 / n_copies
    moved = {key: np.sqrt(square + (SHAKE * rms(plain[key])) ** 2) for key, square in squares.items()}
    results = {key: x.astype(np.float64) if x.dtype.kind == "f" else x for key, x in plain.items()}
    return results, {key: x.astype(np.float32) for key, x in moved.items()}
