"""`numllama run`: one answer to a prompt, a conversation, or the vector of a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import ContextFull, RequestError
from ...engine.go.duration import parse_keep_alive
from ...engine.options import FALSE, TRUE, RequestOptions
from .find import models_for
from .parameters import parse_parameters
from .tell import Told, tell

if TYPE_CHECKING:
    from .find import Models


def run_model(
    model: str,
    words: Sequence[str] = (),
    *,
    options: Sequence[str] = (),
    keepalive: str | None = None,
    kernels: str | None = None,
    adapters: Sequence[Path] = (),
    projectors: Sequence[Path] = (),
    raw: bool = False,
    think: str | None = None,
    hidethinking: bool = False,
    format: str | None = None,
    verbose: bool = False,
    wordwrap: bool = True,
    insecure: bool = False,
    dimensions: int = 0,
    truncate: str = "true",
) -> None:
    """Answer what stands in `words` and comes through a pipe; on a terminal and without either, converse.

    A model that sees is shown the images that the prompt names by their paths; one that only embeds gives the vector of
    that text, as JSON.  A server pulls a model that it does not have.
    Raises: whatever the engine or a server refuses
    """
    keep_alive = None if keepalive is None else parse_keep_alive(keepalive)
    request = RequestOptions(
        parse_parameters(options), keep_alive, think_value(think), format_value(format), truncate=False
    )
    if interactive := not words and sys.stdin.isatty() and sys.stdout.isatty():
        if raw:
            raise RequestError("--raw needs a prompt")
    prompt = "" if interactive else " ".join([*piped(), *words])
    cut = truth("--truncate", truncate)
    models = models_for(model, kernels, adapters=adapters, projectors=projectors)
    try:
        able = have_it_there(models, model, insecure)
    except BaseException:
        models.close()
        raise
    if "embedding" in able:
        with closing(models):
            print_vector(models, model, prompt, replace(request, truncate=cut), dimensions)
        return
    if interactive:
        from .repl import converse
        from .session import Session

        session = Session(models, model, replace(request, truncate=True), kernels, verbose, wordwrap, hidethinking)
        with closing(session):
            converse(session)
        return
    with closing(models):
        try:
            images: list[bytes] = []
            if "vision" in able and not raw:
                from .images import with_images

                prompt, images = with_images(prompt)
            told = Told(wordwrap, hidethinking)
            tell(lambda: models.generate(model, prompt, request, raw=raw, images=images), told, verbose)
        except ContextFull as full:
            advice = f"{full.n_prompt} tokens, and the window has {full.n_ctx}; -o num_ctx=N sets it"
            raise RequestError(f"{full}: {advice}, up to what the model was trained on") from None


def piped() -> list[str]:
    """What comes through standard input, unless that is a terminal, closed or empty."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return []
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return [text] if text else []


def print_vector(models: Models, model: str, text: str, request: RequestOptions, dimensions: int) -> None:
    """Raises: RequestError for no text"""
    from ...engine.go.json import dumps

    if not text:
        raise RequestError(f'embedding models require input text. Usage: numllama run {model} "your text here"')
    (last,) = models.embed(model, [text], request, dimensions=dimensions)
    print(dumps(last.embeddings[0]).decode())


def have_it_there(models: Models, model: str, insecure: bool) -> Sequence[str]:
    """What the model can do.  A server pulls one that it does not have, and says in few words what is wrong else."""
    from .client import Client, ServerError
    from .progress import Progress

    try:
        return models.capabilities(model)
    except ServerError as error:
        if error.status != 404 or not isinstance(models, Client):
            raise
        with Progress() as progress:
            progress.follow(models.pull(model, insecure))
        return models.capabilities(model)


def truth(flag: str, text: str) -> bool:
    """Raises: RequestError for what is neither true nor false"""
    if text not in TRUE + FALSE:
        raise RequestError(
            f'invalid argument "{text}" for "{flag}" flag: strconv.ParseBool: parsing "{text}": invalid syntax'
        )
    return text in TRUE


def think_value(text: str | None) -> bool | str | None:
    """What --think says.  Raises: RequestError"""
    if text is None or text in ("high", "medium", "low", "max"):
        return text
    if text not in ("true", "false"):
        raise RequestError(f'invalid value for --think: "{text}" (must be true, false, high, medium, low, or max)')
    return text == "true"


def format_value(text: str | None) -> Any:
    """What --format says: "json", or a schema.  Raises: RequestError"""
    if text in (None, "", "json"):
        return text or None
    try:
        return json.loads(text)
    except ValueError as error:
        raise RequestError(f"--format is neither 'json' nor a JSON schema: {error}") from None
