"""Facts about a model that need no run of it: the responses of /api/show and /api/tags, and `numllama show`.

Responses are JSON values with Ollama's order of keys, without empty fields.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from ..gguf.dialect import read_as
from ..gguf.file_type import file_type_name, parameter_size
from ..gguf.read import F32, GGUF, ArrayType
from ..go.fmt import literal_of_value
from ..go.text import valid_text
from ..go.times import rfc3339
from ..template import Template
from .blobs import os_errors_as_store_errors
from .chat_template import HARMONY_FAMILIES, chat_template
from .make.modelfile import BARE_TEMPLATE, modelfile
from .store import LocalModel

log = logging.getLogger("numllama.store")

HIDDEN_KEYS = ("general.name", "tokenizer.chat_template")  # not in `model_info`


def show(
    model: LocalModel, verbose: bool = False, system: str = "", options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the response of /api/show for `model`.

    verbose          include arrays of the metadata, which are None otherwise, and for a file in Ollama's dialect
                     `read_as`, which is ours
    system, options  override the model's own in `system` and `modelfile`
    Raises: BadManifest, BadGGUF
    """
    head = _head_of(model.weights)
    system = system or model.system
    weights = GGUF.open(model.weights) if verbose else None
    more = [model_info(GGUF.open(path), verbose, leave_out=()) for path in model.projectors]
    answer = {
        "license": "\n".join(model.licenses),
        "modelfile": modelfile(model, system, {**model.params, **(options or {})}, bool(head.jinja)),
        "parameters": _parameters(model.params),
        "template": BARE_TEMPLATE if model.template is None else model.template,
        "system": system,
        "renderer": model.config.more.get("renderer", ""),
        "parser": model.config.more.get("parser", ""),
        "details": _details(model, head.file_type),
        "messages": [{"role": message["role"], "content": message["content"]} for message in model.messages],
        "model_info": model_info(weights, verbose) if weights else dict(head.info),
        "read_as": read_as(weights) if weights else "",
        "projector_info": more[0] if more else {},
        "tensors": list(head.tensors),
        "capabilities": _capabilities(model, head),
        "modified_at": rfc3339(model.modified_ns, local=True),
        "requires": model.config.more.get("requires", ""),
    }
    return {key: value for key, value in answer.items() if value or key in ("details", "model_info", "modified_at")}


def show_file(path: str | os.PathLike[str], verbose: bool = False) -> dict[str, Any]:
    """Return the response of /api/show for a GGUF file, whose architecture need not be supported."""
    gguf = GGUF.open(path)
    head = _Head.of(gguf)
    template = Template.from_gguf(gguf)
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": head.architecture,
        "families": [head.architecture],
        "parameter_size": parameter_size(head.n_parameters),
        "quantization_level": head.file_type,
    }
    answer = {
        "template": valid_text(template.text),
        "details": details,
        "model_info": model_info(gguf, verbose, leave_out=("tokenizer.chat_template",)),
        "read_as": read_as(gguf),
        "tensors": list(head.tensors),
        "capabilities": [*head.kinds, *template.capabilities],
        "modified_at": rfc3339(Path(path).stat().st_mtime_ns, local=True),
    }
    return {key: value for key, value in answer.items() if value or key in ("details", "model_info", "modified_at")}


def tags_entry(model: LocalModel) -> dict[str, Any]:
    """Return the entry of `model` in /api/tags, with the config's facts only if its weights cannot be read."""
    try:
        head = _head_of(model.weights)
    except EngineError as error:
        log.warning("model %s cannot be run: %s", model.name.short, error)
        head = _Head()
    details = _details(model, head.file_type)
    details |= {key: value for key, value in head.lengths.items() if value}
    entry = {
        "name": model.name.short,
        "model": model.name.short,
        "modified_at": rfc3339(model.modified_ns, local=True),
        "size": model.size,
        "digest": model.digest,
        "details": details,
    }
    kinds = head.kinds[1:] + head.kinds[:1]  # in this response alone Ollama lists a tower inside the file first
    capabilities = _capabilities(model, replace(head, kinds=kinds))
    return entry | ({"capabilities": capabilities} if capabilities else {})


def details(model: LocalModel, gguf: GGUF) -> dict[str, Any]:
    """Return the `details` of a loaded model: its format, families, sizes and quantization.

    gguf   the weights as loaded: the file may have been deleted since
    """
    return _details(model, file_type_name(gguf.kv.get("general.file_type")))


def tags_entries(models: Iterable[LocalModel]) -> list[dict[str, Any]]:
    """Return the entries of `models` in /api/tags.  A model whose entry cannot be made is logged and left out."""
    entries = []
    for model in models:
        try:
            entries.append(tags_entry(model))
        except Exception as error:  # one model, which a registry may have sent, must not hide all others
            unexpected = None if isinstance(error, EngineError) else error
            log.error("model %s is left out: %s", model.name.short, error, exc_info=unexpected)
    return entries


def capabilities(model: LocalModel, go_template: bool = True) -> list[str]:
    """Return the model's capabilities: completion, embedding, vision, audio, tools, insert, thinking.

    go_template  whether the TEMPLATE layer is in use
    """
    return _capabilities(model, _head_of(model.weights), go_template)


def thinks_by_choice(model: LocalModel, go_template: bool = True) -> bool:
    """Return whether the model can think, and its prompt tells it whether to."""
    if "thinking" not in capabilities(model, go_template):
        return False
    return chat_template(model, _head_of(model.weights).jinja, go_template).thinks_by_choice


def model_info(gguf: GGUF, verbose: bool = False, leave_out: Sequence[str] = HIDDEN_KEYS) -> dict[str, Any]:
    """Return the metadata and `general.parameter_count`, sorted by key; arrays are None unless `verbose`."""
    info = {key: _value(gguf, key, verbose) for key in gguf.kv if key not in leave_out}
    return dict(sorted((info | {"general.parameter_count": n_parameters(gguf)}).items()))


@dataclass(frozen=True)
class _Head:
    """The cached facts of a GGUF, without its arrays, so that many models fit into little memory."""

    architecture: str = ""
    n_parameters: int = 0
    file_type: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[dict[str, Any], ...] = ()
    kinds: tuple[str, ...] = ()  # completion or embedding, vision, audio
    lengths: Mapping[str, int] = field(default_factory=dict)  # context_length, embedding_length
    jinja: Mapping[str, Any] = field(default_factory=dict)  # the keys of chat templates

    @classmethod
    def of(cls, gguf: GGUF) -> _Head:
        architecture = gguf.text("general.architecture")
        kinds = [kind for kind in ("vision", "audio") if f"{architecture}.{kind}.block_count" in gguf.kv]
        if architecture != "clip" and gguf.text("general.type") not in ("adapter", "mmproj"):  # these generate no text
            is_encoder = gguf.kv.get(f"{architecture}.attention.causal") is False
            embeds = is_encoder or f"{architecture}.pooling_type" in gguf.kv
            kinds = ["embedding" if embeds else "completion", *kinds]
        lengths = {key: gguf.kv.get(f"{architecture}.{key}") for key in ("context_length", "embedding_length")}
        return cls(
            architecture,
            n_parameters(gguf),
            file_type_name(gguf.kv.get("general.file_type")),
            model_info(gguf),
            tuple(_tensors(gguf)),
            tuple(kinds),
            {key: length for key, length in lengths.items() if isinstance(length, int)},
            {key: value for key, value in gguf.kv.items() if key.startswith("tokenizer.chat_template")},
        )


def _head_of(path: Path) -> _Head:
    with os_errors_as_store_errors():  # the file may have been deleted since the manifest was read
        status = path.stat()
    return _head(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _head(path: Path, size: int, modified_ns: int) -> _Head:
    return _Head.of(GGUF.open(path))


def _details(model: LocalModel, stored_type: str) -> dict[str, Any]:
    """Return the details; `stored_type`, the file type of the weights, stands in for one that the config lacks."""
    config = model.config
    file_type = config.file_type if config.file_type not in ("", "unknown") else stored_type
    return {
        "parent_model": model.parent,
        "format": config.model_format,
        "family": config.model_family,
        "families": list(config.model_families) or None,
        "parameter_size": config.model_type,
        "quantization_level": file_type or config.file_type,
    }


def _capabilities(model: LocalModel, head: _Head, go_template: bool = True) -> list[str]:
    own = model.config.more.get("capabilities") or []
    vision = ["vision"] if model.has_projector else []
    template = chat_template(model, head.jinja, go_template)
    thinking = ["thinking"] if model.config.model_family in HARMONY_FAMILIES else []
    return list(dict.fromkeys([*own, *head.kinds, *vision, *template.capabilities, *thinking]))


def _parameters(params: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{key:<30} {literal_of_value(item)}"
        for key, value in sorted(params.items())
        for item in (value if isinstance(value, list) else [value])
    )


def n_parameters(gguf: GGUF) -> int:
    """Return the number of elements of all tensors."""
    return sum(tensor.n_elements for tensor in gguf.tensors.values())


def _tensors(gguf: GGUF) -> list[dict[str, Any]]:
    """List the name, type and shape of each tensor; the shape in GGUF's order, the fastest axis first."""
    listed = []
    for name, tensor in gguf.tensors.items():
        listed.append({"name": valid_text(name), "type": tensor.format.name, "shape": list(reversed(tensor.shape))})
    return listed


def _value(gguf: GGUF, key: str, verbose: bool) -> Any:
    value, type = gguf.kv[key], gguf.kv_types[key]
    if isinstance(type, ArrayType):
        return _item(value, type.of) if verbose else None
    return _item(value, type)


def _item(value: Any, type: Any) -> Any:
    """Convert a value of the metadata to a JSON value."""
    match value:
        case bool() | int():
            return value
        case float():
            return _number(np.float32(value) if type is F32 else value)
        case str():
            return valid_text(value)
        case np.ndarray() if value.dtype.kind == "f":
            return [_number(x) for x in value]
        case np.ndarray():
            return value.tolist()
        case _:
            return [_item(item, type) for item in value]


def _number(x: Any) -> float | int | None:
    """Return the shortest number that equals `x` in its own precision: 1e-05, and 10000 for 10000.0."""
    if not np.isfinite(x):
        return None
    shortest = float(str(x))
    return int(shortest) if shortest.is_integer() and abs(shortest) < 2**53 else shortest
