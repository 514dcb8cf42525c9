"""Request bodies, after the Go structs of Ollama's api package; `engine/go/decode.py` decodes them.

A default is the value of a missing field.  It is None where "missing" has a meaning of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...engine.errors import BadOptions
from ...engine.go.duration import parse_keep_alive
from ...engine.go.json import DecodeError


class KeepAlive(int):
    """How long a model stays loaded, in nanoseconds; in JSON, seconds or a Go duration."""

    @classmethod
    def from_json(cls, value: Any) -> int:
        try:
            return parse_keep_alive(value)
        except BadOptions as error:
            raise DecodeError(str(error)) from None


class Think(str):
    """Whether a thinking model thinks: a boolean, or a level."""

    @classmethod
    def from_json(cls, value: Any) -> bool | str:
        words = '"high", "medium", "low", "max", true, or false'
        if isinstance(value, bool):
            return value
        if value in ("high", "medium", "low", "max"):
            return str(value)
        if isinstance(value, str):
            raise DecodeError(f'invalid think value: "{value}" (must be {words})')
        raise DecodeError(f"think must be a boolean or string ({words})")


class Arguments(dict[str, Any]):
    """The arguments of a tool call, in the order they were sent."""

    @classmethod
    def from_json(cls, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DecodeError("Value looks like object, but can't find closing '}' symbol")
        return value


@dataclass
class ToolCallFunction:
    index: int = 0
    name: str = ""
    arguments: Arguments = field(default_factory=Arguments)


@dataclass
class ToolCall:
    id: str = ""
    function: ToolCallFunction = field(default_factory=ToolCallFunction)


@dataclass
class Message:
    """One turn of a conversation."""

    go_alias: ClassVar[str] = "api.Alias"  # Go decodes it under this name, to lower the role's case first
    role: str = ""
    content: str = ""
    thinking: str = ""
    images: list[bytes] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""

    def __post_init__(self) -> None:
        self.role = self.role.lower()


class ToolFunction(dict[str, Any]):
    """An offered function as it was sent, since Jinja templates print all of it; its texts are checked."""

    texts: ClassVar[tuple[str, ...]] = ("name", "description")


@dataclass
class Tool:
    type: str = ""
    items: Any = None
    function: ToolFunction = field(default_factory=ToolFunction)


class Tools(list[Tool]):
    go_name: ClassVar[str] = "api.Tools"
    item: ClassVar[type] = Tool


@dataclass
class AnswerRequest:
    """The fields common to generate and chat requests."""

    model: str = ""
    stream: bool = True
    format: Any = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] = field(default_factory=dict)
    think: Think | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = field(default=False, metadata={"json": "_debug_render_only"})
    look: Any = None


@dataclass
class GenerateRequest(AnswerRequest):
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] | None = None
    raw: bool = False
    images: list[bytes] = field(default_factory=list)


@dataclass
class ChatRequest(AnswerRequest):
    messages: list[Message] = field(default_factory=list)
    tools: Tools = field(default_factory=Tools)


@dataclass
class LookAgainRequest:
    run: str = ""
    position: int = 0
    look: Any = None


@dataclass
class LookMapRequest:
    run: str = ""
    layer: int = 0
    head: int | None = None


@dataclass
class EmbedRequest:
    """`input`: a string or a list of strings."""

    model: str = ""
    input: Any = None
    keep_alive: KeepAlive | None = None
    truncate: bool = True
    dimensions: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class EmbeddingRequest:
    model: str = ""
    prompt: str = ""
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class NameRequest:
    """A request that names a model in `model`, or in the older field `name`."""

    model: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        self.model = self.model or self.name


@dataclass
class ShowRequest(NameRequest):
    verbose: bool = False
    system: str = ""
    template: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DeleteRequest(NameRequest):
    pass


@dataclass
class CopyRequest:
    source: str = ""
    destination: str = ""


@dataclass
class PullRequest(NameRequest):
    insecure: bool = False
    stream: bool = True
    username: str = ""  # accepted and ignored, as in Ollama
    password: str = ""


@dataclass
class PushRequest(PullRequest):
    pass


@dataclass
class TokenizeRequest(NameRequest):
    """`text` and `prompt` are other names for `content`, from earlier proposals."""

    content: str = ""
    text: str = ""
    prompt: str = ""
    add_special: bool = False
    parse_special: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.content = self.content or self.text or self.prompt


@dataclass
class DetokenizeRequest(NameRequest):
    tokens: list[int] = field(default_factory=list)


@dataclass
class CreateRequest(NameRequest):
    from_: str = field(default="", metadata={"json": "from"})
    files: dict[str, str] | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    draft_files: dict[str, str] = field(default_factory=dict)
    draft_quantize: str = ""
    template: str = ""
    system: str = ""
    license: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    quantize: str = ""
    quantization: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    modelfile: str = ""
    path: str = ""
    stream: bool = True
