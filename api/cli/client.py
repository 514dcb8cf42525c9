"""A client of Ollama's API with the engine's methods; answers are the engine's own pieces.

client = Client(Host.parse("127.0.0.1:11434"))
for piece in client.generate("primer", "Why is the grass green?"):
    print(piece.text, end="")
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from ...engine.go.duration import FOREVER, format_duration
from ...engine.options import DEFAULT_REQUEST, RequestOptions
from ...engine.run.piece import Piece, Timings
from ...engine.settings import Host
from ...engine.store.make.sources import file_chunks
from ...engine.store.registry.proxy import ProxyTransport, is_loopback

JSON_HEADERS = {"Content-Type": "application/json"}
CONNECT_TIMEOUT_S = 10  # for an address that drops packets; a refused connection fails immediately


class ServerError(Exception):
    """An error response, with the server's text; or a failed connection, with `status` 0."""

    def __init__(self, message: str, status: int = 0):
        self.status = status
        super().__init__(message)


class ServerNotRunning(ServerError):
    """The connection was refused: no server listens at the address."""


class Reply:
    """The answer to generate or chat, with the interface of the engine's Answer: an iterable of pieces.

    is_over                         there are no pieces: the model was only loaded or unloaded
    total_duration, load_duration   nanoseconds, known after the last piece
    """

    def __init__(self, lines: Iterator[dict[str, Any]]):
        self._lines = lines
        self._first = next(lines, {})
        self.is_over = self._first.get("done_reason") in ("load", "unload")
        self.total_duration = self.load_duration = 0
        if self.is_over:
            lines.close()  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Piece]:
        """Yield pieces as they arrive.  Closing the iterator disconnects, ending the answer.  Raises: ServerError"""
        try:
            yield self._piece(self._first)
            for line in self._lines:
                yield self._piece(line)
        finally:
            self._lines.close()  # type: ignore[attr-defined]

    def _piece(self, line: dict[str, Any]) -> Piece:
        fields = line.get("message") or line
        text, thinking = fields.get("content") or fields.get("response") or "", fields.get("thinking") or ""
        if not line.get("done"):
            return Piece(text, thinking=thinking)
        self.total_duration, self.load_duration = line.get("total_duration", 0), line.get("load_duration", 0)
        names = ("load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")
        timings = Timings(*(line.get(name, 0) for name in names))
        return Piece(text, done_reason=line.get("done_reason") or "stop", timings=timings, thinking=thinking)


class Client:
    """A client of the server at `host`.  All methods raise ServerError for error responses and failed connections."""

    def __init__(self, host: Host):
        self.host = host.reachable
        self._http = httpx.Client(
            base_url=self.host.url,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=ProxyTransport(),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def check(self) -> None:
        """Check that the server is reachable.  Raises: ServerNotRunning; ServerError, also for an invalid address"""
        self._send("HEAD", "/")

    def version(self) -> tuple[str, str]:
        """Return the server's program and version: ("numllama", "0.1.0"), ("ollama", "0.33.0")."""
        answer = self._send("GET", "/api/version")
        program, _, version = answer.headers.get("server", "").partition("/")
        return (program, version) if program == "numllama" else ("ollama", _decode_object(answer).get("version", ""))

    def list(self) -> list[dict[str, Any]]:
        return _decode_object(self._send("GET", "/api/tags")).get("models") or []

    def ps(self) -> Sequence[dict[str, Any]]:
        return _decode_object(self._send("GET", "/api/ps")).get("models") or []

    def show(self, name: str, verbose: bool = False) -> dict[str, Any]:
        return _decode_object(self._send("POST", "/api/show", {"model": name, "verbose": verbose}))

    def capabilities(self, name: str) -> Sequence[str]:
        """Return the same as Engine.capabilities; empty if the server is too old to report them."""
        return self.show(name).get("capabilities") or []

    def unload(self, name: str) -> None:
        """Unload `name` from memory, if it is loaded."""
        self._send("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False})

    def generate(
        self,
        name: str,
        prompt: str = "",
        request: RequestOptions = DEFAULT_REQUEST,
        *,
        system: str = "",
        raw: bool = False,
        images: Sequence[bytes] = (),
    ) -> Reply:
        """Generate an answer, as Engine.generate.  An error before the first line is raised with its HTTP status."""
        body = {"model": name, "prompt": prompt, "system": system, "raw": raw, "images": list(images)}
        return Reply(self._lines("/api/generate", body | _request_fields(request)))

    def chat(
        self, name: str, messages: Sequence[Mapping[str, Any]] = (), request: RequestOptions = DEFAULT_REQUEST
    ) -> Reply:
        """Generate the next message, as Engine.chat.  Errors are raised as in `generate`."""
        return Reply(self._lines("/api/chat", {"model": name, "messages": list(messages)} | _request_fields(request)))

    def embed(
        self, name: str, texts: Sequence[str], request: RequestOptions = DEFAULT_REQUEST, *, dimensions: int = 0
    ) -> Iterator[Piece]:
        """Embed `texts`, as Engine.embed: yields one piece, whose vectors are lists of numbers."""
        body = {"model": name, "input": list(texts), "dimensions": dimensions} | _request_fields(request)
        answer = _decode_object(self._send("POST", "/api/embed", body))
        timings = Timings(answer.get("load_duration", 0), answer.get("prompt_eval_count", 0))
        yield Piece("", done_reason="stop", timings=timings, embeddings=tuple(answer["embeddings"]))

    def pull(self, name: str, insecure: bool = False) -> Iterator[dict[str, Any]]:
        """Pull a model and yield its progress.  Closing the iterator disconnects, which ends the transfer."""
        return self._lines("/api/pull", {"model": name, "insecure": insecure})

    def push(self, name: str, insecure: bool = False) -> Iterator[dict[str, Any]]:
        """Push a model and yield its progress."""
        return self._lines("/api/push", {"model": name, "insecure": insecure})

    def create(self, name: str, from_: str = "", **more: Any) -> Iterator[dict[str, Any]]:
        """Create a model and yield its progress; `more` are further fields of the request."""
        return self._lines("/api/create", {"model": name, **({"from": from_} if from_ else {})} | more)

    def copy(self, source: str, destination: str) -> None:
        self._send("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, name: str) -> None:
        self._send("DELETE", "/api/delete", {"model": name})

    def put_file(self, path: Path, progress: Callable[[int], None]) -> str:
        """Upload a file, unless the server has it, and return its digest.  `progress` is called with the bytes sent."""
        with open(path, "rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        url = f"/api/blobs/{digest}"
        with _transport_errors("HEAD", f"{self.host.url}{url}"):
            exists = self._http.head(url).is_success
        if not exists:
            with _transport_errors("POST", f"{self.host.url}{url}"):
                answer = self._http.post(url, content=file_chunks(path, progress))
            if answer.is_error:
                raise ServerError(_error_text(answer), answer.status_code)
        progress(path.stat().st_size)
        return digest

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        with _transport_errors(method, f"{self.host.url}{path}"):
            answer = self._http.request(method, path, content=_encode_body(body), headers=JSON_HEADERS)
        if answer.is_error:
            raise ServerError(_error_text(answer), answer.status_code)
        return answer

    def _lines(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with (
            _transport_errors("POST", f"{self.host.url}{path}"),
            self._http.stream(
                "POST", path, content=_encode_body(body | {"stream": True}), headers=JSON_HEADERS
            ) as answer,
        ):
            if answer.is_error:
                answer.read()
                status = HTTPStatus(answer.status_code)
                raise ServerError(f"{status.value} {status.phrase}: {_error_text(answer)}", status.value)
            for line in split_lines(answer.iter_bytes()):
                value = json.loads(line.decode("utf-8", "replace"))
                if not isinstance(value, dict):
                    raise json.JSONDecodeError("expected an object", str(value)[:80], 0)
                if "error" in value:
                    raise ServerError(value["error"])
                yield value


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split chunks at newlines only, and leave out empty lines.

    str.splitlines would also split at U+0085, U+2028 and others, which JSON leaves as they are.
    """
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for piece in others:
            if line := b"".join(rest).strip():
                yield line
            rest = [piece]
    if line := b"".join(rest).strip():
        yield line


class _transport_errors:
    """A context that converts transport errors to a ServerError of one line."""

    def __init__(self, method: str, url: str):
        self.request, self.url = f'{method.capitalize()} "{url}"', url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, httpx.ConnectError) and _nothing_listens(self.url, str(error).lower()):
            raise ServerNotRunning("could not connect to ollama server, run 'numllama serve' to start it") from None
        if isinstance(error, httpx.TransportError | httpx.InvalidURL):
            reason = str(error).rpartition("] ")[2] or type(error).__name__
            raise ServerError(f"{self.request}: {reason[0].lower()}{reason[1:]}") from None
        if isinstance(error, json.JSONDecodeError):
            raise ServerError(f"{self.request}: invalid response; the server does not implement Ollama's API") from None


def _nothing_listens(url: str, reason: str) -> bool:
    """Return whether a failure to connect means that no server runs: refused, or a loopback interface that is down."""
    is_down = "unreachable" in reason or "cannot assign" in reason
    return "refused" in reason or (is_down and is_loopback(httpx.URL(url).host))


def _encode_body(body: dict[str, Any] | None) -> bytes | None:
    """Encode `body` as JSON, with images in base64."""
    if body is None:
        return None
    return json.dumps(body, default=lambda image: base64.b64encode(image).decode()).encode()


def _decode_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"{answer.url}: invalid response; the server does not implement Ollama's API")
    return value


def _error_text(answer: httpx.Response) -> str:
    try:
        return str(_decode_object(answer)["error"])
    except (ServerError, KeyError):
        return f"{answer.url}: {answer.status_code} {answer.reason_phrase}"


def _request_fields(request: RequestOptions) -> dict[str, Any]:
    keep_alive = request.keep_alive
    body = {
        "options": dict(request.options),
        "keep_alive": keep_alive
        if keep_alive is None
        else format_duration(-1 if keep_alive == FOREVER else keep_alive),
        "think": request.think,
        "format": request.format,
        "truncate": request.truncate,
        "shift": request.shift,
    }
    return {name: value for name, value in body.items() if value is not None}
