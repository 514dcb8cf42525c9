"""The arguments of `bench serve`, read: servers, what all requests have in common, and loads."""

from __future__ import annotations

import argparse
import base64
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.errors import RequestError
from ..engine.tokenizer import from_gguf
from .wires import Contender, Prompted, parse_contender
from .workload import Load, read_trace


def read_contenders(options: argparse.Namespace) -> list[Contender]:
    """Return the contenders with their headers.  Raises: RequestError"""
    names = [text.partition("=")[0] for text in options.servers]
    if len(set(names)) < len(names):
        raise RequestError(f"two servers have the same name: {', '.join(names)}")
    headers: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in options.header:
        name, value = for_server(text, names, "--header")
        key, colon, content = value.partition(":")
        if not colon or not key.strip():
            raise RequestError(f"--header is '{text}', expected 'Name: value' or 'SERVER=Name: value'")
        for one in names if name is None else [name]:
            headers[one][key.strip()] = content.strip()
    for text in options.key_env:
        name, variable = for_server(text, names, "--key-env")
        if not os.environ.get(variable):
            raise RequestError(f"--key-env names {variable}, which is not set")
        for one in names if name is None else [name]:
            headers[one]["Authorization"] = f"Bearer {os.environ[variable]}"
    return [
        parse_contender(text, headers[name], options.timeout) for name, text in zip(names, options.servers, strict=True)
    ]


def for_server(text: str, names: Sequence[str], flag: str) -> tuple[str | None, str]:
    """Split `SERVER=value`; without a known server before the sign, it is for all.  Raises: RequestError"""
    name, equals, value = text.partition("=")
    if not equals:
        return None, text
    if name in names:
        return name, value
    if ":" in name:
        return None, text  # a header whose value has the sign
    raise RequestError(f"{flag} names server '{name}', which is not among {', '.join(names)}")


def read_request(options: argparse.Namespace) -> Prompted:
    """Return what all requests have in common.  Raises: RequestError"""
    images = tuple(base64.b64encode(read_bytes(path)).decode() for path in options.image)
    tools: Sequence[Any] = ()
    if options.tools:
        try:
            tools = json.loads(read_bytes(options.tools))
        except ValueError:
            raise RequestError(f"{options.tools}: not JSON, expected a list of tools") from None
        if not isinstance(tools, list):
            raise RequestError(f"{options.tools}: expected a list of tools")
    kind = options.kind
    if (images or tools or options.turns > 1) and kind == "completion":
        kind = "chat"
    options.kind = kind
    return Prompted(kind=kind, images=images, tools=tools, n_ctx=options.ctx, end_ids=tuple(options.end_tokens))


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def read_loads(options: argparse.Namespace) -> list[Load]:
    """Return the loads that the options describe."""
    shape = {"shared": options.shared, "mixed": options.mixed, "turns": options.turns}
    kind, steps = options.ramp or ("clients", [])
    clients = [*options.clients, *(map(int, steps) if kind == "clients" else ())]
    rates = [*options.rate, *(steps if kind == "rate" else ())]

    def load(**more: Any) -> Load:
        made = Load(options.requests or 0, options.prompt, options.answer, **shape, **more)
        return made if options.requests else replace(made, requests=made.usual)

    loads = [load(clients=n) for n in dict.fromkeys(clients)]
    loads += [load(rate=rate, arrivals=options.arrivals) for rate in dict.fromkeys(rates)]
    if options.trace:
        loads.append(load(trace=read_trace(options.trace)))
    return loads or [load(clients=1)]


def tokenizer_count(path: str | None) -> Callable[[str], int] | None:
    """Return a function that counts the tokens of a text with a GGUF file's tokenizer."""
    if path is None:
        return None
    from ..engine.gguf.read import GGUF

    tokenizer = from_gguf(GGUF.open(path).kv)
    return lambda text: len(tokenizer.encode(text, add_special=False))
