"""Making a model: from uploaded GGUF files or from another model, with texts and parameters of its own.

A layer that is replaced is left out; what stays keeps its order, and the new ones follow it in the order template,
system, licenses, parameters, messages.  An uploaded GGUF is the layer itself: nothing is rewritten, the digest stays.
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import BadDigest, BadGGUF, BadTemplate, EngineError, ModelError, NotYet, RequestError
from ..gguf import GGUF
from ..template import go, jinja
from ..template.named import Named, match
from . import manifest as media
from .file_type import file_type_name, parameter_size
from .go_text import json_text, ordered_json_text
from .manifest import Config, Layer, Manifest, check_digest
from .name import ModelName
from .show import n_parameters
from .store import Store

Status = dict[str, Any]


def create(
    store: Store,
    name: str,
    from_: str = "",
    files: Mapping[str, str] | None = None,
    *,
    system: str = "",
    template: str = "",
    parameters: Mapping[str, Any] | None = None,
    messages: Sequence[Mapping[str, Any]] = (),
    license: Any = None,
    renderer: str = "",
    parser: str = "",
    requires: str = "",
    info: Mapping[str, Any] | None = None,
    quantize: str = "",
    adapters: Mapping[str, str] | None = None,
) -> Iterator[Status]:
    """The model `name` in the making, told status by status; the last is {"status": "success"}.

    from_       a model of the store, whose layers and config are taken over
    files       the digests of uploaded blobs, by file name: one GGUF, maybe with a projector
    parameters  merged over the inherited ones; `messages` replace them; `license` (a text or several) is added
    info        overrides what the config says of the model: model_family, parameter_size, capabilities, ...

    The request is checked before the first status is asked for.
    Raises: RequestError, BadName, BadDigest, ModelNotFound, NotYet; ModelError for blobs that are missing
    """
    for digests in (files or {}, adapters or {}):
        for path, digest in digests.items():
            if not path or any(part in ("", ".", "..") for part in path.split("/")):
                raise RequestError("file path must be relative")
            if not digest:
                raise BadDigest(digest)
    target = ModelName.parse_request(name)[0]
    overrides = _overrides(info or {}) | {"renderer": renderer, "parser": parser, "requires": requires}

    def statuses() -> Iterator[Status]:
        if not from_ and files is None:
            raise RequestError("neither 'from' or 'files' was specified")
        if adapters or quantize:
            what = "quantizing" if quantize else "adapters"
            raise NotYet(f"create does not support {what} yet")
        named: Named | None = None
        if from_:
            config, layers = _inherited(store, from_)
        else:
            config, layers, named = yield from _from_files(store, files or {})
        if template:
            _check_template(template)
            named = None
        told = {layer.digest: f"using existing layer {layer.digest}" for layer in layers}

        def text(media_type: str, content: str) -> Layer:
            data = content.encode("utf-8", "replace")
            is_there = store.has_blob(media.digest_of(data))
            digest, size = store.put_blob([data])
            told.setdefault(digest, f"{'using existing' if is_there else 'creating new'} layer {digest}")
            return Layer(media_type, digest, size)

        inherited = {"stop": list(named.stop)} if named else _params(store, layers)
        layers = _without(layers, template and media.TEMPLATE, template and media.PROMPT, system and media.SYSTEM)
        if template or named:
            layers.append(text(media.TEMPLATE, named.template if named else template))
        if named:
            told[layers[-1].digest] = f"using autodetected template {named.name}"
        layers += [text(media.SYSTEM, system)] if system else []
        layers += [text(media.LICENSE, content) for content in _licenses(license)]
        if params := {**inherited, **(parameters or {})}:
            layers = [*_without(layers, media.PARAMS), text(media.PARAMS, json_text(params) + "\n")]
        if messages:
            layers = [*_without(layers, media.MESSAGES), text(media.MESSAGES, _messages(messages))]
        for layer in layers:
            yield {"status": told[layer.digest]}
        yield {"status": "writing manifest"}
        written = text(media.CONFIG_TYPE, _configured(config, overrides).to_bytes().decode())
        with store.lock:
            store.write_manifest(store.respell(target), Manifest(written, tuple(layers)))
        yield {"status": "success"}

    return statuses()


def _inherited(store: Store, from_: str) -> tuple[Config, list[Layer]]:
    model = store.resolve(ModelName.parse_request(from_)[0])
    store.adopt(model)
    return model.config, [replace(layer, source=model.name.short) for layer in model.manifest.layers]


def _check_template(text: str) -> None:
    """Raises: RequestError for a template that does not parse, in the words of Ollama"""
    try:
        go.load(text)
    except BadTemplate as error:
        raise RequestError(f"template error: {error}") from None


def _from_files(
    store: Store, files: Mapping[str, str]
) -> Generator[Status, None, tuple[Config, list[Layer], Named | None]]:
    """The config and layers that uploaded files make; told as {"status": "parsing GGUF"} for each.

    Also the format of its conversations, if the model's own template does not run here and is known by another's name.
    """
    named: Named | None = None
    if any(path.endswith(".safetensors") for path in files):
        raise NotYet("create does not support safetensors yet")
    if not files:
        raise RequestError("unknown type")
    config, models, projectors = Config(), list[Layer](), list[Layer]()
    for path, digest in files.items():
        yield {"status": "parsing GGUF"}
        gguf, layer = _uploaded(store, path, digest)
        architecture, kind = gguf.kv.get("general.architecture"), gguf.kv.get("general.type")
        if not isinstance(architecture, str) or not architecture:
            raise RequestError(f"{path}: general.architecture is {architecture!r}, expected a name such as 'llama'")
        if kind == "adapter":
            raise RequestError(f"{path}: an adapter, expected a model")
        if "split.count" in gguf.kv and gguf.kv["split.count"] != 1:
            raise NotYet("create does not support a model in several files yet")
        if architecture == "clip" or kind == "mmproj":
            projectors.append(replace(layer, media_type=media.PROJECTOR))
            continue
        models.append(layer)
        own = gguf.kv.get("tokenizer.chat_template")
        named = match(own) if isinstance(own, str) and not jinja.compiles(own) else None
        config = Config(
            "gguf",
            architecture,
            (architecture,),
            parameter_size(n_parameters(gguf)),
            file_type_name(gguf.kv.get("general.file_type")),
        )
    if len(models) != 1:
        raise RequestError(f"{len(models)} models among {len(files)} files, expected one")
    return config, models + projectors, named


def _uploaded(store: Store, path: str, digest: str) -> tuple[GGUF, Layer]:
    """An uploaded GGUF, in the user's own folder.  Errors name the file as the client knows it."""
    try:
        digest = check_digest(digest)
        store.adopt_blob(digest)
        blob = store.blob_path(digest)
    except BadDigest as error:
        raise ModelError(str(error)) from None  # Ollama answers 500 here, and 400 to an empty one
    except FileNotFoundError:
        raise ModelError(f"open {digest.replace(':', '-')}: no such file or directory") from None
    with open(blob, "rb") as file:
        if file.read(4) != b"GGUF":
            raise RequestError("supplied file was not in GGUF format" if path.endswith(".gguf") else "unknown type")
    try:
        gguf = GGUF.open(blob)
    except BadGGUF as error:
        raise RequestError(str(error).replace(str(blob), path)) from None
    return gguf, Layer(media.MODEL, digest, blob.stat().st_size)


def _without(layers: Sequence[Layer], *media_types: str) -> list[Layer]:
    return [layer for layer in layers if layer.media_type not in media_types]


def _params(store: Store, layers: Sequence[Layer]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for layer in layers:
        if layer.media_type == media.PARAMS:
            path = store.blob_path(layer.digest)
            params |= media.read_json(media.read_limited(path), path, dict)
    return params


def _licenses(license: Any) -> list[str]:
    """Raises: EngineError with the words of Go's decoder, which Ollama answers with 500."""
    if not license:
        return []
    if isinstance(license, str):
        return [license]
    words = {bool: "bool", int: "number", float: "number", dict: "object"}
    if not isinstance(license, list):
        raise EngineError(f"json: cannot unmarshal {words[type(license)]} into Go value of type []string")
    for text in license:
        if not isinstance(text, str):
            found = words.get(type(text), "array")
            raise EngineError(f"json: cannot unmarshal {found} into Go value of type string")
    return license


def _messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """The layer's JSON: role and content, then what else a message has."""
    keys = ("thinking", "images", "tool_calls", "tool_name", "tool_call_id")
    told = []
    for message in messages:
        more = {key: message[key] for key in keys if message.get(key)}
        if "images" in more:
            more["images"] = [_base64(image) for image in more["images"]]
        told.append({"role": message.get("role") or "", "content": message.get("content") or "", **more})
    return "[" + ",".join(map(ordered_json_text, told)) + "]\n"


def _base64(image: bytes | str) -> str:
    return base64.b64encode(image).decode() if isinstance(image, bytes) else image


OVERRIDES: dict[str, str] = {  # a request's `info` -> the config's key
    "capabilities": "capabilities",
    "model_family": "model_family",
    "base_name": "base_name",
    "quantization_level": "file_type",
    "parameter_size": "model_type",
    "context_length": "context_length",
    "embedding_length": "embedding_length",
}


def _overrides(info: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: RequestError for a value of the wrong type; what is no field of `info` is ignored."""
    wanted = {}
    for key, target in OVERRIDES.items():
        if (value := info.get(key)) is None:
            continue
        if key == "capabilities":
            good = isinstance(value, list) and all(isinstance(word, str) for word in value)
            expected = "a list of strings"
        elif key.endswith("_length"):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            good = is_number and value >= 0 and value == int(value)
            expected = "a non-negative integer" if is_number else "a number"
        else:
            good, expected = isinstance(value, str), "a string"
        if not good:
            raise RequestError(f'info field "{key}" must be {expected}')
        wanted[target] = int(value) if key.endswith("_length") else value
    return wanted


def _configured(config: Config, overrides: Mapping[str, Any]) -> Config:
    plain = {key: value for key, value in overrides.items() if value and key in media.CONFIG_KEYS}
    more = {key: value for key, value in overrides.items() if value and key in media.OPTIONAL_KEYS}
    return replace(config, **plain, more={**config.more, **more})
