"""The report of a judgement: a verdict on each value, and the arithmetic of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .injection import MAX_BITS
from .values import split_label

ARITHMETICS = (
    (19, "float32"),
    (15.5, "float32 with larger rounding"),
    (10.2, "float16 or tf32"),
    (8.6, "bfloat16"),
    (5.0, "8-bit activations"),
    (0, "4 bits"),
    (-99, "no known arithmetic"),
)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The judgement of one value.

    kind     the least precise operation since the values that the dump has
    cells    f64 [n_row, n_head]: bits; NaN where the dump has no numbers
    rows, heads   those that are wrong; empty if the value is right
    cause    the sentence of the hypothesis that explains it, "" if none does
    cause_bits    bits under that hypothesis
    enters   the values that it enters directly
    """

    label: str
    kind: str
    cells: np.ndarray
    wrong: bool = False
    rows: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    cause: str = ""
    cause_bits: float = 0.0
    note: str = ""
    enters: tuple[str, ...] = ()

    @property
    def bits(self) -> float:
        return float(np.nanmin(self.cells, initial=MAX_BITS))

    @property
    def layer(self) -> int:
        return split_label(self.label)[1]


@dataclass
class Report:
    """The judgement of a dump, in the order of computation.

    profile        kind -> median bits
    notes          sentences about the dump and the arithmetic
    not_compared   names of the dump, with the reason
    n_prompt       rows of the prompt; those after it are decode steps
    """

    verdicts: list[Verdict]
    profile: dict[str, float]
    notes: list[str]
    not_compared: dict[str, str]
    n_prompt: int
    ids: list[int] = field(default_factory=list)

    @property
    def wrong(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.wrong]

    @property
    def agrees(self) -> bool:
        return not self.wrong


def arithmetic_of(bits: float) -> str:
    """Return the arithmetic that usually gives so many bits.

    >>> arithmetic_of(7.7)
    '8-bit activations'
    """
    return next(name for least, name in ARITHMETICS if bits >= least)
