"""`numllama show`: information about an installed model or any GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ...engine.go.text import one_line, several_lines
from ...engine.settings import expand_home
from .backend import backend_for, is_file, model_file
from .format import format_table

PARTS = ("license", "modelfile", "parameters", "system", "template")
MAX_ARRAY_CHARS = 10  # as in Ollama's cmd.go, fb30760


def show_model(model: str, part: str | None = None, verbose: bool = False) -> str:
    """Format information about `model`, or return one part of it.

    A part is unchanged, except that control characters are escaped on a terminal.
    For a GGUF file the metadata and tensors are always included.
    """
    if is_file(model):
        from ...engine.store.show import show_file

        verbose, answer = True, show_file(expand_home(model), verbose=True)
    else:
        with closing(backend_for(model, require_named_host=True)) as backend:
            answer = backend.show(model, verbose)
    if not part:
        return information_text(answer, verbose)
    text = answer.get(part, "")
    return f"{several_lines(text) if sys.stdout.isatty() else text}\n"


def show_tokenizer(model: str, folder: Path) -> str:
    """Write the tokenizer to `folder` in Hugging Face's format; return the paths, one per line."""
    from ...engine.gguf.dialect import text_view
    from ...engine.gguf.read import GGUF
    from ...engine.tokenizer.export import write_tokenizer

    kv = text_view(GGUF.open(model_file(model))).kv
    return "".join(f"{path}\n" for path in write_tokenizer(kv, expand_home(folder)))


def information_text(answer: dict[str, Any], verbose: bool = False) -> str:
    """Format the answer of /api/show in sections."""
    return "".join(f"  {title}\n{format_table(rows, '    ')}\n" for title, rows in sections(answer, verbose) if rows)


def sections(answer: dict[str, Any], verbose: bool) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Yield each section: its title, and rows of a name and values."""
    details, info = answer.get("details") or {}, answer.get("model_info") or {}
    arch = info.get("general.architecture") or details.get("family")
    size = details.get("parameter_size") or parameter_count(info)
    facts = {
        "architecture": arch,
        "read as": answer.get("read_as"),
        "parameters": size,
        "context length": info.get(f"{arch}.context_length"),
        "embedding length": info.get(f"{arch}.embedding_length"),
        "quantization": details.get("quantization_level"),
        "requires": answer.get("requires"),
    }
    yield "Model", known_rows(facts)
    yield "Capabilities", [(word,) for word in answer.get("capabilities") or []]
    info_of_projector = answer.get("projector_info") or {}
    arch = info_of_projector.get("general.architecture")
    facts = {
        "architecture": arch,
        "parameters": parameter_count(info_of_projector),
        "embedding length": info_of_projector.get(f"{arch}.vision.embedding_length"),
        "dimensions": info_of_projector.get(f"{arch}.vision.projection_dim"),
    }
    yield "Projector", known_rows(facts)
    lines = [line.strip().partition(" ") for line in answer.get("parameters", "").split("\n") if line.strip()]
    yield "Parameters", [(name, value.strip()) for name, _, value in lines]
    if verbose:
        yield "Metadata", [(key, value_line(value)) for key, value in sorted(info.items()) if value is not None]
        tensors = answer.get("tensors") or []
        yield "Tensors", [(t["name"], t["type"], f"[{' '.join(map(str, t['shape']))}]") for t in tensors]
    yield "System", first_lines(answer.get("system", ""))
    yield "License", first_lines(answer.get("license", ""))


def known_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def parameter_count(info: dict[str, Any]) -> str:
    from ...engine.gguf.file_type import parameter_size

    return parameter_size(int(info["general.parameter_count"])) if "general.parameter_count" in info else ""


def value_line(value: Any) -> str:
    """Format a metadata value in one line; arrays are truncated after MAX_ARRAY_CHARS characters."""
    if not isinstance(value, list):
        return value_text(value)
    n, width = 0, 1
    for item in value:
        width += len(value_text(item)) + 2 * (n > 0)
        if n and width > MAX_ARRAY_CHARS:
            break
        n += 1
    shown = " ".join(value_text(item) for item in value[:n])
    return f"[{shown}]" if n == len(value) else f"[{shown} ...+{len(value) - n} more]"


def value_text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return value_line(value)
        case str():
            return one_line(value)
        case _:
            return f"{value}"


def first_lines(text: str) -> list[tuple[str, ...]]:
    """Return the first two non-blank lines of `text` as rows, and `...` if there are more."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return [(line,) for line in [*lines[:2], *["..."] * (len(lines) > 2)]]
