"""The backend of a command: a server, or an engine in this process; and the meaning of a MODEL argument."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.errors import EngineError, RequestError
from ...engine.settings import Settings, expand_home
from ...engine.store import LocalModel, default_store

if TYPE_CHECKING:  # both are slow to import, and a command needs at most one of them
    from ...engine.serve.engine import Engine
    from ...kernels import Kernels
    from .client import Client

    Backend = Client | Engine
    """Both have the methods that commands call: show, generate, chat, embed, pull, create and so on."""


def is_file(model: str) -> bool:
    """Return whether `model` is a path: it starts like one, names a GGUF file, or ends in .gguf and names no model."""
    if model.startswith(("/", "./", "../", "~")) or is_gguf(model):
        return True
    return model.lower().endswith(".gguf") and (Path(model).exists() or not _is_installed(model))


def _is_installed(model: str) -> bool:
    """Return whether the local store or the server has a model of this name."""
    from .client import ServerError

    with suppress(EngineError):
        return bool(default_store().resolve(model))
    with suppress(ServerError):
        if client := connect_if_running():
            with closing(client):
                return bool(client.show(model))
    return False


def is_gguf(path: str | Path) -> bool:
    """Return whether `path` is a file that starts with the GGUF magic."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def model_file(model: str) -> Path:
    """Return the GGUF file of `model`, without opening it.

    Raises, for a name: ModelNotFound, BadName, BadManifest
    """
    return expand_home(model) if is_file(model) else default_store().resolve(model).weights


def local_model(model: str) -> LocalModel:
    """Return the files of `model` on this machine, adapters included.  Raises: ModelNotFound, BadName, BadManifest"""
    from ...engine.store.file import FileModel

    return FileModel.of(expand_home(model)) if is_file(model) else default_store().resolve(model)


def connect() -> Client:
    """Connect to the server at OLLAMA_HOST.  Raises: ServerNotRunning, ServerError"""
    from .client import Client

    client = Client(Settings.from_env().host)
    try:
        client.check()
    except BaseException:
        client.close()
        raise
    return client


def connect_if_running(*, require_named_host: bool = False) -> Client | None:
    """Connect to the server at OLLAMA_HOST; return None if it is not running.

    require_named_host   raise ServerNotRunning if OLLAMA_HOST is set: the user asked about the models of that server,
                         so the models of this machine would be the wrong answer
    """
    from .client import ServerNotRunning

    try:
        return connect()
    except ServerNotRunning:
        if require_named_host and os.environ.get("OLLAMA_HOST", "").strip(" \"'"):
            raise
        return None


def backend_for(
    model: str,
    kernels: str | None = None,
    *,
    adapters: Sequence[Path] = (),
    projectors: Sequence[Path] = (),
    require_named_host: bool = False,
) -> Backend:
    """Choose the backend for `model`: a running server, or an engine in this process.

    The engine also runs GGUF files given by path, and `kernels` if the user chose a set.

    adapters, projectors   files to apply to a model given by path
    Raises: RequestError for an unknown kernel set, or for adapters or projectors of a model given by name;
    ModelNotFound for a missing file; ServerError
    """
    path = expand_home(model) if is_file(model) else None
    if path is None and (adapters or projectors):
        raise RequestError(
            f"--adapter and --projector require a GGUF file, and '{model}' is a model name; see `create`"
        )
    if path is None and kernels is None and (client := connect_if_running(require_named_host=require_named_host)):
        return client
    from ...engine.serve.engine import Engine
    from ...engine.store.file import FileModel

    file = FileModel.of(path, adapters, projectors) if path else None
    return Engine(file=file, kernels=kernel_set(kernels)) if kernels else Engine(file=file)


def store_backend() -> Backend:
    """Choose the backend that manages models: the server at OLLAMA_HOST, or an engine in this process.

    Raises: ServerNotRunning if OLLAMA_HOST is set; ServerError
    """
    if client := connect_if_running(require_named_host=True):
        return client
    from ...engine.serve.engine import Engine

    return Engine()


def kernel_set(name: str) -> Kernels:
    """Return the kernel set `name`.  Raises: RequestError, which lists the known sets"""
    from ...kernels import SETS

    if name not in SETS:
        raise RequestError(f"unknown kernel set '{name}'; choose from {', '.join(SETS)}")
    return SETS[name]
