"""Where the weights of a Modelfile come from: another model, uploaded blobs, files or a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import BadModelfile, BadName, ModelError
from ..name import ModelName
from .modelfile import Instruction

CHUNK = 1 << 20
# What a folder's weights can be, the first that there is; and what belongs to safetensors
WEIGHTS = (
    ("model*.safetensors", "*/model*.safetensors"),
    ("adapter*.safetensors",),
    ("consolidated*.safetensors",),
    ("*.gguf",),
    ("*.bin",),
)
BESIDE_WEIGHTS = ("*.json", "*/*.json", "chat_template.jinja", "tokenizer.model", "*/tokenizer.model")


@dataclass
class Sources:
    """What FROM and ADAPTER name.  files, adapters: by the name they are told under, a path or the digest of a blob"""

    from_: str = ""
    files: dict[str, Path | str] = field(default_factory=dict)
    adapters: dict[str, Path | str] = field(default_factory=dict)

    def uploaded(self, put: Callable[[Path], str]) -> dict[str, str | dict[str, str]]:
        """The keywords for `create`, with what `put` makes of each path: its digest."""

        def digests(files: Mapping[str, Path | str]) -> dict[str, str]:
            return {name: put(file) if isinstance(file, Path) else file for name, file in files.items()}

        said: dict[str, str | dict[str, str]] = {"from_": self.from_} if self.from_ else {"files": digests(self.files)}
        return said | ({"adapters": digests(self.adapters)} if self.adapters else {})


def sources(commands: Sequence[Instruction], folder: Path | None) -> Sources:
    """What the instructions say of weights; paths are relative to `folder`.  No file is looked at where that is None.

    Raises: BadModelfile, ModelError
    """
    found = Sources()
    for name, value in commands:
        if name not in ("model", "adapter"):
            continue
        files = found.files if name == "model" else found.adapters
        path = folder / os.path.expanduser(value) if folder and value else None
        if value.startswith("@"):
            files[value[1:]] = value[1:]
        elif path and path.exists():
            files |= dict(listed(path))
        elif name == "adapter" or (folder is None and not _is_name(value)):
            raise BadModelfile(f"invalid model reference: {value}" if folder is None else f"{value}: no such file")
        else:
            found.from_ = value
    if found.from_ and found.files:
        raise BadModelfile(f"FROM names both the model '{found.from_}' and files")
    return found


def listed(path: Path) -> Iterator[tuple[str, Path]]:
    """The file itself; of a folder its weights and what is beside them, by their names within it.

    Raises: ModelError for a folder without weights, or with a link that leads out of it
    """
    if not path.is_dir():
        yield path.name, path
        return
    for patterns in WEIGHTS:
        if weights := _matching(path, patterns):
            break
    else:
        raise ModelError("no Modelfile or safetensors files found")
    beside = _matching(path, BESIDE_WEIGHTS) if weights[0].suffix == ".safetensors" else []
    for file in weights + beside:
        if not file.resolve().is_relative_to(path.resolve()):
            raise ModelError(f"insecure path: {file}")
        yield file.relative_to(path).as_posix(), file


def file_chunks(path: Path, tell: Callable[[int], None] = lambda n: None) -> Iterator[bytes]:
    """The content of a file, piece by piece; `tell` hears how many bytes were read so far."""
    n = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            n += len(chunk)
            tell(n)


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _is_name(text: str) -> bool:
    try:
        ModelName.parse_request(text)
    except BadName:
        return False
    return True
