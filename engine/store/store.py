"""The store: models on disk in Ollama's layout, so that both programs can share one folder.

    manifests/<host>/<namespace>/<model>/<tag>     the list of a model's blobs
    blobs/sha256-<64 hex>                          content, shared by all models that name it

A second, read-only folder in the same layout, with the built-in model, may ship with the program.  Manifests in the
user's folder name blobs of that folder only, so a built-in blob is copied there before a manifest names it.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import BadManifest, BadName, BuiltinModel, EngineError, ModelNotFound, StoreError
from ..settings import Settings
from . import manifest as media
from .blobs import CANNOT_REPLACE_OPEN_FILES, Blobs, BlobWriter, os_errors_as_store_errors, sync_folder
from .keep import KeptBlobs, kept_digests
from .lock import StoreLock
from .manifest import Config, Manifest, ManifestLayer, check_digest, digest_of, read_json, read_limited
from .name import ModelName

log = logging.getLogger("numllama.store")

MAX_UNUSED_S = 3600.0  # how long a blob that a client uploaded is kept, although no manifest names it; as in `prune`


@dataclass(frozen=True)
class LocalModel:
    """A model of the store: its manifest and config; other layers are read on first use.

    digest       SHA-256 of the manifest file, hex
    modified_ns  modification time of the manifest, nanoseconds since 1970
    """

    name: ModelName
    manifest: Manifest
    config: Config
    digest: str
    modified_ns: int
    blobs: Blobs
    is_builtin: bool = False

    @property
    def size(self) -> int:
        """Size of all layers and the config, in bytes."""
        return self.manifest.size

    @property
    def parent(self) -> str:
        """The model this one was created from, or ""."""
        models = self.manifest.of_type(media.MODEL)
        return models[-1].source if models else ""

    @cached_property
    def weights(self) -> Path:
        """The GGUF file: the last model layer's blob.  Raises: BadManifest"""
        models = self.manifest.of_type(media.MODEL)
        if not models:
            kinds = sorted({layer.media_type for layer in self.manifest.layers})
            raise BadManifest(self.name.short, f"no layer of type {media.MODEL} among {', '.join(kinds) or 'none'}")
        return self._find(models[-1])

    @property
    def weights_digest(self) -> str:
        models = self.manifest.of_type(media.MODEL)
        return models[-1].digest if models else ""

    @cached_property
    def projectors(self) -> list[Path]:
        return [self._find(layer) for layer in self.manifest.of_type(media.PROJECTOR)]

    @property
    def has_projector(self) -> bool:
        return bool(self.manifest.of_type(media.PROJECTOR))

    @cached_property
    def adapters(self) -> list[Path]:
        return [self._find(layer) for layer in self.manifest.of_type(media.ADAPTER)]

    @cached_property
    def drafts(self) -> list[Path]:
        return [self._find(layer) for layer in self.manifest.of_type(media.DRAFT)]

    @cached_property
    def template(self) -> str | None:
        """The Go template layer, or None."""
        texts = self._texts(media.TEMPLATE, media.PROMPT)
        return texts[-1] if texts else None

    @cached_property
    def system(self) -> str:
        texts = self._texts(media.SYSTEM)
        return texts[-1] if texts else ""

    @cached_property
    def licenses(self) -> list[str]:
        return self._texts(media.LICENSE)

    @cached_property
    def params(self) -> dict[str, Any]:
        layers = self.manifest.of_type(media.PARAMS)
        return self._json(layers[-1], dict) if layers else {}

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that precede every conversation, each with `role` and `content`, both text."""
        layers = self.manifest.of_type(media.MESSAGES)
        messages = self._json(layers[-1], list) if layers else []
        for message in messages:
            if not (
                isinstance(message, dict) and all(isinstance(message.get(key, ""), str) for key in ("role", "content"))
            ):
                raise BadManifest(self._find(layers[-1]), "a message must be an object whose role and content are text")
        return [{"role": "", "content": ""} | message for message in messages]

    def _find(self, layer: ManifestLayer) -> Path:
        try:
            return self.blobs.find(layer.digest, layer.size)
        except FileNotFoundError:
            raise BadManifest(self.blobs.path(layer.digest), f"missing blob of model {self.name.short}") from None
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from None

    def _texts(self, *media_types: str) -> list[str]:
        layers = self.manifest.of_type(*media_types)
        return [read_limited(self._find(layer)).decode("utf-8", "replace") for layer in layers]

    def _json(self, layer: ManifestLayer, kind: type) -> Any:
        path = self._find(layer)
        return read_json(read_limited(path), path, kind)


class Store:
    """The models in the folder `root` and in the read-only folder `builtin`.

    keep_blobs  never prune blobs, as with OLLAMA_NOPRUNE
    Raises: StoreError in all methods, with the path, for an error of the file system
    """

    def __init__(
        self, root: str | os.PathLike[str], builtin: str | os.PathLike[str] | None = None, keep_blobs: bool = False
    ):
        self.root = Path(root)
        self.builtin = Path(builtin) if builtin is not None else None
        self.keep_blobs = keep_blobs
        self.blobs = Blobs(self.root / "blobs")
        self.lock = StoreLock(self.root)
        self._kept: KeptBlobs | None = None  # of the task that uses this store
        self._offered: dict[str, float] = {}  # digests of blobs that clients uploaded, and when

    @contextmanager
    def keeping(self) -> Iterator[Store]:
        """Yield the same store for one task that ends with `write_manifest`.

        Until then no other task, of any process, deletes a blob that this one has resolved, opened, adopted or written
        through the yielded store.  A kept blob of a model deleted meanwhile, if the task does not name it, stays until
        the next `prune`.
        """
        task = copy.copy(self)
        task._kept = KeptBlobs(self.root / "manifests")
        try:
            yield task
        finally:
            task._kept.close()

    def keep(self, digests: Iterable[str]) -> None:
        """Keep the blobs with these digests for the task of `keeping`, whether they exist or not."""
        if self._kept:
            with os_errors_as_store_errors(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                with self.lock:
                    self._kept.add(digests)

    # reading

    def names(self) -> list[ModelName]:
        """List the names of all manifests; a name in both folders occurs twice."""
        with os_errors_as_store_errors():
            return [name for root in self._roots for name in _names(root / "manifests")]

    def respell(self, name: ModelName | str) -> ModelName:
        """Return `name` with the upper and lower case that it has in the store.  Raises: BadName"""
        name = ModelName.parse(name) if isinstance(name, str) else name
        return name.respelled(self.names())

    def resolve(self, name: ModelName | str) -> LocalModel:
        """Return the model called `name`, which is case-insensitive.  Raises: ModelNotFound, BadName, BadManifest"""
        requested = name if isinstance(name, str) else name.short
        name = self.respell(name)
        with self.lock if self._kept else nullcontext():
            for root in self._roots:
                with suppress(ModelNotFound):
                    model = self._read(root, name)
                    self.keep(layer.digest for layer in model.manifest.all_layers)
                    return model
        raise ModelNotFound(requested)

    def manifest_bytes(self, model: LocalModel) -> bytes:
        """Read the manifest file of `model`, whose SHA-256 is the model's digest."""
        root = self.builtin if model.is_builtin else self.root
        assert root
        with os_errors_as_store_errors():
            return read_limited(root / "manifests" / model.name.path)

    def list(self) -> list[LocalModel]:
        """List all models, the newest first; a model that cannot be read is logged and left out."""
        models: dict[ModelName, LocalModel] = {}
        with os_errors_as_store_errors():
            for root in self._roots:
                for name in _names(root / "manifests"):
                    try:
                        models.setdefault(name, self._read(root, name))
                    except ModelNotFound:
                        pass  # deleted meanwhile
                    except EngineError as error:
                        log.warning("model %s is left out: %s", name.short, error)
        return sorted(models.values(), key=lambda model: (-model.modified_ns, model.name))

    @property
    def _roots(self) -> tuple[Path, ...]:
        return (self.root, self.builtin) if self.builtin else (self.root,)

    def _read(self, root: Path, name: ModelName) -> LocalModel:
        """Read the model `name` in `root`.  Raises: ModelNotFound, BadManifest, StoreError"""
        path = root / "manifests" / name.path
        with os_errors_as_store_errors():
            try:
                data, modified_ns = read_limited(path), path.stat().st_mtime_ns
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ModelNotFound(name.short) from None
        manifest = Manifest.from_bytes(data, path)
        digest, blobs = digest_of(data).removeprefix("sha256:"), Blobs(root / "blobs")
        model = LocalModel(name, manifest, Config(), digest, modified_ns, blobs, root == self.builtin)
        if manifest.config is None:
            return model
        try:
            config = model._find(manifest.config)
            with os_errors_as_store_errors():
                return replace(model, config=Config.from_bytes(read_limited(config), config))
        except (BadManifest, StoreError):
            if not path.is_file():  # deleted meanwhile
                raise ModelNotFound(name.short) from None
            raise

    # blobs

    def has_blob(self, digest: str) -> bool:
        """Return whether either folder has the blob.  Raises: BadDigest"""
        with os_errors_as_store_errors():
            return any(Blobs(root / "blobs").has(digest) for root in self._roots)

    def offer_blob(self, digest: str) -> bool:
        """Return whether either folder has a blob that a client uploads; it is then kept like one uploaded now.

        Raises: BadDigest
        """
        if has := self.has_blob(digest):
            self._announce(digest)
        return has

    def digests(self) -> set[str]:
        """Return the digests of all blobs in both folders."""
        with os_errors_as_store_errors():
            folders = [root / "blobs" for root in self._roots]
            names = [name for folder in folders if folder.is_dir() for name in os.listdir(folder)]
        return {name.replace("-", ":", 1) for name in names}

    def blob_path(self, digest: str) -> Path:
        """Return the blob's path, in either folder.  Raises: FileNotFoundError, BadDigest, BadManifest"""
        self.keep([check_digest(digest)])
        for root in self._roots:
            blobs = Blobs(root / "blobs")
            if blobs.has(digest):
                return blobs.find(digest)
        return self.blobs.find(digest)

    def blob_writer(self) -> BlobWriter:
        """Return a context manager to write a new blob with."""
        with os_errors_as_store_errors():
            return self.blobs.writer(self._announce)

    def put_blob(self, chunks: Iterable[bytes], expected: str | None = None) -> tuple[str, int]:
        """Store `chunks` as a blob; return its digest and size.  Raises: DigestMismatch"""
        with os_errors_as_store_errors():
            return self.blobs.put(chunks, expected, self._announce)

    def _announce(self, digest: str) -> None:
        """Keep a blob for the task that writes or finds it; outside of tasks, until a manifest names it, or an hour."""
        if self._kept:
            self.keep([digest])
        else:
            self._offered[check_digest(digest)] = time.monotonic()

    def adopt_blob(self, digest: str) -> None:
        """Copy a built-in blob to the user's folder, unless that folder has it.

        Raises: FileNotFoundError, BadDigest, BadManifest
        """
        self.keep([check_digest(digest)])
        if not self.blobs.has(digest):
            path = self.blob_path(digest)
            with os_errors_as_store_errors():
                self.blobs.copy_from(path, digest)

    def adopt(self, model: LocalModel) -> None:
        """Copy all built-in blobs of `model` to the user's folder.  Raises: BadManifest for a missing blob"""
        for layer in model.manifest.all_layers:
            try:
                self.adopt_blob(layer.digest)
            except FileNotFoundError:
                path = model.blobs.path(layer.digest)
                raise BadManifest(path, f"missing blob of model {model.name.short}") from None

    # changing

    def write_manifest(self, name: ModelName, manifest: Manifest | bytes) -> bool:
        """Write the manifest of `name`, and delete blobs that only the replaced manifest named.

        -> whether a blob was deleted
        Raises: BadManifest if the manifest is invalid or names a missing blob
        """
        data = manifest if isinstance(manifest, bytes) else manifest.to_bytes()
        with os_errors_as_store_errors():
            self.root.mkdir(parents=True, exist_ok=True)
        with os_errors_as_store_errors(), self.lock:
            for layer in Manifest.from_bytes(data, name.short).all_layers:
                if not self.blobs.has(layer.digest):
                    raise BadManifest(name.short, f"missing blob: {layer.digest}")
            replaced = self._layers_of(name)
            path = self.root / "manifests" / name.path
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_atomically(path, self.root / "manifests", data)
            except OSError:
                _remove_empty(path.parent, self.root / "manifests")
                raise
            sync_folder(path.parent)
            for layer in Manifest.from_bytes(data, name.short).all_layers:
                self._offered.pop(layer.digest, None)
            if self._kept:
                self._kept.close()  # the manifest keeps its blobs from here on
            return self._remove_unused(replaced)

    def copy(self, source: ModelName | str, destination: ModelName | str) -> None:
        """Copy model `source` to `destination`, with the same id.  Raises: ModelNotFound, BadName, BadManifest"""
        with os_errors_as_store_errors(), self.lock:
            model, target = self.resolve(source), self.respell(destination)
            if target == model.name and not model.is_builtin:
                return
            self.adopt(model)
            self.write_manifest(target, self.manifest_bytes(model))

    def delete(self, name: ModelName | str) -> None:
        """Delete the model, and every blob that no other model names.

        Raises: ModelNotFound, BuiltinModel, BadName
        """
        requested = name if isinstance(name, str) else name.short
        with os_errors_as_store_errors(), self.lock:
            name = self.respell(name)
            path = self.root / "manifests" / name.path
            if not path.is_file():
                if self.builtin and (self.builtin / "manifests" / name.path).is_file():
                    raise BuiltinModel(name.short)
                raise ModelNotFound(requested)
            layers = self._layers_of(name)
            path.unlink()
            _remove_empty(path.parent, self.root / "manifests")
            self._remove_unused(layers)

    def rename_old_blobs(self) -> None:
        """Rename blobs called `sha256:<hex>`, as Ollama wrote them until 2024, to `sha256-<hex>`, as it does."""
        with os_errors_as_store_errors(), self.lock:
            for name in os.listdir(self.blobs.folder) if self.blobs.folder.is_dir() else ():
                if name.startswith("sha256:"):
                    os.replace(self.blobs.folder / name, self.blobs.folder / name.replace(":", "-", 1))

    def prune(self, age_seconds: float = 3600) -> None:
        """Delete unused files older than `age_seconds`.

        These are blobs that no manifest names, partial blobs, unfinished manifests, and empty folders of manifests.
        Nothing is deleted while a manifest cannot be read, since its blobs are then unknown.
        """
        with os_errors_as_store_errors(), self.lock:
            named = self._named_digests()
            if named is None or self.keep_blobs or not self.blobs.folder.is_dir():
                return
            oldest = time.time() - age_seconds
            for entry in _scan(self.blobs.folder):
                is_blob = entry.name.startswith("sha256-") and entry.is_file(follow_symlinks=False)
                if is_blob and entry.name.replace("-", ":", 1) not in named:
                    _remove_older(entry, oldest)

            for entry in _scan(self.root / "manifests"):
                is_unfinished = entry.name.startswith(".manifest-") and entry.is_file(follow_symlinks=False)
                if is_unfinished:
                    _remove_older(entry, oldest)
            for folder, _, _ in os.walk(self.root / "manifests", topdown=False):
                if os.path.isdir(folder):  # it was not removed with its last subfolder
                    _remove_empty(Path(folder), self.root / "manifests")

    def _layers_of(self, name: ModelName) -> tuple[ManifestLayer, ...]:
        path = self.root / "manifests" / name.path
        try:
            return Manifest.from_bytes(read_limited(path), path).all_layers
        except (FileNotFoundError, BadManifest):
            return ()

    def _named_digests(self) -> set[str] | None:
        """Return the digests that the user's manifests name or tasks keep, or None if a manifest cannot be read.

        A manifest counts even if its name is invalid here: another program may use it.
        """
        named = kept_digests(self.root / "manifests")
        paths, errors = _files(self.root / "manifests")
        for error in errors:
            log.warning("no blob is pruned: %s: %s", error.filename, str(error.strerror).lower())
            return None
        for path in paths:
            try:
                named |= {layer.digest for layer in Manifest.from_bytes(read_limited(path), path).all_layers}
            except BadManifest as error:
                if _name(path) is None:
                    continue
                log.warning("no blob is pruned: %s", error)
                return None
        return named

    def _remove_unused(self, layers: Iterable[ManifestLayer]) -> bool:
        """Delete those blobs of `layers` that no manifest names; return whether there were any."""
        oldest = time.monotonic() - MAX_UNUSED_S
        candidates = {layer.digest for layer in layers if self._offered.get(layer.digest, oldest) <= oldest}
        if self.keep_blobs or not candidates or (named := self._named_digests()) is None:
            return False
        for digest in candidates - named:
            self.blobs.remove(digest)
        return bool(candidates - named)


def default_store(settings: Settings | None = None) -> Store:
    """Return the store that OLLAMA_MODELS, OLLAMA_NOPRUNE and NUMLLAMA_BUILTIN select."""
    settings = settings or Settings.from_env()
    builtin = Path(__file__).parent / "builtin"
    return Store(settings.models, builtin if settings.builtin and builtin.is_dir() else None, settings.noprune)


def _names(manifests: Path) -> Iterator[ModelName]:
    """Yield the model names of the files below `manifests`; what cannot be read is logged and left out."""
    paths, errors = _files(manifests)
    for error in errors:
        log.warning("models in %s are left out: %s", error.filename, str(error.strerror).lower())
    for path in paths:
        if name := _name(path):
            yield name
        else:
            log.warning("%s is left out: its path is not a model name", path)


def _name(path: Path) -> ModelName | None:
    try:
        return ModelName.from_path(path)
    except BadName:
        return None


def _files(manifests: Path) -> tuple[list[Path], list[OSError]]:
    """List the files exactly four levels below a folder, as others are not manifests, and the errors on the way.

    Raises: OSError if the folder itself cannot be read
    """
    found, errors = [manifests], []
    for level in range(4):
        is_kind, below = os.DirEntry.is_file if level == 3 else os.DirEntry.is_dir, []
        for folder in found:
            try:
                below += [Path(entry.path) for entry in _scan(folder) if is_kind(entry)]
            except OSError as error:
                if not level:
                    raise
                errors.append(error)
        found = below
    return found, errors


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder, sorted by name; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _remove_older(entry: os.DirEntry[str], oldest: float) -> None:
    """Delete the file if it is older than `oldest`; another program may have moved it meanwhile, or keep it open."""
    try:
        if entry.stat().st_mtime < oldest:
            os.unlink(entry.path)
    except FileNotFoundError:
        pass
    except PermissionError:
        if not CANNOT_REPLACE_OPEN_FILES:
            raise


def _write_atomically(path: Path, folder: Path, data: bytes) -> None:
    """Write a temporary file in `folder`, then rename it to `path`.  Raises: OSError, after removing the file"""
    descriptor, temporary = tempfile.mkstemp(prefix=".manifest-", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_empty(folder: Path, stop: Path) -> None:
    """Delete `folder` and the folders above it, up to `stop`, as far as they are empty."""
    while folder != stop and (not folder.is_dir() or not any(folder.iterdir())):
        with suppress(FileNotFoundError):
            folder.rmdir()
        folder = folder.parent
