"""`numllama template`: a conversation rendered by a chat template, without running a model."""

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
from ...engine.parse.form import ARGUMENTS, ID, INDEX, KEY, NAME, TYPE
from ...engine.serve.prompting import full_history, render_prompt
from ...engine.settings import Settings, expand_home
from ...engine.store import default_store
from ...engine.store.chat_template import chat_template
from ...engine.store.make.modelfile import create_arguments, decode_text, parse_modelfile
from ...engine.template import Message, Template, chat_messages, go
from ..wire.schema import ChatRequest
from .backend import is_gguf
from .run import parse_think

JINJA_SUFFIXES, GO_SUFFIXES = {".jinja", ".jinja2", ".j2"}, {".go", ".gotmpl", ".tmpl"}


@dataclass(frozen=True)
class TemplateSource:
    """A template, and the function that prepares messages for it, such as adding the model's system message."""

    template: Template
    prepare: Callable[[Sequence[Message]], Sequence[Message]] = list


def print_calls(source: str) -> None:
    """Print the form of a template's tool calls and thoughts, as an answer is read by them."""
    print("\n".join(f"{name:<12}{text}" for name, text in describe_calls(find_template(source).template)))


def describe_calls(template: Template) -> list[tuple[str, str]]:
    """Describe the form of a template's calls and thoughts, line by line: what it is, and its text."""
    if name := template.parser_name:
        return [("parser", name)]
    form, thoughts = template.call_form, template.thoughts
    if template.tool_tag:
        rows = [("calls", f"in JSON after {on_one_line(template.tool_tag)}")]
    else:
        middle = {"object": form.body, "named": "ARGUMENTS", "python": "(KEY=VALUE, ...)", "braces": "{KEY:VALUE,...}"}
        text = form.head + middle.get(form.kind, "PARAMETERS") + form.tail
        rows = [("call", on_one_line(text)), ("values", VALUES[form.kind])]
        if form.kind == "parameters":
            rows.insert(1, ("parameter", on_one_line(form.pre + "KEY" + form.mid + "VALUE" + form.post)))
        if form.quotes[0] not in ("", '"'):
            rows.append(("strings", f"between {on_one_line(form.quotes[0])} and {on_one_line(form.quotes[1])}"))
        around = [("before", form.open), ("between", form.between), ("after", form.close)]
        rows += [(name, on_one_line(text)) for name, text in around if text]
        rows.append(
            ("found by", "a call that the template renders" if template.probed.form else "words of the template")
        )
    if thoughts:
        rows.append(("thoughts", f"{on_one_line(thoughts.open)} ... {on_one_line(thoughts.close)}"))
    return rows


VALUES = {
    "object": "JSON",
    "named": "JSON",
    "python": "Python literals or JSON",
    "braces": "numbers, true, false, null, lists and braces; strings in quotes of their own",
    "parameters": "strings as they are, all else JSON or Python literals",
}
PLACE_NAMES = {NAME: "NAME", ID: "ID", INDEX: "INDEX", TYPE: "TYPE", KEY: "KEY", ARGUMENTS: "ARGUMENTS"}


def on_one_line(text: str) -> str:
    """Write a text of a form on one line, with names in the places."""
    for place, name in PLACE_NAMES.items():
        text = text.replace(place, name)
    return text.replace("\n", "\\n").replace("\t", "\\t")


def print_template(source: str, **inputs: str | None) -> None:
    """Print the rendered text exactly; on a terminal, end its last line."""
    text = template_text(source, **inputs)
    print(text, end="\n" if sys.stdout.isatty() and not text.endswith("\n") else "")


def template_text(
    source: str,
    *,
    messages: str | None = None,
    tools: str | None = None,
    data: str | None = None,
    think: str | None = None,
) -> str:
    """Render the template of `source`.

    messages, tools, data   paths of JSON files, or "-" for stdin
    Raises: RequestError, BadTemplate, ModelError
    """
    if (messages is None) == (data is None):
        raise RequestError("expected either --messages FILE or --data FILE")
    if data is not None and (tools is not None or think is not None):
        raise RequestError("--tools and --think require --messages; they cannot be combined with --data")
    found = find_template(source)
    try:
        if data is not None:
            if found.template.language != "go":
                raise RequestError(f"{source}: --data requires a Go template, found {found.template.language}")
            return go.execute_template(found.template.text, parse_json(read_text(data), data))
        conversation, offered = read_conversation(messages or "", tools)
        thinking = parse_think(think) if think is not None else "thinking" in found.template.capabilities or None
        return render_prompt(
            found.template,
            found.template.mark_images(found.prepare(conversation)),
            RequestOptions(think=thinking),
            offered,
        )
    except BadTemplate as error:
        raise BadTemplate(f"{source}: {error}") from None


def find_template(source: str) -> TemplateSource:
    """Find the template of `source`: a GGUF file, a Modelfile, a template file, or the name of an installed model.

    The extension of a template file determines its language.  With any other extension, a file with the tag `{%`,
    which Go does not have, is Jinja.
    """
    path = expand_home(source)
    if not path.is_file():
        return template_of_model(source)
    if path.suffix.lower() == ".gguf" or is_gguf(path):
        return TemplateSource(Template.from_gguf(GGUF.open(path)))
    text, suffix = decode_text(path.read_bytes()), path.suffix.lower()
    if suffix == ".modelfile" or (path.stem.lower() == "modelfile" and suffix not in JINJA_SUFFIXES | GO_SUFFIXES):
        return template_of_modelfile(source, text)
    is_jinja = suffix in JINJA_SUFFIXES or (suffix not in GO_SUFFIXES and "{%" in text)
    return TemplateSource(Template(text, "jinja" if is_jinja else "go"))


def template_of_model(name: str) -> TemplateSource:
    """Return the template of an installed model.  Raises: ModelNotFound, BadManifest, BadGGUF"""
    try:
        model = default_store().resolve(name)
    except (ModelNotFound, BadName):
        raise ModelNotFound(name, f"'{name}' is neither a file nor an installed model") from None
    template = chat_template(model, GGUF.open(model.weights), Settings.from_env().go_template)
    return TemplateSource(template, partial(full_history, model))


def template_of_modelfile(source: str, text: str) -> TemplateSource:
    fields = create_arguments(parse_modelfile(text))
    renderer, parser = fields.get("renderer", ""), fields.get("parser", "")
    if "template" not in fields and not renderer:
        raise RequestError(f"{source}: no TEMPLATE instruction; render the model in FROM instead")
    first = {"system": fields.get("system", ""), "history": fields.get("messages", ())}
    template = Template(fields.get("template", ""), "go").named(renderer, parser)
    return TemplateSource(template, partial(chat_messages, **first))


def read_conversation(messages: str, tools: str | None) -> tuple[list[Message], list[dict[str, Any]]]:
    """Read messages and tools from their files, in the form of a chat request.  Raises: RequestError"""
    conversation = read_list(messages, "messages")
    offered = read_list(tools, "tools") if tools is not None else []
    return [asdict(message) for message in conversation], [asdict(tool) for tool in offered]


def read_list(path: str, field: str) -> list[Any]:
    """Read a JSON file and decode it as a field of a chat request.  Raises: RequestError"""
    text = read_text(path)
    value = parse_json(text, path)
    if not isinstance(value, list):
        raise RequestError(f"{path}: expected a list of {field}, found {json.dumps(value)[:40]}")
    try:
        decoded: list[Any] = getattr(decode_json(ChatRequest, f'{{"{field}": {text}}}'.encode()), field)
        return decoded
    except DecodeError as error:
        raise RequestError(f"{path}: {error}") from None


def read_text(path: str) -> str:
    return sys.stdin.read() if path == "-" else decode_text(Path(path).read_bytes())


def parse_json(text: str, path: str) -> Any:
    """Parse `text`, the content of `path`.  Raises: RequestError with the line and column"""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}") from None
    except RecursionError:
        raise RequestError(f"{path}: nested too deeply") from None
