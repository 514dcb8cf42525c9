"""`numllama create`, `cp` and `rm`: create, copy and delete models, on a server or in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.errors import BadModelfile, BadName
from ...engine.settings import expand_home
from ...engine.store.make.modelfile import Instruction, create_arguments, parse_modelfile, read_modelfile
from ...engine.store.make.sources import find_sources
from ...engine.store.name import ModelName
from .backend import store_backend
from .client import Client, ServerError
from .progress import Progress

if TYPE_CHECKING:
    from .backend import Backend


def create_model(model: str, file: str | None = None, quantize: str = "", draft_quantize: str = "") -> None:
    """Create `model` from the Modelfile `file`; by default ./Modelfile, or the weights in the current folder.

    Raises: BadModelfile, EngineError, ServerError
    """
    try:
        ModelName.parse_request(model)
    except BadName:
        raise BadName(model, f"invalid model name: {model}") from None
    commands, folder = _read_modelfile(file)
    with closing(store_backend()) as backend, Progress() as progress:
        progress.show({"status": "gathering model components"})
        fields = create_arguments(commands)
        fields |= find_sources(commands, folder).uploaded(lambda path: _upload(backend, path, progress))
        fields |= {"quantize": quantize} if quantize else {}
        fields |= {"draft_quantize": draft_quantize} if draft_quantize else {}
        progress.follow(backend.create(model, **fields))


def copy_model(source: str, destination: str) -> None:
    with closing(store_backend()) as backend:
        backend.copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


def remove_models(names: Sequence[str]) -> None:
    """Unload and delete models one by one, up to the first that cannot be deleted."""
    with closing(store_backend()) as backend:
        for name in names:
            if isinstance(backend, Client):
                _unload(backend, name)
            backend.delete(name)
            print(f"deleted '{name}'", flush=True)


def _read_modelfile(file: str | None) -> tuple[list[Instruction], Path]:
    """Read the Modelfile; return its instructions and the folder that its relative paths start from."""
    path = expand_home(file or "Modelfile")
    try:
        return parse_modelfile(read_modelfile(path)), path.parent
    except FileNotFoundError:
        if file:
            raise BadModelfile("specified Modelfile wasn't found") from None
        return [Instruction("model", ".")], Path()


def _upload(backend: Backend, path: Path, progress: Progress) -> str:
    """Copy a file to the backend and return its digest."""
    size = path.stat().st_size
    status = {"status": f"copying file {path.name}", "total": size}
    progress.show(status | {"completed": 0})  # an interrupted copy starts over
    return backend.put_file(path, lambda n: progress.show(status | {"completed": n}))


def _unload(client: Client, name: str) -> None:
    try:
        client.unload(name)
    except ServerError as error:
        if error.status != 404:
            print(f"Warning: unable to stop model '{name}'", file=sys.stderr)
