"""Request bodies of OpenAI's API, after the Go structs of Ollama's openai package; `engine/go/decode.py` decodes them.

A field of type Any has several forms: a string or a list of parts, one stop string or several.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..wire.schema import Tools


@dataclass
class OpenAIFunction:
    name: str = ""
    arguments: str = ""


@dataclass
class OpenAIToolCall:
    go_name: ClassVar[str] = "openai.ToolCall"
    id: str = ""
    index: int = 0
    type: str = ""
    function: OpenAIFunction = field(default_factory=OpenAIFunction)


@dataclass
class OpenAIMessage:
    go_name: ClassVar[str] = "openai.Message"
    role: str = ""
    content: Any = None
    reasoning: str = ""
    tool_calls: list[OpenAIToolCall] = field(default_factory=list)
    name: str = ""
    tool_call_id: str = ""


@dataclass
class JsonSchema:
    go_name: ClassVar[str] = "openai.JsonSchema"
    schema: Any = None


@dataclass
class ResponseFormat:
    """`schema` is llama-server's spelling of json_schema.schema."""

    go_name: ClassVar[str] = "openai.ResponseFormat"
    type: str = ""
    json_schema: JsonSchema | None = None
    schema: Any = None


@dataclass
class StreamOptions:
    go_name: ClassVar[str] = "openai.StreamOptions"
    include_usage: bool = False


@dataclass
class Reasoning:
    go_name: ClassVar[str] = "openai.Reasoning"
    effort: str = ""
    summary: str = ""


@dataclass
class OpenAIRequest:
    """The fields common to both kinds of completion.

    `options` is an extension: Ollama's options, which take precedence over the other fields.
    """

    model: str = ""
    n: int | None = None
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    stop: Any = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Any = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ChatCompletionRequest(OpenAIRequest):
    go_name: ClassVar[str] = "openai.ChatCompletionRequest"
    messages: list[OpenAIMessage] = field(default_factory=list)
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    tools: Tools = field(default_factory=Tools)
    tool_choice: Any = None
    reasoning: Reasoning | None = None
    reasoning_effort: str | None = None
    logprobs: bool = False
    top_logprobs: int | None = None


@dataclass
class CompletionRequest(OpenAIRequest):
    """`prompt`: a string, a list of token ids, or a list of several prompts (of strings only with `echo`)."""

    go_name: ClassVar[str] = "openai.CompletionRequest"
    prompt: Any = ""
    suffix: str = ""
    echo: bool = False
    logprobs: int | None = None


@dataclass
class OpenAIEmbedRequest:
    """`input`: a string, a list of token ids, or a list of several of either."""

    go_name: ClassVar[str] = "openai.EmbedRequest"
    model: str = ""
    input: Any = None
    dimensions: int = 0
    encoding_format: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TextFormat:
    go_name: ClassVar[str] = "openai.ResponsesTextFormat"
    type: str = ""
    name: str = ""
    schema: Any = None
    strict: bool | None = None


@dataclass
class TextOptions:
    go_name: ClassVar[str] = "openai.ResponsesText"
    format: TextFormat | None = None


@dataclass
class FunctionTool:
    go_name: ClassVar[str] = "openai.ResponsesTool"
    type: str = ""
    name: str = ""
    description: str | None = None
    strict: bool | None = None
    parameters: dict[str, Any] | None = None


@dataclass
class ResponsesRequest:
    """`input`: a string, or a list of items: messages, tool calls and their results, reasoning."""

    go_name: ClassVar[str] = "openai.ResponsesRequest"
    model: str = ""
    input: Any = None
    instructions: str = ""
    stream: bool = False
    tools: list[FunctionTool] = field(default_factory=list)
    tool_choice: Any = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    truncation: str | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    previous_response_id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
