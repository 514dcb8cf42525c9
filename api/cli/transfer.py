"""`numllama pull` and `push`: models between a registry and whoever keeps the models here."""

from __future__ import annotations

import sys
from contextlib import closing

from ...engine.store.name import ModelName
from .find import store_owner
from .progress import Progress


def pull_model(model: str, insecure: bool = False) -> None:
    """Have `model` here.  Raises: EngineError, ServerError, KeyboardInterrupt after a word on what is kept"""
    with closing(store_owner()) as models:
        try:
            with Progress() as progress:
                progress.follow(models.pull(model, insecure))
        except KeyboardInterrupt:
            print(f"what has come is kept: `numllama pull {model}` goes on from there", file=sys.stderr)
            raise


def push_model(model: str, insecure: bool = False) -> None:
    """Have `model` in the registry of its name.  Raises: EngineError, ServerError"""
    with closing(store_owner()) as models, Progress() as progress:
        progress.follow(models.push(model, insecure))
    print(f"\nYou can find your model at:\n\n\t{_place(ModelName.parse(model))}")


def _place(name: ModelName) -> str:
    is_ollamas = name.host.lower().endswith((".ollama.ai", ".ollama.com"))
    return f"https://ollama.com/{name.short.removesuffix(':latest')}" if is_ollamas else str(name)
