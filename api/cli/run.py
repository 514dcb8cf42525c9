"""`numllama run`: an answer to a prompt, a conversation, or the embedding of a text."""

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
from .backend import backend_for
from .display import AnswerDisplay, print_answer
from .parameters import parse_parameters

if TYPE_CHECKING:
    from .backend import Backend


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
    """Answer the prompt: piped input, then `words`.  Without either, on a terminal, start a conversation.

    A vision model is given the images whose paths are in the prompt.  An embedding model prints the text's embedding as
    JSON.  A server pulls a missing model.
    Raises: EngineError, ServerError
    """
    keep_alive = None if keepalive is None else parse_keep_alive(keepalive)
    request = RequestOptions(
        parse_parameters(options), keep_alive, parse_think(think), parse_format(format), truncate=False
    )
    if interactive := not words and sys.stdin.isatty() and sys.stdout.isatty():
        if raw:
            raise RequestError("--raw requires a prompt")
    prompt = "" if interactive else " ".join([*read_stdin(), *words])
    truncate_text = parse_bool_flag("--truncate", truncate)
    backend = backend_for(model, kernels, adapters=adapters, projectors=projectors)
    try:
        capabilities = ensure_model(backend, model, insecure)
    except BaseException:
        backend.close()
        raise
    if "embedding" in capabilities:
        with closing(backend):
            print_embedding(backend, model, prompt, replace(request, truncate=truncate_text), dimensions)
        return
    if interactive:
        from .repl import converse
        from .session import Session

        session = Session(backend, model, replace(request, truncate=True), kernels, verbose, wordwrap, hidethinking)
        with closing(session):
            converse(session)
        return
    with closing(backend):
        try:
            images: list[bytes] = []
            if "vision" in capabilities and not raw:
                from .images import extract_images

                prompt, images = extract_images(prompt)
            display = AnswerDisplay(wordwrap, hidethinking)
            print_answer(lambda: backend.generate(model, prompt, request, raw=raw, images=images), display, verbose)
        except ContextFull as full:
            found = f"{full.n_prompt} tokens in a context of {full.n_ctx}"
            raise RequestError(f"{full}: {found}; set a larger one with -o num_ctx=N, up to the model's own") from None


def read_stdin() -> list[str]:
    """Return the piped input as a list of one text, or an empty list."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return []
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return [text] if text else []


def print_embedding(backend: Backend, model: str, text: str, request: RequestOptions, dimensions: int) -> None:
    """Print the embedding of `text` as JSON.  Raises: RequestError for an empty text"""
    from ...engine.go.json import dumps

    if not text:
        raise RequestError(f'embedding models require input text. Usage: numllama run {model} "your text here"')
    (last,) = backend.embed(model, [text], request, dimensions=dimensions)
    print(dumps(last.embeddings[0]).decode())


def ensure_model(backend: Backend, model: str, insecure: bool) -> Sequence[str]:
    """Return the model's capabilities; if the server does not have the model, pull it first."""
    from .client import Client, ServerError
    from .progress import Progress

    try:
        return backend.capabilities(model)
    except ServerError as error:
        if error.status != 404 or not isinstance(backend, Client):
            raise
        with Progress() as progress:
            progress.follow(backend.pull(model, insecure))
        return backend.capabilities(model)


def parse_bool_flag(flag: str, text: str) -> bool:
    """Parse a boolean as Go's strconv.ParseBool does.  Raises: RequestError"""
    if text not in TRUE + FALSE:
        raise RequestError(
            f'invalid argument "{text}" for "{flag}" flag: strconv.ParseBool: parsing "{text}": invalid syntax'
        )
    return text in TRUE


def parse_think(text: str | None) -> bool | str | None:
    """Parse the value of --think: a boolean or a level.  Raises: RequestError"""
    if text is None or text in ("high", "medium", "low", "max"):
        return text
    if text not in ("true", "false"):
        raise RequestError(f'invalid value for --think: "{text}" (must be true, false, high, medium, low, or max)')
    return text == "true"


def parse_format(text: str | None) -> Any:
    """Parse the value of --format: "json" or a JSON schema.  Raises: RequestError"""
    if text in (None, "", "json"):
        return text or None
    try:
        return json.loads(text)
    except ValueError as error:
        raise RequestError(f"invalid --format; expected json or a JSON schema: {error}") from None
