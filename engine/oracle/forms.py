"""Other forms of a value: scaled, rotated or fused, as some engines keep it, and right.

kq, Qcur     with the scale of scores (llama.cpp's Phi 3 scales the query)
embd         with the scale of embeddings (llama.cpp's Granite)
kqv_out      multiplied by a Hadamard matrix (llama.cpp with quantized caches: so are keys and values)
ffn_up       gate and up in one matrix; wqkv likewise
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ...kernels.hadamard import rotate_groups, value_group
from ..model.hparams import Hparams
from ..model.model import Model
from .dumps import Dump, StoredArray

SAME = 0.05  # relative error below which a value counts as recognized; products with 8-bit activations have 0.01
ROTATED_SAME = 0.4  # of attention over a cache in 4 bits
FORMED = ("kq", "Qcur", "embd", "kqv_out")  # values that may have another form
OTHER_NAMES = {  # in some of llama.cpp's graphs
    "__fattn__": "kqv_out",
    "post_attn_norm": "attn_post_norm",
    "post_mlp_norm": "ffn_post_norm",
    "ffn_post_norm_1": "ffn_post_norm",
}


def other_forms(name: str, x: np.ndarray, hp: Hparams) -> Iterator[tuple[np.ndarray, float, str]]:
    """Yield the value that `x` stands for if it is kept in another form: numbers, tolerance, and a note."""
    scale = hp.attention[0].scale if hp.attention else 1.0
    if name in ("kq", "Qcur") and scale != 1:
        yield x / scale, SAME, "already multiplied by the scale"
    if name == "embd" and hp.embed_scale != 1:
        yield x / hp.embed_scale, SAME, "already multiplied by the scale of embeddings"
    if name == "kqv_out" and (group := value_group(hp.n_head_dim)):
        yield rotate_groups(x, group), ROTATED_SAME, "rotated, as llama.cpp's quantized caches are"


def recognized(
    name: str, theirs: np.ndarray, ours: np.ndarray, known: np.ndarray, hp: Hparams
) -> tuple[np.ndarray, str]:
    """Return their value, and a note if it is in another form: one that equals ours where the plain one does not."""

    def error(x: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            size = np.sqrt(np.mean(np.square(ours[known]))) + 1e-300
            return float(np.nan_to_num(np.sqrt(np.mean(np.square(x[known] - ours[known]))) / size, nan=np.inf))

    for form, tolerance, note in other_forms(name, theirs, hp):
        if error(form) < min(tolerance, error(theirs) / 2):
            return form, note
    return theirs, ""


def unfused(dump: Dump, model: Model) -> Dump:
    """Return the dump with fused values split, and with llama.cpp's names for the same value in other graphs."""
    hp = model.hparams
    blk = model.weights.blk[0] if model.weights.blk else None
    n_ff = getattr(getattr(blk, "ffn_up", None), "shape", (0,))[0]
    n_q, n_kv = hp.n_head * hp.n_head_dim, hp.n_head_kv * hp.n_head_dim
    has_head_norms = getattr(blk, "attn_q_norm", None) is not None
    gate_up = {"ffn_gate": n_ff, "ffn_up": n_ff}
    before = "unnormed" if has_head_norms else "pre_rope"
    qkv = {f"Qcur_{before}": n_q, f"Kcur_{before}": n_kv, "Vcur": n_kv}
    entries = dict(dump.entries)
    for label, entry in dump.entries.items():
        name, _, il = label.rpartition("-")
        if label == "lm_head":
            if hp.logit_scale == 1 and not hp.logit_softcap:
                entries.setdefault("result_output", entries[label])
            else:
                dump.skipped[label] = "it is before the scale and the soft-cap of logits"
            del entries[label]
        elif name == "ffn_out" and hp.n_expert:
            entries.setdefault(f"ffn_moe_out-{il}", entries.pop(label))
        elif name in OTHER_NAMES:
            entries.setdefault(f"{OTHER_NAMES[name]}-{il}", entries.pop(label))
        elif name.endswith("cur_projected"):
            entries.setdefault(f"{name.removesuffix('projected')}{before}-{il}", entries.pop(label))
        elif name in ("ffn_up", "ffn_gate_up") and n_ff and entry.shape[-1:] == (2 * n_ff,):
            entries |= _split(entries.pop(label), il, gate_up, dump)
        elif name in ("wqkv", "qkv") and entry.shape[-1:] == (n_q + 2 * n_kv,):
            entries |= _split(entries.pop(label), il, qkv, dump)
    sums = {label: total for label, total in dump.sums.items() if entries.get(label) is dump.entries.get(label)}
    return Dump(dump.path, entries, dump.tokens, dump.skipped, dump.printed, sums)


def _split(entry: StoredArray, il: str, sizes: dict[str, int], dump: Dump) -> dict[str, StoredArray]:
    """Split the last axis, where the dump does not have a part under its own name."""

    def part(begin: int, end: int) -> np.ndarray:
        return entry.read()[..., begin:end]

    found, at = {}, 0
    for name, size in sizes.items():
        label = f"{name}-{il}"
        if label not in dump.entries or dump.entries[label] is entry:
            found[label] = StoredArray((*entry.shape[:-1], size), partial(part, at, at + size))
        at += size
    return found
