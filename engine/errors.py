"""Every error that the engine raises on purpose.

    EngineError
     +- ModelError        ModelNotFound  UnsupportedArchitecture  BadGGUF(path, offset)  BadManifest(path)
     +- RequestError      BadOptions  BadName  BadGrammar  BadTemplate  BadImage  ContextFull
     |                    ConversationRefused, a BadTemplate  LookTooLarge(needed)
     |                    BadDigest  DigestMismatch(expected, found)  BadModelfile  BuiltinModel  CloudModel  NotYet
     +- StoreError
     +- RegistryError     Unauthorized  WrongBlob(expected, found)
     +- CapacityError     QueueFull  OutOfMemory  LoadStalled(progress)
     +- Cancelled
     +- ShuttingDown

A message is one line: the value found, the value expected, and the place.
Facts that a caller can act on are attributes.
"""

from __future__ import annotations

import os


class EngineError(Exception):
    """Root of the tree.  The CLI and the server show its one-line message without a traceback."""


class ModelError(EngineError):
    """The model is missing, broken or unsupported."""


class ModelNotFound(ModelError):
    """The store has no manifest with this name."""

    def __init__(self, name: str, message: str | None = None):
        self.name = name
        super().__init__(message or f"model '{name}' not found")


class UnsupportedArchitecture(ModelError):
    """The GGUF is valid, but its architecture or one of its tensors is unsupported."""

    def __init__(self, architecture: str, message: str):
        self.architecture = architecture
        super().__init__(message)


class BadGGUF(ModelError):
    """The file is not a valid GGUF; the message names the byte, the value found and the value expected."""

    def __init__(self, path: str | os.PathLike[str], offset: int, message: str):
        self.path, self.offset = os.fspath(path), offset
        super().__init__(f"{self.path}: at byte {offset}: {message}")


class BadManifest(ModelError):
    """A manifest is invalid, or contradicts a blob that it names."""

    def __init__(self, path: str | os.PathLike[str], message: str):
        self.path = os.fspath(path)
        super().__init__(f"{self.path}: {message}")


class RequestError(EngineError):
    """The request is invalid or cannot be carried out."""


class BadOptions(RequestError):
    """An option has the wrong type or an impossible value."""

    def __init__(self, option: str, message: str):
        self.option = option
        super().__init__(message)


class BadName(RequestError):
    """The model name is invalid."""

    def __init__(self, name: str, message: str = "invalid model name"):
        self.name = name
        super().__init__(message)


class BadModelfile(RequestError):
    """The Modelfile does not parse, or has an unknown instruction.  The text is Ollama's."""


class BadGrammar(RequestError):
    """`format` is invalid, or its schema uses an unsupported keyword; the message names it."""


class BadTemplate(RequestError):
    """The chat template does not parse, or fails on this conversation."""


class ConversationRefused(BadTemplate):
    """The chat template is sound, but refuses this conversation: the message is the template's own."""


class BadImage(RequestError):
    """The bytes are not a JPEG, PNG or WebP image, or the image is broken or too large to decode."""


class BadDigest(RequestError):
    """The text is not a SHA-256 digest."""

    def __init__(self, digest: str, message: str = "invalid digest format"):
        self.digest = digest
        super().__init__(message)


class DigestMismatch(RequestError):
    """The uploaded bytes do not have the expected digest."""

    def __init__(self, expected: str, found: str):
        self.expected, self.found = expected, found
        super().__init__(f'digest mismatch, expected "{expected}", got "{found}"')


class BuiltinModel(RequestError):
    """The model ships with the program and cannot be changed."""

    def __init__(self, name: str):
        self.name = name
        super().__init__(f"model '{name}' is built in and cannot be deleted; NUMLLAMA_BUILTIN=0 hides it")


class ContextFull(RequestError):
    """The prompt is longer than the context window, and the request forbids truncation."""

    def __init__(self, n_prompt: int, n_ctx: int, message: str = "the input length exceeds the context length"):
        self.n_prompt, self.n_ctx = n_prompt, n_ctx
        super().__init__(message)


class LookTooLarge(RequestError):
    """The values that a look wants take more bytes than OLLAMA_LOOK_LIMIT allows; `needed` MiB would do."""

    def __init__(self, needed: int, message: str):
        self.needed = needed
        super().__init__(message)


class CacheLost(EngineError):
    """A process that held a part of the cache has ended; every answer under way has to be asked for again."""


class CloudModel(RequestError):
    """The model runs only on ollama.com."""


class NotYet(RequestError):
    """Ollama supports this request and this build does not yet; the message names the feature."""


class StoreError(EngineError):
    """The models folder cannot be read or written; the message has the path and the system's reason."""


class RegistryError(EngineError):
    """The registry is unreachable, refuses the request or sends an invalid response.

    status   the HTTP status; 0 if there was no response
    """

    def __init__(self, message: str, status: int = 0):
        self.status = status
        super().__init__(message)


class Unauthorized(RegistryError):
    """The registry requires authentication, and every available credential was rejected."""


class WrongBlob(RegistryError):
    """The downloaded bytes do not have the expected digest; they are deleted."""

    def __init__(self, expected: str, found: str):
        self.expected, self.found = expected, found
        super().__init__(f"digest mismatch, file must be downloaded again: want {expected}, got {found}")


class CapacityError(EngineError):
    """The request is valid, but the server lacks the capacity for it now."""


class QueueFull(CapacityError):
    """The queue of waiting requests is full."""


class OutOfMemory(CapacityError):
    """The model and its cache are estimated not to fit into memory.

    needed, available   bytes
    """

    def __init__(self, needed: int, available: int, message: str):
        self.needed, self.available = needed, available
        super().__init__(message)


class LoadStalled(CapacityError):
    """Loading made no progress for OLLAMA_LOAD_TIMEOUT.  The text is Ollama's, including the trailing blank."""

    def __init__(self, progress: float):
        self.progress = progress
        super().__init__(f"timed out waiting for llama runner to start - progress {progress:.2f} - ")


class Cancelled(EngineError):
    """The client disconnected."""

    def __init__(self, message: str = "request canceled"):
        super().__init__(message)


class ShuttingDown(EngineError):
    """The server shut down before the request was finished."""

    def __init__(self, message: str = "the server is shutting down"):
        super().__init__(message)


def system_error_line(error: BaseException) -> str | None:
    """Return one line for an error that the machine causes, not a fault of this program; None for any other error.

    Out of memory, a file or device that fails, and Python's limit on nesting.
    """
    match error:
        case MemoryError():
            return "out of memory"
        case RecursionError():
            return "nested too deeply for this program"
        case OSError() if error.strerror:
            where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
            return f"{where}{error.strerror.lower()}"
    return None
