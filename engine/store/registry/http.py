"""One repository of a registry, spoken to as Ollama does: a part of the OCI distribution protocol.

    GET    /v2/<namespace>/<model>/manifests/<tag>        PUT the same
    GET    /v2/<namespace>/<model>/blobs/<digest>         a range of it, maybe after a redirect to another host
    HEAD   the same                                       whether it is there
    POST   /v2/<namespace>/<model>/blobs/uploads/         then PATCH and PUT where the answers' Location says

Credentials go to the registry's own scheme, host and port and nowhere else, whatever a redirect or Location says.
Whoever waits here gives up about half a minute after the last megabyte that came.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

import httpx

from .... import __version__
from ...errors import Cancelled, RegistryError, Unauthorized
from ..manifest import MANIFEST_TYPE, MAX_JSON_BYTES, digest_of
from ..name import HOST, ModelName
from . import retry
from .auth import Challenge, Credentials
from .retry import FEW_TRIES, Interrupted, RangesUnsupported, RetryBudget, Unreachable

OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"

CONNECT, STALL = 10.0, 10.0  # seconds until a try has failed: without a connection, without a byte
REREAD = 100e6  # bytes a second at which a registry looks through what it was sent, at least
MAX_REDIRECTS = 10
CHUNK = 1 << 20
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be others at the next try
REDIRECTS = {301, 302, 303, 307, 308}


def part_size(total: int) -> int:
    """Bytes of each part of a blob, as Ollama cuts it: a sixteenth, but 100 MB at least and 1000 MB at most."""
    return min(max(total // 16, 100 * retry.MB), 1000 * retry.MB)


class Registry:
    """The repository that `name` is in.  Any number of threads may use it; `abort` ends whatever they wait for.

    insecure   plain HTTP
    """

    def __init__(self, name: ModelName, insecure: bool, credentials: Credentials):
        self.name, self.insecure, self.credentials = name, insecure, credentials
        try:
            self.base = httpx.URL(f"{'http' if insecure else 'https'}://{name.host}")
        except httpx.InvalidURL as error:
            raise RegistryError(f"{name.host}: no host: {error}") from None
        self.stopped = threading.Event()
        self._live: set[httpx.Response] = set()
        self._authorization, self._voice = "", ""  # what was good enough last, and whose it was
        self._http = httpx.Client(
            verify=_tls(),
            timeout=_timeout(),
            limits=httpx.Limits(max_connections=None),
            trust_env=not _is_loopback(self.base.host),  # no proxy stands between this machine and itself
            headers={"User-Agent": f"numllama/{__version__}", "Accept-Encoding": "identity"},
        )

    def again(self) -> Registry:
        """The same repository, over connections of its own."""
        other = Registry(self.name, self.insecure, self.credentials)
        other._authorization, other._voice = self._authorization, self._voice
        return other

    def close(self) -> None:
        self._http.close()

    def abort(self) -> None:
        """From any thread: all that goes on here ends in Cancelled."""
        self.stopped.set()
        for answer in list(self._live):
            with suppress(OSError, KeyError, AttributeError):
                answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    # manifests

    def manifest(self) -> bytes:
        """The manifest as the registry has it.  Raises: RegistryError, Unauthorized"""
        what = "pull model manifest"
        accept = {"Accept": f"{MANIFEST_TYPE}, {OCI_MANIFEST_TYPE}"}
        answer, body = self._ask("GET", self._url(f"manifests/{self.name.tag}"), what, headers=accept)
        if answer.status_code == 404:
            raise RegistryError(f"{what}: file does not exist", 404)
        if answer.status_code != 200:
            raise _refused(what, answer, body)
        promised = answer.headers.get("docker-content-digest", "")
        if promised.startswith("sha256:") and promised != digest_of(body):
            raise RegistryError(f"{what}: its digest is {digest_of(body)}, the registry says {promised}")
        return body

    def put_manifest(self, data: bytes) -> None:
        """The model is what `data` says.  Raises: RegistryError, Unauthorized"""
        media_type = OCI_MANIFEST_TYPE if json.loads(data).get("mediaType") == OCI_MANIFEST_TYPE else MANIFEST_TYPE
        url, what = self._url(f"manifests/{self.name.tag}"), "push model manifest"
        answer, body = self._ask("PUT", url, what, headers={"Content-Type": media_type}, content=data)
        if answer.status_code not in (200, 201, 202):
            raise _refused(what, answer, body)

    # blobs

    @contextmanager
    def blob(self, digest: str, first: int, last: int, total: int) -> Iterator[Iterator[bytes]]:
        """The bytes `first` to `last` of a blob that has `total`, as they come; no more than these, maybe fewer.

        Raises: Interrupted; RangesUnsupported; RegistryError for what another try will not mend
        """
        with self._open("GET", self._url(f"blobs/{digest}"), {"Range": f"bytes={first}-{last}"}) as answer:
            status, skipped = answer.status_code, 0
            if status == 206:
                _check_range(answer, first, last, total)
            elif status == 200:
                _check_total(answer, _length(answer), total)
                if last + 1 < total:
                    raise RangesUnsupported
                skipped = first
            elif status == 404:
                raise RegistryError(f"{_said(answer)}: file does not exist; the registry has a manifest that names it")
            elif status == 416:
                raise RegistryError(
                    f"{_said(answer)}: 416: the blob is not as long as its manifest says, {total} bytes"
                )
            else:
                text = f"{_said(answer)}: {status} {answer.reason_phrase}: {_brief(_read(answer))}".removesuffix(": ")
                raise Interrupted(text) if status in PASSING else RegistryError(text, status)
            if (coding := answer.headers.get("content-encoding", "identity")) != "identity":
                raise RegistryError(f"{_said(answer)}: the blob comes as {coding}, though it was asked for as it is")
            yield _within(answer.iter_raw(), skipped, last - first + 1)

    def has_blob(self, digest: str) -> bool:
        """Raises: RegistryError, Unauthorized"""
        what = f"pushing {digest[7:19]}"
        answer, body = self._ask("HEAD", self._url(f"blobs/{digest}"), what)
        if answer.status_code not in (200, 404):
            raise _refused(what, answer, body)
        return answer.status_code == 200

    def upload(self, digest: str, path: Path, total: int, tell: Callable[[int], None], source: str = "") -> None:
        """The blob in the file `path` is in the repository.

        tell     hears how many of the `total` bytes have been sent
        source   a repository of the same registry, `namespace/model`, that may have it already
        A try that fails is made again from the first byte: distribution 2.8 takes no upload up where it broke off.
        Raises: RegistryError, Unauthorized, Cancelled
        """
        what, patience = f"pushing {digest[7:19]}", RetryBudget(self.stopped)
        self._http.timeout = _timeout(total)

        def sent(n: int) -> None:
            patience.moved()
            tell(n)

        while True:
            try:
                self._upload(what, digest, path, total, sent, source)
                return tell(total)
            except Interrupted as error:
                tell(0)
                try:
                    patience.failed(error)
                except RegistryError as final:
                    raise RegistryError(f"{what}: {final}") from None

    def _upload(self, what: str, digest: str, path: Path, total: int, tell: Callable[[int], None], source: str) -> None:
        begun = self._url("blobs/uploads/")
        if source:
            begun = begun.copy_merge_params({"from": source, "mount": digest})
        answer, body = self._ask("POST", begun, what, content=b"")
        if answer.status_code == 201:
            return  # it is there, by way of `source`
        if answer.status_code != 202:
            raise _refused(what, answer, body)
        url, size, sums = _next(what, answer), part_size(total), []
        for first in range(0, total, size):
            last = min(first + size, total) - 1
            part = _FilePart(path, first, last, tell)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(last - first + 1),
                "Content-Range": f"{first}-{last}",
                "X-Redirect-Uploads": "1",
            }
            answer, body = self._once("PATCH", url, headers, part)
            url = _next(what, answer) if answer.status_code in (202, 307) else url
            if answer.status_code == 307:  # the bytes are wanted elsewhere
                elsewhere = answer.url.join(answer.headers["location"])
                headers = {"Content-Length": headers["Content-Length"]}
                answer, body = self._once("PUT", elsewhere, headers, part, trusted=False)
            if answer.status_code not in (200, 201, 202, 204):
                raise _refused(what, answer, body)
            sums.append(part.md5.digest())
        etag = f"{hashlib.md5(b''.join(sums), usedforsecurity=False).hexdigest()}-{len(sums)}"
        url = url.copy_merge_params({"digest": digest, "etag": etag})
        answer, body = self._once("PUT", url, {"Content-Length": "0"}, b"")
        if answer.status_code not in (201, 204):
            raise _refused(what, answer, body)

    # requests

    def _url(self, path: str) -> httpx.URL:
        return self.base.join(f"/v2/{self.name.namespace}/{self.name.model}/{path}")

    def _ask(
        self,
        method: str,
        url: httpx.URL,
        what: str,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> tuple[httpx.Response, bytes]:
        """A small answer whose status is no passing one.  Raises: RegistryError about `what`, Cancelled"""
        patience = RetryBudget(self.stopped, FEW_TRIES)
        try:
            while True:
                try:
                    return self._once(method, url, headers or {}, content)
                except Unreachable as error:
                    raise RegistryError(str(error)) from None
                except Interrupted as error:
                    patience.failed(error)
        except RegistryError as error:
            raise type(error)(f"{what}: {error}", error.status) from None

    def _once(
        self,
        method: str,
        url: httpx.URL,
        headers: dict[str, str],
        content: bytes | _FilePart | None = None,
        trusted: bool = True,
    ) -> tuple[httpx.Response, bytes]:
        with self._open(method, url, headers, content, trusted) as answer:
            body = _read(answer)
        if answer.status_code in PASSING:
            raise Interrupted(f"{answer.status_code}: {_brief(body) or answer.reason_phrase}")
        return answer, body

    @contextmanager
    def _open(
        self,
        method: str,
        url: httpx.URL,
        headers: dict[str, str],
        content: bytes | _FilePart | None = None,
        trusted: bool = True,
    ) -> Iterator[httpx.Response]:
        """The answer after redirects and with the authorization it takes; its body is yet to come.

        trusted   whether the registry's own hosts get that authorization
        Raises, until the body is read: Interrupted, RegistryError, Cancelled
        """
        with self._in_words(method, url):
            answer = self._followed(method, url, headers, content, trusted)
            self._live.add(answer)
            try:
                if self.stopped.is_set():
                    raise Cancelled()
                yield answer
            finally:
                self._live.discard(answer)
                answer.close()

    def _followed(self, method, url, headers, content, trusted) -> httpx.Response:
        visited: list[httpx.URL] = []
        while True:
            visited.append(url)
            trusted = trusted and _origin(url) == _origin(self.base)  # once away, it does not come back trusted
            answer = (
                self._authorized(method, url, headers, content)
                if trusted
                else self._send(method, url, headers, content)
            )
            if answer.status_code not in REDIRECTS or method not in ("GET", "HEAD"):
                return answer
            answer.close()
            if not (location := answer.headers.get("location")):
                raise RegistryError(f"{_said(answer)}: {answer.status_code} without a Location")
            url = url.join(location)
            way = " -> ".join(_shown(place) for place in [*visited, url])
            if url in visited:
                raise RegistryError(f"redirected in a circle: {way}")
            if len(visited) > MAX_REDIRECTS:
                raise RegistryError(f"redirected more than {MAX_REDIRECTS} times: {way}")
            if url.scheme not in ("http", "https") or (self.base.scheme, url.scheme) == ("https", "http"):
                raise RegistryError(f"redirected from {self.base.scheme} to {url.scheme}: {way}")

    def _send(self, method, url, headers, content=None, authorization: str = "") -> httpx.Response:
        more = {"Authorization": authorization} if authorization else {}
        content = iter(content) if isinstance(content, _FilePart) else content
        return self._http.send(
            self._http.build_request(method, url, headers=headers | more, content=content), stream=True
        )

    def _authorized(self, method, url, headers, content) -> httpx.Response:
        used = self._authorization
        answer = self._send(method, url, headers, content, used)
        if answer.status_code != 401:
            return answer
        challenge = Challenge.parse(answer.headers.get("www-authenticate", ""))
        answer.close()
        refusals: list[str] = []
        for voice, authorization in self._authorizations(challenge, used, refusals):
            answer = self._send(method, url, headers, content, authorization)
            if answer.status_code != 401:
                self._authorization, self._voice = authorization, voice
                return answer
            answer.close()
        known = "NUMLLAMA_REGISTRY_USER and NUMLLAMA_REGISTRY_PASSWORD, or a docker config.json, can say who asks"
        raise Unauthorized(
            f"unauthorized: access denied{''.join(f'; {refusal}' for refusal in refusals)}; {known}", 401
        )

    def _authorizations(self, challenge: Challenge, used: str, refusals: list[str]) -> Iterator[tuple[str, str]]:
        """What may be good enough, the least telling first; what was so before, before all others."""
        if self._authorization != used:  # another thread has had a new one meanwhile
            yield self._voice, self._authorization
        basic = self.credentials.basic(self.name.host)
        if challenge.scheme == "basic":
            if basic:
                yield "basic", basic
            return
        if challenge.scheme != "bearer":
            raise Unauthorized(
                f"unauthorized: the registry asks for '{challenge.scheme}', which is not known here", 401
            )
        realm = httpx.URL(challenge.realm)
        if _origin(realm) != _origin(self.base):
            theirs, ours = (url.netloc.decode("ascii", "replace") for url in (realm, self.base))
            raise Unauthorized(f'realm host "{theirs}" does not match original host "{ours}"', 401)
        voices = ["signed", "anonymous"] if self.name.host.lower() == HOST else ["anonymous", "basic", "signed"]
        for voice in sorted(voices, key=lambda voice: voice != self._voice):
            url = challenge.token_url(voice == "signed")
            said = basic if voice == "basic" else self.credentials.signature("GET", url) if voice == "signed" else ""
            if voice == "anonymous" or said:
                try:
                    yield voice, f"Bearer {self._token(url, said)}"
                except RegistryError as error:
                    refusals.append(str(error))

    def _token(self, url: str, authorization: str) -> str:
        answer = self._send("GET", httpx.URL(url), {}, None, authorization)
        try:
            body = _read(answer)
        finally:
            answer.close()
        if answer.status_code != 200:
            raise RegistryError(f"{answer.status_code}: {_brief(body)}", answer.status_code)
        try:
            value = json.loads(body)
            token = value.get("token") or value.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(f"{_said(answer)}: no token in the answer")
        return token

    @contextmanager
    def _in_words(self, method: str, url: httpx.URL) -> Iterator[None]:
        """What goes wrong below HTTP, in one line that says where."""
        try:
            yield
        except (httpx.TransportError, httpx.InvalidURL) as error:
            if self.stopped.is_set():
                raise Cancelled() from None
            _raise_in_words(f'{method.capitalize()} "{_shown(url)}"', error)


class _FilePart:
    """The bytes `first` to `last` of a file, to be sent as often as it takes; `md5` is that of what was sent last."""

    def __init__(self, path: Path, first: int, last: int, tell: Callable[[int], None]):
        self.path, self.first, self.last, self.tell = path, first, last, tell

    def __iter__(self) -> Iterator[bytes]:
        self.md5, n = hashlib.md5(usedforsecurity=False), self.first
        with open(self.path, "rb") as file:
            file.seek(n)
            while n <= self.last and (chunk := file.read(min(CHUNK, self.last + 1 - n))):
                self.md5.update(chunk)
                yield chunk
                n += len(chunk)
                self.tell(n)


def _raise_in_words(where: str, error: Exception) -> NoReturn:
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        raise RegistryError(f"{where}: {error}") from None
    if isinstance(error, httpx.ConnectTimeout):
        raise Unreachable(f"{where}: no connection within {CONNECT:g} seconds") from None
    if isinstance(error, httpx.TimeoutException):
        raise Interrupted(f"{where}: no byte for {STALL:g} seconds or more") from None
    reason = str(error).rpartition("] ")[2] or type(error).__name__
    reason = f"{reason[0].lower()}{reason[1:]}"
    if "SSL" in str(error):
        raise RegistryError(f"{where}: tls: {reason}; a registry that speaks plain HTTP wants `insecure`") from None
    raise (Unreachable if isinstance(error, httpx.ConnectError) else Interrupted)(f"{where}: {reason}") from None


def _next(what: str, answer: httpx.Response) -> httpx.URL:
    """Where an upload goes on."""
    location = answer.headers.get("docker-upload-location") or answer.headers.get("location")
    if not location:
        raise RegistryError(f"{what}: {answer.status_code} without a Location")
    return answer.url.join(location)


def _check_range(answer: httpx.Response, first: int, last: int, total: int) -> None:
    found = answer.headers.get("content-range", "")
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", found)
    if match and match[3] != "*":
        _check_total(answer, int(match[3]), total)
    if not match or (int(match[1]), int(match[2])) != (first, last) or _length(answer) not in (None, last - first + 1):
        raise Interrupted(f"{_said(answer)}: asked for bytes {first}-{last}, got '{found}', {_length(answer)} bytes")


def _check_total(answer: httpx.Response, found: int | None, total: int) -> None:
    if found not in (None, total):
        raise RegistryError(f"{_said(answer)}: the blob has {found} bytes, its manifest says {total}")


def _length(answer: httpx.Response) -> int | None:
    text = answer.headers.get("content-length", "")
    return int(text) if re.fullmatch(r"\d{1,19}", text) else None


def _within(chunks: Iterable[bytes], skipped: int, n: int) -> Iterator[bytes]:
    """`n` bytes of what `chunks` are, after the first `skipped`."""
    for chunk in chunks:
        if skipped:
            skipped, chunk = max(skipped - len(chunk), 0), chunk[skipped:]
        if chunk := chunk[:n]:
            yield chunk
            n -= len(chunk)
        if not n:
            return


def _read(answer: httpx.Response) -> bytes:
    """The body of a small answer.  Raises: RegistryError for a long one, Interrupted for one that trickles"""
    body, until = bytearray(), time.monotonic() + retry.PATIENCE
    for chunk in answer.iter_raw():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise RegistryError(f"{_said(answer)}: more than {MAX_JSON_BYTES} bytes, which no manifest has")
        if time.monotonic() > until:
            raise Interrupted(f"{_said(answer)}: {len(body)} bytes in {retry.PATIENCE:g} seconds")
    return bytes(body)


def _refused(what: str, answer: httpx.Response, body: bytes) -> RegistryError:
    status = answer.status_code
    return RegistryError(f"{what}: {status}: {_brief(body) or answer.reason_phrase} ({_said(answer)})", status)


def _brief(body: bytes) -> str:
    return " ".join(body[:400].decode("utf-8", "replace").split())


def _said(answer: httpx.Response) -> str:
    return f'{answer.request.method.capitalize()} "{_shown(answer.url)}"'


def _shown(url: httpx.URL) -> str:
    """Without the query, where a redirect has its secrets."""
    return str(url.copy_with(query=None, fragment=None, username=None, password=None))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _timeout(n_sent: int = 0) -> httpx.Timeout:
    """A registry that was sent much may read it all once more before it answers."""
    return httpx.Timeout(STALL + n_sent / REREAD, connect=CONNECT, pool=None)


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()
