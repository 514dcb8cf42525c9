"""Every error the engine raises on purpose.

    EngineError
     +- ModelError        ModelNotFound  UnsupportedArchitecture  BadGGUF(path, offset)  BadManifest(path)
     +- RequestError      BadOptions  BadName  BadGrammar  BadTemplate  BadImage  ContextFull
     |                    BadDigest  DigestMismatch(expected, found)  BadModelfile  BuiltinModel  CloudModel  NotYet
     +- StoreError
     +- RegistryError     Unauthorized  WrongBlob(expected, found)
     +- CapacityError     QueueFull  OutOfMemory  LoadStalled(progress)
     +- Cancelled
     +- ShuttingDown

A message is one line: what was found, what was expected, and where.  Facts a caller could act on are attributes.
"""

from __future__ import annotations

import os


class EngineError(Exception):
    """The root: whatever derives from it is shown to people as its one line, without a traceback."""


class ModelError(EngineError):
    """The model itself is missing, broken, or of a kind that cannot run here."""


class ModelNotFound(ModelError):
    """No manifest in the store has this name."""

    def __init__(self, name: str, message: str | None = None):
        self.name = name
        super().__init__(message or f"model '{name}' not found")


class UnsupportedArchitecture(ModelError):
    """The GGUF is well formed, but no family here computes its architecture or its tensors."""

    def __init__(self, architecture: str, message: str):
        self.architecture = architecture
        super().__init__(message)


class BadGGUF(ModelError):
    """The file is not a GGUF that can be read: says where, what was found and what was expected."""

    def __init__(self, path: str | os.PathLike[str], offset: int, message: str):
        self.path, self.offset = os.fspath(path), offset
        super().__init__(f"{self.path}: at byte {offset}: {message}")


class BadManifest(ModelError):
    """A model's files in the store contradict each other: a manifest, or a blob that it names."""

    def __init__(self, path: str | os.PathLike[str], message: str):
        self.path = os.fspath(path)
        super().__init__(f"{self.path}: {message}")


class RequestError(EngineError):
    """What was asked for cannot be done as asked."""


class BadOptions(RequestError):
    """An option has the wrong type or an impossible value."""

    def __init__(self, option: str, message: str):
        self.option = option
        super().__init__(message)


class BadName(RequestError):
    """A model name that the grammar refuses."""

    def __init__(self, name: str, message: str = "invalid model name"):
        self.name = name
        super().__init__(message)


class BadModelfile(RequestError):
    """A Modelfile that does not parse, or asks for what is no instruction: in Ollama's words."""


class BadGrammar(RequestError):
    """A `format` that is none, or a JSON schema that no answer can be held to here: says by which keyword."""


class BadTemplate(RequestError):
    """A chat template that does not parse, or fails on this conversation."""


class BadImage(RequestError):
    """Bytes that are no JPEG, PNG or WebP image, a broken one, or one too large to unfold."""


class BadDigest(RequestError):
    """Text that is no sha256 digest."""

    def __init__(self, digest: str, message: str = "invalid digest format"):
        self.digest = digest
        super().__init__(message)


class DigestMismatch(RequestError):
    """Bytes that are not the ones their digest promises."""

    def __init__(self, expected: str, found: str):
        self.expected, self.found = expected, found
        super().__init__(f'digest mismatch, expected "{expected}", got "{found}"')


class BuiltinModel(RequestError):
    """A change to a model that ships with the program."""

    def __init__(self, name: str):
        self.name = name
        super().__init__(f"model '{name}' is built in and cannot be deleted; NUMLLAMA_BUILTIN=0 hides it")


class ContextFull(RequestError):
    """A prompt longer than the window, where cutting it was not allowed."""

    def __init__(self, n_prompt: int, n_ctx: int, message: str = "the input length exceeds the context length"):
        self.n_prompt, self.n_ctx = n_prompt, n_ctx
        super().__init__(message)


class CloudModel(RequestError):
    """A model that only runs on ollama.com."""


class NotYet(RequestError):
    """Something that Ollama does and this build does not yet: says what."""


class StoreError(EngineError):
    """The folder of models cannot be read or written: names the path and the system's reason."""


class RegistryError(EngineError):
    """A registry cannot be reached, refuses, or answers what it should not: says which blob, the status, what to do."""

    def __init__(self, message: str, status: int = 0):
        self.status = status
        super().__init__(message)


class Unauthorized(RegistryError):
    """A registry wants to know who asks, and nothing that this machine can say is enough."""


class WrongBlob(RegistryError):
    """A download that is not what its digest promises; nothing of it is kept."""

    def __init__(self, expected: str, found: str):
        self.expected, self.found = expected, found
        super().__init__(f"digest mismatch, file must be downloaded again: want {expected}, got {found}")


class CapacityError(EngineError):
    """The request is fine, the machine is not up to it now."""


class QueueFull(CapacityError):
    """More requests are waiting than the queue holds."""


class OutOfMemory(CapacityError):
    """An estimate says that the model or its cache will not fit."""

    def __init__(self, needed: int, available: int, message: str):
        self.needed, self.available = needed, available
        super().__init__(message)


class LoadStalled(CapacityError):
    """A load that got no further for OLLAMA_LOAD_TIMEOUT: in Ollama's words, the last blank included."""

    def __init__(self, progress: float):
        self.progress = progress
        super().__init__(f"timed out waiting for llama runner to start - progress {progress:.2f} - ")


class Cancelled(EngineError):
    """Whoever asked has gone."""

    def __init__(self, message: str = "request canceled"):
        super().__init__(message)


class ShuttingDown(EngineError):
    """The server was told to end while somebody waited for an answer."""

    def __init__(self, message: str = "the server is shutting down"):
        super().__init__(message)
