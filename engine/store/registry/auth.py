"""Authentication at a registry: anonymous, by user and password, or by this machine's ed25519 key.

A registry that requires authentication responds with 401 and a challenge:

    Basic realm="..."                                      user and password, with every request
    Bearer realm="https://host/token",service="...",scope="repository:lab/m:pull"
                                                           a token, which the server at `realm` issues

Source: RFC 6750; the distribution project's token specification; Ollama's server/auth.go, fb30760.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ...errors import StoreError
from ...settings import home_folder
from ..name import HOST

KEY = "id_ed25519"
_EMPTY = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()  # digest of the empty body of a GET
_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*(?:"([^"]*)"|([^\s",]+))')


@dataclass(frozen=True)
class Challenge:
    """A WWW-Authenticate header: `scheme` in lower case, and its parameters."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""

    @classmethod
    def parse(cls, header: str) -> Challenge:
        scheme, _, rest = header.strip().partition(" ")
        found = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
        return cls(scheme.lower(), *(found.get(name, "") for name in ("realm", "service", "scope")))

    def token_url(self, signed: bool) -> str:
        """Return the URL that issues the token; a signed request also has the time and a nonce."""
        parts = urlsplit(self.realm)
        query = parse_qsl(parts.query, keep_blank_values=True) + [("scope", scope) for scope in self.scope.split()]
        query += [("service", self.service)] if self.service else []
        if signed:
            query += [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        return urlunsplit(parts._replace(query=urlencode(sorted(query, key=lambda pair: pair[0])), fragment=""))


@dataclass(frozen=True)
class Credentials:
    """The credentials of this machine.

    user, password   NUMLLAMA_REGISTRY_USER and NUMLLAMA_REGISTRY_PASSWORD
    host             NUMLLAMA_REGISTRY_HOST, host[:port]: the only registry that gets them; "": none gets them, because
                     the client of a server chooses which registry a pull or push goes to
    docker           the config file that `docker login` writes, or None
    keys             the folder of the ed25519 key, or None
    """

    user: str = ""
    password: str = field(default="", repr=False)
    host: str = ""
    docker: Path | None = None
    keys: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Credentials:
        home = home_folder(environ)
        docker = environ.get("DOCKER_CONFIG")
        return cls(
            environ.get("NUMLLAMA_REGISTRY_USER", ""),
            environ.get("NUMLLAMA_REGISTRY_PASSWORD", ""),
            environ.get("NUMLLAMA_REGISTRY_HOST", ""),
            Path(docker) / "config.json" if docker else home / ".docker/config.json" if home else None,
            home / ".ollama" if home else None,
        )

    def basic(self, host: str) -> str:
        """Return the Authorization header with user and password for `host`, or ""."""
        if self.user and host.lower() != HOST and self.host.lower() == host.lower():
            return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return self._docker(host)

    def _docker(self, host: str) -> str:
        if self.docker is None:
            return ""
        try:
            auths = json.loads(self.docker.read_bytes())["auths"]
            entry = next(auths[name] for name in auths if re.sub(r"^https?://|/.*$", "", name) == host)
            auth = entry.get("auth") or base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
            return f"Basic {auth}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
            return ""  # no file, no entry for this host, or an entry of a credential helper

    def signature(self, method: str, url: str) -> str:
        """Return the Authorization header that signs a request without a body, or "" without a key.

        The header is `<public key>:<signature>`.  Raises: StoreError for an unreadable key
        """
        if self.keys is None:
            return ""
        try:
            pem = (self.keys / KEY).read_bytes()
        except OSError:
            return ""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key

        try:
            key = load_ssh_private_key(pem, password=None)
        except ValueError as error:
            raise StoreError(
                f"{self.keys / KEY}: cannot load the private key, which must have no passphrase: {error}"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(f"{self.keys / KEY}: not an ed25519 key")
        signed = base64.b64encode(key.sign(f"{method},{url},{_EMPTY}".encode())).decode()
        return f"{_public_line(key).split()[1]}:{signed}"

    def ensure_key(self) -> None:
        """Create the key unless it exists, in OpenSSH's format and readable by its owner only.  Raises: OSError"""
        if self.keys is None or (self.keys / KEY).exists():
            return
        path = self.keys / KEY
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = Ed25519PrivateKey.generate()
        self.keys.mkdir(parents=True, exist_ok=True, mode=0o755)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        path.with_suffix(".pub").write_text(_public_line(key) + "\n")


def _public_line(key: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    line: bytes = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line.decode()
