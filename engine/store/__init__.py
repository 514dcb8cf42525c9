"""Models on disk, in Ollama's layout: names, manifests and blobs."""

from .name import ModelName
from .store import LocalModel, Store, default_store

__all__ = ["LocalModel", "ModelName", "Store", "default_store"]
