"""The wires of servers: how a request is written, and what each line of a stream means.

    ollama    /api/generate (raw), /api/chat, /api/embed
    openai    /v1/completions, /v1/chat/completions, /v1/embeddings: OpenAI's, vLLM's, llama-server's, numllama's
    llama     /completion of llama-server

A wire's `body` is a dict, its `parse` a function of one decoded line; neither sees a socket or a clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from ..engine.errors import RequestError
from .figures import ServerCounts


@dataclass(frozen=True)
class Prompted:
    """One request, before it takes the form of a wire.

    n          tokens to generate
    forced     how the server is made to generate exactly n: "ignore_eos", "logit_bias" or "" for not at all
    end_ids    tokens that end an answer, for "logit_bias"
    logprobs   ask for log-probabilities, which show the tokens of each chunk
    is_ordinary   sample at a temperature, without a seed, as people do
    turns      earlier messages of a conversation
    """

    prompt: str = ""
    n: int = 0
    kind: str = "completion"
    forced: str = ""
    end_ids: tuple[int, ...] = ()
    logprobs: bool = False
    turns: tuple[tuple[str, str], ...] = ()
    images: tuple[str, ...] = ()
    tools: Sequence[Any] = ()
    texts: tuple[str, ...] = ()
    n_ctx: int | None = None
    is_ordinary: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        return {"temperature": 0.7} if self.is_ordinary else {"temperature": 0, "seed": 1}

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": role, "content": text} for role, text in (*self.turns, ("user", self.prompt))]


@dataclass(frozen=True)
class StreamPart:
    """The meaning of one line of a stream."""

    text: str = ""
    n_token: int | None = None
    counts: ServerCounts | None = None
    error: str = ""
    is_last: bool = False


@dataclass(frozen=True)
class BenchWire:
    """A wire: where requests go, their bodies, and the meaning of a line.

    paths   of each kind of work
    """

    name: str
    paths: Mapping[str, str]
    body: Callable[[str, Prompted], dict[str, Any]]
    parse: Callable[[dict[str, Any]], StreamPart]


@dataclass(frozen=True)
class Contender:
    """A server, a model and settings under a name.

    settings   fields of the request's body (on Ollama's wire: of `options`)
    """

    name: str
    wire: BenchWire
    url: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        host = (parts.hostname or "").replace("localhost", "127.0.0.1")
        return host, parts.port or (443 if parts.scheme == "https" else 80)

    def path(self, kind: str) -> str:
        if kind not in self.wire.paths:
            raise RequestError(f"{self.name}: the wire '{self.wire.name}' has no {kind}; use openai or ollama")
        path = self.wire.paths[kind]
        base = self.url
        return base + (path.removeprefix("/v1") if base.endswith("/v1") else path)

    def write(self, prompted: Prompted) -> dict[str, Any]:
        """Return the body of a request, with the settings; a setting of null removes a field."""
        body = self.wire.body(self.model, prompted)
        if self.wire.name == "ollama":
            return body | {"options": {**body["options"], **self.settings}}
        return {key: value for key, value in {**body, **self.settings}.items() if value is not None}


def parse_contender(text: str, headers: Mapping[str, str], timeout_s: float) -> Contender:
    """Parse `name=wire+http://host:port?setting=value#model`.  Raises: RequestError"""
    form = "expected NAME=WIRE+http://HOST:PORT#MODEL, for example a=ollama+http://127.0.0.1:11434#primer"
    name, equals, rest = text.partition("=")
    wire, plus, url = rest.partition("+")
    if not (name and equals and plus):
        raise RequestError(f"'{text}' is not a server: {form}")
    if wire not in WIRES:
        raise RequestError(f"'{text}': unknown wire '{wire}'; choose from {', '.join(WIRES)}")
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise RequestError(f"'{text}': invalid port; {form}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise RequestError(f"'{text}' has no http address; {form}")
    if not parts.fragment and wire != "llama":
        raise RequestError(f"'{text}' names no model; {form}")
    settings = {key: setting_value(value) for key, value in parse_qsl(parts.query, keep_blank_values=True)}
    address = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return Contender(name, WIRES[wire], address, parts.fragment, settings, headers, timeout_s)


def setting_value(text: str) -> Any:
    """Parse a setting: JSON if it is, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- Ollama


def ollama_body(model: str, asked: Prompted) -> dict[str, Any]:
    """Write a request to Ollama's API."""
    if asked.kind == "embed":
        return {"model": model, "input": list(asked.texts), "options": {}}
    options: dict[str, Any] = {"num_predict": asked.n, **asked.sampling}
    options |= {"num_ctx": asked.n_ctx} if asked.n_ctx else {}
    if asked.forced == "ignore_eos":
        options["ignore_eos"] = True
    elif asked.forced == "logit_bias":
        options["logit_bias"] = {str(id): False for id in asked.end_ids}
    body: dict[str, Any] = {"model": model, "stream": True, "options": options}
    body |= {"logprobs": True} if asked.logprobs else {}
    if asked.kind == "completion":
        return body | {"prompt": asked.prompt, "raw": True} | ({"images": list(asked.images)} if asked.images else {})
    messages = asked.messages
    if asked.images:
        messages[-1]["images"] = list(asked.images)
    return body | {"messages": messages} | ({"tools": list(asked.tools)} if asked.tools else {})


def ollama_part(line: dict[str, Any]) -> StreamPart:
    """Read a line of an answer of Ollama's API."""
    if line.get("error"):
        return StreamPart(error=error_message(line["error"]))
    message = line.get("message") or {}
    text = (line.get("response") or "") + (line.get("thinking") or "")
    text += (message.get("content") or "") + (message.get("thinking") or "")
    text += "".join(json.dumps(call) for call in message.get("tool_calls") or ())
    logprobs = line.get("logprobs")
    n_token = len(logprobs) if isinstance(logprobs, list) else None
    if "embeddings" in line:
        return StreamPart("vector", 1, ServerCounts(line.get("prompt_eval_count"), 0), is_last=True)
    if not line.get("done"):
        return StreamPart(text, n_token)
    counts = ServerCounts(
        whole(line.get("prompt_eval_count")),
        whole(line.get("eval_count")),
        whole(line.get("prompt_eval_cached_count")),
        seconds_of(line.get("prompt_eval_duration"), 1e9),
        seconds_of(line.get("eval_duration"), 1e9),
        seconds_of(line.get("load_duration"), 1e9),
        str(line.get("done_reason") or ""),
    )
    return StreamPart(text, n_token, counts, is_last=True)


# --- OpenAI


def openai_body(model: str, asked: Prompted) -> dict[str, Any]:
    """Write a request to OpenAI's API."""
    if asked.kind == "embed":
        return {"model": model, "input": list(asked.texts)}
    body: dict[str, Any] = {"model": model, "max_tokens": asked.n, **asked.sampling}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if asked.forced == "ignore_eos":
        body |= {"ignore_eos": True, "min_tokens": asked.n}
    elif asked.forced == "logit_bias":
        body["logit_bias"] = {str(id): -100 for id in asked.end_ids}
    if asked.kind == "completion":
        return body | {"prompt": asked.prompt} | ({"logprobs": 1} if asked.logprobs else {})
    messages = asked.messages
    if asked.images:
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}} for data in asked.images]
        messages[-1]["content"] = [{"type": "text", "text": asked.prompt}, *parts]
    body |= {"logprobs": True} if asked.logprobs else {}
    return body | {"messages": messages} | ({"tools": list(asked.tools)} if asked.tools else {})


def openai_part(line: dict[str, Any]) -> StreamPart:
    """Read an event of an answer of OpenAI's API."""
    if line.get("error"):
        return StreamPart(error=error_message(line["error"]))
    if line.get("object") == "list" and "data" in line:
        return StreamPart("vector", 1, ServerCounts(whole((line.get("usage") or {}).get("prompt_tokens")), 0))
    text, n_token, reason = "", None, ""
    for choice in line.get("choices") or ():
        delta = choice.get("delta") or choice.get("message") or {}
        text += (choice.get("text") or "") + (delta.get("content") or "")
        text += delta.get("reasoning_content") or delta.get("reasoning") or ""
        for call in delta.get("tool_calls") or ():
            called = call.get("function") or {}
            text += (called.get("name") or "") + (called.get("arguments") or "")
        reason = choice.get("finish_reason") or reason
        logprobs = choice.get("logprobs") or {}
        tokens = logprobs.get("content") if isinstance(logprobs.get("content"), list) else logprobs.get("tokens")
        if isinstance(tokens, list):
            n_token = (n_token or 0) + len(tokens)
    usage, timings = line.get("usage") or {}, line.get("timings") or {}
    if not (usage or timings or reason):
        return StreamPart(text, n_token)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    counts = ServerCounts(
        whole(usage.get("prompt_tokens")),
        whole(usage.get("completion_tokens")),
        whole(cached if cached is not None else timings.get("cache_n")),
        seconds_of(timings.get("prompt_ms"), 1e3),
        seconds_of(timings.get("predicted_ms"), 1e3),
        reason=reason,
    )
    return StreamPart(text, n_token, counts)


# --- llama-server


def llama_body(model: str, asked: Prompted) -> dict[str, Any]:
    """Write a request to llama-server."""
    body: dict[str, Any] = {"prompt": asked.prompt, "n_predict": asked.n, "stream": True, **asked.sampling}
    body |= {"return_tokens": True}
    if asked.forced == "ignore_eos":
        body["ignore_eos"] = True
    elif asked.forced == "logit_bias":
        body["logit_bias"] = [[id, False] for id in asked.end_ids]
    return body


def llama_part(line: dict[str, Any]) -> StreamPart:
    """Read an event of an answer of llama-server."""
    if line.get("error"):
        return StreamPart(error=error_message(line["error"]))
    tokens = line.get("tokens")
    n_token = len(tokens) if isinstance(tokens, list) and tokens else None
    if not line.get("stop"):
        return StreamPart(line.get("content") or "", n_token)
    timings = line.get("timings") or {}
    cached = timings.get("cache_n")
    counts = ServerCounts(
        whole(line.get("tokens_evaluated")),
        whole(line.get("tokens_predicted")),
        whole(cached),
        seconds_of(timings.get("prompt_ms"), 1e3),
        seconds_of(timings.get("predicted_ms"), 1e3),
        reason=str(line.get("stop_type") or ""),
    )
    return StreamPart(line.get("content") or "", n_token, counts, is_last=True)


# --- values


MAX_COUNT, MAX_SECONDS = 1 << 40, 1e9  # of tokens, and of a request; more is not believed


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT else None


def seconds_of(value: Any, unit: float) -> float | None:
    return value / unit if isinstance(value, int | float) and 0 < value < MAX_SECONDS * unit else None


def error_message(error: Any) -> str:
    """Return the message of an error object of any wire, as one line."""
    return terminal_line(str(error.get("message") or error if isinstance(error, dict) else error))


def terminal_line(text: str) -> str:
    """Return a server's text as one line for a terminal: without control characters, and not too long."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:200]


WIRES = {
    "ollama": BenchWire(
        "ollama",
        {"completion": "/api/generate", "chat": "/api/chat", "embed": "/api/embed"},
        ollama_body,
        ollama_part,
    ),
    "openai": BenchWire(
        "openai",
        {"completion": "/v1/completions", "chat": "/v1/chat/completions", "embed": "/v1/embeddings"},
        openai_body,
        openai_part,
    ),
    "llama": BenchWire("llama", {"completion": "/completion"}, llama_body, llama_part),
}
