"""Models on disk: names, manifests and blobs in Ollama's layout."""

from .name import ModelName
from .store import LocalModel, Store, default_store

__all__ = ["LocalModel", "ModelName", "Store", "default_store"]
