"""The judgement of a dump: each operation of another engine judged on that engine's own inputs, in effective bits.

    bits = 20 + log2(rms moved / rms error)      24: float32, 11: float16, 8: bfloat16, 7.7: 8-bit activations

`moved` is how far our float64 result moves if inputs or the result itself change by a relative 2^-20.  So bits are the
precision of inputs that would explain the error, whatever the operation is; each row and head is judged alone, and
the worst counts.  Errors do not accumulate, and all wrong operations are found, not only the first (injection.py).

A value is wrong if it lies below the floor of its kind, if it falls out of the line of its kind over layers, rows and
heads, or if one of the hypotheses in causes.py explains it far better than the right computation does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from ..errors import RequestError
from ..model.model import Model
from .arrangement import rearrange
from .causes import CAUSES, Cause
from .dumps import Dump
from .explanation import MIN_GAIN_BITS, Explained, Explanation
from .floors import Floors
from .forms import FORMED
from .injection import Advance, Score, no_advance
from .passes import Passes, by_name
from .report import Report, Verdict
from .values import KINDS, dependents, split_label


def judge(
    model: Model,
    ids: Sequence[int],
    dump: Dump,
    n_decode: int = 0,
    causes: Sequence[Cause] = CAUSES,
    advance: Advance = no_advance,
) -> Report:
    """Judge every value of `dump` that the model computes for the tokens `ids`, of which the last are decode steps.

    advance   is told of the progress: what is being done, steps done, and steps in all

    Raises: RequestError if the dump cannot be compared
    """
    return Judgement(Passes(model, ids, dump, n_decode, advance), causes).report()


class Judgement:
    """The judgement of one dump: its passes, floors and causes."""

    def __init__(self, passes: Passes, causes: Sequence[Cause]):
        self.passes = passes
        if not self.passes.dump.printed:
            rearrange(self.passes)
        self.floors = Floors(self.passes)
        self.explanation = Explanation(self.passes, self.floors, causes)

    def report(self) -> Report:
        """Judge, find causes, and report."""
        floors, printed = self.floors, self.passes.dump.printed
        wrong = floors.suspects()
        if printed:  # printed corners cannot be injected: values that follow contain the error
            passed_on = (
                label for label in wrong if split_label(label)[0] not in FORMED or floors.is_passed_on(label, wrong)
            )
            wrong = list(passed_on)[:1]
        wrong = [label for label in wrong if not floors.chose_otherwise(label)]
        explained = self.explanation.of_wrong(wrong)
        if not printed:
            for label, found in self.explanation.of_right(wrong).items():
                wrong.append(label)
                explained[label] = found
        wrong, explained = self.pardon(wrong, explained)
        self._check_model(wrong, explained)
        return self._report(wrong, explained)

    def pardon(self, wrong: list[str], explained: Explained) -> tuple[list[str], Explained]:
        """Drop values that an arithmetic explains: they are rounded otherwise, and right."""
        for sentence, labels in _grouped_by_sentence(explained):
            if explained[labels[0]][0].arithmetic:
                names = ", ".join(by_name(labels))
                self.passes.notes.append(f"{names}: {sentence}, a matter of rounding")
        kept = [label for label in self.passes.order if label in wrong]
        kept = [label for label in kept if not (label in explained and explained[label][0].arithmetic)]
        return kept, {label: found for label, found in explained.items() if label in kept}

    def _check_model(self, wrong: Sequence[str], explained: Mapping[str, object]) -> None:
        weighted = [label for label, kind in self.passes.kinds.items() if kind == "product" or label == "embd"]
        foreign = [
            label
            for label in weighted
            if label in wrong and label not in explained and self.passes.scores[label].is_foreign
        ]
        normed = [label for label, kind in self.passes.kinds.items() if kind == "elementwise" and "norm" in label]
        same_norms = any(label not in wrong for label in normed)  # their weights are those of this model
        if len(weighted) > 3 and len(foreign) > 0.9 * len(weighted) and not same_norms:
            raise RequestError(
                f"{self.passes.dump.path}: {len(foreign)} of {len(weighted)} values that weights enter have nothing in "
                "common with this model's; expected the dump of the same model and the same tokens"
            )

    def _report(self, wrong: Sequence[str], explained: Mapping[str, tuple[Cause, Score]]) -> Report:
        verdicts = []
        for label in self.passes.order:
            if label not in self.passes.scores:
                continue
            score = self.passes.scores[label]
            verdict = Verdict(label, self.passes.kinds[label], score.bits, note=score.note)
            if label in wrong:
                limit = max(self.floors.floor(label), score.least + 1e-9)
                if label in explained:
                    limit = max(limit, min(explained[label][1].least, score.least + MIN_GAIN_BITS))
                bad = score.bits <= limit
                verdict = replace(
                    verdict,
                    wrong=True,
                    rows=tuple(np.flatnonzero(bad.any(axis=1)).tolist()),
                    heads=tuple(np.flatnonzero(bad.any(axis=0)).tolist()) if bad.shape[1] > 1 else (),
                    cause=explained[label][0].sentence if label in explained else "",
                    cause_bits=explained[label][1].least if label in explained else 0.0,
                    enters=tuple(dependents(label, self.passes.order, self.passes.n_layer)),
                )
            verdicts.append(verdict)
        right = [label for label in self.passes.scores if label not in wrong]
        profile = {}
        for kind in KINDS:
            if medians := [self.passes.scores[label].median for label in right if self.passes.kinds[label] == kind]:
                profile[kind] = float(np.median(medians))
        known = set(self.passes.scores)
        skipped = dict(self.passes.dump.skipped)
        for name in self.passes.dump.entries:
            if name not in known and name not in skipped:
                skipped[name] = "the model has no value of this name"
        prompt = len(self.passes.text.ids) - self.passes.text.n_decode
        return Report(verdicts, profile, self.passes.notes, skipped, prompt, list(self.passes.text.ids))


def _grouped_by_sentence(explained: Mapping[str, tuple[Cause, Score]]) -> list[tuple[str, list[str]]]:
    labels = sorted(explained, key=lambda label: explained[label][0].sentence)
    return [(key, list(group)) for key, group in groupby(labels, key=lambda label: explained[label][0].sentence)]
