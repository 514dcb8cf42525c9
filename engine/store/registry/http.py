"""HTTP requests to a registry: authorization, redirects, timeouts and retries.

Credentials are sent to the registry's own scheme, host and port only, wherever a redirect or Location points.
A redirect, Location or token realm may lead to public addresses only, or to the registry's own.
A request gives up about half a minute after the last megabyte of progress.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn

import httpx

from .... import __version__
from ...errors import Cancelled, RegistryError, Unauthorized
from ...go.text import is_print
from ..manifest import MAX_JSON_BYTES
from ..name import HOST
from . import retry
from .address import check_address, check_destination, peer_address, resolve_host
from .auth import Challenge, Credentials
from .proxy import BadEnvironment, ProxyTransport
from .retry import MAX_SMALL_TRIES, Interrupted, RetryBudget, Unreachable, retry_after

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0  # without a byte
MIN_VERIFY_BYTES_PER_S = 100e6  # slowest speed at which a registry hashes an upload before it responds
MAX_REDIRECTS = 10
RETRYABLE_STATUSES = {408, 425, 429, 500, 502, 503, 504}
REDIRECT_STATUSES = {301, 302, 303, 307, 308}
# What storage hosts answer when the signature in a redirect has expired; the registry signs a new one
EXPIRED_STATUSES = {400, 401, 403, 410}
MAX_SUMMARY_CHARS = 200  # of a body in an error message

Headers = Mapping[str, str]
Content = bytes | Iterable[bytes] | None  # an iterable is iterated again for every retry


class RegistryClient:
    """An HTTP client for the registry at `host`, which any number of threads may use.

    insecure   use plain HTTP
    stopped    is set by `abort`
    """

    def __init__(self, host: str, insecure: bool, credentials: Credentials):
        self.host, self.insecure, self.credentials = host, insecure, credentials
        try:
            self.base = httpx.URL(f"{'http' if insecure else 'https'}://{host}")
        except httpx.InvalidURL as error:
            raise RegistryError(f"{host}: invalid host: {error}") from None
        self.stopped = threading.Event()
        self._open_responses: set[httpx.Response] = set()
        self._authorization, self._method = "", ""  # the header that worked last, and its kind
        self._http = httpx.Client(
            transport=ProxyTransport(),
            trust_env=False,
            timeout=_timeout(),
            headers={"User-Agent": f"numllama/{__version__}", "Accept-Encoding": "identity"},
        )

    def clone(self) -> RegistryClient:
        """Return a client with the same authorization and its own connections."""
        other = RegistryClient(self.host, self.insecure, self.credentials)
        other._authorization, other._method = self._authorization, self._method
        return other

    def close(self) -> None:
        self._http.close()

    def abort(self) -> None:
        """End all requests of this client with Cancelled; callable from any thread."""
        self.stopped.set()
        for response in list(self._open_responses):
            with suppress(OSError, KeyError, AttributeError):
                response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def expect_upload(self, n_bytes: int) -> None:
        """Raise the read timeout by the time in which the registry hashes `n_bytes`."""
        self._http.timeout = _timeout(n_bytes)

    def is_own(self, url: httpx.URL) -> bool:
        """Return whether `url` is at the registry itself, not at a host that it redirects to."""
        return _origin(url) == _origin(self.base)

    def request(
        self,
        method: str,
        url: httpx.URL,
        action: str,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> tuple[httpx.Response, bytes]:
        """Send a request and read its small response, with retries.

        action   the prefix of error messages
        Raises: RegistryError, Unauthorized, Cancelled
        """
        budget = RetryBudget(self.stopped, MAX_SMALL_TRIES)
        try:
            while True:
                try:
                    return self.request_once(method, url, headers or {}, content)
                except Unreachable as error:
                    raise RegistryError(str(error)) from None
                except Interrupted as error:
                    budget.wait_after(error)
        except RegistryError as error:
            raise type(error)(f"{action}: {error}", error.status) from None

    def request_once(
        self, method: str, url: httpx.URL, headers: dict[str, str], content: Content = None, trusted: bool = True
    ) -> tuple[httpx.Response, bytes]:
        """Send a request and read its small response, without retries.

        trusted   whether the registry's own host gets the credentials
        Raises: Interrupted for a retryable status, too; RegistryError, Unauthorized, Cancelled
        """
        with self.open(method, url, headers, content, trusted) as response:
            body = read_small_body(response)
        if response.status_code in RETRYABLE_STATUSES:
            raise retryable_error(f"{response.status_code}: {body_summary(body) or response.reason_phrase}", response)
        return response, body

    @contextmanager
    def open(
        self, method: str, url: httpx.URL, headers: dict[str, str], content: Content = None, trusted: bool = True
    ) -> Iterator[httpx.Response]:
        """Send a request, follow redirects and authorize; yield the response with its body unread.

        trusted   whether the registry's own host gets the credentials
        Raises, also while the body is read: Interrupted, RegistryError, Cancelled
        """
        with self._translated_errors(method, url):
            response = self._follow_redirects(method, url, headers, content, trusted)
            self._open_responses.add(response)
            try:
                if self.stopped.is_set():
                    raise Cancelled()
                yield response
            finally:
                self._open_responses.discard(response)
                response.close()

    def _follow_redirects(
        self, method: str, url: httpx.URL, headers: Headers, content: Content, trusted: bool
    ) -> httpx.Response:
        visited: list[httpx.URL] = []
        while True:
            visited.append(url)
            self._check_destination(url, visited)
            trusted = trusted and self.is_own(url)  # a redirect back is not trusted again
            send = self._send_authorized if trusted else self._send
            response = send(method, url, headers, content)
            self._check_peer(response)
            if response.status_code not in REDIRECT_STATUSES or method not in ("GET", "HEAD"):
                return response
            response.close()
            if not (location := response.headers.get("location")):
                raise RegistryError(f"{request_summary(response)}: {response.status_code} without a Location")
            url = url.join(location)
            path = " -> ".join(_without_secrets(place) for place in [*visited, url])
            if url in visited:
                raise RegistryError(f"redirected in a circle: {path}")
            if len(visited) > MAX_REDIRECTS:
                raise RegistryError(f"redirected more than {MAX_REDIRECTS} times: {path}")

    def _check_destination(self, url: httpx.URL, visited: list[httpx.URL]) -> None:
        """Check the scheme and the address of the last of `visited` URLs, which the registry chose unless it is first.

        Raises: RegistryError
        """
        if url.scheme not in ("http", "https") or (self.base.scheme, url.scheme) == ("https", "http"):
            path = " -> ".join(map(_without_secrets, visited))
            raise RegistryError(f"redirected from {self.base.scheme} to {url.scheme}: {path}")
        check_destination(url, self.base, self._may_be_private)

    @property
    def _may_be_private(self) -> bool:
        """Whether this registry, which the operator trusts, may lead into private networks."""
        return self.credentials.host.lower() == self.host.lower()

    def _check_peer(self, response: httpx.Response) -> None:
        """Check the address that answered, as a name may have another one than when it was checked.

        Raises: RegistryError, before anything of the response is read
        """
        if response.url.host == self.base.host or response.extensions.get("proxied"):
            return
        address = response.extensions["network_stream"].get_extra_info("server_addr")
        if address and (found := peer_address(address)) not in resolve_host(self.base.host):
            try:
                check_address(found, f"{self.base.host} leads to {response.url.host}", self._may_be_private)
            except RegistryError:
                response.close()
                raise

    def _send(
        self, method: str, url: httpx.URL, headers: Headers, content: Content = None, authorization: str = ""
    ) -> httpx.Response:
        more = {"Authorization": authorization} if authorization else {}
        content = content if content is None or isinstance(content, bytes) else iter(content)
        return self._http.send(
            self._http.build_request(method, url, headers={**headers, **more}, content=content), stream=True
        )

    def _send_authorized(self, method: str, url: httpx.URL, headers: Headers, content: Content) -> httpx.Response:
        used = self._authorization
        response = self._send(method, url, headers, content, used)
        if response.status_code != 401:
            return response
        challenge = Challenge.parse(response.headers.get("www-authenticate", ""))
        response.close()
        rejections: list[str] = []
        for kind, authorization in self._authorizations(challenge, used, rejections):
            response = self._send(method, url, headers, content, authorization)
            if response.status_code != 401:
                self._authorization, self._method = authorization, kind
                return response
            response.close()
        advice = (
            f"run `docker login {self.host}`, or set NUMLLAMA_REGISTRY_HOST={self.host}, NUMLLAMA_REGISTRY_USER and "
            "NUMLLAMA_REGISTRY_PASSWORD where pulls and pushes run"
        )
        raise Unauthorized("; ".join(["unauthorized: access denied", *rejections, advice]), 401)

    def _authorizations(self, challenge: Challenge, used: str, rejections: list[str]) -> Iterator[tuple[str, str]]:
        """Yield the credentials to try, as (kind, header): the one that worked last, then the least revealing first.

        used         the header that was just rejected
        rejections   is extended by the errors of the token server
        """
        if self._authorization != used:  # another thread has renewed it meanwhile
            yield self._method, self._authorization
        basic = self.credentials.basic(self.host)
        if challenge.scheme == "basic":
            if basic:
                yield "basic", basic
            return
        if challenge.scheme != "bearer":
            raise Unauthorized(
                f"unauthorized: unknown authentication scheme '{challenge.scheme}', expected basic or bearer", 401
            )
        try:
            realm = httpx.URL(challenge.token_url(signed=False))  # the URL that is requested, as httpx reads it
        except (httpx.InvalidURL, ValueError):
            raise Unauthorized(f"unauthorized: invalid realm {challenge.realm!r}, expected a URL", 401) from None
        self._check_destination(realm, [self.base, realm])
        kinds = ["signed", "anonymous"] if self.host.lower() == HOST else ["anonymous", "basic", "signed"]
        if not self.is_own(realm):  # Docker Hub's and GitLab's are at hosts of their own
            kinds = ["anonymous"]
        for kind in sorted(kinds, key=lambda kind: kind != self._method):
            url = challenge.token_url(kind == "signed")
            header = basic if kind == "basic" else self.credentials.signature("GET", url) if kind == "signed" else ""
            if kind == "anonymous" or header:
                try:
                    yield kind, f"Bearer {self._token(url, header)}"
                except RegistryError as error:
                    rejections.append(str(error))
        if not self.is_own(realm):
            theirs, ours = (url.netloc.decode("ascii", "replace") for url in (realm, self.base))
            rejections.append(f'realm host "{theirs}" does not match original host "{ours}", so it gets no credentials')

    def _token(self, url: str, authorization: str) -> str:
        response = self._send("GET", httpx.URL(url), {}, None, authorization)
        try:
            body = read_small_body(response)
        finally:
            response.close()
        if response.status_code in RETRYABLE_STATUSES:
            raise retryable_error(f"{request_summary(response)}: {response.status_code}", response)
        if response.status_code != 200:
            raise RegistryError(f"{response.status_code}: {body_summary(body)}", response.status_code)
        try:
            value = json.loads(body)
            token = value.get("token") or value.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(f"{request_summary(response)}: the response has no token")
        return token

    @contextmanager
    def _translated_errors(self, method: str, url: httpx.URL) -> Iterator[None]:
        """Translate httpx's errors into one-line errors of ours that name the request."""
        try:
            yield
        except (httpx.TransportError, httpx.InvalidURL) as error:
            if self.stopped.is_set():
                raise Cancelled() from None
            _raise_translated(f'{method.capitalize()} "{_without_secrets(url)}"', error)


def read_small_body(response: httpx.Response) -> bytes:
    """Read the body of a small response.

    Raises: RegistryError if it is longer than MAX_JSON_BYTES, Interrupted if it takes longer than MAX_STALL_S
    """
    body, deadline = bytearray(), time.monotonic() + retry.MAX_STALL_S
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise RegistryError(f"{request_summary(response)}: the body is longer than {MAX_JSON_BYTES} bytes")
        if time.monotonic() > deadline:
            raise Interrupted(f"{request_summary(response)}: only {len(body)} bytes in {retry.MAX_STALL_S:g} seconds")
    return bytes(body)


def status_error(action: str, response: httpx.Response, body: bytes) -> RegistryError:
    """Return the error for a response with an unexpected status."""
    status = response.status_code
    reason = body_summary(body) or response.reason_phrase
    return RegistryError(f"{action}: {status}: {reason} ({request_summary(response)})", status)


def retryable_error(message: str, response: httpx.Response) -> Interrupted:
    """Return the error for a response with a retryable status, with the pause that its Retry-After header asks for."""
    return Interrupted(message, retry_after(response.headers.get("retry-after", "")))


def body_summary(body: bytes) -> str:
    """Return the beginning of a body as one line of text, without control characters."""
    text = " ".join(body[: 4 * MAX_SUMMARY_CHARS].decode("utf-8", "replace").split())
    return "".join(c if is_print(c) else "\ufffd" for c in text[:MAX_SUMMARY_CHARS])


def request_summary(response: httpx.Response) -> str:
    """Return the method and URL of the request, as in Go's errors: Get "https://host/path"."""
    return f'{response.request.method.capitalize()} "{_without_secrets(response.url)}"'


def _raise_translated(request: str, error: Exception) -> NoReturn:
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | BadEnvironment):
        raise RegistryError(f"{request}: {error}") from None
    if isinstance(error, httpx.ConnectTimeout):
        raise Unreachable(f"{request}: no connection within {CONNECT_TIMEOUT_S:g} seconds") from None
    if isinstance(error, httpx.TimeoutException):
        raise Interrupted(f"{request}: no data for {READ_TIMEOUT_S:g} seconds or more") from None
    reason = str(error).rpartition("] ")[2] or type(error).__name__
    reason = f"{reason[0].lower()}{reason[1:]}"
    if "SSL" in str(error):
        raise RegistryError(f"{request}: tls: {reason}; use `insecure` if the registry serves plain HTTP") from None
    raise (Unreachable if isinstance(error, httpx.ConnectError) else Interrupted)(f"{request}: {reason}") from None


def _without_secrets(url: httpx.URL) -> str:
    """Return `url` without its query, which has the signature of a redirect, and without its credentials."""
    return str(url.copy_with(query=None, fragment=None, username=None, password=None))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _timeout(n_uploaded: int = 0) -> httpx.Timeout:
    """Return the timeouts of a request after `n_uploaded` bytes, which the registry may hash before it responds."""
    return httpx.Timeout(READ_TIMEOUT_S + n_uploaded / MIN_VERIFY_BYTES_PER_S, connect=CONNECT_TIMEOUT_S, pool=None)
