"""`numllama trace`: every named value of one forward pass, as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ...engine.batch import Batch
from ...engine.errors import RequestError
from ...engine.model import load_model, logits
from ...engine.trace import Trace
from .find import kernel_set, local_model


def trace(model: str, prompt: str, *, kernels: str, only: list[str], save: Path | None) -> None:
    """Run `prompt` through `model` once and print what passes: layer, name, shape, mean, standard deviation, range."""
    chosen, files = kernel_set(kernels), local_model(model)
    loaded = load_model(files.weights, dict.fromkeys(files.adapters, 1.0))
    ids = loaded.tokenizer.encode(prompt, add_special=True, parse_special=True)
    if not 0 < len(ids) <= loaded.hparams.n_ctx_train:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, expected 1 to {loaded.hparams.n_ctx_train}, the model's window"
        )
    seen = Trace(*only, kernels=chosen)
    cache = loaded.new_cache(len(ids), type="f64" if kernels.endswith("64") else "f32")
    hidden = loaded.family.hidden(loaded, Batch.of(ids), cache, chosen, seen)
    last = logits(loaded, hidden, chosen, seen)[0] if loaded.family.causal else None
    if not seen.values:
        raise RequestError(
            f"nothing is called {' or '.join(only)} in a forward pass; without --only all names are shown"
        )

    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(f"{len(ids)} tokens: {'  '.join(f'{id}={_text(loaded, id)!r}' for id in ids)}", markup=False)
    console.print(_table(seen))
    if last is not None:
        console.print(f"most likely next: {_likely(loaded, last)}", markup=False)
    if save is not None:
        seen.save(save)
        console.print(f"saved {len(seen.values)} arrays to {save}", markup=False)


def _likely(model, logits: np.ndarray) -> str:
    best = np.argsort(-logits, kind="stable")[:5]
    p = np.exp(logits[best] - logits.max()) / np.sum(np.exp(logits - logits.max()))
    return "  ".join(f"{_text(model, id)!r} {p:.1%}" for id, p in zip(best, p, strict=True))


def _text(model, id) -> str:
    return model.tokenizer.piece(int(id)).decode("utf-8", "replace")


def _table(seen: Trace) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "name", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("mean", "std", "min", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = -1
    for (name, il), value in seen.values.items():
        if il != before and table.row_count:
            table.add_section()
        before = il
        x = value.astype(np.float64)
        numbers = (x.mean(), x.std(), x.min(), x.max()) if x.size else ()
        shape = " x ".join(map(str, value.shape))
        table.add_row("" if il < 0 else str(il), name, shape, *(f"{number:.5g}" for number in numbers))
    return table
