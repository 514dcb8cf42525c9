"""`numllama template`: what a template makes of a conversation, without a model having to run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...engine.errors import BadName, BadTemplate, ModelNotFound, RequestError
from ...engine.gguf.read import GGUF
from ...engine.go.decode import decode_json
from ...engine.go.json import DecodeError
from ...engine.options import RequestOptions
from ...engine.serve.prompting import full_history, render_prompt
from ...engine.settings import Settings
from ...engine.store import default_store
from ...engine.store.make.modelfile import create_arguments, decode_text, parse_modelfile
from ...engine.template import Message, Template, chat_messages, go, mark_images
from ..wire.schema import ChatRequest
from .find import is_gguf
from .run import think_value

JINJA, GO = {".jinja", ".jinja2", ".j2"}, {".go", ".gotmpl", ".tmpl"}


@dataclass(frozen=True)
class Source:
    """A template, and what its model makes of the messages that are said to it."""

    template: Template
    hears: Callable[[Sequence[Message]], Sequence[Message]] = list


def print_template(source: str, **about: str | None) -> None:
    """Print it to the last byte; only on a terminal its last line is ended."""
    text = template_text(source, **about)
    print(text, end="\n" if sys.stdout.isatty() and not text.endswith("\n") else "")


def template_text(
    source: str,
    *,
    messages: str | None = None,
    tools: str | None = None,
    data: str | None = None,
    think: str | None = None,
) -> str:
    """What the template of `source` writes for the conversation, or the plain data, in those files; "-" is stdin.

    Raises: RequestError, BadTemplate, and whatever is wrong with a model
    """
    if (messages is None) == (data is None):
        raise RequestError("expected either --messages, a conversation, or --data, any JSON for a Go template")
    if data is not None and (tools is not None or think is not None):
        raise RequestError("--tools and --think belong to --messages; --data is all that its template sees")
    found = find(source)
    try:
        if data is not None:
            if found.template.language != "go":
                raise RequestError(f"{source}: --data is for Go templates, this one is {found.template.language}")
            return go.execute_template(found.template.text, json_of(text_in(data), data))
        said, offered = talk(messages or "", tools)
        thinks = think_value(think) if think is not None else "thinking" in found.template.capabilities or None
        return render_prompt(found.template, mark_images(found.hears(said)), RequestOptions(think=thinks), offered)
    except BadTemplate as error:
        raise BadTemplate(f"{source}: {error}") from None


def find(source: str) -> Source:
    """The template that `source` means: a GGUF's, a Modelfile's, a text's, or that of a model in the store.

    A text is Jinja or Go by its extension; another is Jinja if it has a tag `{%`, which Go does not know.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        return of_model(source)
    if path.suffix.lower() == ".gguf" or is_gguf(path):
        return Source(Template.from_gguf(GGUF.open(path)))
    text, suffix = decode_text(path.read_bytes()), path.suffix.lower()
    if suffix == ".modelfile" or (path.stem.lower() == "modelfile" and suffix not in JINJA | GO):
        return of_modelfile(source, text)
    is_jinja = suffix in JINJA or (suffix not in GO and "{%" in text)
    return Source(Template(text, "jinja" if is_jinja else "go"))


def of_model(name: str) -> Source:
    """Raises: ModelNotFound, BadManifest, BadGGUF"""
    try:
        model = default_store().resolve(name)
    except (ModelNotFound, BadName):
        raise ModelNotFound(name, f"'{name}' is no file, and no model of the store") from None
    layer = model.template if Settings.from_env().go_template else None
    return Source(Template.from_gguf(GGUF.open(model.weights), layer), partial(full_history, model))


def of_modelfile(source: str, text: str) -> Source:
    said = create_arguments(parse_modelfile(text))
    if "template" not in said:
        raise RequestError(f"{source}: there is no TEMPLATE in it; it has the one of the model in FROM")
    own = {"system": said.get("system", ""), "history": said.get("messages", ())}
    return Source(Template(said["template"], "go"), partial(chat_messages, **own))


def talk(messages: str, tools: str | None) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages and tools from their files, as a chat takes them.  Raises: RequestError"""
    said = decoded_list(messages, "messages")
    offered = decoded_list(tools, "tools") if tools is not None else []
    return [asdict(message) for message in said], [asdict(tool) for tool in offered]


def decoded_list(path: str, what: str) -> list[Any]:
    text = text_in(path)
    value = json_of(text, path)
    if not isinstance(value, list):
        raise RequestError(f"{path}: expected a list of {what}, found {json.dumps(value)[:40]}")
    try:
        return getattr(decode_json(ChatRequest, f'{{"{what}": {text}}}'.encode()), what)
    except DecodeError as error:
        raise RequestError(f"{path}: {error}") from None


def text_in(path: str) -> str:
    return sys.stdin.read() if path == "-" else decode_text(Path(path).read_bytes())


def json_of(text: str, path: str) -> Any:
    """Raises: RequestError that says where in the file"""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise RequestError(f"{path}: nested too deeply") from None
