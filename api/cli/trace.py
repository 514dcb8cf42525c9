"""`numllama trace`: every named activation of one forward pass, alone or compared with another engine's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ...engine.errors import RequestError
from ...engine.model.batch import Batch
from ...engine.model.decoder import logits
from ...engine.model.load import load_model
from ...engine.model.model import Model
from ...engine.model.trace import Trace, label, read_arrays
from .backend import kernel_set, local_model

MAX_DIFFERENCE_STD = 1e-3  # in standard deviations; float32 sums in another order differ by less


def trace_model(
    model: str, prompt: str, *, kernels: str, only: list[str], save: Path | None, beside: Path | None
) -> None:
    """Run one forward pass and print each activation: layer, name, shape, mean, standard deviation, range.

    beside   a safetensors file of another engine's activations under the same names: print the differences instead
             of the range
    """
    chosen, files = kernel_set(kernels), local_model(model)
    theirs = None if beside is None else read_arrays(beside)
    loaded = load_model(files.weights, dict.fromkeys(files.adapters, 1.0))
    ids = loaded.tokenizer.encode(prompt, add_special=True, parse_special=True)
    if not 0 < len(ids) <= loaded.hparams.n_ctx_train:
        raise RequestError(
            f"the prompt has {len(ids)} tokens; expected 1 to {loaded.hparams.n_ctx_train}, the model's context length"
        )
    seen = Trace(*only, kernels=chosen)
    cache = loaded.new_cache(len(ids), type="f64" if kernels.endswith("64") else "f32")
    hidden = loaded.family.hidden(loaded, Batch.of(ids), cache, chosen, seen)
    last = logits(loaded, hidden, chosen, seen)[0] if loaded.family.causal else None
    if not seen.values:
        raise RequestError(f"no activation matches {' or '.join(only)}; run without --only to list all names")

    difference = None if theirs is None else _first_difference(seen, theirs)
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(f"{len(ids)} tokens: {'  '.join(f'{id}={_token_text(loaded, id)!r}' for id in ids)}", markup=False)
    console.print(_table(seen, theirs))
    if difference:
        console.print(difference, markup=False)
    if last is not None:
        console.print(f"most likely next: {_most_likely(loaded, last)}", markup=False)
    if save is not None:
        seen.save(save, tokens=json.dumps(ids), kernels=kernels)
        console.print(f"saved {len(seen.values)} arrays to {save}", markup=False)


def _most_likely(model: Model, logits: np.ndarray) -> str:
    best = np.argsort(-logits, kind="stable")[:5]
    p = np.exp(logits[best] - logits.max()) / np.sum(np.exp(logits - logits.max()))
    return "  ".join(f"{_token_text(model, id)!r} {p:.1%}" for id, p in zip(best, p, strict=True))


def _token_text(model: Model, id: int) -> str:
    return model.tokenizer.piece(int(id)).decode("utf-8", "replace")


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(ours.ravel() - theirs.astype(np.float64).ravel()), initial=0.0))


def _first_difference(seen: Trace, theirs: Mapping[str, np.ndarray]) -> str:
    """Describe the first activation that differs by more than MAX_DIFFERENCE_STD.  Raises: RequestError"""
    ours = {label(*key): value for key, value in seen.values.items()}
    common = [name for name in ours if name in theirs and theirs[name].size == ours[name].size]
    if not common:
        raise RequestError(
            f"no activations in common with the file; expected names such as {', '.join(list(ours)[:3])}"
        )
    compared = f"compared {len(common)} of {len(theirs)} arrays of the file"
    for name in common:
        if not (found := _difference(ours[name], theirs[name])) <= MAX_DIFFERENCE_STD * float(ours[name].std()):
            return f"{compared}; first to differ by more than {MAX_DIFFERENCE_STD:g} std: {name}, by {found:.3g}"
    return f"{compared}; none differs by more than {MAX_DIFFERENCE_STD:g} std"


def _table(seen: Trace, theirs: Mapping[str, np.ndarray] | None = None) -> Table:
    """Build a table with a row for each activation.

    theirs   another engine's activations: the maximum difference takes the place of the range
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "name", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("mean", "std", *(("min", "max") if theirs is None else ("differs",))):
        table.add_column(heading, justify="right", no_wrap=True)
    before = -1
    for (name, il), value in seen.values.items():
        if il != before and table.row_count:
            table.add_section()
        before = il
        x = value.astype(np.float64)
        numbers = [x.mean(), x.std(), x.min(), x.max()] if x.size else []
        cells = [f"{number:.5g}" for number in numbers]
        if theirs is not None:
            other = theirs.get(label(name, il))
            far = "" if other is None else f"{_difference(x, other):.2g}" if other.size == x.size else _shape(other)
            cells = [*cells[:2], far]
        table.add_row("" if il < 0 else str(il), name, _shape(value), *cells)
    return table


def _shape(value: np.ndarray) -> str:
    return " x ".join(map(str, value.shape))
