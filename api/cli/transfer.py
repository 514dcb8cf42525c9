"""`numllama pull` and `push`: download and upload of models, by a server or in this process."""

from __future__ import annotations

import sys
from contextlib import closing

from ...engine.store.name import ModelName
from .backend import store_backend
from .progress import Progress


def pull_model(model: str, insecure: bool = False) -> None:
    """Download `model`.  Raises: EngineError, ServerError, KeyboardInterrupt (after a message on how to resume)"""
    with closing(store_backend()) as backend:
        try:
            with Progress() as progress:
                progress.follow(backend.pull(model, insecure))
        except KeyboardInterrupt:
            print(f"download interrupted; `numllama pull {model}` resumes it", file=sys.stderr)
            raise


def push_model(model: str, insecure: bool = False) -> None:
    """Upload `model` to the registry in its name.  Raises: EngineError, ServerError"""
    with closing(store_backend()) as backend, Progress() as progress:
        progress.follow(backend.push(model, insecure))
    print(f"\nYou can find your model at:\n\n\t{_model_address(ModelName.parse(model))}")


def _model_address(name: ModelName) -> str:
    is_ollamas = name.host.lower().endswith((".ollama.ai", ".ollama.com"))
    return f"https://ollama.com/{name.short.removesuffix(':latest')}" if is_ollamas else str(name)
