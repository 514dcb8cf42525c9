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
from .convert_tokenizer import tokenizer_kv
from .safetensors import read_safetensors

MAX_JSON_BYTES = 256 << 20  # the largest known tokenizer.json has 35 MB
MORE_FILES = ("tokenizer_config.json", "generation_config.json", "added_tokens.json")
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}


def convert_model(files: Mapping[str, Path]) -> tuple[dict[str, Any], list[Streamed]]:
    """Convert a model to GGUF key-values and tensors.

    files   by name in the model's folder: config.json, *.safetensors, tokenizer.json or tokenizer.model, ...
    Raises: ModelError for a missing file or tensor, RequestError for an invalid one
    """
    config = _json(files, "config.json")
    model = _model(config)
    tensors: dict[str, Tensor] = {}
    for name, path in files.items():
        if name.endswith(".safetensors"):
            found = read_safetensors(path, name)
            if twice := found.keys() & tensors.keys():
                raise RequestError(f"{name}: tensor {min(twice)!r} is in another file too")
            tensors |= found
    streamed = model.streamed(tensors)
    formats = [tensor.format.name for tensor in streamed if len(tensor.shape) == 2]
    more = {name: _json(files, name) for name in MORE_FILES if name in files}
    tokenizer = _json(files, "tokenizer.json") if "tokenizer.json" in files else None
    spm = read_limited(files["tokenizer.model"], MAX_JSON_BYTES) if "tokenizer.model" in files else None
    kv: dict[str, Any] = model.kv() | {"general.file_type": U32(FILE_TYPES[max(formats, key=formats.count)])}
    kv |= tokenizer_kv(tokenizer, spm, config, more, model.n_vocab)
    if "chat_template.jinja" in files:
        kv["tokenizer.chat_template"] = read_limited(files["chat_template.jinja"]).decode("utf-8", "replace")
    return kv, streamed


def _model(config: Mapping[str, Any]) -> HuggingFaceDecoder:
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str) or name not in DECODERS:
        raise RequestError(f"config.json: architecture {str(name)!r} is not one of {', '.join(DECODERS)}")
    return HuggingFaceDecoder(config)


def _json(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    if name not in files:
        raise ModelError(f"open {name}: no such file or directory")
    try:
        content: dict[str, Any] = read_json(read_limited(files[name], MAX_JSON_BYTES), name, dict)
        return content
    except BadManifest as error:
        raise RequestError(str(error).replace(str(files[name]), name)) from None
