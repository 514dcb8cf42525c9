"""GGUF files outside the store, used like models of the store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import ModelError, ModelNotFound
from .blobs import Blobs
from .manifest import Config, Manifest
from .name import ModelName
from .store import LocalModel


@dataclass(frozen=True)
class FileModel(LocalModel):
    """A model that is a GGUF file, without the layers of a model of the store.

    attached_adapters, attached_projectors   files that take the place of layers
    """

    path: Path = Path()
    attached_adapters: tuple[Path, ...] = ()
    attached_projectors: tuple[Path, ...] = ()

    @cached_property
    def weights(self) -> Path:
        return self.path

    @cached_property
    def adapters(self) -> list[Path]:
        return list(self.attached_adapters)

    @cached_property
    def projectors(self) -> list[Path]:
        return list(self.attached_projectors)

    @property
    def has_projector(self) -> bool:
        return bool(self.attached_projectors)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @classmethod
    def of(
        cls, path: str | os.PathLike[str], adapters: Iterable[Path] = (), projectors: Iterable[Path] = ()
    ) -> FileModel:
        """Return the model in the file `path`, without reading the file.  Raises: ModelNotFound, ModelError"""
        path = Path(path)
        try:
            modified_ns = path.stat().st_mtime_ns
        except FileNotFoundError:
            raise ModelNotFound(str(path), f"{path}: no such file") from None
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from None
        config = Config(model_format="gguf")
        name, manifest, blobs = ModelName.parse("file"), Manifest(None, ()), Blobs(path.parent)
        return cls(name, manifest, config, "", modified_ns, blobs, False, path, tuple(adapters), tuple(projectors))
