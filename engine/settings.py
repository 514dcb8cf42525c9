"""Settings from the environment: Ollama's `OLLAMA_*` variables and a few `NUMLLAMA_*` variables of our own.

Blanks, then quotes, are stripped from values.  An invalid boolean counts as true.  An invalid number or duration is
replaced by the default, so that the server always starts.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BadOptions, StoreError
from .go.duration import FOREVER, SECOND, parse_duration
from .go.text import WHITE_SPACE
from .options import FALSE

log = logging.getLogger(__name__)

TRACE = 5  # log level below DEBUG, which also logs prompts and answers

LOCAL_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for scheme in ("http", "https")
        for port in ("", ":*")
    ),
    *(f"{app}://*" for app in ("app", "file", "tauri", "vscode-webview", "vscode-file")),
)

WITHOUT_EFFECT = (  # for GPUs, the cloud and the choice of attention kernel; the last ones are obsolete in Ollama, too
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
    """The address that a server listens on or a client connects to: scheme://name:port/path."""

    scheme: str = "http"
    name: str = "127.0.0.1"
    port: int = 11434
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Host:
        """Parse `[scheme://]name[:port][/path]`; the port defaults to 11434, or to the scheme's port."""
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
        """The same host for a client, which cannot connect to an unspecified address such as 0.0.0.0."""
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
    """The settings, read once from the environment.  Durations are nanoseconds; FOREVER means unlimited."""

    host: Host = Host()
    models: Path = Path()
    keep_alive: int = 300 * SECOND
    load_timeout: int = 300 * SECOND
    context_length: int = 0  # 0: Options' default
    num_parallel: int = 0  # parallel sequences per model; 0: 4 if memory allows
    max_loaded_models: int = 0  # 0: 3, which is Ollama's default without a GPU
    max_queue: int = 512
    look_limit: int = 64  # MiB of an answer's `look`
    origins: tuple[str, ...] = LOCAL_ORIGINS
    kv_cache_type: str = "f16"
    kv_cache_ram: int = 512  # MiB for beginnings that lost their slot, per model
    kv_cache_dir: Path | None = None  # where they are saved; None: nowhere
    kv_cache_disk: int = 8192  # MiB of files there
    go_template: bool = True
    noprune: bool = False
    nohistory: bool = False
    editor: str = ""  # opened by Ctrl-G; takes precedence over VISUAL and EDITOR
    debug: int = 0  # 1 debug, 2 trace
    debug_log_requests: bool = False  # save request bodies in a temporary folder
    without_effect: tuple[str, ...] = ()  # Ollama's variables that are set, but have no effect here
    builtin: bool = True  # NUMLLAMA_BUILTIN: show the built-in model
    server_files: bool = False  # NUMLLAMA_SERVER_FILES: let clients name files of the server
    vision_order: str = "llama.cpp"  # NUMLLAMA_VISION_ORDER: position of CLIP's class token, see load_vision
    insecure_registries: tuple[str, ...] = ()  # NUMLLAMA_INSECURE_REGISTRIES: hosts that replicas pull from by HTTP

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings from `environ`; an invalid value is replaced by its default."""
        env = _Env(environ)
        origins = tuple(o.strip() for o in env.text("OLLAMA_ORIGINS").split(",") if o.strip())
        return cls(
            host=Host.parse(env.text("OLLAMA_HOST")),
            models=Path(env.text("OLLAMA_MODELS") or ollama_folder(environ) / "models"),
            keep_alive=env.duration("OLLAMA_KEEP_ALIVE", cls.keep_alive, forever_if=lambda ns: ns < 0),
            load_timeout=env.duration("OLLAMA_LOAD_TIMEOUT", cls.load_timeout, forever_if=lambda ns: ns <= 0),
            context_length=env.number("OLLAMA_CONTEXT_LENGTH", 0),
            num_parallel=env.number("OLLAMA_NUM_PARALLEL", 0),
            max_loaded_models=env.number("OLLAMA_MAX_LOADED_MODELS", 0),
            max_queue=env.number("OLLAMA_MAX_QUEUE", 512),
            look_limit=env.number("OLLAMA_LOOK_LIMIT", cls.look_limit),
            origins=origins + LOCAL_ORIGINS,
            kv_cache_type=env.text("OLLAMA_KV_CACHE_TYPE").lower() or cls.kv_cache_type,
            kv_cache_ram=env.number("OLLAMA_KV_CACHE_RAM", cls.kv_cache_ram),
            kv_cache_dir=expand_home(folder) if (folder := env.text("OLLAMA_KV_CACHE_DIR")) else None,
            kv_cache_disk=env.number("OLLAMA_KV_CACHE_DISK", cls.kv_cache_disk),
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
            insecure_registries=tuple(env.text("NUMLLAMA_INSECURE_REGISTRIES").replace(",", " ").split()),
        )


def home_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the user's home folder; None if neither HOME nor the system's list of users has one, as in a container."""
    if os.name == "nt":
        home = os.path.expanduser("~")
        return Path(home) if home != "~" else None
    if home := environ.get("HOME", ""):
        return Path(home)
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def ollama_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return ~/.ollama, the folder of models, keys and the input history.  Raises: StoreError without a home folder"""
    home = home_folder(environ)
    if home is None:
        raise StoreError(
            "the home folder is unknown, and with it ~/.ollama: set HOME, or OLLAMA_MODELS to a folder for models"
        )
    return home / ".ollama"


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Expand a leading ~; unlike Path.expanduser, keep it where the home folder is unknown."""
    first, *rest = Path(path).parts or ("",)
    if first == "~":
        return Path(home_folder() or first, *rest)
    return Path(os.path.expanduser(path))


class _Env:
    """Environment variables, parsed as Go's strconv and time packages do."""

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

    def duration(self, name: str, default: int, forever_if: Callable[[int], bool]) -> int:
        """Parse a Go duration or a number of seconds, in nanoseconds; return `default` if the text is invalid."""
        text = self.text(name)
        if not text:
            return default
        try:
            ns = int(text) * SECOND if re.fullmatch(r"[+-]?[0-9]+", text) else parse_duration(text)
        except BadOptions:
            return default
        return FOREVER if forever_if(ns) else min(ns, FOREVER)
