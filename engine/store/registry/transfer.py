"""Pull and push: a model on its way between a registry and the store, told status by status.

A manifest is written when all that it names is there, and not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ...errors import BadManifest, BadName, Cancelled, ModelNotFound, RegistryError, RequestError, StoreError, WrongBlob
from ..manifest import Manifest, ManifestLayer
from ..name import ModelName
from ..store import Store
from .auth import Credentials
from .download import Download, Downloads
from .http import Registry

Status = dict[str, Any]

PACE = 0.06  # seconds between two statuses of one blob, as Ollama's


class Waiting(Protocol):
    """Whoever asked; `check` raises when they have gone, `on_cancel` is called at that moment."""

    on_cancel: Callable[[], None]

    def check(self) -> None: ...


def pull(
    store: Store, downloads: Downloads, name: ModelName, insecure: bool, credentials: Credentials, handle: Waiting
) -> Iterator[Status]:
    """The model `name` as its registry has it, status by status; the last is {"status": "success"}.

    insecure   plain HTTP
    Raises: RegistryError, Unauthorized, WrongBlob, BadManifest, StoreError; what `call` was cancelled for
    """
    yield {"status": "pulling manifest"}
    _check_scheme(name, insecure)
    with ExitStack() as stack:
        registry = stack.enter_context(closing(Registry(name, insecure, credentials)))
        stack.enter_context(_aborting(registry, handle))
        data = registry.manifest()
        manifest = Manifest.from_bytes(data, f"the manifest of {name.short}")
        if not manifest.layers:
            raise BadManifest(f"the manifest of {name.short}", "it names no layer, so it is none of a model")
        begun: list[Download] = []
        for layer in _each_once(manifest):
            if _has(store, layer):
                yield _told("pulling", layer, layer.size)
                continue
            while True:
                download, is_new = downloads.join(store.blobs, layer, registry)
                stack.callback(downloads.leave, download)
                yield from _awaited(download, download.arrived, handle)
                if is_new or not isinstance(download.error, RegistryError):  # another repository may do better
                    break
            if download.error and not isinstance(download.error, WrongBlob):
                raise download.error
            begun.append(download)
        yield {"status": "verifying sha256 digest"}
        for download in begun:
            yield from _awaited(download, download.over, handle, download.completed)
        for download in begun:
            if download.error:
                raise download.error
        yield {"status": "writing manifest"}
        if store.write_manifest(name, data):
            yield {"status": "removing unused layers"}
    yield {"status": "success"}


def push(store: Store, name: str, insecure: bool, credentials: Credentials, handle: Waiting) -> Iterator[Status]:
    """The model `name` into the registry that its name says, status by status; the last is {"status": "success"}.

    Raises: RequestError for a name that is none, StoreError for a model that is not there; RegistryError, Unauthorized
    """
    yield {"status": "retrieving manifest"}
    try:
        model = store.resolve(ModelName.parse_request(name)[0])
        data = store.manifest_bytes(model).rstrip(b"\n")
    except BadName:
        raise RequestError(f"unqualified name: {name}") from None
    except ModelNotFound:
        yield {"status": "couldn't retrieve manifest"}
        path = store.root / "manifests" / store.respell(ModelName.parse_request(name)[0]).path
        raise StoreError(f"open {path}: no such file or directory") from None
    asked = ModelName.parse_request(name)[0]
    _check_scheme(asked, insecure)
    with closing(Registry(model.name, insecure, credentials)) as registry, _aborting(registry, handle):
        for layer in _each_once(model.manifest):
            path = model._find(layer)
            if registry.has_blob(layer.digest):
                yield _told("pushing", layer, layer.size)
                continue
            upload, said = _Upload(registry, layer, path, _mount(layer, model.name)), -1
            while not upload.over.wait(PACE):
                handle.check()
                if upload.completed != said:
                    said = upload.completed
                    yield _told("pushing", layer, said)
            handle.check()
            if upload.error:
                raise upload.error
            if said != layer.size:
                yield _told("pushing", layer, layer.size)
        yield {"status": "pushing manifest"}
        registry.put_manifest(data)
    yield {"status": "success"}


class _Upload:
    """One blob on its way out, in a thread of its own; `over` is set when it is there, or `error` says why not."""

    def __init__(self, registry: Registry, layer: ManifestLayer, path: Path, mount: str):
        self.completed, self.over = 0, threading.Event()
        self.error: BaseException | None = None
        self._sent = partial(registry.upload, layer.digest, path, layer.size, self._tell, mount)
        threading.Thread(target=self._run, name=f"push {layer.digest[7:19]}", daemon=True).start()

    def _tell(self, completed: int) -> None:
        self.completed = completed

    def _run(self) -> None:
        try:
            self._sent()
        except OSError as error:
            self.error = StoreError(f"{error.filename}: {error.strerror or error}")
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()


def _awaited(download: Download, event: threading.Event, handle: Waiting, said: int = 0) -> Iterator[Status]:
    """How far the download is, now and then, until `event`; first of all what was there before."""
    while not download.begun.wait(PACE):
        handle.check()
    if not said and not event.is_set():
        said = download.kept
        yield _told("pulling", download.layer, said)
    while not event.wait(PACE):
        handle.check()
        if download.completed != said:
            said = download.completed
            yield _told("pulling", download.layer, said)
    if not download.error and download.completed != said:
        yield _told("pulling", download.layer, download.completed)


def _told(verb: str, layer: ManifestLayer, completed: int) -> Status:
    status = {"status": f"{verb} {layer.digest[7:19]}", "digest": layer.digest, "total": layer.size}
    return status | ({"completed": completed} if completed else {})


def _each_once(manifest: Manifest) -> list[ManifestLayer]:
    return list({layer.digest: layer for layer in manifest.all_layers}.values())


def _has(store: Store, layer: ManifestLayer) -> bool:
    """Whether the blob is in the user's folder, copied from the built-in one if need be; one of that size, that is."""
    try:
        store.adopt_blob(layer.digest)
        return bool(store.blobs.find(layer.digest, layer.size))
    except (FileNotFoundError, BadManifest):
        return False


def _mount(layer: ManifestLayer, name: ModelName) -> str:
    """The repository of the same registry that the layer came from, or ""."""
    with suppress(BadName):
        source = ModelName.parse(layer.source)
        if source.host == name.host and layer.source:
            return f"{source.namespace}/{source.model}"
    return ""


def _check_scheme(name: ModelName, insecure: bool) -> None:
    if name.scheme == "http" and not insecure:
        raise RequestError("insecure protocol http")


@contextmanager
def _aborting(registry: Registry, handle: Waiting) -> Iterator[None]:
    """Whoever cancels the call ends what the registry is waited for."""
    handle.on_cancel = registry.abort
    try:
        handle.check()
        yield
    except Cancelled:
        handle.check()
        raise
    finally:
        handle.on_cancel = lambda: None
