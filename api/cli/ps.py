"""`numllama ps` and `numllama stop`: what a server has loaded."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from .client import ServerError
from .find import server
from .words import seconds_until, size, table, until


def loaded_models(prefix: str = "") -> str:
    """A table of the loaded models whose name begins with `prefix`, longest remaining lifetime first."""
    with closing(server()) as client:
        loaded = client.ps()
    rows = [
        (
            model["name"],
            model["digest"][:12],
            size(model["size"]),
            processor(model),
            str(model.get("context_length", "")),
            until(seconds_until(model["expires_at"])),
        )
        for model in loaded
        if model["name"].lower().startswith(prefix.lower())
    ]
    return table([("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), *rows])


def processor(model: dict[str, Any]) -> str:
    """Where the model lies: `100% CPU`, `100% GPU`, `48%/52% CPU/GPU`."""
    n, on_gpu = model["size"], model.get("size_vram", 0)
    if not on_gpu:
        return "100% CPU"
    if on_gpu >= n:
        return "100% GPU" if on_gpu == n else "Unknown"
    cpu = round(100 * (n - on_gpu) / n)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def stop_model(model: str) -> None:
    """Have the server unload `model`; fine if it is not loaded.  Raises: ServerError"""
    with closing(server()) as client:
        try:
            client.unload(model)
        except ServerError as error:
            if error.status == 404:
                raise ServerError(f'couldn\'t find model "{model}" to stop', 404) from None
            raise
