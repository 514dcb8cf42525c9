"""A GGUF file by its path, as if it were a model of a store: everything but the weights is absent."""

from __future__ import annotations

import os
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
    """A model without layers: no system text, template or parameters but the file's own."""

    path: Path = Path()

    @cached_property
    def weights(self) -> Path:
        return self.path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileModel:
        """The model in the file `path`, whose content is not looked at yet.  Raises: ModelNotFound, ModelError"""
        path = Path(path)
        try:
            modified_ns = path.stat().st_mtime_ns
        except FileNotFoundError:
            raise ModelNotFound(str(path), f"{path}: no such file") from None
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from None
        config = Config(model_format="gguf")
        return cls(ModelName.parse("file"), Manifest(None, ()), config, "", modified_ns, Blobs(path.parent), path=path)
