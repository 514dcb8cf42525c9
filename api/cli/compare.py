"""`numllama compare`: how far apart two models, or two engines, are on a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ...engine.errors import RequestError
from ...engine.model.load import load_model
from ...engine.model.model import require_decoder
from ...engine.oracle.compare import (
    Distances,
    LocalSource,
    Place,
    Source,
    check_vocabularies,
    compare_text,
    quoted_token,
)
from ...engine.oracle.passage import PASSAGE
from .backend import kernel_set, local_model
from .score import cache_of, pair, text_of_file

MIN_SHOWN_KL = 1e-6  # nats; below it, rounding of float32 in the wire


def compare_models(
    a: str,
    b: str,
    *,
    text: str | None = None,
    kernels: str = "numba",
    cache_type: str | None = None,
    n_token: int | None = None,
    n_listed: int | None = None,
    as_json: bool = False,
) -> int:
    """Compare A and B place by place and print the distances.  -> exit status, 130 if Ctrl-C ended it early"""
    written = (
        PASSAGE if text is None else text_of_file(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    )
    if n_token is not None and n_token < 1:
        raise RequestError(f"--tokens is {n_token}, expected at least 1")
    if n_listed is not None and n_listed < 1:
        raise RequestError(f"--top is {n_listed}, expected at least 1")
    comparison, interrupted = Distances(), False
    with ExitStack() as stack:
        sources = [
            open_source(name, chosen, cache, n_listed, stack)
            for name, chosen, cache in zip(
                (a, b), two(kernels, "--kernels"), two(cache_type, "--cache-type"), strict=True
            )
        ]
        if isinstance(sources[0], LocalSource) and isinstance(sources[1], LocalSource):
            check_vocabularies(sources[0], sources[1])
        advance = stack.enter_context(text_bar(len(written)))
        try:
            for done in compare_text(sources[0], sources[1], written, comparison):
                advance(done)
                if n_token is not None and len(comparison.kl) >= n_token:
                    break
        except KeyboardInterrupt:
            interrupted = True
    if not comparison.kl:
        if interrupted:
            return 130
        raise RequestError(f"no place of the text has predictions of both: {a} and {b}")
    if as_json:
        print(json.dumps(comparison_json(sources, comparison) | {"interrupted": interrupted}, indent=2))
    else:
        print_comparison(sources, comparison)
        if interrupted:
            print("interrupted")
    return 130 if interrupted else 0


def two(value: str | None, option: str) -> tuple[str | None, str | None]:
    """Return the values for A and for B in "one" or "one,other".  Raises: RequestError"""
    parts = value.split(",") if value else [None]
    if len(parts) > 2:
        raise RequestError(f"{option} is '{value}', expected one value, or A's and B's as in f16,f32")
    return parts[0], parts[-1]


def open_source(
    name: str, kernels: str | None, cache_type: str | None, n_listed: int | None, stack: ExitStack
) -> Source:
    """Return the server at an address URL#MODEL, which `stack` closes, or the model `name` in this process.

    Raises: EngineError
    """
    if "://" in name:
        from .logprob_server import open_server

        server = open_server(name, n_listed)
        stack.callback(server.wire.close)
        return server
    chosen = kernel_set(kernels or "numba")
    kept, files = cache_of(chosen.name, cache_type), local_model(name)
    model = load_model(files.weights, dict.fromkeys(files.adapters, 1.0))
    require_decoder(model)
    return LocalSource(name, model, chosen, kept)


@contextmanager
def text_bar(n_chars: int) -> Iterator[Any]:
    """Show a bar on standard error, if that is a terminal; yields a function that sets the characters done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_chars)
        yield lambda done: bar.update(task, completed=done)


def print_comparison(sources: list[Source], c: Distances) -> None:
    """Print the report: a table, and where both part."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for side, source in zip("AB", sources, strict=True):
        table.add_row(side, f"{source.name}: {source.kind}")
        if not c.by_words:
            table.add_row("  perplexity", estimate(c.perplexity(side.lower()), c.bounded(side.lower())))
    table.add_row("places", f"{len(c.kl)}{f', {c.n_skipped} without predictions of both' if c.n_skipped else ''}")
    if not c.by_words and not (c.bounded_a or c.bounded_b):
        table.add_row("ln PPL(B)/PPL(A)", estimate(c.ln_ratio, digits=6))
    table.add_row("KL(A, B), nats", estimate(c.mean("kl"), not c.complete, 6))
    if not c.complete:
        least, most = c.mean("least")[0], c.mean("most")[0]
        table.add_row("total variation", f"between {least:.4f} and {most:.4f}")
        rest = 100 * c.mean("rest")[0]
        table.add_row("", f"tokens that a side does not list hold {rest:.2f} % of the probability and count as one")
    same, error = c.mean("same_top")
    table.add_row("same likeliest token", f"{100 * same:.2f} ± {100 * error:.2f} %")
    for label, place in (("first other token", c.first), ("largest KL", c.largest)):
        if place is not None and (place.kl > MIN_SHOWN_KL or place is c.first):
            table.add_row(label, place_text(place))
    for cells in table.columns:
        cells.overflow = "fold"
    console.print(table, markup=False)


def estimate(number: tuple[float, float], at_least: bool = False, digits: int = 4) -> str:
    """Format a number with its standard error."""
    value, error = number
    return f"{'at least ' * at_least}{value:.{digits}f} ± {error:.{digits}f}"


def place_text(place: Place) -> str:
    """Say where a place is, and what A and B predict there."""
    (a, a_by_b), (b_by_a, b) = place.p
    sides = f"A {quoted_token(place.tokens[0])} {percent(a)} (B {percent(a_by_b)}), "
    sides += f"B {quoted_token(place.tokens[1])} {percent(b)} (A {percent(b_by_a)})"
    where = f"prompt {place.piece}, token {place.token}, after {place.before!r}"
    return f"{where}: {sides}, KL {place.kl:.4f}"


def percent(p: float | None) -> str:
    """Format a probability; "unlisted" for None."""
    return "unlisted" if p is None else f"{100 * p:.2f} %"


def comparison_json(sources: list[Source], c: Distances) -> dict[str, Any]:
    """Return the report as JSON values."""
    sides = {
        side: {"name": source.name, "kind": source.kind}
        | ({} if c.by_words else {"perplexity": pair(c.perplexity(side)) | {"at_least": c.bounded(side)}})
        for side, source in zip("ab", sources, strict=True)
    }
    return sides | {
        "places": len(c.kl),
        "skipped": c.n_skipped,
        "ln_ratio": None if c.by_words or c.bounded_a or c.bounded_b else pair(c.ln_ratio),
        "kl": pair(c.mean("kl")) | {"at_least": not c.complete},
        "total_variation": {"least": c.mean("least")[0], "most": c.mean("most")[0]},
        "unlisted": c.mean("rest")[0],
        "same_top": pair(c.mean("same_top")),
        "first_other_token": place_json(c.first),
        "largest_kl": place_json(c.largest),
    }


def place_json(place: Place | None) -> dict[str, Any] | None:
    """Return a place as JSON values."""
    if place is None:
        return None
    names = ("a", "b")
    tokens = [token.decode("utf-8", "replace") for token in place.tokens]
    likeliest = {
        name: {"token": token, "p_a": p[0], "p_b": p[1]} for name, token, p in zip(names, tokens, place.p, strict=True)
    }
    return {"prompt": place.piece, "token": place.token, "before": place.before, "kl": place.kl} | likeliest
