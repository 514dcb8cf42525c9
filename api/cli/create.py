"""`numllama create`, `cp` and `rm`: models made, copied and deleted, by a server or in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.errors import BadModelfile, BadName
from ...engine.store.make.modelfile import Instruction, create_arguments, parse_modelfile
from ...engine.store.make.sources import find_sources
from ...engine.store.name import ModelName
from .client import Client, ServerError
from .find import store_owner
from .progress import Progress

if TYPE_CHECKING:
    from .find import Models


def create_model(model: str, file: str | None = None, quantize: str = "") -> None:
    """Make `model` as the Modelfile `file` says: by default the one in this folder, or else of the weights in it.

    Raises: BadModelfile, EngineError, ServerError
    """
    try:
        ModelName.parse_request(model)
    except BadName:
        raise BadName(model, f"invalid model name: {model}") from None
    commands, folder = _modelfile(file)
    with closing(store_owner()) as models, Progress() as progress:
        progress.tell({"status": "gathering model components"})
        said = create_arguments(commands)
        said |= find_sources(commands, folder).uploaded(lambda path: _put(models, path, progress))
        said |= {"quantize": quantize} if quantize else {}
        progress.follow(models.create(model, **said))


def copy_model(source: str, destination: str) -> None:
    with closing(store_owner()) as models:
        models.copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


def remove_models(names: Sequence[str]) -> None:
    """Unload and delete one model after the other; the first that cannot be deleted ends it."""
    with closing(store_owner()) as models:
        for name in names:
            if isinstance(models, Client):
                _unload(models, name)
            models.delete(name)
            print(f"deleted '{name}'", flush=True)


def _modelfile(file: str | None) -> tuple[list[Instruction], Path]:
    """The instructions, and the folder that their paths start from."""
    path = Path(file or "Modelfile").expanduser()
    try:
        return parse_modelfile(path.read_bytes()), path.parent
    except FileNotFoundError:
        if file:
            raise BadModelfile("specified Modelfile wasn't found") from None
        return [Instruction("model", ".")], Path()


def _put(models: Models, path: Path, progress: Progress) -> str:
    """The digest of the file's content, which is then where the model is made."""
    size = path.stat().st_size
    told = {"status": f"copying file {path.name}", "total": size}
    progress.tell(told | {"completed": 0})  # a copy never goes on where another one was
    return models.put_file(path, lambda n: progress.tell(told | {"completed": n}))


def _unload(client: Client, name: str) -> None:
    try:
        client.unload(name)
    except ServerError as error:
        if error.status != 404:
            print(f"Warning: unable to stop model '{name}'", file=sys.stderr)
