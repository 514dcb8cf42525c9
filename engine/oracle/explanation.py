"""The explanation of a value: the hypothesis under which it has the bits of a right one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .causes import Cause
from .floors import FLOORS, Floors
from .injection import MAX_BITS, Score
from .passes import Passes, by_name

SUBTLE_BELOW = 18.0  # values above it are not tried with hypotheses
MIN_GAIN_BITS, MIN_SUBTLE_GAIN_BITS, MIN_SUBTLE_BITS = 2.5, 4.0, 14.0
MAX_CAUSES_OF_NAME = 3  # tried for the layers of one name; each try takes all hypotheses
CERTAIN_BITS, CERTAIN_GAIN_BITS = 18.0, 6.0  # a hypothesis that reaches them is not compared with others

Explained = dict[str, tuple[Cause, Score]]  # label -> the hypothesis, and the score under it


class Explanation:
    """The causes that are tried on the values of one dump."""

    def __init__(self, passes: Passes, floors: Floors, causes: Sequence[Cause]):
        self.passes, self.floors, self.causes = passes, floors, causes

    def of_wrong(self, wrong: Sequence[str]) -> Explained:
        """Try all hypotheses on the lowest values of each name, and what explains one on its other layers."""
        explained: Explained = {}
        for labels in by_name(wrong).values():
            todo = sorted(labels, key=lambda label: self.passes.scores[label].least)
            for _ in range(MAX_CAUSES_OF_NAME):
                if not todo:
                    break
                worst = todo.pop(0)
                known = [cause for cause, _ in explained.values()]
                if found := self.explain(worst, subtle=False, known=known):
                    for label in (worst, *todo):
                        score = found[1] if label == worst else self.passes.score_under(label, found[0])
                        if score is not None and score.least >= self.passes.scores[label].least + MIN_GAIN_BITS:
                            explained[label] = found[0], score
                    todo = [label for label in todo if label not in explained]
        return explained

    def of_right(self, wrong: Sequence[str]) -> Explained:
        """Try hypotheses on the least value of each name even where nothing lies below a floor."""
        found: Explained = {}
        for labels in by_name(label for label in self.passes.scores if label not in wrong).values():
            worst = min(labels, key=lambda label: self.passes.scores[label].least)
            if self.passes.scores[worst].least >= SUBTLE_BELOW or self.passes.scores[worst].least == MAX_BITS:
                continue
            best = self.explain(worst, subtle=True)
            for label in labels if best else ():
                assert best is not None
                score = best[1] if label == worst else self.passes.score_under(label, best[0])
                plain = self.passes.scores[label]
                if score is not None and gained_bits(best[0], score, plain) >= MIN_SUBTLE_GAIN_BITS:
                    found[label] = best[0], score
        return found

    def explain(self, label: str, subtle: bool, known: Sequence[Cause] = ()) -> tuple[Cause, Score] | None:
        """Return the hypothesis that explains the value best, with its score; None if none does.

        known   causes of other values, which are tried first
        """
        between, plain = self.passes.between(label), self.passes.scores[label]
        kind, floor = self.passes.kinds[label], self.floors.floor(label)
        right = [
            s.median for other, s in self.passes.scores.items() if self.passes.kinds[other] == kind and s.least >= floor
        ]
        line = float(np.median(right)) if right else MAX_BITS
        best: tuple[Cause, Score] | None = None
        rounding: tuple[Cause, Score] | None = None
        causes = sorted(self.causes, key=lambda cause: (cause not in known, subtle and not cause.arithmetic))
        causes = [cause for cause in causes if cause.may_explain(between) and not (subtle and cause.coarse)]
        for i, cause in enumerate(causes):
            self.passes.advance(f"trying causes for {label}", i, len(causes))
            score = self.passes.score_under(label, cause)
            if score is not None and cause.arithmetic and (rounding is None or score.median > rounding[1].median):
                rounding = cause, score
            if score is not None and (best is None or score.least > best[1].least + 0.5):
                best = cause, score
                if score.least >= max(CERTAIN_BITS, plain.least + CERTAIN_GAIN_BITS):
                    break
                if not subtle and score.least > floor + 1 and score.median > line - 1:
                    break  # as precise as the engine's other values of this kind
        if best is None:
            return None
        gain, least = best[1].least - plain.least, best[1].least
        if subtle:
            if gain >= MIN_SUBTLE_GAIN_BITS and least >= MIN_SUBTLE_BITS:
                return best
            if rounding is None or rounding[1].median < MIN_SUBTLE_BITS:
                return None
            return rounding if gained_bits(*rounding, plain) >= MIN_SUBTLE_GAIN_BITS else None
        return best if gain >= MIN_GAIN_BITS and least >= min(self.floors.floor(label), FLOORS["product"]) else None


def gained_bits(cause: Cause, score: Score, plain: Score) -> float:
    """Return the bits that a hypothesis gains: in the worst row; in most rows for an arithmetic, as last bits flip."""
    return score.median - plain.median if cause.arithmetic else score.least - plain.least
