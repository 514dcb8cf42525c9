"""A GGUF file by its path, as if it were a model of a store: everything but the weights is absent."""

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
    """A model without layers: no system text, template or parameters but the file's own.

    attached_adapters, attached_projectors   files, where a model of the store has layers
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
    def sees(self) -> bool:
        return bool(self.attached_projectors)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @classmethod
    def of(
        cls, path: str | os.PathLike[str], adapters: Iterable[Path] = (), projectors: Iterable[Path] = ()
    ) -> FileModel:
        """The model in the file `path`, whose content is not looked at yet.  Raises: ModelNotFound, ModelError"""
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
