"""The floors: below how many bits a value is wrong, in view of the engine's own arithmetic.

Elementwise values (norms, sums, activation functions) are float32 in every right engine, unless it stores all values in
16 bits.  Products and attention may round their inputs.  A value may also fall out of the line of its kind.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np

from .injection import MAX_BITS
from .passes import Passes, by_name
from .values import INPUT_NAMES, KINDS, dependents, inputs_of, kind_of, split_label

FLOORS = {"elementwise": 14.0, "attention": 5.0, "product": 5.0}
ROUNDED_FLOOR = 3.5  # elementwise values of an engine that stores all values in 16 bits
FLOAT32_MEDIAN = 17.0  # an engine whose elementwise values stand above it stores float32
OUT_OF_LINE_BITS, OUT_OF_LINE_BELOW = 7.0, 10.0
MAX_CHOICE_ROWS = 0.25  # of all rows: more than these are not chosen otherwise by rounding
EXACT = INPUT_NAMES[:1]  # lookups: exact if the weights are representable, whatever the arithmetic


class Floors:
    """The floors of one dump."""

    def __init__(self, passes: Passes):
        self.passes = passes

    def floor(self, label: str) -> float:
        """Return the bits below which a value is wrong."""
        if self.passes.kinds[label] != "elementwise":
            return FLOORS[self.passes.kinds[label]]
        return FLOORS["elementwise"] if self.stores_float32 else ROUNDED_FLOOR

    @cached_property
    def stores_float32(self) -> bool:
        """Whether the engine's elementwise values stand at float32: two names are enough, as others may be wrong."""
        labels = [label for label, kind in self.passes.kinds.items() if kind == "elementwise" and label not in EXACT]
        names = by_name(label for label in labels if label not in self.passes.all.whole_numbers)
        medians = [np.median([self.passes.scores[label].median for label in group]) for group in names.values()]
        return sum(bool(median > FLOAT32_MEDIAN) for median in medians) >= min(2, len(medians))

    def suspects(self) -> list[str]:
        """Return the labels below the floor of their kind or out of its line, in order of computation."""
        passes = self.passes
        lines: dict[str, float] = {}
        for name, labels in by_name(passes.scores).items():
            cells = np.concatenate([passes.scores[label].bits.ravel() for label in labels])
            lines[name] = float(np.nanmedian(cells)) if np.isfinite(cells).any() else MAX_BITS
        upstream: dict[str, float] = {}  # the least bits on the way to each value
        for label in passes.order:
            before = [
                min(upstream[source], passes.scores[source].least if source in passes.scores else MAX_BITS)
                for source in inputs_of(label, upstream, passes.n_layer)
            ]
            upstream[label] = min(before, default=MAX_BITS)
        found = []
        for label in (label for label in passes.order if label in passes.scores):
            least, line = passes.scores[label].least, lines[split_label(label)[0]]
            if passes.dump.printed:  # errors pass on, and no elementwise operation adds to them
                own = kind_of(label, passes.order, passes.scores, passes.n_layer)
                line = upstream[label] if own == KINDS[0] else 0
            out = line - least > OUT_OF_LINE_BITS and least < OUT_OF_LINE_BELOW
            if least < self.floor(label) or out:
                found.append(label)
        return found

    def chose_otherwise(self, label: str) -> bool:
        """Return whether a value is low in few rows because rounding chose other experts there, and note it.

        Router probabilities that are nearly equal decide such rows; a wrong choice would show in most of them.
        """
        if "ffn_moe_topk" not in self.passes.between(label) or self.passes.scores[label].median > FLOORS["elementwise"]:
            return False
        low = np.flatnonzero((self.passes.scores[label].bits < self.floor(label)).any(axis=1))
        few = len(low) <= MAX_CHOICE_ROWS * len(self.passes.scores[label].bits)
        if few:
            self.passes.notes.append(f"{label}: other experts in rows {', '.join(map(str, low))}, a matter of rounding")
        return few

    def is_passed_on(self, label: str, wrong: Collection[str]) -> bool:
        """Return whether a value that follows is wrong too, or none does; if not, the value has another form."""
        todo, seen, found = [label], {label}, False
        while todo:
            for other in dependents(todo.pop(), self.passes.order, self.passes.n_layer):
                if other in self.passes.scores:
                    if other in wrong:
                        return True
                    found = True
                elif other not in seen:
                    seen.add(other)
                    todo.append(other)
        return not found
