"""`numllama run`: one answer to a prompt, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ...engine.duration import SECOND, format_duration, parse_keep_alive
from ...engine.errors import ContextFull, RequestError
from ...engine.options import Wanted
from ...engine.piece import Timings
from .find import models_for
from .parameters import parameters
from .spinner import Spinner
from .wrap import Wrapped, text_width

if TYPE_CHECKING:
    from ...engine.service import Answer
    from ..client import Reply


def run(
    model: str,
    words: Sequence[str] = (),
    *,
    options: Sequence[str] = (),
    keepalive: str | None = None,
    kernels: str | None = None,
    raw: bool = False,
    verbose: bool = False,
    wordwrap: bool = True,
) -> None:
    """Answer what stands in `words` and comes through a pipe; on a terminal and without either, converse.

    Raises: whatever the engine or a server refuses
    """
    keep_alive = None if keepalive is None else parse_keep_alive(keepalive)
    wanted = Wanted(options=parameters(options), keep_alive=keep_alive, truncate=False)
    if interactive := not words and sys.stdin.isatty() and sys.stdout.isatty():
        if raw:
            raise RequestError("--raw needs a prompt")
    prompt = "" if interactive else " ".join([*piped(), *words])
    models = models_for(model, kernels)
    if interactive:
        from .repl import Session, converse

        with closing(Session(models, model, dict(wanted.options), keep_alive, kernels, verbose, wordwrap)) as session:
            converse(session)
        return
    with closing(models):
        refused_early(models, model)
        try:
            screen = Wrapped(sys.stdout, text_width(sys.stdout, wordwrap))
            tell(lambda: models.generate(model, prompt, wanted, raw=raw), screen, verbose)
        except ContextFull as full:
            advice = f"{full.n_prompt} tokens, and the window has {full.n_ctx}; -o num_ctx=N sets it"
            raise RequestError(f"{full}: {advice}, up to what the model was trained on") from None


def piped() -> list[str]:
    """What comes through standard input, unless that is a terminal, closed or empty."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return []
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return [text] if text else []


def refused_early(models: Any, model: str) -> None:
    """A server says what is wrong with a model's name in fewer words when it is asked about the model first."""
    from ..client import Client

    if isinstance(models, Client):
        models.show(model)


def tell(ask: Callable[[], Answer | Reply], shown: Wrapped, verbose: bool = False) -> None:
    """What `ask` answers, as it comes, an end to its last line and, if wanted, the figures.  Ctrl-C ends it."""
    timings = None
    with Spinner(sys.stderr) as spinner:
        answer = ask()
        if answer.is_over:
            return
        with closing(iter(answer)) as pieces, shown:  # type: ignore[type-var]
            for piece in pieces:
                if piece.text:
                    spinner.stop()
                    shown.put(piece.text)
                timings = piece.timings
    if verbose and timings:
        print("\n" + figures(answer.total_duration, answer.load_duration, timings), end="", file=sys.stderr)


def figures(total_duration: int, load_duration: int, t: Timings) -> str:
    """Counts, durations and rates, one on a line; what is zero is left out.  Durations in nanoseconds"""
    lines = [
        ("total duration", total_duration and format_duration(total_duration)),
        ("load duration", load_duration and format_duration(load_duration)),
    ]
    for name, n, duration in (
        ("prompt eval", t.prompt_eval_count, t.prompt_eval_duration),
        ("eval", t.eval_count, t.eval_duration),
    ):
        lines += [
            (f"{name} count", n and f"{n} token(s)"),
            (f"{name} duration", duration and format_duration(duration)),
            (f"{name} rate", duration and f"{n / duration * SECOND:.2f} tokens/s"),
        ]
    return "".join(f"{name + ':':<22}{value}\n" for name, value in lines if value)
