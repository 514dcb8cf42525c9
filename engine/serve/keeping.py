"""Where beginnings of texts are kept when they lose their slot: memory, and files for one model on one kind of CPU."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...kernels import Kernels, simd
from ..gguf.read import MappedFile
from ..model.cache import KVCache
from ..model.model import Model
from ..run.cache_file import CacheFiles

HEAD_BYTES = 1 << 20  # read of a model file that is not named by its digest


@dataclass(frozen=True)
class Keeping:
    """Where beginnings are kept.

    memory   bytes for each model
    folder   of all models' files; None: no files
    disk     bytes of all files
    """

    memory: int = 0
    folder: Path | None = None
    disk: int = 0

    def files(self, model: Model, cache: KVCache, kernels: Kernels, cache_type: str) -> CacheFiles | None:
        """Return the files of a model with this cache; None without a folder, or for a model that caches nothing."""
        if not self.folder or not cache.k:
            return None
        identity = {
            "model": [file_identity(file) for file in model.files],
            "kernels": [kernels.name, simd.LEVEL, __version__],
            "cache": [cache_type, cache.n_ctx, cache.k_group, cache.v_group],
        }
        return CacheFiles(self.folder, identity, cache, self.disk)


NOT_KEPT = Keeping()


def file_identity(file: MappedFile) -> str:
    """Return a name that only this model file has: the digest in a blob's name; or size, time and hash of its head."""
    path = Path(file.path)
    if path.name.startswith("sha256"):
        return path.name
    status = path.stat()
    with open(path, "rb") as f:
        head = hashlib.sha256(f.read(HEAD_BYTES)).hexdigest()
    return f"{status.st_size}-{status.st_mtime_ns}-{head}"
