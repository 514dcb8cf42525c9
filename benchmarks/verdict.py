"""Verdicts on paired rounds: the ratio of two contenders, its interval, and which of four words it allows.

A round measures both contenders, in random order, within seconds of each other; d = log(b / a) is one number per
round.  If the contenders are equal, d is as often positive as negative by the same amount, whatever the machine does,
because the order was drawn by lot.  The interval is the exact one of Wilcoxon's signed-rank test, which needs this
symmetry and no distribution: its ends are two of the averages (d_i + d_j) / 2 of all pairs i <= j, and the ratio is
their median (Hodges and Lehmann 1963).

    faster, slower        the interval excludes 1, and the ratio is more than `within` from 1
    the same within 2 %   the whole interval is within 2 % of 1
    cannot tell           anything else

Looking again after more rounds would raise the chance of an error, and so would judging several figures.  So the
rounds after which a verdict may be read are fixed in advance (`looks`), each look spends a part of the 5 in 100, and
the figures of a cell share it: by Bonferroni's inequality all intervals of a cell hold their true ratios in 95 of 100
comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ALPHA = 0.05  # chance that any verdict of a comparison is wrong
ALPHA_OF_LOOKS = 0.04  # what all looks spend; the rest is kept for rounds that are not quite independent
LOOK_GROWTH = 1.4  # from one look to the next
SPENT_AT_A_LOOK = 0.2  # of what earlier looks left over
MAX_MORE_ROUNDS = 500  # more than this is not worth announcing

FASTER, SLOWER, SAME, CANNOT_TELL = "faster", "slower", "the same", "cannot tell"


@dataclass(frozen=True)
class Interval:
    """A ratio with the ends of its interval; the ends are None for too few rounds."""

    ratio: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.3g}"
        return f"{self.ratio:.3g} ({self.low:.3g} .. {self.high:.3g})"


@dataclass(frozen=True)
class Ruling:
    """A verdict with the interval that it rests on.

    n      rounds in it
    more   rounds that a verdict is expected to need in addition; None if it is known, or not to be expected
    note   why it cannot tell
    """

    word: str
    interval: Interval
    n: int
    more: int | None = None
    note: str = ""

    @property
    def is_known(self) -> bool:
        return self.word != CANNOT_TELL


def looks(family: int = 1) -> Iterator[tuple[int, float]]:
    """Yield (rounds, level): when a verdict may be read, and the level of the interval that is read then.

    The first look is after the fewest rounds that allow an interval at its level.

    family   figures that are judged together, which share ALPHA
    """
    left = ALPHA_OF_LOOKS / family
    n = math.ceil(1 - math.log2(left * SPENT_AT_A_LOOK))  # n rounds allow levels from 2 / 2**n on
    while True:
        yield n, left * SPENT_AT_A_LOOK
        n, left = math.ceil(n * LOOK_GROWTH), left * (1 - SPENT_AT_A_LOOK)


def level_after(n: int, family: int = 1) -> float:
    """Return the level of an interval after `n` rounds, if verdicts are read at every look on the way.

    Between two looks, as when the budget ends, the interval spends what the next look would.
    """
    return next(level for rounds, level in looks(family) if rounds >= n)


def is_look(n: int, family: int = 1) -> bool:
    return next(rounds for rounds, _ in looks(family) if rounds >= n) == n


@lru_cache(maxsize=256)
def rank_sum_cut(n: int, level: float) -> int:
    """Return the largest k with 2 P(T < k) <= level, T being the signed-rank sum of `n` rounds; 0 without one."""
    chance = np.ones(1)  # chance[t] = P(T = t)
    for rank in range(1, n + 1):
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    return int(np.searchsorted(2 * np.cumsum(chance), level * (1 + 1e-9), side="right"))


def ratio_interval(log_ratios: Sequence[float], level: float) -> Interval:
    """Return the ratio and its exact interval at confidence 1 - level."""
    d = np.asarray(log_ratios, float)
    i, j = np.triu_indices(len(d))
    averages = np.sort((d[i] + d[j]) / 2)
    ratio, cut = float(np.exp(np.median(averages))), rank_sum_cut(len(d), level)
    if not cut:
        return Interval(ratio, None, None)
    return Interval(ratio, float(np.exp(averages[cut - 1])), float(np.exp(averages[-cut])))


def verdict_word(interval: Interval, within: float, lower_is_better: bool) -> str:
    """Return which of the four words the interval of b / a allows for b."""
    low, high, ratio = interval.low, interval.high, interval.ratio
    if low is None or high is None:
        return CANNOT_TELL
    if 1 / (1 + within) <= low and high <= 1 + within:
        return SAME
    if (low > 1 and ratio > 1 + within) or (high < 1 and ratio < 1 / (1 + within)):
        return FASTER if (ratio < 1) == lower_is_better else SLOWER
    return CANNOT_TELL


def judge_rounds(
    log_ratios: Sequence[float],
    within: float = 0.02,
    *,
    lower_is_better: bool = False,
    fixed: bool = False,
    family: int = 1,
) -> Ruling:
    """Judge b by log(b / a) of each round.

    fixed    the number of rounds was fixed in advance, so the only look spends all of ALPHA
    family   figures that are judged together
    """
    n = len(log_ratios)

    def level(m: int) -> float:
        return ALPHA / family if fixed else level_after(m, family)

    if n == 0:
        return Ruling(CANNOT_TELL, Interval(math.nan, None, None), 0, None, "no round")
    interval = ratio_interval(log_ratios, level(n))
    word = verdict_word(interval, within, lower_is_better)
    if word != CANNOT_TELL:
        return Ruling(word, interval, n)
    if interval.low is None:
        least = next(m for m in range(n, 99) if rank_sum_cut(m, level(m)))
        return Ruling(word, interval, n, least - n, f"{least - n} more rounds are the fewest that allow a verdict")
    more = more_rounds(interval, n, within)
    if more is None:
        return Ruling(word, interval, n, None, "more rounds than can be expected are needed")
    return Ruling(word, interval, n, more, f"about {more} more rounds may tell")


def more_rounds(now: Interval, n: int, within: float) -> int | None:
    """Estimate how many more rounds a verdict needs, if the ratio stays as it is; None if more than MAX_MORE_ROUNDS.

    The half-width of the interval shrinks as 1 / sqrt(n) and must become smaller than the distance of the ratio from 1,
    or from the end of the range that counts as the same.
    """
    assert now.low is not None and now.high is not None
    centre, half = abs(math.log(now.ratio)), math.log(now.high / now.low) / 2
    edge = math.log1p(within)
    distance = centre if centre > edge else edge - centre
    if distance <= 0 or half / distance > math.sqrt(1 + MAX_MORE_ROUNDS / n):
        return None
    return max(1, math.ceil(n * (half / distance) ** 2) - n)


def percent_text(share: float) -> str:
    return f"{100 * share:g} %"
