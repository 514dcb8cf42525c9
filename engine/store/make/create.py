"""Creation of a model from uploaded GGUF files or another model, with its own texts and parameters.

Inherited layers keep their order, without those that are replaced.  New layers follow in the order template, system,
licenses, parameters, messages.
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
from ...settings import expand_home
from ...template import Template, go, jinja
from ...template.named import NamedTemplate, match, match_words
from .. import manifest as media
from ..manifest import Config, Manifest, ManifestLayer
from ..name import ModelName
from ..store import Store
from .modelfile import create_arguments, parse_modelfile, read_modelfile
from .sources import file_chunks, find_sources
from .uploads import CheckFits, CheckLoads, Status, adapter_layer, draft_layer, model_layers, quantized_layer

NANO = {"renderer": "nemotron-3-nano", "parser": "nemotron-3-nano"}
FORMATS: dict[str, dict[str, str]] = {  # by family: the renderer and parser of a model that names none
    "gemma4": {"renderer": "gemma4", "parser": "gemma4"},
    "laguna": {"renderer": "laguna", "parser": "laguna"},
    "nemotron_h": NANO,
    "nemotron_h_moe": NANO,
    "nemotron_h_omni": NANO,
}


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
    draft_files: Mapping[str, str] | None = None,
    draft_quantize: str = "",
    drop_system: bool = False,
    fetch: Callable[[str], Iterator[Status]] = lambda name: iter(()),
    check_fits: CheckFits = lambda part, model: None,
    check_loads: CheckLoads = lambda model: None,
) -> Iterator[Status]:
    """Create the model `name`, yielding statuses; the last one is {"status": "success"}.

    from_        a model whose layers and config are inherited; `fetch` is called with its name first
    files        digests of uploaded blobs by file name: a GGUF or all its parts, maybe with projectors
    adapters     digests of uploaded blobs by file name: an adapter
    draft_files  digests of uploaded blobs by file name: a model that guesses this one's next tokens
    draft_quantize   the new file type of its weights
    quantize     the new file type of the weights: Q8_0, Q4_K_M, ...
    parameters   merged over the inherited parameters; None removes one
    messages     replace the inherited messages
    license      one text or several, added to the inherited licenses
    drop_system  remove the inherited system text
    info         override facts in the config: model_family, parameter_size, capabilities, ...
    check_fits   is called with a new adapter, projector or draft model, and the model; raises ModelError
    check_loads  is called with a new model; raises ModelError if it cannot be loaded

    Names and digests in the request are checked at once, before the first status.
    Raises: RequestError, BadName, BadDigest, ModelNotFound, NotYet; ModelError for a missing blob
    """
    for digests in (files or {}, adapters or {}, draft_files or {}):
        for path, digest in digests.items():
            if not path or any(part in ("", ".", "..") for part in path.split("/")):
                raise RequestError("file path must be relative")
            if not digest:
                raise BadDigest(digest)
    target = ModelName.parse_request(name)[0]
    overrides = _overrides(info or {}) | {"renderer": renderer, "parser": parser, "requires": requires}

    def statuses(store: Store) -> Iterator[Status]:
        if not from_ and files is None:
            raise RequestError("neither 'from' or 'files' was specified")
        if template:
            _check_template(template)
        try:
            Template().named(renderer, parser).check_names()
        except BadTemplate as error:
            raise RequestError(str(error)) from None
        stop, named = list[str](), None
        if from_:
            yield from fetch(from_)
        before = store.digests()
        if from_:
            config, layers = _inherited(store, from_)
            if quantize:
                config, layers = yield from _quantized(store, config, layers, quantize)
        else:
            config, layers = yield from model_layers(store, files or {}, quantize, check_fits, check_loads)
            stop, named = _known_format(store, layers)
        if adapters:
            adapter = yield from adapter_layer(store, adapters, _weights(store, layers), check_fits)
            layers = [*_without(layers, media.ADAPTER), adapter]
        if draft_files:
            draft = yield from draft_layer(store, draft_files, _weights(store, layers), draft_quantize, check_fits)
            layers = [*_without(layers, media.DRAFT), draft]
        if template:
            named = None
        formats = FORMATS.get(config.model_family, {})
        formats = {key: name for key, name in formats.items() if not (overrides.get(key) or config.more.get(key))}
        if formats.get("renderer") == "gemma4":
            stop = stop or ["<turn|>"]

        def text(media_type: str, content: str) -> ManifestLayer:
            return ManifestLayer(media_type, *store.put_blob([content.encode("utf-8", "replace")]))

        inherited = _params(store, layers)
        inherited = {"stop": stop, **inherited} if stop else inherited
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
        written = text(media.CONFIG_TYPE, _configured(config, overrides | formats).to_bytes().decode())
        with store.lock:
            store.write_manifest(store.respell(target), Manifest(written, tuple(layers)))
        yield {"status": "success"}

    def statuses_while_kept() -> Iterator[Status]:
        with store.keeping() as kept:
            yield from statuses(kept)

    return statuses_while_kept()


def create_from_modelfile(
    store: Store, name: str, text: str, path: str = "", *, may_read: bool = False, **more: Any
) -> Iterator[Status]:
    """Create the model `name` from a Modelfile: its `text`, or else the local file `path`.

    may_read   whether the client may name local files
    more       `quantize`, `fetch`, `check_fits` and `check_loads` of `create`
    An empty SYSTEM removes the inherited one.
    Raises: as `create`; BadModelfile
    """
    ModelName.parse_request(name)
    content: str | bytes = text
    if not text:
        if not may_read:
            raise BadModelfile("the server does not read local paths; send the Modelfile's text as `modelfile`")
        try:
            content = read_modelfile(expand_home(path))
        except (OSError, ValueError) as error:
            raise BadModelfile(f"error reading modelfile: {error}") from None
    commands = parse_modelfile(content)
    arguments = create_arguments(commands)
    folder = expand_home(path).parent if path and not text else Path.cwd()
    found = find_sources(commands, folder if may_read else None)
    arguments |= found.uploaded(lambda file: store.put_blob(file_chunks(file))[0])
    return create(store, name, **arguments, **more, drop_system=arguments.get("system") == "")


def _inherited(store: Store, from_: str) -> tuple[Config, list[ManifestLayer]]:
    model = store.resolve(ModelName.parse_request(from_)[0])
    store.adopt(model)
    return model.config, [replace(layer, source=model.name.short) for layer in model.manifest.layers]


def _weights(store: Store, layers: Sequence[ManifestLayer]) -> Path:
    models = [layer for layer in layers if layer.media_type == media.MODEL]
    if not models:
        raise ModelError(f"no layer of type {media.MODEL}, expected one for the adapter or draft model")
    return store.blob_path(models[-1].digest)


def _quantized(
    store: Store, config: Config, layers: Sequence[ManifestLayer], name: str
) -> Generator[Status, None, tuple[Config, list[ManifestLayer]]]:
    """Quantize the model layers to the file type `name`; return the new config and layers."""
    changed = []
    for layer in layers:
        if layer.media_type == media.MODEL:
            config, layer = yield from quantized_layer(store, config, layer, name)
        changed.append(layer)
    return config, changed


def _check_template(text: str) -> None:
    """Check that the template parses.  Raises: RequestError, with Ollama's text"""
    try:
        go.load_template(text)
    except BadTemplate as error:
        raise RequestError(f"template error: {error}") from None


def _known_format(store: Store, layers: Sequence[ManifestLayer]) -> tuple[list[str], NamedTemplate | None]:
    """Return the known format of the chat template in the weights, and its stop words; [], None if it has none.

    A template that does not run here needs less likeness: only then is there no other.
    """
    own = GGUF.open(store.blob_path(layers[0].digest)).kv.get("tokenizer.chat_template")
    if not isinstance(own, str):
        return [], None
    named = match(own) if jinja.compiles(own) else match_words(own)
    return (list(named.stop), named) if named else ([], None)


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
    """Convert a request's `license` to a list.  Raises: EngineError, with the text of Go's decoder (status 500)"""
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
    """Render the JSON of the messages layer: role and content first, then the other fields."""
    keys = ("thinking", "images", "tool_calls", "tool_name", "tool_call_id")
    rendered = []
    for message in messages:
        more = {key: message[key] for key in keys if message.get(key)}
        if "images" in more:
            more["images"] = [_base64(image) for image in more["images"]]
        rendered.append({"role": message.get("role") or "", "content": message.get("content") or "", **more})
    return "[" + ",".join(map(ordered_json_text, rendered)) + "]\n"


def _base64(image: bytes | str) -> str:
    return base64.b64encode(image).decode() if isinstance(image, bytes) else image


OVERRIDES: dict[str, str] = {  # a key of a request's `info` -> the config's key
    "capabilities": "capabilities",
    "model_family": "model_family",
    "base_name": "base_name",
    "quantization_level": "file_type",
    "parameter_size": "model_type",
    "context_length": "context_length",
    "embedding_length": "embedding_length",
}


def _overrides(info: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a request's `info` to keys of the config, ignoring unknown keys.  Raises: RequestError"""
    overrides = {}
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
        overrides[target] = int(value) if key.endswith("_length") else value
    return overrides


def _configured(config: Config, overrides: Mapping[str, Any]) -> Config:
    plain = {key: value for key, value in overrides.items() if value and key in media.CONFIG_KEYS}
    more = {key: value for key, value in overrides.items() if value and key in media.OPTIONAL_KEYS}
    return replace(config, **plain, more={**config.more, **more})
