"""What a MODEL argument means, and who answers for it: a server, or the engine in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.errors import RequestError
from ...engine.settings import Settings
from ...engine.store import LocalModel, default_store

if TYPE_CHECKING:  # each takes its time to import, and a command needs one of them at most
    from ...engine.serve.engine import Engine
    from .client import Client

    Models = Client | Engine
    """Whoever knows the models: both have the verbs list, show, generate and chat."""


def is_file(model: str) -> bool:
    """Whether `model` is meant as a path: it ends in .gguf, or begins like one, or a GGUF lies there."""
    return model.lower().endswith(".gguf") or model.startswith(("/", "./", "../", "~")) or is_gguf(model)


def is_gguf(path: str | Path) -> bool:
    """Whether a file there begins like a GGUF."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def model_file(model: str) -> Path:
    """The GGUF file of `model`.  Raises ModelNotFound, BadName, BadManifest for a name; a path is not looked at yet."""
    return Path(model).expanduser() if is_file(model) else default_store().resolve(model).weights


def local_model(model: str) -> LocalModel:
    """`model` on this machine, adapters included.  Raises: ModelNotFound, BadName, BadManifest"""
    from ...engine.store.file import FileModel

    return FileModel.of(Path(model).expanduser()) if is_file(model) else default_store().resolve(model)


def server() -> Client:
    """The server at OLLAMA_HOST.  Raises: NoServer, ServerError"""
    from .client import Client

    client = Client(Settings.from_env().host)
    try:
        client.check()
    except BaseException:
        client.close()
        raise
    return client


def server_if_any(*, as_told: bool = False) -> Client | None:
    """The server at OLLAMA_HOST, if one listens there.

    as_told   what a server has is asked about: one that OLLAMA_HOST names must be there, for this machine's models
              would be the answer to another question.  Raises: NoServer
    """
    from .client import NoServer

    try:
        return server()
    except NoServer:
        if as_told and os.environ.get("OLLAMA_HOST", "").strip(" \"'"):
            raise
        return None


def models_for(
    model: str,
    kernels: str | None = None,
    *,
    adapters: Sequence[Path] = (),
    projectors: Sequence[Path] = (),
    as_told: bool = False,
) -> Models:
    """Who answers for `model`: a file, or a wish for kernels, is for this process; else a server, if there is one.

    adapters, projectors   files that go with a model's file
    Raises: RequestError for an unknown set, or something attached to a name; ModelNotFound for a missing file,
    ServerError
    """
    path = Path(model).expanduser() if is_file(model) else None
    if path is None and (adapters or projectors):
        raise RequestError(f"--adapter and --projector go with a model's file, and '{model}' is a name: see create")
    if path is None and kernels is None and (client := server_if_any(as_told=as_told)):
        return client
    from ...engine.serve.engine import Engine
    from ...engine.store.file import FileModel

    file = FileModel.of(path, adapters, projectors) if path else None
    return Engine(file=file, kernels=kernel_set(kernels)) if kernels else Engine(file=file)


def store_owner() -> Models:
    """Who keeps the models: the server that OLLAMA_HOST names, or one that is there anyway, or else this process.

    Raises: NoServer, ServerError
    """
    if client := server_if_any(as_told=True):
        return client
    from ...engine.serve.engine import Engine

    return Engine()


def kernel_set(name: str):
    """The set of kernels of that name.  Raises: RequestError naming those there are"""
    from ...kernels import SETS

    if name not in SETS:
        raise RequestError(f"'{name}' is no set of kernels; there are {', '.join(SETS)}")
    return SETS[name]
