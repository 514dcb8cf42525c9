"""`numllama trace`: every named activation of one forward pass."""

from __future__ import annotations

import json
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
from ...engine.model.trace import Trace
from .backend import kernel_set, local_model


def trace_model(model: str, prompt: str, *, kernels: str, only: list[str], save: Path | None) -> None:
    """Run one forward pass and print each activation: layer, name, shape, mean, standard deviation, range."""
    chosen, files = kernel_set(kernels), local_model(model)
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

    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(f"{len(ids)} tokens: {'  '.join(f'{id}={_token_text(loaded, id)!r}' for id in ids)}", markup=False)
    console.print(_table(seen))
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


def _table(seen: Trace) -> Table:
    """Build a table with a row for each activation."""
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
        numbers = [x.mean(), x.std(), x.min(), x.max()] if x.size else []
        cells = [f"{number:.5g}" for number in numbers]
        table.add_row("" if il < 0 else str(il), name, _shape(value), *cells)
    return table


def _shape(value: np.ndarray) -> str:
    return " x ".join(map(str, value.shape))
