"""The layout of another engine's array: fitted to the shape of ours.

Axes of length 1 are dropped and axes may be merged or split.  Axes in another order, padding at the end of an axis and
values of the last rows only, as in the last layer of llama.cpp, are recognized.  So are values rotated by a Hadamard
matrix, as `kqv_out` is with a quantized cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np

from ...kernels.hadamard import LEAST_GROUP, rotate_groups

MAX_PADDING = 64  # an array this many times as large as ours is not read
ROTATED = 0.5  # relative error below which an array counts as rotated: a 4-bit cache errs by 0.1 to 0.3
SAME = 0.05  # relative error below which an array in a certain order counts as recognized


@dataclass(frozen=True, eq=False)
class Fitted:
    """Another engine's value in our shape.

    values   f64, as ours
    known    bool, as ours: the numbers that the dump has; None: all
    note     how the array was read, "" if as it is
    """

    values: np.ndarray
    known: np.ndarray | None = None
    note: str = ""


def fits(shape: tuple[int, ...], ours: tuple[int, ...], n_rows: int) -> bool:
    """Return whether an array of `shape` can be read as a value of shape `ours`."""
    size, own = prod(shape), prod(ours)
    if not size or size > MAX_PADDING * own or len(shape) > 8:
        return False
    if size == own or size in last_rows(ours, n_rows):
        return True
    return size > own and any(True for _ in cropped_shapes(shape, ours))


def last_rows(ours: tuple[int, ...], n_rows: int) -> dict[int, int]:
    """Return the sizes that the last 1 or n_rows rows of a value have, with the number of rows."""
    rows = ours[-2] if len(ours) == 3 and ours[-2] > n_rows and ours[0] < ours[-2] else ours[0]
    return {prod(ours) // rows * n: n for n in (1, n_rows) if n < rows}


def cropped_shapes(shape: tuple[int, ...], ours: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield orders of the axes of `shape` in which each is at least as long as ours."""
    axes = [i for i, n in enumerate(shape) if n > 1]
    own = [n for n in ours if n > 1]
    if len(axes) == len(own):
        for order in permutations(axes):
            if all(shape[axis] >= n for axis, n in zip(order, own, strict=True)):
                yield order


def fit(theirs: np.ndarray, ours: np.ndarray, n_last: int, rows_axis: int = 0) -> Fitted | None:
    """Read `theirs` as a value like `ours`; None if its shape allows no reading.

    n_last      number of last rows that a dump may be limited to
    rows_axis   the axis of `ours` that counts tokens
    """
    x = theirs.astype(np.float64, copy=False)
    if x.size == ours.size:
        return _reordered(x, ours)
    rows = ours.shape[rows_axis]
    for n in sorted({1, n_last}):
        part = np.moveaxis(ours, rows_axis, 0)[rows - n :]
        if n < rows and x.size == part.size:
            values, known = np.full(ours.shape, np.nan), np.zeros(ours.shape, bool)
            np.moveaxis(values, rows_axis, 0)[rows - n :] = x.reshape(part.shape)
            np.moveaxis(known, rows_axis, 0)[rows - n :] = True
            return Fitted(values, known, f"last {n} row{'s' * (n > 1)} only")
    shape = tuple(n for n in ours.shape if n > 1)
    best: Fitted | None = None
    for order in cropped_shapes(x.shape, ours.shape):
        flat = x.squeeze() if x.ndim else x
        kept = sorted(order)
        turned = flat.transpose([kept.index(axis) for axis in order])
        rows_at = sum(n > 1 for n in ours.shape[:rows_axis])
        if rows > 1 and not _is_empty(np.moveaxis(turned, rows_at, 0)[rows:]):
            continue  # more tokens than ours
        cut = turned[tuple(slice(n) for n in shape)]
        candidate = Fitted(np.ascontiguousarray(cut).reshape(ours.shape), None, "padding cut off")
        if best is None or relative_error(candidate.values, ours) < relative_error(best.values, ours):
            best = candidate
    return best


def _is_empty(x: np.ndarray) -> bool:
    """Return whether rows hold nothing but padding."""
    return not np.any(x[np.isfinite(x)])


def _reordered(x: np.ndarray, ours: np.ndarray) -> Fitted:
    plain = Fitted(x.reshape(ours.shape))
    if relative_error(plain.values, ours) < SAME:
        return plain
    flat = x.squeeze()
    for order in permutations(range(flat.ndim)) if 1 < flat.ndim <= 4 else ():
        candidate = flat.transpose(order)
        if list(order) != sorted(order) and candidate.shape != flat.shape:
            values = np.ascontiguousarray(candidate).reshape(ours.shape)
            if relative_error(values, ours) < SAME or (
                flat.shape[0] != ours.shape[0] and candidate.shape[: len(ours.shape)] == ours.shape
            ):
                return Fitted(values, None, f"axes in the order {'x'.join(map(str, flat.shape))}")
    return _rotated_back(plain, ours) or plain


def _rotated_back(plain: Fitted, ours: np.ndarray) -> Fitted | None:
    """Rotate values of a quantized cache back, in which llama.cpp keeps them (kernels/hadamard.py); None if not so."""
    error = relative_error(plain.values, ours)
    if error < ROTATED or ours.size % LEAST_GROUP:
        return None
    values = rotate_groups(plain.values, LEAST_GROUP)
    if relative_error(values, ours) > min(ROTATED, error / 2):
        return None
    return Fitted(values, plain.known, "rotated by a Hadamard matrix, as in a quantized cache")


def relative_error(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Return the rms difference as a fraction of the rms of `ours`; infinite with numbers that are not finite."""
    with np.errstate(all="ignore"):
        error = np.sqrt(np.mean((theirs - ours) ** 2)) / (np.sqrt(np.mean(np.square(ours, dtype=np.float64))) + 1e-300)
    return float(error) if np.isfinite(error) else float("inf")
