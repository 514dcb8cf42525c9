"""Manifests: a manifest names the config and the layers of a model, each a blob by its digest.

    {"schemaVersion":2, "mediaType":"...manifest.v2+json",
     "config":{"mediaType":..., "digest":"sha256:...", "size":169},
     "layers":[{"mediaType":"application/vnd.ollama.image.model", "digest":..., "size":..., "from":...}, ...]}

A model's id is the SHA-256 of its manifest file.  So a manifest is copied byte for byte, and always written in one
form: compact JSON and a newline.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadDigest, BadManifest
from ..go.fmt import ordered_json_text

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MODEL = "application/vnd.ollama.image.model"
PROJECTOR = "application/vnd.ollama.image.projector"
ADAPTER = "application/vnd.ollama.image.adapter"
DRAFT = "application/vnd.ollama.image.draft"
TEMPLATE = "application/vnd.ollama.image.template"
PROMPT = "application/vnd.ollama.image.prompt"  # the old name of TEMPLATE
SYSTEM = "application/vnd.ollama.image.system"
PARAMS = "application/vnd.ollama.image.params"
MESSAGES = "application/vnd.ollama.image.messages"
LICENSE = "application/vnd.ollama.image.license"

MAX_JSON_BYTES = 16 << 20  # of a manifest, a config or a text layer

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


def check_digest(text: str) -> str:
    """Return the digest as `sha256:<64 hex>`; `sha256-<64 hex>` is accepted, too.  Raises: BadDigest"""
    match = _DIGEST.fullmatch(text)
    if not match:
        raise BadDigest(text)
    return f"sha256:{match[1].lower()}"


@dataclass(frozen=True)
class ManifestLayer:
    """One blob of a model.

    source   the model or file that the layer came from; `from` in the file
    """

    media_type: str
    digest: str
    size: int
    source: str = ""
    name: str = ""

    def as_json(self) -> dict[str, Any]:
        optional = {key: value for key, value in (("from", self.source), ("name", self.name)) if value}
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **optional}


@dataclass(frozen=True)
class Manifest:
    """The layers of a model, in order, and its config, which very old models lack."""

    config: ManifestLayer | None
    layers: tuple[ManifestLayer, ...]

    def of_type(self, *media_types: str) -> list[ManifestLayer]:
        return [layer for layer in self.layers if layer.media_type in media_types]

    @property
    def all_layers(self) -> tuple[ManifestLayer, ...]:
        """All layers and the config: every blob of the model."""
        return (*self.layers, *([self.config] if self.config else []))

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.all_layers)

    def to_bytes(self) -> bytes:
        assert self.config
        layers = ",".join(ordered_json_text(layer.as_json()) for layer in self.layers)
        head = f'{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{ordered_json_text(self.config.as_json())}'
        return f'{head},"layers":[{layers}]}}\n'.encode()

    @classmethod
    def from_bytes(cls, data: bytes, path: str | os.PathLike[str]) -> Manifest:
        """Parse a manifest, accepting unknown keys and media types.

        path   named in errors
        Raises: BadManifest
        """
        value = read_json(data, path, dict)
        layers = value.get("layers") or []
        if not isinstance(layers, list):
            raise BadManifest(path, f"'layers' is a {type(layers).__name__}, expected a list")
        config = value.get("config") or {}
        return cls(
            _layer(config, path) if not isinstance(config, dict) or config.get("digest") else None,
            tuple(_layer(layer, path) for layer in layers),
        )


def _layer(value: Any, path: str | os.PathLike[str]) -> ManifestLayer:
    if not isinstance(value, dict):
        raise BadManifest(path, f"a layer is a {type(value).__name__}, expected an object")
    fields = [value.get(key) or "" for key in ("mediaType", "digest", "from", "name")]
    size = value.get("size") or 0
    if not all(isinstance(text, str) for text in fields):
        raise BadManifest(path, "a layer's mediaType, digest, from and name must be text")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise BadManifest(path, f"a layer's size is {str(size)[:40]}, expected a number of bytes")
    media_type, digest, source, name = fields
    try:
        digest = check_digest(digest)
    except BadDigest:
        raise BadManifest(path, f"a layer's digest is {digest[:80]!r}, expected sha256: and 64 hex digits") from None
    return ManifestLayer(media_type, digest, size, source, name)


# In the file's order: the required keys, then those left out when empty; "architecture" and "os" follow.
CONFIG_KEYS = ("model_format", "model_family", "model_families", "model_type", "file_type")
OPTIONAL_KEYS = (
    *("renderer", "parser", "requires", "remote_host", "remote_model", "capabilities"),
    *("context_length", "embedding_length", "base_name", "draft"),
)
OPTIONAL_TEXTS = ("renderer", "parser", "requires", "remote_host", "remote_model", "base_name")


@dataclass(frozen=True)
class Config:
    """The config blob: the facts about a model that a list shows without opening its weights.

    model_family is the GGUF's architecture, model_type its parameter count ("8.0B"), file_type its quantization.
    """

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] = ()
    model_type: str = ""
    file_type: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    """the optional keys, `renderer` to `draft`"""

    def to_bytes(self) -> bytes:
        value: dict[str, Any] = {key: getattr(self, key) for key in CONFIG_KEYS}
        value["model_families"] = list(self.model_families) or None
        value |= {key: self.more[key] for key in OPTIONAL_KEYS if self.more.get(key)}
        return (ordered_json_text(value | {"architecture": "amd64", "os": "linux"}) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, path: str | os.PathLike[str]) -> Config:
        """Parse a config.  `path` is named in errors.  Raises: BadManifest"""
        value = read_json(data, path, dict)
        texts = {key: value.get(key) or "" for key in CONFIG_KEYS if key != "model_families"}
        more = {key: value[key] for key in OPTIONAL_KEYS if value.get(key)}
        lists = {"model_families": value.get("model_families") or [], "capabilities": more.get("capabilities", [])}
        for key, text in (texts | {key: more.get(key, "") for key in OPTIONAL_TEXTS}).items():
            if not isinstance(text, str):
                raise BadManifest(path, f"the config's {key} is a {type(text).__name__}, expected text")
        for key, items in lists.items():
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise BadManifest(path, f"the config's {key} is {str(items)[:40]}, expected a list of texts")
        return cls(**texts, model_families=tuple(lists["model_families"]), more=more)


def read_json(data: bytes, path: str | os.PathLike[str], kind: type) -> Any:
    """Parse a JSON value of the type `kind`.  `path` is named in errors.  Raises: BadManifest"""
    try:
        value = json.loads(data, parse_constant=_refuse, parse_float=_finite, parse_int=_within_float)
    except RecursionError:
        raise BadManifest(path, "JSON is nested too deeply") from None
    except ValueError as error:
        raise BadManifest(path, f"invalid JSON: {str(error)[:200]}") from None
    if not isinstance(value, kind):
        raise BadManifest(path, f"a JSON {type(value).__name__}, expected a {kind.__name__}")
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits[:40])  # type: ignore[func-returns-value,return-value]


def _within_float(digits: str) -> int:
    _finite(digits)
    return int(digits)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_limited(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a file of at most `limit` bytes.  Raises: BadManifest if it is longer, OSError"""
    with open(path, "rb") as file:
        # read() allocates the size it is given, so pass the file's size rather than the limit
        data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(data) > limit:
        raise BadManifest(path, f"longer than {limit} bytes, the limit for this kind of file")
    return data
