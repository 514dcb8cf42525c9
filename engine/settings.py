"""What the environment sets: Ollama's `OLLAMA_*` names and rules, and a few `NUMLLAMA_*` of our own.

Values are trimmed of blanks, then of quotes.  A boolean that is no boolean counts as true, a number that is no number
as absent, with a line in the log: a server starts whatever its environment says.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BadOptions
from .go.duration import FOREVER, SECOND, parse_duration
from .go.text import WHITE_SPACE
from .options import FALSE

log = logging.getLogger(__name__)

TRACE = 5  # a level of the log below DEBUG: what people said, too

LOCAL_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for scheme in ("http", "https")
        for port in ("", ":*")
    ),
    *(f"{app}://*" for app in ("app", "file", "tauri", "vscode-webview", "vscode-file")),
)

WITHOUT_EFFECT = (  # there is no graphics card and no cloud, and one way to compute attention; then what Ollama forgot
    "OLLAMA_FLASH_ATTENTION",
    "OLLAMA_GPU_OVERHEAD",
    "OLLAMA_SCHED_SPREAD",
    "OLLAMA_LLM_LIBRARY",
    "OLLAMA_VULKAN",
    "OLLAMA_IGPU_ENABLE",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HSA_OVERRIDE_GFX_VERSION",
    "OLLAMA_NO_CLOUD",
    "OLLAMA_REMOTES",
    "OLLAMA_AUTH",
    "OLLAMA_MAX_TRANSFER_STREAMS",
    "OLLAMA_TMPDIR",
    "OLLAMA_MAX_VRAM",
    "OLLAMA_MULTIUSER_CACHE",
    "OLLAMA_INTEL_GPU",
)


@dataclass(frozen=True)
class Host:
    """Where a server listens or a client connects: scheme://name:port/path."""

    scheme: str = "http"
    name: str = "127.0.0.1"
    port: int = 11434
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Host:
        """`[scheme://]name[:port][/path]`; the port is 11434, or what the scheme says."""
        scheme, separator, rest = text.strip(WHITE_SPACE).partition("://")
        if not separator:
            scheme, rest = "http", text.strip(WHITE_SPACE)
        default = {"http": 80, "https": 443}.get(scheme, 11434) if separator else 11434
        name, _, path = rest.partition("/")
        bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", name)
        port: str | None = None
        if bracketed:
            name, port = bracketed[1], bracketed[2]
        elif name.count(":") == 1:
            name, port = name.split(":")
        elif not name:
            name = cls.name
        if port is None:
            return cls(scheme, name, default, path)
        if not re.fullmatch(r"\+?[0-9]+", port) or int(port) > 65535:
            log.warning("invalid port, using default: port=%s default=%s", port, default)
            return cls(scheme, name, default, path)
        return cls(scheme, name, int(port), path)

    @property
    def address(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}" + (f"/{self.path}" if self.path else "")

    @property
    def reachable(self) -> Host:
        """The same for a client: an unspecified address is nowhere to connect to."""
        name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.name, self.name)
        return Host(self.scheme, name, self.port, self.path)

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.name).is_loopback
        except ValueError:
            return self.name.lower() == "localhost"


@dataclass(frozen=True)
class Settings:
    """The environment, read once.  Durations are nanoseconds, FOREVER where there is no end."""

    host: Host = Host()
    models: Path = Path()
    keep_alive: int = 300 * SECOND
    load_timeout: int = 300 * SECOND
    context_length: int = 0  # 0: Options' default
    num_parallel: int = 0  # sequences at once for each model; 0: 4 where memory allows it
    max_loaded_models: int = 0  # 0: as many as a machine without a graphics card is given, 3
    max_queue: int = 512
    origins: tuple[str, ...] = LOCAL_ORIGINS
    kv_cache_type: str = "f16"
    go_template: bool = True
    noprune: bool = False
    nohistory: bool = False
    editor: str = ""  # what Ctrl-G opens, before VISUAL and EDITOR
    debug: int = 0  # 1 debug, 2 trace
    debug_log_requests: bool = False  # whether bodies of requests are kept in a temporary folder
    without_effect: tuple[str, ...] = ()  # variables of Ollama's that are set, and change nothing here
    builtin: bool = True  # NUMLLAMA_BUILTIN: whether the built-in model is visible
    server_files: bool = False  # NUMLLAMA_SERVER_FILES: whether a client may name files of this machine
    vision_order: str = "llama.cpp"  # NUMLLAMA_VISION_ORDER: where CLIP's class token stands, see load_vision

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """What the environment says, in Ollama's names and words; bad values are logged and left at their defaults."""
        env = _Env(environ)
        origins = tuple(o.strip() for o in env.text("OLLAMA_ORIGINS").split(",") if o.strip())
        return cls(
            host=Host.parse(env.text("OLLAMA_HOST")),
            models=Path(env.text("OLLAMA_MODELS") or Path.home() / ".ollama" / "models"),
            keep_alive=env.duration("OLLAMA_KEEP_ALIVE", cls.keep_alive, forever_if=lambda ns: ns < 0),
            load_timeout=env.duration("OLLAMA_LOAD_TIMEOUT", cls.load_timeout, forever_if=lambda ns: ns <= 0),
            context_length=env.number("OLLAMA_CONTEXT_LENGTH", 0),
            num_parallel=env.number("OLLAMA_NUM_PARALLEL", 0),
            max_loaded_models=env.number("OLLAMA_MAX_LOADED_MODELS", 0),
            max_queue=env.number("OLLAMA_MAX_QUEUE", 512),
            origins=origins + LOCAL_ORIGINS,
            kv_cache_type=env.text("OLLAMA_KV_CACHE_TYPE").lower() or cls.kv_cache_type,
            go_template=env.flag("OLLAMA_GO_TEMPLATE", True),
            noprune=env.flag("OLLAMA_NOPRUNE"),
            nohistory=env.flag("OLLAMA_NOHISTORY"),
            editor=env.text("OLLAMA_EDITOR"),
            debug=env.debug(),
            debug_log_requests=env.flag("OLLAMA_DEBUG_LOG_REQUESTS"),
            without_effect=tuple(name for name in WITHOUT_EFFECT if env.text(name)),
            builtin=env.flag("NUMLLAMA_BUILTIN", True),
            server_files=env.flag("NUMLLAMA_SERVER_FILES"),
            vision_order=env.text("NUMLLAMA_VISION_ORDER") or cls.vision_order,
        )


class _Env:
    """Variables as Go's strconv and time read them."""

    def __init__(self, environ: Mapping[str, str]):
        self.environ = environ

    def text(self, name: str) -> str:
        return self.environ.get(name, "").strip(WHITE_SPACE).strip("\"'")

    def flag(self, name: str, default: bool = False) -> bool:
        text = self.text(name)
        return text not in FALSE if text else default

    def number(self, name: str, default: int) -> int:
        text = self.text(name)
        if text and not re.fullmatch("[0-9]+", text):
            log.warning("invalid environment variable, using default: key=%s value=%s default=%s", name, text, default)
        return int(text) if re.fullmatch("[0-9]+", text) else default

    def debug(self) -> int:
        text = self.text("OLLAMA_DEBUG")
        return int(text) if text.isdigit() else int(self.flag("OLLAMA_DEBUG"))

    def duration(self, name: str, default: int, forever_if) -> int:
        """A Go duration or a number of seconds; text that is neither is the default."""
        text = self.text(name)
        if not text:
            return default
        try:
            ns = int(text) * SECOND if re.fullmatch(r"[+-]?[0-9]+", text) else parse_duration(text)
        except BadOptions:
            return default
        return FOREVER if forever_if(ns) else min(ns, FOREVER)
