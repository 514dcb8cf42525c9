"""The arrangement of a dump: the same numbers in another order, or under the name of a value after them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .floors import FLOORS
from .passes import Passes
from .values import split_label

Q_AND_K = (("Qcur", "Kcur"), ("Qcur_pre_rope", "Kcur_pre_rope"))


def rearrange(passes: Passes) -> None:
    """Recognize rows of q and k in Hugging Face's order, and values before RoPE under the names of those after."""
    for names in Q_AND_K:
        pairs = [tuple(f"{name}-{il}" for name in names) for il in range(passes.n_layer)]
        low = [
            pair
            for pair in pairs
            if all(label in passes.scores and passes.scores[label].least < FLOORS["product"] for label in pair)
        ]
        if not low:
            continue
        if names[0] == "Qcur" and _before_rope(passes, low):
            return
        for order in (weave, unweave):
            if _reordered(passes, low, order):
                return


def _reordered(passes: Passes, pairs: list[tuple[str, ...]], order: Callable[[np.ndarray], np.ndarray]) -> bool:
    arrays = {}
    for label in pairs[0]:
        theirs = passes.all.fitted[label]
        if theirs is None or theirs.known is not None:
            return False
        arrays[label] = order(theirs.values)
        score = passes.score_under(label, None, changed={**passes.changed, label: arrays[label]})
        if score is None or score.least < FLOORS["product"]:
            return False
    for pair in pairs:
        for label in pair:
            theirs = passes.all.fitted[label]
            if theirs is not None and theirs.known is None:
                passes.changed[label] = order(theirs.values)
    names = " and ".join(split_label(label)[0] for label in pairs[0])
    passes.notes.append(f"{names} have the same numbers in another order, that of Hugging Face's files")
    passes.first_pass()
    return True


def _before_rope(passes: Passes, pairs: list[tuple[str, ...]]) -> bool:
    hidden = frozenset(pairs[0])
    il = split_label(pairs[0][0])[1]
    for target in (f"kq-{il}", f"kqv_out-{il}"):
        if target in passes.scores:
            after = passes.score_under(target, None, hidden=hidden)
            if after is None or after.least < FLOORS["attention"] or passes.scores[target].least > after.least - 3:
                return False
            break
    else:
        return False
    names = {label for pair in pairs for label in pair}
    passes.dump = passes.dump.renamed(lambda name: name.replace("cur-", "cur_pre_rope-") if name in names else name)
    passes.notes.append("Qcur and Kcur are the values before RoPE, compared as Qcur_pre_rope and Kcur_pre_rope")
    passes.first_pass()
    return True


def weave(x: np.ndarray) -> np.ndarray:
    """Reorder heads from two halves to neighbours.  [..., n_head_dim] -> the same shape"""
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)).reshape(x.shape)


def unweave(x: np.ndarray) -> np.ndarray:
    """Reorder heads from neighbours to two halves.  [..., n_head_dim] -> the same shape"""
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2)).reshape(x.shape)
