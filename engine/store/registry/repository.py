"""A model's repository in a registry, accessed as Ollama does: a part of the OCI distribution protocol.

GET    /v2/<namespace>/<model>/manifests/<tag>        PUT the same
GET    /v2/<namespace>/<model>/blobs/<digest>         a range of the blob, maybe after a redirect to another host
HEAD   the same                                       check that the blob exists
POST   /v2/<namespace>/<model>/blobs/uploads/         then PATCH and PUT to the Location of each response
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ...errors import RegistryError
from ..manifest import MANIFEST_TYPE, digest_of
from ..name import ModelName
from .auth import Credentials
from .http import (
    EXPIRED_STATUSES,
    RETRYABLE_STATUSES,
    RegistryClient,
    body_summary,
    read_small_body,
    request_summary,
    retryable_error,
    status_error,
)
from .part import READ_BYTES, part_size
from .retry import Interrupted, RangesUnsupported, RetryBudget

OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Repository:
    """The repository of the model `name`, which any number of threads may use.

    insecure   use plain HTTP
    """

    def __init__(self, name: ModelName, insecure: bool, credentials: Credentials, client: RegistryClient | None = None):
        self.name, self.insecure, self.credentials = name, insecure, credentials
        self._client = client or RegistryClient(name.host, insecure, credentials)

    def clone(self) -> Repository:
        """Return the same repository with its own connections."""
        return Repository(self.name, self.insecure, self.credentials, self._client.clone())

    @property
    def stopped(self) -> threading.Event:
        """The event that `abort` sets."""
        return self._client.stopped

    def close(self) -> None:
        self._client.close()

    def abort(self) -> None:
        """End all requests with Cancelled; callable from any thread."""
        self._client.abort()

    # manifests

    def manifest(self) -> bytes:
        """Fetch the manifest, byte for byte.  Raises: RegistryError, Unauthorized"""
        action = "pull model manifest"
        accept = {"Accept": f"{MANIFEST_TYPE}, {OCI_MANIFEST_TYPE}"}
        response, body = self._client.request("GET", self._url(f"manifests/{self.name.tag}"), action, headers=accept)
        if response.status_code == 404:
            raise RegistryError(f"{action}: file does not exist", 404)
        if response.status_code != 200:
            raise status_error(action, response, body)
        expected = response.headers.get("docker-content-digest", "")
        if expected.startswith("sha256:") and expected != digest_of(body):
            raise RegistryError(f"{action}: found digest {digest_of(body)}, expected Docker-Content-Digest {expected}")
        return body

    def put_manifest(self, data: bytes) -> None:
        """Store `data` as the model's manifest.  Raises: RegistryError, Unauthorized"""
        media_type = OCI_MANIFEST_TYPE if json.loads(data).get("mediaType") == OCI_MANIFEST_TYPE else MANIFEST_TYPE
        url, action = self._url(f"manifests/{self.name.tag}"), "push model manifest"
        headers = {"Content-Type": media_type}
        response, body = self._client.request("PUT", url, action, headers=headers, content=data)
        if response.status_code not in (200, 201, 202):
            raise status_error(action, response, body)

    # blobs

    @contextmanager
    def blob(self, digest: str, first: int, last: int, total: int) -> Iterator[Iterator[bytes]]:
        """Yield the bytes `first` to `last` of a blob of `total` bytes, in chunks; the chunks may end early.

        Raises: Interrupted; RangesUnsupported; RegistryError for a failure that a retry cannot mend
        """
        url, headers = self._url(f"blobs/{digest}"), {"Range": f"bytes={first}-{last}"}
        with self._client.open("GET", url, headers) as response:
            status, n_skipped, request = response.status_code, 0, request_summary(response)
            if status == 206:
                _check_range(response, first, last, total)
            elif status == 200:
                _check_total(response, _content_length(response), total)
                if last + 1 < total:
                    raise RangesUnsupported
                n_skipped = first
            elif status == 404:
                raise RegistryError(f"{request}: file does not exist, although the manifest names it")
            elif status == 416:
                raise RegistryError(f"{request}: 416: the blob is shorter than {total} bytes, its size in the manifest")
            else:
                reason = body_summary(read_small_body(response))
                text = f"{request}: {status} {response.reason_phrase}: {reason}".removesuffix(": ")
                is_retryable = status in RETRYABLE_STATUSES or (
                    status in EXPIRED_STATUSES and not self._client.is_own(response.url)
                )
                raise retryable_error(text, response) if is_retryable else RegistryError(text, status)
            if (coding := response.headers.get("content-encoding", "identity")) != "identity":
                raise RegistryError(f"{request}: found Content-Encoding '{coding}', expected 'identity'")
            yield _slice_chunks(response.iter_raw(), n_skipped, last - first + 1)

    def has_blob(self, digest: str) -> bool:
        """Return whether the repository has the blob.  Raises: RegistryError, Unauthorized"""
        action = f"pushing {digest[7:19]}"
        response, body = self._client.request("HEAD", self._url(f"blobs/{digest}"), action)
        if response.status_code not in (200, 404):
            raise status_error(action, response, body)
        return response.status_code == 200

    def upload(self, digest: str, path: Path, total: int, progress: Callable[[int], None], source: str = "") -> None:
        """Upload the blob in the file `path`.

        progress   is called with the number of bytes sent so far, of `total`
        source     a repository of the same registry, `namespace/model`, that may have the blob already
        A retry starts from the first byte, because distribution 2.8 cannot resume an upload.
        Raises: RegistryError, Unauthorized, Cancelled
        """
        action, budget = f"pushing {digest[7:19]}", RetryBudget(self.stopped)
        self._client.expect_upload(total)

        def sent(n: int) -> None:
            budget.restart_stall_timer()
            progress(n)

        while True:
            try:
                self._upload_once(action, digest, path, total, sent, source)
                return progress(total)
            except Interrupted as error:
                progress(0)
                try:
                    budget.wait_after(error)
                except RegistryError as final:
                    raise RegistryError(f"{action}: {final}") from None

    def _upload_once(
        self, action: str, digest: str, path: Path, total: int, progress: Callable[[int], None], source: str
    ) -> None:
        start = self._url("blobs/uploads/")
        if source:
            start = start.copy_merge_params({"from": source, "mount": digest})
        response, body = self._client.request("POST", start, action, content=b"")
        if response.status_code == 201:
            return  # mounted from `source`
        if response.status_code != 202:
            raise status_error(action, response, body)
        url, size, sums = _upload_url(action, response), part_size(total), []
        for first in range(0, total, size):
            last = min(first + size, total) - 1
            part = FilePart(path, first, last, progress)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(last - first + 1),
                "Content-Range": f"{first}-{last}",
                "X-Redirect-Uploads": "1",
            }
            response, body = self._client.request_once("PATCH", url, headers, part)
            url = _upload_url(action, response) if response.status_code in (202, 307) else url
            if response.status_code == 307:  # send the bytes to another host
                elsewhere = response.url.join(response.headers["location"])
                headers = {"Content-Length": headers["Content-Length"]}
                response, body = self._client.request_once("PUT", elsewhere, headers, part, trusted=False)
            if response.status_code not in (200, 201, 202, 204):
                raise status_error(action, response, body)
            sums.append(part.md5.digest())
        etag = f"{hashlib.md5(b''.join(sums), usedforsecurity=False).hexdigest()}-{len(sums)}"
        url = url.copy_merge_params({"digest": digest, "etag": etag})
        response, body = self._client.request_once("PUT", url, {"Content-Length": "0"}, b"")
        if response.status_code not in (201, 204):
            raise status_error(action, response, body)

    def _url(self, path: str) -> httpx.URL:
        return self._client.base.join(f"/v2/{self.name.namespace}/{self.name.model}/{path}")


class FilePart:
    """The bytes `first` to `last` of a file, as chunks; it may be iterated again.

    md5   the checksum of the bytes in the last iteration
    """

    def __init__(self, path: Path, first: int, last: int, progress: Callable[[int], None]):
        self.path, self.first, self.last, self.progress = path, first, last, progress

    def __iter__(self) -> Iterator[bytes]:
        self.md5, n = hashlib.md5(usedforsecurity=False), self.first
        with open(self.path, "rb") as file:
            file.seek(n)
            while n <= self.last and (chunk := file.read(min(READ_BYTES, self.last + 1 - n))):
                self.md5.update(chunk)
                yield chunk
                n += len(chunk)
                self.progress(n)


def _upload_url(action: str, response: httpx.Response) -> httpx.URL:
    """Return the URL of the next request of an upload."""
    location = response.headers.get("docker-upload-location") or response.headers.get("location")
    if not location:
        raise RegistryError(f"{action}: {response.status_code} without a Location")
    return response.url.join(location)


def _check_range(response: httpx.Response, first: int, last: int, total: int) -> None:
    found, n_bytes = response.headers.get("content-range", ""), _content_length(response)
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", found)
    if match and match[3] != "*":
        _check_total(response, int(match[3]), total)
    if not match or (int(match[1]), int(match[2])) != (first, last) or n_bytes not in (None, last - first + 1):
        raise Interrupted(
            f"{request_summary(response)}: requested bytes {first}-{last}, got Content-Range '{found}', {n_bytes} bytes"
        )


def _check_total(response: httpx.Response, found: int | None, total: int) -> None:
    if found not in (None, total):
        raise RegistryError(f"{request_summary(response)}: the blob has {found} bytes, expected {total}")


def _content_length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if re.fullmatch(r"\d{1,19}", text) else None


def _slice_chunks(chunks: Iterable[bytes], n_skipped: int, n: int) -> Iterator[bytes]:
    """Yield `n` bytes of `chunks`, after the first `n_skipped`."""
    for chunk in chunks:
        if n_skipped:
            n_skipped, chunk = max(n_skipped - len(chunk), 0), chunk[n_skipped:]
        if chunk := chunk[:n]:
            yield chunk
            n -= len(chunk)
        if not n:
            return
