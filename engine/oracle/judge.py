"""The judgement of a dump: each operation of another engine judged on that engine's own inputs, in effective bits.

    bits = 20 + log2(rms moved / rms error)      24: float32, 11: float16, 8: bfloat16, 7.7: 8-bit activations

`moved` is how far our float64 result moves if inputs or the result itself change by a relative 2^-20.  So bits are the
precision of inputs that would explain the error, whatever the operation is; each row and head is judged alone, and
the worst counts.  Errors do not accumulate, and all wrong operations are found, not only the first (injection.py).

A value is wrong if it lies below the floor of its kind, if it falls out of the line of its kind over layers, rows and
heads, or if one of the hypotheses in causes.py explains it far better than the right computation does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from math import prod

import numpy as np

from ..errors import RequestError
from ..model.model import Model
from .causes import CAUSES, Cause
from .dumps import Dump
from .forms import FORMED, unfused
from .injection import (
    F64,
    MAX_BITS,
    N_SHAKEN,
    Injection,
    Score,
    Setting,
    Text,
    check_finite,
    one_layer,
    without_unused_products,
)
from .values import (
    INPUT_NAMES,
    KINDS,
    SPAN_BY_SPAN,
    accumulated_kinds,
    dependents,
    inputs_of,
    kind_of,
    split_label,
)

FLOORS = {"elementwise": 14.0, "attention": 5.0, "product": 5.0}
ROUNDED_FLOOR = 3.5  # elementwise values of an engine that stores all values in 16 bits
FLOAT32_MEDIAN = 17.0  # an engine whose elementwise values stand above it stores float32
OUT_OF_LINE_BITS, OUT_OF_LINE_BELOW = 7.0, 10.0
SUBTLE_BELOW = 18.0  # values above it are not tried with hypotheses
MIN_GAIN_BITS, MIN_SUBTLE_GAIN_BITS, MIN_SUBTLE_BITS = 2.5, 4.0, 14.0
MAX_CAUSES_OF_NAME = 3  # tried for the layers of one name; each try takes all hypotheses
MAX_CHOICE_ROWS = 0.25  # of all rows: more than these are not chosen otherwise by rounding
CERTAIN_BITS = 18.0  # a hypothesis that reaches them is not compared with others
ARITHMETICS = (
    (19, "float32"),
    (15.5, "float32 with larger rounding"),
    (10.2, "float16 or tf32"),
    (8.6, "bfloat16"),
    (5.0, "8-bit activations"),
    (0, "4 bits"),
    (-99, "no known arithmetic"),
)
EXACT = INPUT_NAMES[:1]  # lookups: exact if the weights are representable, whatever the arithmetic
Q_AND_K = (("Qcur", "Kcur"), ("Qcur_pre_rope", "Kcur_pre_rope"))


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


def judge(model: Model, ids: Sequence[int], dump: Dump, n_decode: int = 0, causes: Sequence[Cause] = CAUSES) -> Report:
    """Judge every value of `dump` that the model computes for the tokens `ids`, of which the last are decode steps.

    Raises: RequestError if the dump cannot be compared
    """
    return Judgement(model, ids, dump, n_decode, causes).report()


def check_tokens(dump: Dump, ids: Sequence[int]) -> None:
    """Check that the dump was computed for the tokens `ids`.  Raises: RequestError"""
    if dump.tokens is None or list(ids) == dump.tokens:
        return
    theirs = dump.tokens
    at = next((i for i, (a, b) in enumerate(zip(theirs, ids, strict=False)) if a != b), min(len(theirs), len(ids)))
    found, expected = (f"{list(x[at : at + 3])}" for x in (theirs, ids))
    hint = ""
    if theirs == list(ids)[1:]:
        hint = f"; the dump lacks the first token, {ids[0]} (BOS)"
    elif theirs[1:] == list(ids):
        hint = f"; the dump begins with another token, {theirs[0]}"
    raise RequestError(
        f"{dump.path}: {len(theirs)} token ids, expected {len(ids)}; from position {at} they are {found}, expected "
        f"{expected}{hint}"
    )


class Judgement:
    """The passes that judge one dump."""

    def __init__(self, model: Model, ids: Sequence[int], dump: Dump, n_decode: int, causes: Sequence[Cause]):
        check_tokens(dump, ids)
        if not 0 < len(ids) <= model.hparams.n_ctx_train:
            n = model.hparams.n_ctx_train
            raise RequestError(f"{len(ids)} tokens, expected 1 to {n}, the model's context length")
        if min(ids) < 0 or max(ids) >= model.hparams.n_vocab:
            raise RequestError(f"token id {max(ids)}, expected 0 to {model.hparams.n_vocab - 1}")
        if not 0 <= n_decode < len(ids):
            raise RequestError(f"{n_decode} decode steps out of {len(ids)} tokens, expected at least one prompt token")
        self.dump, self.causes = unfused(dump, model), causes
        self.base = Setting(F64, model, n_prompt=len(ids) - n_decode if n_decode else 0)
        self.n_layer = model.hparams.n_layer
        widths = {"result_norm": model.hparams.n_embd, "result_embd": model.hparams.n_embd}
        widths["result_output"] = model.hparams.n_vocab
        many = any(
            prod(dump.entries[name].shape) >= len(ids) * width for name, width in widths.items() if name in dump.entries
        )
        self.text = Text(list(ids), n_decode, many or not model.family.causal)
        self.changed: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self.pardoned: dict[str, tuple[str, Score]] = {}
        self.first_pass()

    # --- passes ---

    def first_pass(self) -> None:
        """Run the pass over all layers: the scores of all values, and how sensitive each is."""
        run = Injection(self.base, self.text, self.dump, changed=self.changed, copies=1 + N_SHAKEN).run()
        self.__dict__.pop("stores_float32", None)
        self.all, self.scores, self.order = run, run.scores, list(run.shapes)
        check_finite(run, self.order)
        self.check_rows()
        if not self.scores:
            reasons = [f"{name}: {why}" for name, why in self.dump.skipped.items()]
            reason = reasons[0] if reasons else f"its arrays are {', '.join(list(self.dump.entries)[:3])}"
            raise RequestError(
                f"{self.dump.path}: no values in common with the model for {len(self.text.ids)} tokens; "
                f"{reason[:160]}; expected names such as {', '.join(self.order[:3])}"
            )
        self.last_input = [label for label in self.order if label in INPUT_NAMES][-1]
        if self.dump.printed:
            kinds = accumulated_kinds(self.order, self.n_layer)
            self.kinds = {label: kind for label, kind in kinds.items() if label in self.scores}
        else:
            self.kinds = {label: kind_of(label, self.order, self.scores, self.n_layer) for label in self.scores}

    def check_rows(self) -> None:
        """Check that the dump has as many rows as the text has tokens.  Raises: RequestError"""
        n, counts = len(self.text.ids), []
        rows = [
            label for label in self.order if split_label(label)[0] not in SPAN_BY_SPAN and label in self.dump.entries
        ]
        for label in rows:
            size, ours = prod(self.dump.entries[label].shape), self.all.shapes[label]
            if label not in self.scores and ours[0] == n and size % (prod(ours) // n) == 0:
                counts.append(size // (prod(ours) // n))
        if counts and 2 * len(counts) > len(rows) and counts.count(counts[0]) == len(counts):
            raise RequestError(f"{self.dump.path}: its values have {counts[0]} rows, expected {n}, one for each token")

    def score_under(
        self,
        label: str,
        cause: Cause | None,
        hidden: frozenset[str] = frozenset(),
        changed: Mapping[str, np.ndarray] | None = None,
    ) -> Score | None:
        """Judge the value `label` alone, as if `cause` were how it is computed; None if the cause does not apply.

        hidden    labels of the dump that are not used
        changed   arrays in place of the dump's
        """
        _, il = split_label(label)
        if label in self.all.whole_numbers and cause is None:
            return self.scores[label]
        setting = one_layer(self.base, il)
        supposed = setting if cause is None else cause.change(setting)
        if supposed is None:
            return None
        supposed = without_unused_products(supposed, label, self.all.complete - hidden)
        enters = self.all.layer_inputs.get(il if il >= 0 else self.n_layer)
        if split_label(label)[0] in INPUT_NAMES or (il == 0 and self.last_input not in self.scores):
            enters = None  # what enters the layer is part of the hypothesis
        moved = {label: self.scores[label].moved}
        run = Injection(
            supposed,
            self.text,
            self.dump,
            hidden=hidden,
            changed=self.changed if changed is None else changed,
            il=il,
            enters=enters,
            target=label,
            moved=moved,
            read=self.all.fitted,
        )
        try:
            return run.run().scores.get(label)
        except (ValueError, IndexError, TypeError):  # the hypothesis gives other shapes: it explains nothing
            return None

    # --- floors ---

    def floor(self, label: str) -> float:
        if self.kinds[label] != "elementwise":
            return FLOORS[self.kinds[label]]
        return FLOORS["elementwise"] if self.stores_float32 else ROUNDED_FLOOR

    @cached_property
    def stores_float32(self) -> bool:
        """Whether the engine's elementwise values stand at float32: two names are enough, as others may be wrong."""
        labels = [label for label, kind in self.kinds.items() if kind == "elementwise" and label not in EXACT]
        names = self.by_name(label for label in labels if label not in self.all.whole_numbers)
        medians = [np.median([self.scores[label].median for label in group]) for group in names.values()]
        return sum(bool(median > FLOAT32_MEDIAN) for median in medians) >= min(2, len(medians))

    def suspects(self) -> list[str]:
        """Return the labels below the floor of their kind or out of its line, in order of computation."""
        lines: dict[str, float] = {}
        for name, labels in self.by_name(self.scores).items():
            cells = np.concatenate([self.scores[label].bits.ravel() for label in labels])
            lines[name] = float(np.nanmedian(cells)) if np.isfinite(cells).any() else MAX_BITS
        upstream: dict[str, float] = {}  # the least bits on the way to each value
        for label in self.order:
            before = [
                min(upstream[source], self.scores[source].least if source in self.scores else MAX_BITS)
                for source in inputs_of(label, upstream, self.n_layer)
            ]
            upstream[label] = min(before, default=MAX_BITS)
        found = []
        for label in self.order:
            if label in self.scores:
                least = self.scores[label].least
                name = split_label(label)[0]
                line = lines[name]
                if self.dump.printed:  # errors pass on, and no elementwise operation adds to them
                    line = upstream[label] if kind_of(label, self.order, self.scores, self.n_layer) == KINDS[0] else 0
                out = line - least > OUT_OF_LINE_BITS and least < OUT_OF_LINE_BELOW
                if least < self.floor(label) or out:
                    found.append(label)
        return found

    def chose_otherwise(self, label: str) -> bool:
        """Return whether a value is low in few rows because rounding chose other experts there, and note it.

        Router probabilities that are nearly equal decide such rows; a wrong choice would show in most of them.
        """
        if "ffn_moe_topk" not in self.between(label) or self.scores[label].median > FLOORS["elementwise"]:
            return False
        low = np.flatnonzero((self.scores[label].bits < self.floor(label)).any(axis=1))
        few = len(low) <= MAX_CHOICE_ROWS * len(self.scores[label].bits)
        if few:
            self.notes.append(f"{label}: other experts in rows {', '.join(map(str, low))}, a matter of rounding")
        return few

    def is_passed_on(self, label: str, wrong: Collection[str]) -> bool:
        """Return whether a value that follows is wrong too, or none does; if not, the value has another form."""
        todo, seen, found = [label], {label}, False
        while todo:
            for other in dependents(todo.pop(), self.order, self.n_layer):
                if other in self.scores:
                    if other in wrong:
                        return True
                    found = True
                elif other not in seen:
                    seen.add(other)
                    todo.append(other)
        return not found

    @staticmethod
    def by_name(labels: Iterable[str]) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for label in labels:
            names.setdefault(split_label(label)[0], []).append(label)
        return names

    # --- arrangements: the same numbers in another order ---

    def rearrange(self) -> None:
        """Recognize rows of q and k in Hugging Face's order, and values before RoPE under the names of those after."""
        for names in Q_AND_K:
            pairs = [tuple(f"{name}-{il}" for name in names) for il in range(self.n_layer)]
            low = [
                pair
                for pair in pairs
                if all(label in self.scores and self.scores[label].least < FLOORS["product"] for label in pair)
            ]
            if not low:
                continue
            if names[0] == "Qcur" and self._before_rope(low):
                return
            for order in (weave, unweave):
                if self._reordered(low, order):
                    return

    def _reordered(self, pairs: list[tuple[str, ...]], order: object) -> bool:
        arrays = {}
        for label in pairs[0]:
            theirs = self.all.fitted[label]
            if theirs is None or theirs.known is not None:
                return False
            arrays[label] = order(theirs.values)  # type: ignore[operator]
            score = self.score_under(label, None, changed={**self.changed, label: arrays[label]})
            if score is None or score.least < FLOORS["product"]:
                return False
        for pair in pairs:
            for label in pair:
                theirs = self.all.fitted[label]
                if theirs is not None and theirs.known is None:
                    self.changed[label] = order(theirs.values)  # type: ignore[operator]
        names = " and ".join(split_label(label)[0] for label in pairs[0])
        self.notes.append(f"{names} have the same numbers in another order, that of Hugging Face's files")
        self.first_pass()
        return True

    def _before_rope(self, pairs: list[tuple[str, ...]]) -> bool:
        hidden = frozenset(pairs[0])
        il = split_label(pairs[0][0])[1]
        for target in (f"kq-{il}", f"kqv_out-{il}"):
            if target in self.scores:
                after = self.score_under(target, None, hidden=hidden)
                if after is None or after.least < FLOORS["attention"] or self.scores[target].least > after.least - 3:
                    return False
                break
        else:
            return False
        names = {label for pair in pairs for label in pair}
        self.dump = self.dump.renamed(lambda name: name.replace("cur-", "cur_pre_rope-") if name in names else name)
        self.notes.append("Qcur and Kcur are the values before RoPE, compared as Qcur_pre_rope and Kcur_pre_rope")
        self.first_pass()
        return True

    # --- causes ---

    def explain(self, label: str, subtle: bool) -> tuple[Cause, Score] | None:
        """Return the hypothesis that explains the value best, with its score; None if none does."""
        between, plain = self.between(label), self.scores[label]
        kind, floor = self.kinds[label], self.floor(label)
        right = [s.median for other, s in self.scores.items() if self.kinds[other] == kind and s.least >= floor]
        line = float(np.median(right)) if right else MAX_BITS
        best: tuple[Cause, Score] | None = None
        for cause in sorted(self.causes, key=lambda cause: not cause.arithmetic) if subtle else self.causes:
            if not cause.may_explain(between):
                continue
            score = self.score_under(label, cause)
            if score is not None and (best is None or score.least > best[1].least + 0.5):
                best = cause, score
                if score.least >= min(CERTAIN_BITS, self.scores[label].least + 12) and score.least >= MIN_SUBTLE_BITS:
                    break
                if not subtle and score.least > floor + 1 and score.median > line - 1:
                    break  # as precise as the engine's other values of this kind
        if best is None:
            return None
        gain, least = best[1].least - plain.least, best[1].least
        if subtle:
            return best if gain >= MIN_SUBTLE_GAIN_BITS and least >= MIN_SUBTLE_BITS else None
        return best if gain >= MIN_GAIN_BITS and least >= min(self.floor(label), FLOORS["product"]) else None

    def between(self, label: str) -> set[str]:
        """Return the names of the values since those that the dump has, `label` included."""
        names, todo = {split_label(label)[0]}, [label]
        while todo:
            for source in inputs_of(todo.pop(), self.order, self.n_layer):
                if source not in self.scores and split_label(source)[0] not in names:
                    names.add(split_label(source)[0])
                    todo.append(source)
        return names

    def report(self) -> Report:
        """Judge, find causes, and report."""
        if not self.dump.printed:
            self.rearrange()
        wrong = self.suspects()
        if self.dump.printed:  # printed corners cannot be injected: values that follow contain the error
            wrong = [
                label for label in wrong if split_label(label)[0] not in FORMED or self.is_passed_on(label, wrong)
            ][:1]
        wrong = [label for label in wrong if not self.chose_otherwise(label)]
        explained: dict[str, tuple[Cause, Score]] = {}
        for labels in self.by_name(wrong).values():
            todo = sorted(labels, key=lambda label: self.scores[label].least)
            for _ in range(MAX_CAUSES_OF_NAME):
                if not todo:
                    break
                worst = todo.pop(0)
                if found := self.explain(worst, subtle=False):
                    for label in (worst, *todo):
                        score = found[1] if label == worst else self.score_under(label, found[0])
                        if score is not None and score.least >= self.scores[label].least + MIN_GAIN_BITS:
                            explained[label] = found[0], score
                    todo = [label for label in todo if label not in explained]
        if not self.dump.printed:
            for label, found in self.subtle(wrong).items():
                wrong.append(label)
                explained[label] = found
        wrong, explained = self.pardon(wrong, explained)
        self._check_model(wrong, explained)
        return self._report(wrong, explained)

    def subtle(self, wrong: Sequence[str]) -> dict[str, tuple[Cause, Score]]:
        """Try hypotheses on the least value of each name even where nothing lies below a floor."""
        found: dict[str, tuple[Cause, Score]] = {}
        for labels in self.by_name(label for label in self.scores if label not in wrong).values():
            worst = min(labels, key=lambda label: self.scores[label].least)
            if self.scores[worst].least >= SUBTLE_BELOW or self.scores[worst].least == MAX_BITS:
                continue
            best = self.explain(worst, subtle=True)
            for label in labels if best else ():
                assert best is not None
                score = best[1] if label == worst else self.score_under(label, best[0])
                if score is not None and score.least >= self.scores[label].least + MIN_SUBTLE_GAIN_BITS:
                    found[label] = best[0], score
        return found

    def pardon(
        self, wrong: list[str], explained: dict[str, tuple[Cause, Score]]
    ) -> tuple[list[str], dict[str, tuple[Cause, Score]]]:
        """Drop values that an arithmetic explains: they are rounded otherwise, and right."""
        for sentence, labels in _grouped_by_sentence(explained):
            if explained[labels[0]][0].arithmetic:
                names = ", ".join(self.by_name(labels))
                self.notes.append(f"{names}: {sentence}, a matter of rounding")
        kept = [label for label in self.order if label in wrong]
        kept = [label for label in kept if not (label in explained and explained[label][0].arithmetic)]
        return kept, {label: found for label, found in explained.items() if label in kept}

    def _check_model(self, wrong: Sequence[str], explained: Mapping[str, object]) -> None:
        weighted = [label for label, kind in self.kinds.items() if kind == "product" or label == "embd"]
        foreign = [
            label for label in weighted if label in wrong and label not in explained and self.scores[label].is_foreign
        ]
        normed = [label for label, kind in self.kinds.items() if kind == "elementwise" and "norm" in label]
        same_norms = any(label not in wrong for label in normed)  # their weights are those of this model
        if len(weighted) > 3 and len(foreign) > 0.9 * len(weighted) and not same_norms:
            raise RequestError(
                f"{self.dump.path}: {len(foreign)} of {len(weighted)} values that weights enter have nothing in "
                "common with this model's; expected the dump of the same model and the same tokens"
            )

    def _report(self, wrong: Sequence[str], explained: Mapping[str, tuple[Cause, Score]]) -> Report:
        verdicts = []
        for label in self.order:
            if label not in self.scores:
                continue
            score = self.scores[label]
            verdict = Verdict(label, self.kinds[label], score.bits, note=score.note)
            if label in wrong:
                limit = max(self.floor(label), score.least + 1e-9)
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
                    enters=tuple(dependents(label, self.order, self.n_layer)),
                )
            verdicts.append(verdict)
        right = [label for label in self.scores if label not in wrong] or list(self.scores)
        profile = {}
        for kind in KINDS:
            if medians := [self.scores[label].median for label in right if self.kinds[label] == kind]:
                profile[kind] = float(np.median(medians))
        known = set(self.scores)
        skipped = dict(self.dump.skipped)
        for name in self.dump.entries:
            if name not in known and name not in skipped:
                skipped[name] = "the model has no value of this name"
        prompt = len(self.text.ids) - self.text.n_decode
        return Report(verdicts, profile, self.notes, skipped, prompt, list(self.text.ids))


def _grouped_by_sentence(explained: Mapping[str, tuple[Cause, Score]]) -> list[tuple[str, list[str]]]:
    labels = sorted(explained, key=lambda label: explained[label][0].sentence)
    return [(key, list(group)) for key, group in groupby(labels, key=lambda label: explained[label][0].sentence)]


def weave(x: np.ndarray) -> np.ndarray:
    """Reorder heads from two halves to neighbours.  [..., n_head_dim] -> the same shape"""
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)).reshape(x.shape)


def unweave(x: np.ndarray) -> np.ndarray:
    """Reorder heads from neighbours to two halves.  [..., n_head_dim] -> the same shape"""
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2)).reshape(x.shape)


def arithmetic_of(bits: float) -> str:
    """Return the arithmetic that usually gives so many bits.

    >>> arithmetic_of(7.7)
    '8-bit activations'
    """
    return next(name for least, name in ARITHMETICS if bits >= least)
