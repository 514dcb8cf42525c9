"""The body of /v1/messages, after the Go structs of Ollama's anthropic package; `engine/go/decode.py` decodes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass
class AnthropicMessage:
    go_name: ClassVar[str] = "anthropic.MessageParam"
    role: str = ""
    content: Any = None


@dataclass
class AnthropicTool:
    go_name: ClassVar[str] = "anthropic.Tool"
    type: str = ""
    name: str = ""
    description: str = ""
    input_schema: dict[str, Any] = field(default_factory=dict)


@dataclass
class Thinking:
    go_name: ClassVar[str] = "anthropic.ThinkingConfig"
    type: str = ""
    budget_tokens: int = 0


@dataclass
class Format:
    go_name: ClassVar[str] = "anthropic.OutputFormat"
    type: str = ""
    schema: Any = None


@dataclass
class OutputConfig:
    go_name: ClassVar[str] = "anthropic.OutputConfig"
    format: Format | None = None
    effort: str = ""


@dataclass
class MessagesRequest:
    """`system` and a message's content: a string or a list of blocks.  `options` is an extension: Ollama's options."""

    go_name: ClassVar[str] = "anthropic.MessagesRequest"
    model: str = ""
    max_tokens: int = 0
    messages: list[AnthropicMessage] = field(default_factory=list)
    system: Any = None
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] = field(default_factory=list)
    tools: list[AnthropicTool] = field(default_factory=list)
    tool_choice: Any = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    thread: Any = None
    options: dict[str, Any] = field(default_factory=dict)
