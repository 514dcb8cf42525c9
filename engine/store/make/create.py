"""Making a model: from uploaded GGUF files or from another model, with texts and parameters of its own.

A layer that is replaced is left out; what stays keeps its order, and the new ones follow it in the order template,
system, licenses, parameters, messages.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BadDigest, BadModelfile, BadTemplate, EngineError, ModelError, RequestError
from ...gguf.read import GGUF
from ...go.fmt import json_text, ordered_json_text
from ...template import go, jinja
from ...template.named import NamedTemplate, match
from .. import manifest as media
from ..manifest import Config, Manifest, ManifestLayer
from ..name import ModelName
from ..store import Store
from .modelfile import parse_modelfile, wishes
from .sources import file_chunks, sources
from .uploads import Fits, Status, adapter_layer, model_layers, quantized_layer


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
    drop_system: bool = False,
    fetch: Callable[[str], Iterator[Status]] = lambda name: iter(()),
    fits: Fits = lambda part, model: None,
) -> Iterator[Status]:
    """The model `name` in the making, told status by status; the last is {"status": "success"}.

    from_       a model of the store, or one that `fetch` brings there, whose layers and config are taken over
    files       the digests of uploaded blobs, by file name: a GGUF, or all parts of one, maybe with a projector
    adapters    the same of an adapter
    quantize    the file type that the weights are to have: Q8_0, Q4_K_M, ...
    parameters  merged over the inherited ones, of which None takes one away
    messages    replace the inherited ones; `license` (a text or several) is added
    drop_system no inherited SYSTEM
    info        overrides what the config says of the model: model_family, parameter_size, capabilities, ...
    fits        says whether a new adapter or projector goes with the model, by raising ModelError

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
        if template:
            _check_template(template)
        stop, named = list[str](), None
        if from_:
            yield from fetch(from_)
        before = store.digests()
        if from_:
            config, layers = _inherited(store, from_)
            if quantize:
                config, layers = yield from _quantized(store, config, layers, quantize)
        else:
            config, layers = yield from model_layers(store, files or {}, quantize, fits)
            stop, named = _named(store, layers)
        if adapters:
            adapter = yield from adapter_layer(store, adapters, _weights(store, layers), fits)
            layers = [*_without(layers, media.ADAPTER), adapter]
        if template:
            named = None

        def text(media_type: str, content: str) -> ManifestLayer:
            return ManifestLayer(media_type, *store.put_blob([content.encode("utf-8", "replace")]))

        inherited = {"stop": stop} if stop else _params(store, layers)
        layers = _without(layers, template and media.TEMPLATE, template and media.PROMPT)
        layers = _without(layers, media.SYSTEM) if system or drop_system else layers
        if template or named:
            layers.append(text(media.TEMPLATE, named.template if named else template))
        layers += [text(media.SYSTEM, system)] if system else []
        layers += [text(media.LICENSE, content) for content in _licenses(license)]
        params = {name: value for name, value in {**inherited, **(parameters or {})}.items() if value is not None}
        layers = _without(layers, media.PARAMS)
        layers += [text(media.PARAMS, json_text(params) + "\n")] if params else []
        if messages:
            layers = [*_without(layers, media.MESSAGES), text(media.MESSAGES, _messages(messages))]
        for layer in layers:
            if named and layer.media_type == media.TEMPLATE:
                yield {"status": f"using autodetected template {named.name}"}
            else:
                yield {
                    "status": f"{'using existing' if layer.digest in before else 'creating new'} layer {layer.digest}"
                }
        yield {"status": "writing manifest"}
        written = text(media.CONFIG_TYPE, _configured(config, overrides).to_bytes().decode())
        with store.lock:
            store.write_manifest(store.respell(target), Manifest(written, tuple(layers)))
        yield {"status": "success"}

    return statuses()


def create_from_modelfile(
    store: Store, name: str, text: str, path: str = "", *, may_read: bool = False, **more: Any
) -> Iterator[Status]:
    """The same of a Modelfile: its `text`, or else the file `path` of this machine.

    may_read   files of this machine may be read for whoever asks
    more       `quantize`, `fetch` and `fits` of `create`
    An empty SYSTEM takes an inherited one away.
    Raises: as `create`; BadModelfile
    """
    ModelName.parse_request(name)
    content: str | bytes = text
    if not text:
        if not may_read:
            raise BadModelfile("path is a file of the server, which reads none for clients; send its text as modelfile")
        try:
            content = Path(path).expanduser().read_bytes()
        except (OSError, ValueError) as error:
            raise BadModelfile(f"error reading modelfile: {error}") from None
    commands = parse_modelfile(content)
    said = wishes(commands)
    folder = Path(path).expanduser().parent if path and not text else Path.cwd()
    found = sources(commands, folder if may_read else None)
    said |= found.uploaded(lambda file: store.put_blob(file_chunks(file))[0])
    return create(store, name, **said, **more, drop_system=said.get("system") == "")


def _inherited(store: Store, from_: str) -> tuple[Config, list[ManifestLayer]]:
    model = store.resolve(ModelName.parse_request(from_)[0])
    store.adopt(model)
    return model.config, [replace(layer, source=model.name.short) for layer in model.manifest.layers]


def _weights(store: Store, layers: Sequence[ManifestLayer]) -> Path:
    models = [layer for layer in layers if layer.media_type == media.MODEL]
    if not models:
        raise ModelError(f"no layer of type {media.MODEL}, expected one that the adapter is for")
    return store.blob_path(models[-1].digest)


def _quantized(
    store: Store, config: Config, layers: Sequence[ManifestLayer], name: str
) -> Generator[Status, None, tuple[Config, list[ManifestLayer]]]:
    """The config and layers of a model whose weights are of file type `name`."""
    changed = []
    for layer in layers:
        if layer.media_type == media.MODEL:
            config, layer = yield from quantized_layer(store, config, layer, name)
        changed.append(layer)
    return config, changed


def _check_template(text: str) -> None:
    """Raises: RequestError for a template that does not parse, in the words of Ollama"""
    try:
        go.load_template(text)
    except BadTemplate as error:
        raise RequestError(f"template error: {error}") from None


def _named(store: Store, layers: Sequence[ManifestLayer]) -> tuple[list[str], NamedTemplate | None]:
    """What ends a turn in the format of a new model, and that format if the model's own template does not run here."""
    own = GGUF.open(store.blob_path(layers[0].digest)).kv.get("tokenizer.chat_template")
    if not isinstance(own, str) or (named := match(own)) is None:
        return [], None
    return [word for word in named.stop if word in own], None if jinja.compiles(own) else named


def _without(layers: Sequence[ManifestLayer], *media_types: str) -> list[ManifestLayer]:
    return [layer for layer in layers if layer.media_type not in media_types]


def _params(store: Store, layers: Sequence[ManifestLayer]) -> dict[str, Any]:
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
