"""What a MODEL argument means: a GGUF file, or a name in the store."""

from __future__ import annotations

from pathlib import Path

from ...engine.store import default_store


def is_file(model: str) -> bool:
    """Whether `model` is meant as a path: it ends in .gguf, or begins like one, or a file lies there."""
    return model.lower().endswith(".gguf") or model.startswith(("/", "./", "../", "~")) or Path(model).is_file()


def model_file(model: str) -> Path:
    """The GGUF file of `model`.  Raises ModelNotFound, BadName, BadManifest for a name; a path is not looked at yet."""
    return Path(model).expanduser() if is_file(model) else default_store().resolve(model).weights
