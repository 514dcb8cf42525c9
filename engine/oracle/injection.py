"""A pass on another engine's values: a tap that replaces each of our values by theirs.

Each of our values is then one operation away from theirs: our operation applied to their inputs.  Several copies of
the text run in one batch.  Copy 0 gets their values, the others their values changed by a relative 2^-20: how much an
output then moves is that operation's own sensitivity, without a formula for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...kernels import Kernels
from ..errors import RequestError
from ..model.batch import Batch
from ..model.decoder import logits
from ..model.trace import label as label_of
from .dumps import Dump
from .forms import recognized
from .layout import Fitted, fit, fits
from .setting import Setting
from .values import INPUT_NAMES, LAYER_INPUT, SPAN_BY_SPAN, inputs_of

SHAKE = 2.0**-20
SHAKE_BITS = 20
N_SHAKEN = 2  # copies; a group of few numbers may by chance move little in one of them
MAX_BITS = 26.0
OTHER_MODEL_BITS = 1.5  # of most rows of a value from another model or text
ALIKE_BITS = 8.0  # of a row that is right, if coarsely
F16_MAX = 65504.0
PRINTED_ROUNDING = 6e-5  # llama-eval-callback prints four digits
SUM_ROUNDING = 1e-6  # of the sum of magnitudes, summed one by one in float32
SUM_SLACK_BITS = 3  # the errors of an engine that rounds to 8 bits are not quite independent


@dataclass(frozen=True, eq=False)
class Score:
    """The precision of one value.

    bits    f64 [n_row, n_head]: precision of inputs and output that would explain the error; NaN: not in the dump
    moved   f64 [n_row, n_head]: rms by which the value moves if inputs or output change by 2^-20
    note    how the array was read
    """

    bits: np.ndarray
    moved: np.ndarray
    note: str = ""

    @property
    def least(self) -> float:
        return float(np.nanmin(self.bits, initial=MAX_BITS))

    @property
    def median(self) -> float:
        return float(np.nanmedian(self.bits)) if np.isfinite(self.bits).any() else MAX_BITS

    @property
    def is_foreign(self) -> bool:
        """Whether the value has nothing in common with ours: in no row are all heads alike."""
        best_row = np.nanmin(np.nan_to_num(self.bits, nan=MAX_BITS), axis=1).max(where=self.compared, initial=0)
        return self.median < OTHER_MODEL_BITS and float(best_row) < ALIKE_BITS

    @property
    def compared(self) -> np.ndarray:
        """Whether a row is in the dump.  bool [n_row]"""
        return np.asarray(np.isfinite(self.bits).any(axis=1))


@dataclass(frozen=True, eq=False)
class Text:
    """The tokens of a pass: a prompt and the decode steps after it.  All rows are outputs if `all_rows`."""

    ids: Sequence[int]
    n_decode: int = 0
    all_rows: bool = False

    @property
    def outputs(self) -> range:
        return range(0 if self.all_rows else len(self.ids) - 1 - self.n_decode, len(self.ids))

    def batch(self, copies: int) -> Batch:
        outputs = list(self.outputs)
        return Batch.join([Batch.of(self.ids, slot=copy, outputs=outputs) for copy in range(copies)])


Advance = Callable[[str, int, int], None]  # told what is being done, steps done, and steps in all


def no_advance(doing: str, done: int, total: int) -> None:
    """Ignore the progress."""


class PassEnded(Exception):
    """The last wanted value was computed."""


@dataclass
class Injection:
    """The tap.

    dump         their values
    hidden       labels of the dump that are not used
    changed      arrays used in place of the dump's
    copies       1, or 1 + N_SHAKEN
    il, enters   for a pass over a single layer: its number, and what enters it
    target       the label after which the pass ends
    moved        sensitivities of an earlier pass, for one copy
    read         their values as an earlier pass read them
    advance      is told after each layer
    """

    setting: Setting
    text: Text
    dump: Dump
    hidden: frozenset[str] = frozenset()
    changed: Mapping[str, np.ndarray] = field(default_factory=dict)
    copies: int = 1
    il: int | None = None
    enters: np.ndarray | None = None
    target: str = ""
    moved: Mapping[str, np.ndarray] = field(default_factory=dict)
    read: Mapping[str, Fitted | None] = field(default_factory=dict)
    advance: Advance = no_advance
    seed: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    layer_inputs: dict[int, np.ndarray] = field(default_factory=dict)
    not_finite: dict[str, tuple[int, float]] = field(default_factory=dict)
    whole_numbers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.parts: dict[str, list[np.ndarray]] = {}
        self.fitted: dict[str, Fitted | None] = {}
        self.passed_on: dict[str, np.ndarray] = {}
        self.at, self.turned, self.normed = 0, 0, 0

    # --- the pass ---

    def run(self) -> Injection:
        """Run the pass, to the end or to `target`."""
        model, batch = self.setting.model, self.text.batch(self.copies)
        kernels = self._with_inner_taps(self.setting.kernels)
        cache = model.new_cache(len(self.text.ids), self.copies, type="f64")
        with np.errstate(all="ignore"):
            try:
                hidden = model.family.hidden(model, batch, cache, kernels, self)
                if model.family.causal:
                    logits(model, hidden, kernels, self)
            except PassEnded:
                pass
        return self

    def _with_inner_taps(self, kernels: Kernels) -> Kernels:
        """Tap what enters RoPE, the query first, and what enters the norm of heads."""

        def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
            if x.ndim == 3:
                x = self(("Qcur_unnormed", "Kcur_unnormed")[self.normed % 2], self.at, x)
                self.normed += 1
            return kernels.rms_norm(x, weight, eps)

        def rope(x: np.ndarray, positions: np.ndarray, rule: Any) -> np.ndarray:
            name = ("Qcur_pre_rope", "Kcur_pre_rope")[self.turned % 2]
            self.turned += 1
            return kernels.rope(self(name, self.at, x), positions, rule)

        return replace(kernels, rope=rope, rms_norm=rms_norm)

    def __call__(self, name: str, il: int, value: np.ndarray) -> np.ndarray:
        if self.enters is not None and name in INPUT_NAMES:
            self.passed_on[LAYER_INPUT] = np.concatenate([self.enters] * self.copies)
            return self.passed_on[LAYER_INPUT]
        label = label_of(name, il if self.il is None or il < 0 else self.il)
        if name == "l_out":
            self.at = il + 1
            self.advance("judging layers", il + 1, self.setting.model.hparams.n_layer)
        elif name == "inp_norm" or name == "embd":
            self.at = 0
        if name in SPAN_BY_SPAN:
            return self._one_span(name, label, value)
        if name in self.setting.values:
            value = self.setting.values[name](value, self.passed_on)
        ours = value.reshape(self.copies, -1, *value.shape[1:])
        theirs = self._theirs(name, label, ours[0])
        if self.copies > 1 or label == self.target:
            self._judge(name, label, ours, theirs)
        if label == self.target:
            raise PassEnded
        out = np.stack([self._passed(label, ours[copy], theirs, copy) for copy in range(self.copies)])
        if self.il is None and (name == "l_out" or name in INPUT_NAMES):
            self.layer_inputs[0 if name != "l_out" else il + 1] = out[0]
        self.passed_on[LAYER_INPUT if name in INPUT_NAMES else name] = out.reshape(value.shape)
        return out.reshape(value.shape)

    def _one_span(self, name: str, label: str, value: np.ndarray) -> np.ndarray:
        parts = self.parts.setdefault(label, [])
        parts.append(value)
        theirs = self._theirs(name, label, parts[0])
        if len(parts) == self.copies:
            if self.copies > 1 or label == self.target:
                self._judge(name, label, np.stack(parts), theirs)
            if label == self.target:
                raise PassEnded
        return self._passed(label, value, theirs, len(parts) - 1)

    # --- their values ---

    def _theirs(self, name: str, label: str, ours: np.ndarray) -> Fitted | None:
        if label in self.fitted:
            return self.fitted[label]
        self.shapes[label] = ours.shape
        found = None
        entry = self.dump.entries.get(label)
        known = self.read.get(label)
        if known is not None and known.values.shape == ours.shape and not {label} & {*self.changed, *self.hidden}:
            self.fitted[label] = known
            return known
        if label in self.changed:
            found = Fitted(self.changed[label])
        elif entry is not None and label not in self.hidden:
            n_last = len(self.text.outputs)
            if self.dump.printed:
                found = self._printed(entry.read(), ours)
            elif fits(entry.shape, ours.shape, n_last) or (name in SPAN_BY_SPAN and ours.ndim == len(entry.shape)):
                found = fit(entry.read(), ours, n_last, 1 if name in SPAN_BY_SPAN else 0)
            if found is None:
                shapes = "x".join(map(str, entry.shape)), "x".join(map(str, ours.shape))
                self._skip(label, f"its shape is {shapes[0]}, expected {shapes[1]}")
        if found is not None:
            found = self._checked(name, label, found, ours)
        self.fitted[label] = found
        return found

    def _skip(self, label: str, reason: str) -> None:
        """List a value that cannot be compared, unless it is a hypothesis that gives it another shape."""
        if self.il is None:
            self.dump.skipped[label] = reason

    def _printed(self, theirs: np.ndarray, ours: np.ndarray) -> Fitted | None:
        n_row = len(theirs.reshape(-1, ours[0].size)) if theirs.size % ours[0].size == 0 else 0
        values, known = np.full(ours.shape, np.nan), np.zeros(ours.shape, bool)
        if not 0 < n_row <= len(ours):
            return None
        values[len(ours) - n_row :] = theirs.reshape(n_row, *ours.shape[1:])
        known[:] = np.isfinite(values)
        return Fitted(values, known, "corners" if n_row == len(ours) else f"corners of the last {n_row} rows")

    def _checked(self, name: str, label: str, found: Fitted, ours: np.ndarray) -> Fitted | None:
        known = found.known
        if name in SPAN_BY_SPAN:
            known = self._visible(name, ours) if known is None else known & self._visible(name, ours)
        where = np.ones(ours.shape, bool) if known is None else known
        form, note = recognized(name, found.values, ours, where, self.setting.model.hparams)
        found = Fitted(form, found.known, "; ".join(part for part in (found.note, note) if part))
        values = found.values if known is None else np.where(known, found.values, 0.0)
        bad = ~np.isfinite(values)
        if bad.any():
            self.not_finite[label] = int(bad.sum()), float(np.abs(ours[bad]).max())
            return None
        if ours.dtype.kind == "i":
            self.whole_numbers.add(label)
            n_expert = self.setting.model.hparams.n_expert
            if known is not None or not ((values >= 0) & (values < n_expert)).all():
                self._skip(label, f"it has ids of experts outside 0 to {n_expert - 1}")
                return None
        if known is None:
            self.complete.add(label)
        elif not known.any():
            return None
        return Fitted(found.values, known, found.note)

    def _visible(self, name: str, ours: np.ndarray) -> np.ndarray:
        """Return which scores a query sees; engines may leave the others out.  -> bool as `ours`"""
        if name == "kq_soft_max":
            return np.ones(ours.shape, bool)
        model = self.setting.model
        hp, n = model.hparams, ours.shape[1]
        if not model.family.causal:
            return np.ones(ours.shape, bool)
        rule = hp.attention[min(self.at, len(hp.attention) - 1)]
        seen = np.zeros((n, ours.shape[2]), bool)
        for t in range(n):
            begin, end = rule.seen(t, ours.shape[2])
            seen[t, begin:end] = True
        return np.broadcast_to(seen, ours.shape)

    def _passed(self, label: str, ours: np.ndarray, theirs: Fitted | None, copy: int) -> np.ndarray:
        if theirs is None or self.dump.printed:
            if copy and self.dump.printed and ours.dtype.kind == "f":
                return self._shaken(ours)
            return ours
        values = theirs.values if theirs.known is None else np.where(theirs.known, theirs.values, ours)
        values = values.astype(ours.dtype, copy=False)
        if not copy or ours.dtype.kind == "i":
            return values
        shaken = self._shaken(values)
        return shaken if theirs.known is None else np.where(theirs.known, shaken, ours)

    def _shaken(self, x: np.ndarray) -> np.ndarray:
        return x * (1 + SHAKE * 3**0.5 * self.rng.uniform(-1, 1, x.shape))

    # --- bits ---

    def _judge(self, name: str, label: str, ours: np.ndarray, theirs: Fitted | None) -> None:
        plain = self._grouped(name, label, ours[0])
        if label in self.moved:
            moved = self.moved[label]
        else:
            change = [np.mean((self._grouped(name, label, other) - plain) ** 2, axis=-1) for other in ours[1:]]
            moved = np.sqrt(np.mean(change, axis=0) + SHAKE**2 * np.mean(plain.astype(np.float64) ** 2, axis=-1))
        if theirs is None:
            return
        if ours.dtype.kind == "i":
            chosen = [np.sort(x.reshape(len(plain), -1), axis=1) for x in (theirs.values, *ours)]  # in any order
            same = (chosen[0] == chosen[1]).all(axis=1, keepdims=True)
            unsure = np.any([(x != chosen[1]).any(axis=1, keepdims=True) for x in chosen[2:]], axis=0)
            self.scores[label] = Score(np.where(same | unsure, MAX_BITS, 0.0), np.ones(same.shape), theirs.note)
            return
        known = np.ones(ours[0].shape, bool) if theirs.known is None else theirs.known
        error = np.where(known, np.abs(np.where(known, theirs.values, 0) - ours[0]), 0.0)
        if self.dump.printed:
            error = np.maximum(0, error - PRINTED_ROUNDING - 1e-4 * np.abs(ours[0]))
        known, error = self._grouped(name, label, known), self._grouped(name, label, error)
        count = known.sum(axis=-1)
        error = np.sqrt((error**2).sum(axis=-1) / np.maximum(count, 1))
        with np.errstate(all="ignore"):
            bits = SHAKE_BITS + np.log2(np.maximum(moved, 1e-300) / np.maximum(error, 1e-300))
        bits = np.where(error == 0, MAX_BITS, np.clip(np.nan_to_num(bits, nan=-30), -30, MAX_BITS))
        if label in self.dump.sums and theirs.note == "corners" and name not in SPAN_BY_SPAN:
            bits = np.minimum(bits, self._bits_of_sum(label, ours, moved))
        self.scores[label] = Score(np.where(count > 0, bits, np.nan), moved, theirs.note)

    def _bits_of_sum(self, label: str, ours: np.ndarray, moved: np.ndarray) -> float:
        """Judge the printed sum of a value: float32, so that the engine's own sum has an error too."""
        n = ours[0].size
        error = abs(self.dump.sums[label] - float(ours[0].sum())) - SUM_ROUNDING * float(np.abs(ours[0]).sum()) - 1e-6
        if error <= 0:
            return MAX_BITS
        expected = float(np.sqrt(np.mean(moved**2) * n))  # errors of n numbers that are independent of each other
        return float(np.clip(SHAKE_BITS + SUM_SLACK_BITS + np.log2(expected / error), -30, MAX_BITS))

    def _grouped(self, name: str, label: str, x: np.ndarray) -> np.ndarray:
        """Return x as [n_row, n_head, components]: rows are tokens, heads those of attention or chosen experts."""
        hp = self.setting.model.hparams
        if name in SPAN_BY_SPAN:
            return x.transpose(1, 0, 2)
        if name == "kqv_out":
            return x.reshape(len(x), hp.n_head, -1)
        if name in ("ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu", "ffn_moe_swiglu_oai", "ffn_moe_down"):
            return x.reshape(-1, hp.n_expert_used, x.shape[-1])
        return x if x.ndim == 3 else x.reshape(len(x), 1, -1)


def check_finite(found: Injection, order: Sequence[str]) -> None:
    """Check that the dump has finite numbers only.  Raises: RequestError, which names the first value in order"""
    label = next((label for label in order if label in found.not_finite), None)
    if label is None:
        return
    count, largest = found.not_finite[label]
    hint = ""
    name, size = max([(label, largest), *_sizes_of_inputs(found, label, order)], key=lambda pair: pair[1])
    if size > F16_MAX:
        hint = f"; {name} is up to {size:.3g}, and float16 ends at {F16_MAX:.0f}: an f16 cache or product overflows"
    raise RequestError(
        f"{found.dump.path}: {label} has {count} number{'s' * (count > 1)} that {'are' if count > 1 else 'is'} not "
        f"finite, the first such value in the order of computation; expected finite numbers{hint}"
    )


def _sizes_of_inputs(found: Injection, label: str, order: Sequence[str]) -> list[tuple[str, float]]:
    """Return the largest magnitude of each value that enters `label` and is in the dump."""
    sizes, todo = dict[str, float](), [label]
    while todo:
        for source in inputs_of(todo.pop(), order, found.setting.model.hparams.n_layer):
            theirs = found.fitted.get(source)
            if theirs is None and source not in sizes:
                todo.append(source)
            elif theirs is not None and theirs.values.dtype.kind == "f":
                sizes[source] = float(np.abs(theirs.values[np.isfinite(theirs.values)]).max(initial=0))
    return list(sizes.items())
