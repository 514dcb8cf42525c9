"""Conversion of a model in Hugging Face's layout to GGUF: safetensors, config.json and the tokenizer.

Names and keys as in llama.cpp's convert_hf_to_gguf.py, 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....kernels.tensor import Tensor
from ...errors import BadManifest, ModelError, RequestError
from ...gguf.read import U32
from ...gguf.write import Streamed
from ..manifest import read_json, read_limited
from .convert_decoder import DECODERS, HuggingFaceDecoder
from .convert_encoder import ENCODERS, HuggingFaceEncoder
from .convert_tokenizer import tokenizer_kv
from .convert_wordpiece import wordpiece_of_lines
from .safetensors import read_safetensors

MAX_JSON_BYTES = 256 << 20  # the largest known tokenizer.json has 35 MB
MORE_FILES = ("tokenizer_config.json", "generation_config.json", "added_tokens.json", "special_tokens_map.json")
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}


def convert_model(files: Mapping[str, Path]) -> tuple[dict[str, Any], list[Streamed]]:
    """Convert a model to GGUF key-values and tensors.

    files   by name in the model's folder: config.json, *.safetensors, tokenizer.json or tokenizer.model, ...
    Raises: ModelError for a missing file or tensor, RequestError for an invalid one
    """
    config = _json(files, "config.json")
    model = _model(config, files)
    tensors: dict[str, Tensor] = {}
    for name, path in files.items():
        if name.endswith(".safetensors"):
            found = read_safetensors(path, name, model.is_unused)
            if twice := found.keys() & tensors.keys():
                raise RequestError(f"{name}: tensor {min(twice)!r} is in another file too")
            tensors |= found
    streamed = model.streamed(tensors)
    formats = [tensor.format.name for tensor in streamed if len(tensor.shape) == 2]
    more = {name: _json(files, name) for name in MORE_FILES if name in files}
    tokenizer = _json(files, "tokenizer.json") if "tokenizer.json" in files else None
    if tokenizer is None and "vocab.txt" in files:
        lines = read_limited(files["vocab.txt"], MAX_JSON_BYTES).decode("utf-8", "replace")
        tokenizer = wordpiece_of_lines(lines, more.get("tokenizer_config.json", {}))
    spm = read_limited(files["tokenizer.model"], MAX_JSON_BYTES) if "tokenizer.model" in files else None
    kv: dict[str, Any] = model.kv() | {"general.file_type": U32(FILE_TYPES[max(formats, key=formats.count)])}
    kv |= tokenizer_kv(tokenizer, spm, config, more, model.n_vocab)
    if "chat_template.jinja" in files:
        kv["tokenizer.chat_template"] = read_limited(files["chat_template.jinja"]).decode("utf-8", "replace")
    return kv, streamed


def _model(config: Mapping[str, Any], files: Mapping[str, Path]) -> HuggingFaceDecoder | HuggingFaceEncoder:
    named = config.get("architectures")
    name = str(named[0] if isinstance(named, list) and named else None)
    if name in ENCODERS:
        modules, pooling = _modules(files)
        return HuggingFaceEncoder(config, modules, pooling)
    if name not in DECODERS:
        raise RequestError(
            f"config.json: architecture {name[:100]!r} is not one of {', '.join([*DECODERS, *ENCODERS])}"
        )
    return HuggingFaceDecoder(config)


def _modules(files: Mapping[str, Path]) -> tuple[list[str], dict[str, Any]]:
    """Return the names of sentence-transformers' modules, and the content of the pooling module's config.json."""
    if "modules.json" not in files:
        return [], {}
    listed = _json(files, "modules.json", list)
    names, pooling = [], dict[str, Any]()
    for module in listed:
        kind, folder = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise RequestError(f"modules.json: {str(module)[:100]!r}, expected an object with type and path")
        names.append(kind.rpartition(".")[2])
        if names[-1] == "Pooling":
            pooling = _json(files, f"{folder}/config.json" if folder else "config.json")
    return names, pooling


def _json(files: Mapping[str, Path], name: str, kind: type = dict) -> Any:
    if name not in files:
        raise ModelError(f"open {name}: no such file or directory")
    try:
        return read_json(read_limited(files[name], MAX_JSON_BYTES), name, kind)
    except BadManifest as error:
        raise RequestError(str(error).replace(str(files[name]), name)) from None
