"""The sources of a Modelfile's weights: another model, uploaded blobs, or local files and folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import BadModelfile, BadName, ModelError
from ..name import ModelName
from .modelfile import Instruction

CHUNK_BYTES = 1 << 20
# Patterns of a folder's weights, of which the first with a match counts; and of the files that belong to safetensors
WEIGHTS = (
    ("model*.safetensors", "*/model*.safetensors"),
    ("adapter*.safetensors",),
    ("consolidated*.safetensors",),
    ("*.gguf",),
    ("*.bin",),
)
BESIDE_WEIGHTS = ("*.json", "*/*.json", "chat_template.jinja", "tokenizer.model", "*/tokenizer.model", "vocab.txt")


@dataclass
class Sources:
    """The sources that FROM, ADAPTER and DRAFT name.

    from_                     the name of a model, or ""
    files, adapters, drafts   by file name: a local path, or the digest of an uploaded blob
    """

    from_: str = ""
    files: dict[str, Path | str] = field(default_factory=dict)
    adapters: dict[str, Path | str] = field(default_factory=dict)
    drafts: dict[str, Path | str] = field(default_factory=dict)

    def uploaded(self, put: Callable[[Path], str]) -> dict[str, str | dict[str, str]]:
        """Upload the local files with `put`, which returns a digest; return the keyword arguments for `create`."""

        def digests(files: Mapping[str, Path | str]) -> dict[str, str]:
            return {name: put(file) if isinstance(file, Path) else file for name, file in files.items()}

        arguments: dict[str, str | dict[str, str]]
        arguments = {"from_": self.from_} if self.from_ else {"files": digests(self.files)}
        more = {"adapters": self.adapters, "draft_files": self.drafts}
        return arguments | {name: digests(files) for name, files in more.items() if files}


def find_sources(commands: Sequence[Instruction], folder: Path | None) -> Sources:
    """Collect the sources that the instructions name.

    folder   the folder that paths are relative to; None forbids access to local files
    Raises: BadModelfile, ModelError
    """
    found = Sources()
    for name, value in commands:
        if name not in ("model", "adapter", "draft"):
            continue
        files = {"model": found.files, "adapter": found.adapters, "draft": found.drafts}[name]
        path = folder / os.path.expanduser(value) if folder and value else None
        if value.startswith("@"):
            files[value[1:]] = value[1:]
        elif path and path.exists():
            files |= dict(list_weight_files(path))
        elif name != "model" or (folder is None and not _is_name(value)):
            raise BadModelfile(f"invalid model reference: {value}" if folder is None else f"{value}: no such file")
        else:
            found.from_ = value
    for draft in found.drafts.values():
        if isinstance(draft, Path) and draft in found.files.values():
            raise BadModelfile(f"DRAFT must not reference the same local path as FROM: {draft}")
    if found.from_ and found.files:
        raise BadModelfile(f"FROM names both the model '{found.from_}' and files")
    return found


def list_weight_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the file `path`, or the folder's weights and the files that belong to them, with their names in the folder.

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


def file_chunks(path: Path, progress: Callable[[int], None] = lambda n: None) -> Iterator[bytes]:
    """Yield the content of a file in chunks; `progress` is called with the number of bytes read so far."""
    n = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            n += len(chunk)
            progress(n)


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _is_name(text: str) -> bool:
    try:
        ModelName.parse_request(text)
    except BadName:
        return False
    return True
