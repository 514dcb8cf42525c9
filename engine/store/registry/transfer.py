"""Pull and push of models between a registry and the store.

A manifest is written only after every blob that it names.
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
from .repository import Repository

Status = dict[str, Any]

STATUS_INTERVAL_S = 0.06  # between two statuses of a blob, as in Ollama


class CancelHandle(Protocol):
    """A cancellable request: `check` raises once it is cancelled, and `on_cancel` is called then."""

    on_cancel: Callable[[], None]

    def check(self) -> None: ...


def pull(
    store: Store,
    downloads: Downloads,
    name: ModelName,
    insecure: bool,
    credentials: Credentials,
    handle: CancelHandle,
    manifest_bytes: bytes = b"",
) -> Iterator[Status]:
    """Pull the model `name` from its registry, yielding statuses; the last one is {"status": "success"}.

    insecure         use plain HTTP
    manifest_bytes   the manifest, where it is known; then only the blobs that it names are asked for
    Raises: RegistryError, Unauthorized, WrongBlob, BadManifest, StoreError; the error of a cancelled `handle`
    """
    yield {"status": "pulling manifest"}
    _check_scheme(name, insecure)
    with ExitStack() as stack:
        repository = stack.enter_context(closing(Repository(name, insecure, credentials)))
        stack.enter_context(_abort_on_cancel(repository, handle))
        data = manifest_bytes or repository.manifest()
        manifest = Manifest.from_bytes(data, f"the manifest of {name.short}")
        if not manifest.layers:
            raise BadManifest(f"the manifest of {name.short}", "no layers; not a model")
        store = stack.enter_context(store.keeping())
        store.keep(layer.digest for layer in manifest.all_layers)
        started: list[Download] = []
        for layer in _distinct_layers(manifest):
            if _is_stored(store, layer):
                yield _status("pulling", layer, layer.size)
                continue
            while True:
                download, is_new = downloads.join(store.blobs, layer, repository)
                stack.callback(downloads.leave, download)
                yield from _wait_for(download, download.received, handle)
                if is_new or not isinstance(download.error, RegistryError):
                    break  # otherwise another repository failed: retry from this one
            if download.error and not isinstance(download.error, WrongBlob):
                raise download.error
            started.append(download)
        yield {"status": "verifying sha256 digest"}
        for download in started:
            yield from _wait_for(download, download.finished, handle, download.completed)
        for download in started:
            if download.error:
                raise download.error
        yield {"status": "writing manifest"}
        if store.write_manifest(name, data):
            yield {"status": "removing unused layers"}
    yield {"status": "success"}


def push(store: Store, name: str, insecure: bool, credentials: Credentials, handle: CancelHandle) -> Iterator[Status]:
    """Push the model `name` to the registry in its name, yielding statuses; the last one is {"status": "success"}.

    Raises: RequestError for an invalid name, StoreError for a missing model; RegistryError, Unauthorized
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
    _check_scheme(ModelName.parse_request(name)[0], insecure)
    with closing(Repository(model.name, insecure, credentials)) as repository, _abort_on_cancel(repository, handle):
        for layer in _distinct_layers(model.manifest):
            path = model._find(layer)
            if repository.has_blob(layer.digest):
                yield _status("pushing", layer, layer.size)
                continue
            upload, reported = _Upload(repository, layer, path, _mount_source(layer, model.name)), -1
            while not upload.finished.wait(STATUS_INTERVAL_S):
                handle.check()
                if upload.completed != reported:
                    reported = upload.completed
                    yield _status("pushing", layer, reported)
            handle.check()
            if upload.error:
                raise upload.error
            if reported != layer.size:
                yield _status("pushing", layer, layer.size)
        yield {"status": "pushing manifest"}
        repository.put_manifest(data)
    yield {"status": "success"}


class _Upload:
    """The upload of one blob, in a thread of its own; `finished` is set when it has ended, with or without `error`."""

    def __init__(self, repository: Repository, layer: ManifestLayer, path: Path, source: str):
        self.completed, self.finished = 0, threading.Event()
        self.error: BaseException | None = None
        self._upload = partial(repository.upload, layer.digest, path, layer.size, self._progress, source)
        threading.Thread(target=self._run, name=f"push {layer.digest[7:19]}", daemon=True).start()

    def _progress(self, completed: int) -> None:
        self.completed = completed

    def _run(self) -> None:
        try:
            self._upload()
        except OSError as error:
            self.error = StoreError(f"{error.filename}: {error.strerror or error}")
        except BaseException as error:
            self.error = error
        finally:
            self.finished.set()


def _wait_for(download: Download, event: threading.Event, handle: CancelHandle, reported: int = 0) -> Iterator[Status]:
    """Yield statuses of the download until `event`; the first one has the resumed bytes.

    reported   bytes in the last status so far
    """
    while not download.started.wait(STATUS_INTERVAL_S):
        handle.check()
    if not reported and not event.is_set():
        reported = download.n_resumed
        yield _status("pulling", download.layer, reported)
    while not event.wait(STATUS_INTERVAL_S):
        handle.check()
        if download.completed != reported:
            reported = download.completed
            yield _status("pulling", download.layer, reported)
    if not download.error and download.completed != reported:
        yield _status("pulling", download.layer, download.completed)


def _status(verb: str, layer: ManifestLayer, completed: int) -> Status:
    status = {"status": f"{verb} {layer.digest[7:19]}", "digest": layer.digest, "total": layer.size}
    return status | ({"completed": completed} if completed else {})


def _distinct_layers(manifest: Manifest) -> list[ManifestLayer]:
    return list({layer.digest: layer for layer in manifest.all_layers}.values())


def _is_stored(store: Store, layer: ManifestLayer) -> bool:
    """Return whether the user's folder has the blob with this size; a built-in blob is copied there first."""
    try:
        store.adopt_blob(layer.digest)
        return bool(store.blobs.find(layer.digest, layer.size))
    except (FileNotFoundError, BadManifest):
        return False


def _mount_source(layer: ManifestLayer, name: ModelName) -> str:
    """Return the repository of the same registry that the layer came from, or ""."""
    with suppress(BadName):
        source = ModelName.parse(layer.source)
        if source.host == name.host and layer.source:
            return f"{source.namespace}/{source.model}"
    return ""


def _check_scheme(name: ModelName, insecure: bool) -> None:
    if name.scheme == "http" and not insecure:
        raise RequestError("insecure protocol http")


@contextmanager
def _abort_on_cancel(repository: Repository, handle: CancelHandle) -> Iterator[None]:
    """Abort the requests to the repository when `handle` is cancelled."""
    handle.on_cancel = repository.abort
    try:
        handle.check()
        yield
    except Cancelled:
        handle.check()
        raise
    finally:
        handle.on_cancel = lambda: None
