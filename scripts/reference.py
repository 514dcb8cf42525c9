"""Writes docs/reference/cli.md and docs/reference/http.md from the code; a test holds both up to date.

python scripts/reference.py

Commands, flags and their help come from the typer application; routes from the FastAPI routers; a body's fields, types
and defaults from the dataclass that decodes it.  The sentence beside each route and field stands in ROUTES and FIELDS.
"""

import json
import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer

from numllama.api.cli.commands import app
from numllama.api.server.app import ROUTERS
from numllama.api.wire.schema import KeepAlive, Think, Tool, Tools
from numllama.engine.options import Options

ROOT = Path(__file__).parents[1]

CLI_HEAD = """# Commands

Written by `scripts/reference.py` from `api/cli/commands.py`. `numllama COMMAND --help` prints the same. A command exits
with status 0, with 1 after one line `Error: ...` on standard error, or with 130 after Ctrl-C. Environment variables are
listed in [environment.md](../environment.md).
"""

HTTP_HEAD = """# HTTP API

Written by `scripts/reference.py` from the routers in `api/` and the dataclasses that decode request bodies. Bodies are
JSON, whatever their content type says. An unknown field is ignored, and an absent field has the default shown here;
where no default is shown, leaving the field out has a meaning of its own. Streams are lines of JSON on Ollama's routes
and server-sent events on OpenAI's and Anthropic's. An error is `{"error": "..."}` on Ollama's routes, and on the others
has the form of their own API.
"""

ROUTES = {  # "METHODS path": what the route does
    "GET HEAD /": "Say that the server runs: the text `Ollama is running`.",
    "GET HEAD /health": 'Say that the server runs: `{"status":"ok"}`, as llama-server does. Ollama lacks this route.',
    "GET HEAD /api/version": "Return the version of Ollama whose API this server follows.",
    "GET /api/status": "Say that models never run in a cloud.",
    "POST /api/generate": "Complete a prompt.",
    "POST /api/chat": "Answer a conversation.",
    "POST /api/embed": "Embed one text or several.",
    "POST /api/embeddings": "Embed one text, in the older form of the answer.",
    "GET HEAD /api/tags": "List the models in the store.",
    "GET /api/ps": "List the models that are loaded.",
    "POST /api/show": "Describe a model: Modelfile, parameters, template, metadata, capabilities.",
    "POST /api/copy": "Copy a model to another name.",
    "DELETE /api/delete": "Delete a model from disk.",
    "HEAD /api/blobs/{digest}": "Say whether the store has a blob: 200 or 404.",
    "POST /api/blobs/{digest}": "Store the body as a blob; its SHA-256 must be `digest`.",
    "POST /api/create": "Create a model from blobs, from another model or from a Modelfile.",
    "POST /api/pull": "Download a model from its registry.",
    "POST /api/push": "Upload a model to its registry.",
    "POST /api/tokenize": "Return a text's token ids and pieces. Ollama lacks this route.",
    "POST /api/detokenize": "Return the text of token ids. Ollama lacks this route.",
    "GET HEAD /learn": "Return the page that shows what a model computes (docs/learn.md).",
    "GET HEAD /learn/{path}": "Return a file of that page.",
    "GET /api/look/model": "Return a model's tensors by bytes, or a `block` of a `tensor` in bytes and numbers.",
    "GET /api/look/time": "Return the schedulers' last 2,000 steps and who shared them; also as `format=perfetto`.",
    "POST /api/look/run": 'Look at a position of an answer that `"look": {"keep": true}` held.',
    "POST /api/look/map": "Map the attention of a held answer: of a `head`, or small of all heads of a `layer`.",
    "GET /metrics": "Return counters and durations in Prometheus' text format. Ollama lacks this route.",
    "POST /v1/chat/completions": "Answer a conversation.",
    "POST /v1/responses": "Answer a conversation, in the form of OpenAI's Responses. Nothing is stored.",
    "POST /v1/completions": "Complete a prompt.",
    "POST /v1/embeddings": "Embed one text or several.",
    "GET /v1/models": "List the models in the store.",
    "GET /v1/models/{name}": "Describe one model.",
    "POST /v1/messages": "Answer a conversation.",
    "POST /v1/messages/count_tokens": "Count the tokens of a conversation's prompt; `max_tokens` is not needed.",
}

FIELDS = {  # "Class.field", or "field" where every class that has it means the same
    "model": "Name of the model",
    "name": "Older spelling of `model`",
    "stream": "Send the answer piece by piece",
    "options": "The [options](#options) of this request",
    "keep_alive": 'How long the model stays loaded afterwards: seconds or a duration such as `"5m"`; negative: forever',
    "format": 'Constrain the answer: `"json"` or a JSON schema',
    "think": "Whether a thinking model thinks first, or how hard",
    "truncate": "Shorten an input that does not fit into the window; `false`: refuse it",
    "shift": "Shift the window when it is full; `false`: end the answer there",
    "logprobs": "Return the log-probability of each token",
    "top_logprobs": "Return as many likeliest alternatives for each token, 0 to 20",
    "_debug_render_only": "Return the rendered prompt instead of an answer",
    "run": "Name of the held answer",
    "layer": "Layer, from 0",
    "head": "Head, from 0: its map in detail; without it, small maps of all heads of the layer",
    "position": "Place of a token; the step from it to the next one is shown",
    "look": "What to show of the computation: docs/learn.md. Ollama lacks this field",
    "prompt": "Text to complete",
    "suffix": "Text after the gap, for models that fill in the middle",
    "system": "System message, in place of the model's own",
    "template": "Prompt template, in place of the model's own",
    "context": "Token ids returned by an earlier answer, to continue it",
    "raw": "Use the prompt as it is, without template and context",
    "images": "Images, for models with vision",
    "messages": "The conversation, oldest message first",
    "tools": "Tools that the model may call",
    "dimensions": "Keep the first dimensions only, normalized again; 0: all",
    "verbose": "Also return tensors and long metadata values",
    "source": "Name of the model to copy",
    "destination": "Name of the copy",
    "insecure": "Allow a registry over plain HTTP",
    "username": "Has no effect",
    "password": "Has no effect",
    "tokens": "Token ids",
    "from": "Name of the model to start from",
    "files": "File name to blob digest, for the model's files",
    "draft_files": "File name to blob digest, for a smaller model that guesses the next tokens",
    "draft_quantize": "Type to quantize the draft model's weights to",
    "adapters": "File name to blob digest, for LoRA adapters",
    "license": "License text or a list of texts",
    "quantize": "Format to quantize to, for example `q4_K_M`",
    "quantization": "Older spelling of `quantize`",
    "renderer": "Stored with the model",
    "parser": "Stored with the model",
    "requires": "Stored with the model: the lowest version of Ollama that runs it",
    "info": "Stored with the model: further metadata",
    "modelfile": "Text of a Modelfile, in place of `from` and `files`",
    "path": "Path of a Modelfile on the server's disk; refused by default",
    "role": "`system`, `user`, `assistant` or `tool`",
    "content": "Text of the message",
    "thinking": "Thoughts of the model in an earlier turn",
    "tool_calls": "Calls that the model made in an earlier turn",
    "tool_name": "Name of the tool whose result this is",
    "tool_call_id": "Id of the call whose result this is",
    "id": "Id of the call",
    "function": "The function",
    "index": "Place among the calls of one answer",
    "arguments": "Arguments by name",
    "type": "`function`",
    "items": "Passed to the template",
    "stream_options": "Options of a stream",
    "max_tokens": "Tokens to generate at most",
    "max_completion_tokens": "Newer spelling of `max_tokens`",
    "max_output_tokens": "Tokens to generate at most",
    "n": "How many answers to give, 1 to 128; the seed of each is the one before plus 1",
    "min_tokens": "Tokens to generate at least, as in vLLM",
    "ignore_eos": "Never end the answer by an end-of-generation token, as in vLLM",
    "seed": "Seed of the sampling",
    "stop": "One text or several that end the answer",
    "stop_sequences": "Texts that end the answer",
    "temperature": "Randomness of the sampling; 0: greedy",
    "top_p": "Sample among the likeliest tokens whose probabilities add up to this",
    "top_k": "Sample among this many likeliest tokens",
    "frequency_penalty": "Lower a token's logit by this for each time it occurred",
    "presence_penalty": "Lower a token's logit by this if it occurred",
    "logit_bias": "Token id to a number added to its logit",
    "response_format": "Constrain the answer: JSON or a JSON schema",
    "json_schema": "The schema, if `type` is `json_schema`",
    "schema": "A JSON schema",
    "strict": "Repeated in the answer: a schema is always enforced",
    "tool_choice": "Whether a tool must or must not be called, and which",
    "reasoning": "Whether and how hard to think first",
    "reasoning_effort": "How hard to think first: `none`, `low`, `medium`, `high`",
    "effort": "How hard to think first: `none`, `low`, `medium`, `high`",
    "summary": "Repeated in the answer",
    "include_usage": "End the stream with the number of tokens",
    "echo": "Begin the answer with the prompt; with `logprobs` and `max_tokens` 0, score it",
    "encoding_format": '`"float"` or `"base64"`',
    "instructions": "System message",
    "truncation": "Repeated in the answer",
    "text": "Form of the text",
    "previous_response_id": "Refused: nothing is stored",
    "description": "What the function does, for the model",
    "parameters": "JSON schema of the arguments",
    "input_schema": "JSON schema of the arguments",
    "budget_tokens": "Has no effect",
    "output_config": "Form of the text",
    "thread": "Refused",
    "add_special": "Add the tokens that begin and end a prompt",
    "parse_special": "Read the names of special tokens in the text as these tokens",
    "ResponseFormat.type": "`text`, `json_object` or `json_schema`",
    "TextFormat.type": "`text`, `json_object` or `json_schema`",
    "Format.type": "`json_schema`",
    "Thinking.type": "`enabled`, `adaptive` or `disabled`",
    "AnthropicTool.type": "`custom`",
    "Tool.function": "`name`, `description` and `parameters`, the JSON schema of the arguments",
    "ShowRequest.system": "Show the Modelfile with this system message",
    "ShowRequest.template": "Has no effect",
    "ShowRequest.options": "Show the Modelfile with these parameters",
    "CreateRequest.system": "System message of the model",
    "CreateRequest.template": "Prompt template of the model",
    "CreateRequest.parameters": "Options stored with the model",
    "CreateRequest.messages": "Messages that precede every conversation",
    "TokenizeRequest.content": "Text to tokenize",
    "TokenizeRequest.text": "Other spelling of `content`",
    "TokenizeRequest.prompt": "Other spelling of `content`",
    "EmbedRequest.input": "One text or a list of texts",
    "OpenAIEmbedRequest.input": "A text, its token ids, or a list of several of either",
    "EmbeddingRequest.prompt": "Text to embed",
    "ResponsesRequest.input": "Text, or a list of items: messages, calls and their results, reasoning",
    "CompletionRequest.prompt": "Text to complete; token ids; or a list of several of either",
    "ResponseFormat.schema": "The schema, in llama-server's spelling",
    "CompletionRequest.logprobs": "Return the log-probabilities of this many likeliest tokens at each place",
    "OpenAIMessage.content": "Text, or a list of parts: text and images",
    "OpenAIMessage.reasoning": "Thoughts of the model in an earlier turn",
    "OpenAIMessage.name": "Name of the tool whose result this is",
    "OpenAIFunction.name": "Name of the function",
    "OpenAIFunction.arguments": "Arguments as JSON text",
    "ToolCallFunction.name": "Name of the function",
    "FunctionTool.name": "Name of the function",
    "TextFormat.name": "Repeated in the answer",
    "TextOptions.format": "Constrain the answer to a JSON schema",
    "OutputConfig.format": "Constrain the answer to a JSON schema",
    "AnthropicMessage.content": "Text, or a list of blocks: text, images, tool calls and results, thinking",
    "AnthropicTool.name": "Name of the tool",
    "AnthropicTool.description": "What the tool does, for the model",
    "MessagesRequest.system": "System message: text or a list of text blocks",
    "MessagesRequest.thinking": "Whether to think first",
}

OPTIONS = {
    "num_ctx": "Size of the window in tokens; at most what the model was trained on",
    "num_batch": "Prompt tokens evaluated at once; results do not depend on it",
    "num_gpu": "Accepted for Ollama's clients; a different value reloads the model",
    "main_gpu": "As `num_gpu`",
    "use_mmap": "As `num_gpu`",
    "num_thread": "Threads; 0: one for each core",
    "draft_num_predict": "Guesses of a draft model for one pass, at most; 0: 4. A different value reloads the model",
    "num_keep": "Tokens at the beginning that a shift of the window keeps",
    "num_predict": "Tokens to generate at most; 0 and below: no limit",
    "ignore_eos": "Never sample an end-of-generation token. Ollama lacks this option",
    "min_tokens": "Sample no end-of-generation token before this many tokens. Ollama lacks this option",
    "speculate": (
        "How next tokens are guessed, several to a pass, which changes no bit of the answer: `auto` where it pays, "
        "`ngram` at every repetition, or `off`; set, the last object tells `draft_tokens` and `draft_accepted_tokens`. "
        "Ollama lacks this option"
    ),
    "stop": "Texts that end the answer",
    "seed": "Seed of the sampling; -1: a different one for each request",
    "logit_bias": "Token id to a number added to its logit, or `false` to exclude the token. Ollama lacks this option",
    "repeat_last_n": "How many tokens the penalties look back; 0: off, -1: `num_ctx`",
    "repeat_penalty": "Divide the logits of repeated tokens by this; 1: off",
    "presence_penalty": "Lower a token's logit by this if it occurred",
    "frequency_penalty": "Lower a token's logit by this for each time it occurred",
    "top_k": "Sample among this many likeliest tokens; 0 and below: off",
    "tfs_z": "Tail-free sampling; 1: off",
    "typical_p": "Locally typical sampling; 1: off",
    "top_p": "Sample among the likeliest tokens whose probabilities add up to this; 1: off",
    "min_p": "Drop tokens less likely than this fraction of the likeliest one; 0: off",
    "temperature": "Randomness of the sampling; 0 and below: greedy",
    "mirostat": "1 or 2: Mirostat in place of `top_k` to `min_p`; 0: off",
    "mirostat_tau": "Mirostat's target surprise",
    "mirostat_eta": "Mirostat's learning rate",
}

WIRES = {"ollama": "Ollama", "server": "Ollama", "learn": "The page", "openai": "OpenAI", "anthropic": "Anthropic"}
JSON_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    bytes: "base64 text",
    Any: "any",
    KeepAlive: "duration",
    Think: "boolean or text",
}


def cli_document() -> str:
    """The text of docs/reference/cli.md."""
    group = typer.main.get_command(app)
    parts = [CLI_HEAD, _flags(group)]
    for name, command in group.commands.items():
        metavars = [param.metavar for param in command.params if param.param_type_name == "argument" and param.metavar]
        usage = " ".join(["numllama", name, *metavars])
        parts.append(f"\n## {name}\n\n```\n{usage}\n```\n\n{command.help.strip()}\n{_flags(command)}")
    return "".join(parts)


def _flags(command) -> str:
    rows = []
    for param in command.params:
        if param.param_type_name != "option" or param.name == "help" or param.hidden:
            continue
        takes = "" if getattr(param, "is_flag", False) else f" {param.metavar or 'VALUE'}"
        flags = ", ".join(f"`{flag}{takes}`" for flag in param.opts)
        default = param.default
        shown = f"`{default}`" if default is not False and isinstance(default, str | int) and default != "" else ""
        rows.append(f"| {_cell(flags)} | {_cell(param.help or '')} | {_cell(shown)} |\n")
    return "\n| flag | what it does | default |\n|---|---|---|\n" + "".join(rows) if rows else ""


def http_document() -> str:
    """The text of docs/reference/http.md."""
    parts, wire = [HTTP_HEAD], ""
    printed: set[type] = set()
    routes = sorted(
        ((route, WIRES[route.endpoint.__module__.split(".")[2]]) for router in ROUTERS for route in router.routes),
        key=lambda pair: list(dict.fromkeys(WIRES.values())).index(pair[1]),
    )
    shown: dict[type, None] = {}  # the bodies' inner classes, in order
    for route, of_wire in routes:
        if of_wire != wire:
            parts += [_bodies(shown), f"\n## {of_wire}'s routes\n"]
            printed |= set(shown)
            shown, wire = {}, of_wire
        key = " ".join([*sorted(route.methods), route.path.replace(":path", "")])
        parts.append(f"\n### {key}\n\n{ROUTES[key]}\n")
        if body := _body(route.endpoint):
            parts.append(_table(body))
            shown |= {cls: None for cls in _inner(body) if cls not in printed}
    parts += [_bodies(shown), _options()]
    return "".join(parts)


def _body(endpoint) -> type | None:
    """The dataclass that decodes the body of a request to `endpoint`, or None."""
    hint = get_type_hints(endpoint).get("request")
    return hint if is_dataclass(hint) else None


def _inner(cls: type) -> list[type]:
    """The dataclasses that fields of `cls` hold, and those within these."""
    found: list[type] = []
    for hint in get_type_hints(cls).values():
        for part in (hint, *get_args(hint)):
            part = Tool if part is Tools else part
            if is_dataclass(part):
                found += [part, *_inner(part)]
    return found


def _bodies(classes) -> str:
    parts = [f"\n### {cls.__name__}\n" + _table(cls) for cls in classes]
    return "".join(parts)


def _table(cls: type) -> str:
    hints, rows = get_type_hints(cls), []
    for field in fields(cls):
        key = field.metadata.get("json", field.name)
        about = FIELDS.get(f"{cls.__name__}.{key}") or FIELDS[key]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        shown = "" if default is None or is_dataclass(default) else f"`{json.dumps(default)}`"
        rows.append(f"| `{key}` | {_cell(_kind(hints[field.name]))} | {_cell(shown)} | {_cell(about)} |\n")
    return "\n| field | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _kind(hint: Any) -> str:
    """A type in JSON's words; a dataclass as a link to its table."""
    if hint in JSON_TYPES:
        return JSON_TYPES[hint]
    if hint is Tools:
        return f"list of {_kind(Tool)}"
    if is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is list:
        return f"list of {_kind(get_args(hint)[0])}"
    return "object"


def _options() -> str:
    rows = []
    for option in fields(Options):
        shown = "" if option.default is None else f"`{json.dumps(option.default)}`"
        rows.append(f"| `{option.name}` | {shown} | {_cell(OPTIONS[option.name])} |\n")
    head = "\n## Options\n\nWhat `options` may hold: a Modelfile's `PARAMETER`s under the same names.\n"
    return head + "\n| option | default | meaning |\n|---|---|---|\n" + "".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / "docs/reference/cli.md").write_text(cli_document())
    (ROOT / "docs/reference/http.md").write_text(http_document())
