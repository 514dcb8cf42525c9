"""The passes that judge one dump: over all values, and over one value under a hypothesis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from ..errors import RequestError
from ..model.model import Model
from .causes import Cause
from .dumps import Dump
from .forms import unfused
from .injection import N_SHAKEN, Advance, Injection, Score, Text, check_finite, no_advance
from .setting import F64, Setting, one_layer, without_unused_products
from .values import INPUT_NAMES, SPAN_BY_SPAN, accumulated_kinds, inputs_of, kind_of, split_label


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


class Passes:
    """The passes over one dump.

    all      the pass over all layers;  scores, order: its scores, and all labels in order of computation
    kinds    label -> the least precise kind of operation since the values that the dump has
    changed  arrays in place of the dump's
    notes    sentences about the dump and its arithmetic
    """

    def __init__(self, model: Model, ids: Sequence[int], dump: Dump, n_decode: int, advance: Advance = no_advance):
        check_tokens(dump, ids)
        if not 0 < len(ids) <= model.hparams.n_ctx_train:
            n = model.hparams.n_ctx_train
            raise RequestError(f"{len(ids)} tokens, expected 1 to {n}, the model's context length")
        if min(ids) < 0 or max(ids) >= model.hparams.n_vocab:
            raise RequestError(f"token id {max(ids)}, expected 0 to {model.hparams.n_vocab - 1}")
        if not 0 <= n_decode < len(ids):
            raise RequestError(f"{n_decode} decode steps out of {len(ids)} tokens, expected at least one prompt token")
        self.dump = unfused(dump, model)
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
        self.advance = advance
        self.first_pass()

    def first_pass(self) -> None:
        """Run the pass over all layers: the scores of all values, and how sensitive each is."""
        run = Injection(
            self.base, self.text, self.dump, changed=self.changed, copies=1 + N_SHAKEN, advance=self.advance
        ).run()
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

    def between(self, label: str) -> set[str]:
        """Return the names of the values since those that the dump has, `label` included."""
        names, todo = {split_label(label)[0]}, [label]
        while todo:
            for source in inputs_of(todo.pop(), self.order, self.n_layer):
                if source not in self.scores and split_label(source)[0] not in names:
                    names.add(split_label(source)[0])
                    todo.append(source)
        return names


def by_name(labels: Iterable[str]) -> dict[str, list[str]]:
    """Group labels by the names of their values."""
    names: dict[str, list[str]] = {}
    for label in labels:
        names.setdefault(split_label(label)[0], []).append(label)
    return names
