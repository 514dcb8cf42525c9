"""`numllama ps` and `numllama stop`: the models that a server has loaded."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from .backend import connect
from .client import ServerError
from .format import format_size, format_table, format_until, seconds_until


def loaded_models(prefix: str = "") -> str:
    """Format a table of the loaded models whose name starts with `prefix`, longest remaining lifetime first."""
    with closing(connect()) as client:
        loaded = client.ps()
    rows = [
        (
            model["name"],
            model["digest"][:12],
            format_size(model["size"]),
            processor(model),
            str(model.get("context_length", "")),
            format_until(seconds_until(model["expires_at"])),
        )
        for model in loaded
        if model["name"].lower().startswith(prefix.lower())
    ]
    return format_table([("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), *rows])


def processor(model: dict[str, Any]) -> str:
    """Format the processors that hold a model: `100% CPU`, `100% GPU`, `48%/52% CPU/GPU`."""
    n, on_gpu = model["size"], model.get("size_vram", 0)
    if not on_gpu:
        return "100% CPU"
    if on_gpu >= n:
        return "100% GPU" if on_gpu == n else "Unknown"
    cpu = round(100 * (n - on_gpu) / n)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def stop_model(model: str) -> None:
    """Unload `model` from the server, if it is loaded.  Raises: ServerError"""
    with closing(connect()) as client:
        try:
            client.unload(model)
        except ServerError as error:
            if error.status == 404:
                raise ServerError(f'couldn\'t find model "{model}" to stop', 404) from None
            raise
