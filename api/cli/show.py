"""`numllama show`: all about a model of the store, or about any GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from .find import is_file, model_file, models_for
from .words import table

PARTS = ("license", "modelfile", "parameters", "system", "template")
ARRAY_WIDTH = 10  # of an array's beginning, in characters; as in Ollama's cmd.go, fb30760


def show_model(model: str, part: str | None = None, verbose: bool = False) -> str:
    """Sections about `model`, or one part of it as it is; a file's key-values and tensors are always among them."""
    if is_file(model):
        from ...engine.store.show import show_file

        verbose, answer = True, show_file(Path(model).expanduser(), verbose=True)
    else:
        with closing(models_for(model, as_told=True)) as models:
            answer = models.show(model, verbose)
    return f"{answer.get(part, '')}\n" if part else information(answer, verbose)


def show_tokenizer(model: str, folder: Path) -> str:
    """The files in `folder` that Hugging Face's libraries read, which are there now."""
    from ...engine.gguf.read import GGUF
    from ...engine.tokenizer.export import write_tokenizer

    return "".join(f"{path}\n" for path in write_tokenizer(GGUF.open(model_file(model)).kv, folder.expanduser()))


def information(answer: dict[str, Any], verbose: bool = False) -> str:
    """What /api/show says, in sections."""
    return "".join(f"  {title}\n{table(rows, '    ')}\n" for title, rows in sections(answer, verbose) if rows)


def sections(answer: dict[str, Any], verbose: bool) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """What `show` prints, section by section: its title, and rows of a name and values."""
    details, info = answer.get("details") or {}, answer.get("model_info") or {}
    arch = info.get("general.architecture") or details.get("family")
    size = details.get("parameter_size") or parameter_count(info)
    facts = {
        "architecture": arch,
        "parameters": size,
        "context length": info.get(f"{arch}.context_length"),
        "embedding length": info.get(f"{arch}.embedding_length"),
        "quantization": details.get("quantization_level"),
        "requires": answer.get("requires"),
    }
    yield "Model", facts_known(facts)
    yield "Capabilities", [(word,) for word in answer.get("capabilities") or []]
    info_of_projector = answer.get("projector_info") or {}
    arch = info_of_projector.get("general.architecture")
    facts = {
        "architecture": arch,
        "parameters": parameter_count(info_of_projector),
        "embedding length": info_of_projector.get(f"{arch}.vision.embedding_length"),
        "dimensions": info_of_projector.get(f"{arch}.vision.projection_dim"),
    }
    yield "Projector", facts_known(facts)
    lines = [line.split(maxsplit=1) for line in answer.get("parameters", "").splitlines()]
    yield "Parameters", [(name, value) for name, value in lines]
    if verbose:
        yield "Metadata", [(key, value_in_one_line(value)) for key, value in sorted(info.items()) if value is not None]
        tensors = answer.get("tensors") or []
        yield "Tensors", [(t["name"], t["type"], f"[{' '.join(map(str, t['shape']))}]") for t in tensors]
    yield "System", beginning(answer.get("system", ""))
    yield "License", beginning(answer.get("license", ""))


def facts_known(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def parameter_count(info: dict[str, Any]) -> str:
    from ...engine.gguf.file_type import parameter_size

    return parameter_size(int(info["general.parameter_count"])) if "general.parameter_count" in info else ""


def value_in_one_line(value: Any) -> str:
    """A value of the metadata: numbers in full, of an array the beginning, a text with lines as one."""
    if not isinstance(value, list):
        return value_text(value)
    n, width = 0, 1
    for item in value:
        width += len(value_text(item)) + 2 * (n > 0)
        if n and width > ARRAY_WIDTH:
            break
        n += 1
    shown = " ".join(value_text(item) for item in value[:n])
    return f"[{shown}]" if n == len(value) else f"[{shown} ...+{len(value) - n} more]"


def value_text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return value_in_one_line(value)
        case str():
            return value if value.isprintable() else repr(value)[1:-1]
        case _:
            return f"{value}"


def beginning(text: str) -> list[tuple[str, ...]]:
    """Two lines of `text` that are not blank, and whether there are more."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line,) for line in [*lines[:2], *["..."] * (len(lines) > 2)]]
