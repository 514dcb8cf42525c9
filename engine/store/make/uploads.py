"""Layers from uploaded files: a model, optionally quantized, its projectors, an adapter, and a draft model.

An uploaded GGUF becomes a layer as it is, with the same digest.  A new file is written only for a model in several
files, a model to be quantized, and a model in another format.  Errors use the client's file names.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BadDigest, BadGGUF, ModelError, NotYet, RequestError
from ...gguf.file_type import FILE_TYPES, file_type_name, parameter_size
from ...gguf.read import GGUF, described, join, read_part
from ...gguf.write import gguf_chunks
from .. import manifest as media
from ..manifest import Config, ManifestLayer, check_digest
from ..show import n_parameters
from ..store import Store
from .convert import convert_model
from .mixture import file_type_of
from .quantize import check_weights, has_file_type, quantize_model

Status = dict[str, Any]
CheckFits = Callable[[GGUF, GGUF], None]  # raises ModelError if an adapter, projector or draft model does not fit
CheckLoads = Callable[[GGUF], None]  # raises ModelError if a model cannot be loaded
STATUS_INTERVAL_S = 0.1  # between two statuses of a file
PENDING_DIGEST = "0000000000000000000"  # Ollama's digest in statuses of a file that is being written


def model_layers(
    store: Store, files: Mapping[str, str], quantize: str, check_fits: CheckFits, check_loads: CheckLoads
) -> Generator[Status, None, tuple[Config, list[ManifestLayer]]]:
    """Create the config and layers of a model from the blobs `files`, which are digests by file name.

    Raises: RequestError, ModelError for a missing blob, EngineError for an invalid `quantize`
    """
    if not files:
        raise RequestError("unknown type")
    if any(path.endswith(".safetensors") for path in files):
        layer = yield from _converted(store, files)
        _check_loads("the converted model", GGUF.open(store.blob_path(layer.digest)), check_loads)
        return (yield from _model_with_projectors(store, layer, [], quantize))
    models: dict[str, GGUF] = {}
    projectors: dict[str, GGUF] = {}
    layers: dict[str, ManifestLayer] = {}
    for path, digest in files.items():
        yield {"status": "parsing GGUF"}
        gguf, layer = _uploaded(store, path, digest)
        kind = gguf.text("general.type")
        if kind == "adapter":
            raise RequestError(f"{path}: an adapter, expected a model")
        is_part = _n_parts(path, gguf) != 1  # only the first part has an architecture
        if not is_part and (_architecture(path, gguf) == "clip" or kind == "mmproj"):
            projectors[path], layers[path] = gguf, replace(layer, media_type=media.PROJECTOR)
        else:
            models[path], layers[path] = gguf, layer
    if len(models) > 1 and all(_n_parts(path, gguf) == len(models) for path, gguf in models.items()):
        layer = yield from _merged(store, models)
    elif len(models) == 1:
        ((path, gguf),) = models.items()
        layer = layers[path]
        if (n := _n_parts(path, gguf)) != 1:
            raise RequestError(f"{path}: one of {n} parts of a model, expected all of them")
    elif projectors and not models:
        raise RequestError(
            f"{next(iter(projectors))}: a projector without its text model, which another FROM must name"
        )
    else:
        raise RequestError(f"{len(models)} models among {len(files)} files, expected one")
    model = GGUF.open(store.blob_path(layer.digest))
    _architecture(next(iter(models)), model)
    _check_loads(next(iter(models)), model, check_loads)
    for path, projector in projectors.items():
        _check_part(path, projector, model, check_fits)
    return (yield from _model_with_projectors(store, layer, [layers[path] for path in projectors], quantize))


def _model_with_projectors(
    store: Store, layer: ManifestLayer, projectors: list[ManifestLayer], quantize: str
) -> Generator[Status, None, tuple[Config, list[ManifestLayer]]]:
    config = config_of(GGUF.open(store.blob_path(layer.digest)))
    if quantize:
        config, layer = yield from quantized_layer(store, config, layer, quantize)
    return config, [layer, *projectors]


def _converted(store: Store, files: Mapping[str, str]) -> Generator[Status, None, ManifestLayer]:
    """Convert a model in Hugging Face's layout to a layer."""
    yield {"status": "converting model"}
    if "config.json" not in files:
        raise ModelError("open config.json: no such file or directory")
    kv, tensors = convert_model({path: uploaded_blob(store, path, digest) for path, digest in files.items()})
    total = sum(tensor.nbytes for tensor in tensors)
    return (yield from store_model_layer(store, gguf_chunks(kv, tensors), total, "converting model"))


def adapter_layer(
    store: Store, files: Mapping[str, str], model: Path, check_fits: CheckFits
) -> Generator[Status, None, ManifestLayer]:
    """Create the layer of the single adapter in `files`, for the GGUF `model`."""
    if any(path.endswith(".safetensors") for path in files):
        raise NotYet("create does not support adapters as safetensors yet")
    if len(files) != 1:
        raise RequestError("only one adapter is currently supported")
    ((path, digest),) = files.items()
    yield {"status": "parsing GGUF"}
    gguf, layer = _uploaded(store, path, digest)
    if gguf.text("general.type") != "adapter":
        raise RequestError(f"{path}: general.type is {described(gguf.kv.get('general.type'))}, expected 'adapter'")
    _check_part(path, gguf, GGUF.open(model), check_fits)
    return replace(layer, media_type=media.ADAPTER)


def draft_layer(
    store: Store, files: Mapping[str, str], model: Path, quantize: str, check_fits: CheckFits
) -> Generator[Status, None, ManifestLayer]:
    """Create the layer of the single draft model in `files`, for the GGUF `model`, quantized if asked for."""
    if len(files) != 1:
        raise RequestError(f"{len(files)} files of a draft model, expected one GGUF")
    ((path, digest),) = files.items()
    yield {"status": "parsing GGUF"}
    gguf, layer = _uploaded(store, path, digest)
    if gguf.text("general.type") in ("adapter", "mmproj") or _architecture(path, gguf) == "clip":
        raise RequestError(f"{path}: general.type is {described(gguf.kv.get('general.type'))}, expected a draft model")
    _check_part(path, gguf, GGUF.open(model), check_fits)
    if quantize:
        _, layer = yield from quantized_layer(store, config_of(gguf), layer, quantize)
    return replace(layer, media_type=media.DRAFT)


def _check_loads(path: str, model: GGUF, check_loads: CheckLoads) -> None:
    try:
        check_loads(model)
    except ModelError as error:
        text = str(error)
        named = text.replace(str(model.path), path)
        raise RequestError(named if named != text else f"{path}: {text}") from None


def _check_part(path: str, part: GGUF, model: GGUF, check_fits: CheckFits) -> None:
    try:
        check_fits(part, model)
    except ModelError as error:
        raise RequestError(str(error).replace(str(part.path), path)) from None


def quantized_layer(
    store: Store, config: Config, layer: ManifestLayer, name: str
) -> Generator[Status, None, tuple[Config, ManifestLayer]]:
    """Quantize the model `layer` to the file type `name`; return it unchanged if it has that type."""
    file_type = file_type_of(name)
    gguf = GGUF.open(store.blob_path(layer.digest))
    if not has_file_type(gguf, file_type):
        kv, tensors = quantize_model(gguf, file_type)
        status = f"quantizing {_file_type(gguf)} model to {file_type}"
        layer = yield from store_model_layer(
            store, gguf_chunks(kv, tensors), sum(tensor.nbytes for tensor in tensors), status
        )
        yield {"status": "verifying conversion"}
    return replace(config, file_type=file_type), layer


def store_model_layer(
    store: Store, chunks: Iterable[bytes | memoryview], total: int, status: str
) -> Generator[Status, None, ManifestLayer]:
    """Store `chunks` as a model layer, yielding statuses with the text `status`.

    total   the approximate number of bytes
    """
    due = time.monotonic()
    with store.blob_writer() as writer:
        for chunk in chunks:
            writer.write(chunk)
            if time.monotonic() >= due:
                due = time.monotonic() + STATUS_INTERVAL_S
                yield {"status": status, "digest": PENDING_DIGEST, "total": total, "completed": min(writer.size, total)}
        return ManifestLayer(media.MODEL, writer.commit(), writer.size)


def config_of(gguf: GGUF) -> Config:
    """Return the config of a model with the weights `gguf`."""
    architecture = gguf.kv["general.architecture"]
    size = parameter_size(n_parameters(gguf))
    return Config("gguf", architecture, (architecture,), size, file_type_name(gguf.kv.get("general.file_type")))


def _merged(store: Store, parts: Mapping[str, GGUF]) -> Generator[Status, None, ManifestLayer]:
    """Merge all parts of a model into one layer."""
    in_order = sorted(parts, key=lambda path: _integer(path, parts[path], "split.no", -1))
    try:
        whole = join([parts[path] for path in in_order])
    except BadGGUF as error:
        names = {str(part.path): path for path, part in parts.items()}
        raise RequestError(str(error).replace(error.path, names[error.path])) from None
    kv = {key: value for key, value in whole.typed.items() if not key.startswith("split.")}
    total = sum(tensor.nbytes for tensor in whole.tensors.values())
    chunks = gguf_chunks(kv, whole.tensors.values(), whole.version, whole.byteorder)
    return (yield from store_model_layer(store, chunks, total, f"merging {len(parts)} files"))


def _uploaded(store: Store, path: str, digest: str) -> tuple[GGUF, ManifestLayer]:
    """Open an uploaded GGUF and check all its weights; return it and its layer."""
    blob = uploaded_blob(store, path, digest)
    with open(blob, "rb") as file:
        if file.read(4) != b"GGUF":
            raise RequestError("supplied file was not in GGUF format" if path.endswith(".gguf") else "unknown type")
    try:
        gguf = read_part(blob)
    except BadGGUF as error:
        raise RequestError(str(error).replace(str(blob), path)) from None
    try:
        check_weights(gguf)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    return gguf, ManifestLayer(media.MODEL, check_digest(digest), blob.stat().st_size)


def uploaded_blob(store: Store, path: str, digest: str) -> Path:
    """Return the path of an uploaded blob in the user's folder."""
    try:
        digest = check_digest(digest)
        store.adopt_blob(digest)
        return store.blob_path(digest)
    except BadDigest as error:
        raise ModelError(str(error)) from None  # Ollama responds with 500 here, and with 400 to an empty digest
    except FileNotFoundError:
        raise ModelError(f"open {digest.replace(':', '-')}: no such file or directory") from None


def _architecture(path: str, gguf: GGUF) -> str:
    if not (architecture := gguf.text("general.architecture")):
        found = described(gguf.kv.get("general.architecture"))
        raise RequestError(f"{path}: general.architecture is {found}, expected a name such as 'llama'")
    return architecture


def _n_parts(path: str, gguf: GGUF) -> int:
    return _integer(path, gguf, "split.count", 1)


def _integer(path: str, gguf: GGUF, key: str, default: int) -> int:
    value = gguf.kv.get(key, default)
    if type(value) is not int:
        raise RequestError(f"{path}: {key} is {described(value)}, expected an integer")
    return value


def _file_type(gguf: GGUF) -> str:
    """Return the file type in the metadata, or else the format of most weights."""
    if (name := file_type_name(gguf.kv.get("general.file_type"))) in FILE_TYPES.values():
        return name
    n_weights: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        n_weights[tensor.format.name] += tensor.n_elements
    return n_weights.most_common(1)[0][0] if n_weights else "unknown"
