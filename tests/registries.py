"""Registries on loopback whose answers a test can manipulate: a minimal one, and Debian's docker-registry."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

DOCKER_REGISTRY = shutil.which("docker-registry")


@dataclass
class Request:
    method: str
    path: str
    query: dict
    headers: dict
    body: bytes
    target: str


@dataclass
class Answer:
    """An HTTP response.  After `cut` bytes of its body the connection is closed; after `stall` bytes it hangs."""

    status: int = 200
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    stall: int | None = None


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Served:
    """An HTTP server.  `answer` creates responses, `spoil(request, answer)` may change them, `seen` lists requests."""

    address = "127.0.0.1"

    def __init__(self):
        self.spoil = lambda request, answer: answer
        self.seen = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except OSError:  # the client hung up
                    self.close_connection = True

            def respond(self):
                outer.respond(self)

            do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = respond

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 64

        self.server = Server((self.address, 0), Handler)
        self.port = self.server.server_address[1]
        self.host = f"{self.address}:{self.port}"
        self.url = f"http://{self.host}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def respond(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        if len(body) < length:
            return
        split = urlsplit(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, split.path, parse_qs(split.query), headers, body, handler.path)
        self.seen.append(request)
        answer = self.spoil(request, self.answer(request))
        headers = {"Content-Length": str(len(answer.body))} | answer.headers
        handler.send_response_only(answer.status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if request.method == "HEAD":
            return
        shown = min((n for n in (answer.cut, answer.stall) if n is not None), default=len(answer.body))
        handler.wfile.write(answer.body[:shown])
        handler.wfile.flush()
        if answer.stall is not None:
            self.over.wait(20)
        if shown < len(answer.body) or answer.cut is not None:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)

    def asked(self, method, part=""):
        """Return the requests with that method whose path contains `part`."""
        return [request for request in self.seen if request.method == method and part in request.path]

    def ranges(self, digest):
        """Return the Range headers of requests for a blob."""
        return [request.headers.get("range") for request in self.asked("GET", digest)]


class Registry(Served):
    """A minimal registry.  blobs: content by digest; manifests: bytes by `repository:tag`."""

    def __init__(self):
        self.blobs, self.manifests, self.uploads = {}, {}, {}
        super().__init__()

    def publish(self, name, *layers, config=b'{"model_format":"gguf","model_family":"llama"}'):
        """Publish a model with the given `layers` (media type, content) under `name`."""
        described = []
        for media_type, content in [("application/vnd.docker.container.image.v1+json", config), *layers]:
            self.blobs[digest_of(content)] = content
            described.append({"mediaType": media_type, "digest": digest_of(content), "size": len(content)})
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"}
        self.manifests[name] = json.dumps(
            manifest | {"config": described[0], "layers": described[1:]}, indent=1
        ).encode()

    def answer(self, request):
        repository, kind, rest = re.fullmatch(r"/v2/(.+?)/(manifests|blobs)/(.*)", request.path).groups()
        if kind == "manifests":
            name = f"{repository}:{rest}"
            if request.method == "PUT":
                self.manifests[name] = request.body
                return Answer(201)
            body = self.manifests.get(name)
            return Answer(404) if body is None else Answer(200, {"Docker-Content-Digest": digest_of(body)}, body)
        if rest.startswith("uploads/"):
            return self.upload(request, repository, rest.removeprefix("uploads/"))
        content = self.blobs.get(rest)
        if content is None:
            return Answer(404, body=b"BLOB_UNKNOWN")
        if not (match := re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))):
            return Answer(200, body=content)
        first, last = int(match[1]), int(match[2])
        if last >= len(content):
            return Answer(416)
        span = f"bytes {first}-{last}/{len(content)}"
        return Answer(206, {"Content-Range": span}, content[first : last + 1])

    def upload(self, request, repository, id):
        if request.method == "POST":
            if (digest := request.query.get("mount", [""])[0]) in self.blobs:
                return Answer(201)
            id = str(len(self.uploads))
            self.uploads[id] = b""
        elif request.method == "PATCH":
            self.uploads[id] += request.body
        else:
            digest = request.query["digest"][0]
            if digest_of(self.uploads[id]) != digest:
                return Answer(400, body=b"DIGEST_INVALID")
            self.blobs[digest] = self.uploads[id]
            return Answer(201)
        return Answer(202, {"Location": f"{self.url}/v2/{repository}/blobs/uploads/{id}?_state=a%2Fb"})


class DockerRegistry(Served):
    """Debian's docker-registry with its files in `folder`, behind this server as a proxy.

    auth   its `auth:` section, with {url} for the proxy's address
    token  the handler of GET /token, for an auth section that refers to it
    """

    def __init__(self, folder, auth="", token=None):
        super().__init__()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.registry_port = free.getsockname()[1]
        self.token, self.folder = token, folder
        (folder / "config.yml").write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.registry_port}', secret: s}}\n" + auth.replace("{url}", self.url)
        )
        self.start()

    def start(self):
        command = [DOCKER_REGISTRY, "serve", str(self.folder / "config.yml")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                return socket.create_connection(("127.0.0.1", self.registry_port)).close()
            except OSError:
                time.sleep(0.02)
        raise AssertionError("docker-registry does not listen")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        super().close()

    def answer(self, request):
        if request.path == "/token":
            return self.token(request)
        relay = http.client.HTTPConnection("127.0.0.1", self.registry_port, timeout=10)
        try:
            relay.request(request.method, request.target, request.body or None, request.headers)
            answer = relay.getresponse()
            body = answer.read()
            kept = ("location", "content-length", "content-range", "content-type", "docker", "range", "www-auth")
            headers = {name: value for name, value in answer.getheaders() if name.lower().startswith(kept)}
            return Answer(answer.status, headers, body)
        except (OSError, http.client.HTTPException):
            return Answer(502)
        finally:
            relay.close()


def jwt(claims, key, certificate):
    """Return a token for docker-registry: signed with ES256 by `key`, with its certificate (DER) included."""
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    def encoded(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate).decode()]}
    text = encoded(json.dumps(head).encode()) + b"." + encoded(json.dumps(claims).encode())
    r, s = utils.decode_dss_signature(key.sign(text, ec.ECDSA(SHA256())))
    return (text + b"." + encoded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()
