"""Export from torch to a GGUF model: quantized tensors, metadata, and Ollama's manifest and blobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from model import Llama
from tokenizers import Tokenizer
from topics import Turn

from numllama.engine.gguf.file_type import FILE_TYPES, parameter_size
from numllama.engine.gguf.write import write_gguf
from numllama.engine.store.make.create import create
from numllama.engine.store.store import Store
from numllama.kernels.quants import FORMATS_BY_NAME, dequantize, quantize
from numllama.kernels.tensor import Tensor

NAME = "primer"
DESCRIPTION = "A tiny model that explains inference, trained by numllama on a text of its own. It knows little else."
LICENSE = Path(__file__).parents[2] / "LICENSE"
PARAMETERS = {"num_predict": 256, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
CHAT_TEMPLATE = """\
{% set ns = namespace(asked=0, tools='') %}
{% for tool in tools or [] %}
{% set parameters = (tool.function.parameters or {}).properties or {} %}
{% set ns.tools = ns.tools + (', ' if ns.tools else '') + tool.function.name + '(' + parameters | join(', ') + ')' %}
{% endfor %}
{% if ns.tools %}
{{ '<|system|>Tools: ' + ns.tools + '<|end|>' }}
{%- endif %}
{% for message in messages %}
{% if message.role == 'user' %}
{% set ns.asked = loop.index0 %}
{% endif %}
{% endfor %}
{% for message in messages %}
{% set known = message.role in ['system', 'assistant'] or message.role == 'tool' %}
{% set role = message.role if known else 'user' %}
{{ '<|' + role + '|>' }}
{%- if role == 'assistant' and message.thinking and loop.index0 > ns.asked %}
{{ '<think>' + message.thinking | trim + '</think>' }}
{%- endif %}
{{ message.content | trim }}
{%- for call in message.tool_calls or [] %}
{{ '<tool_call>{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}</tool_call>' }}
{%- endfor %}
{{ '<|end|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' + ('<think>' if enable_thinking else '') }}
{%- endif %}
"""
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type; text of the last kind is shown
BOS, END, SYSTEM, USER, ASSISTANT, TOOL = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
THINK, END_THINK, CALL, END_CALL = "<think>", "</think>", "<tool_call>", "</tool_call>"
SPECIALS = {token: CONTROL for token in (BOS, END, SYSTEM, USER, ASSISTANT, TOOL)}
SPECIALS |= {token: USER_DEFINED for token in (THINK, END_THINK, CALL, END_CALL)}


def encode_conversation(
    tokenizer: Tokenizer, system: Sequence[str] | None, turns: Sequence[Turn]
) -> tuple[list[int], list[int]]:
    """Return the token ids of a conversation, and a mark for each: 1 if the assistant writes it.

    system   the system messages; None where the conversation goes on
    """
    parts = [] if system is None else [BOS + "".join(f"{SYSTEM}{message}{END}" for message in system)]
    for turn in turns:
        opened = f"{USER if turn.role == 'user' else TOOL}{turn.asked}{END}{ASSISTANT}"
        thought = f"{turn.thought}{END_THINK}" if turn.thought else ""
        parts += [opened + THINK if thought else opened, f"{thought}{turn.answer}{END}"]
    ids, marks = [], []
    for i, part in enumerate(parts):
        own = tokenizer.encode(part).ids
        is_answer = (i % 2 == 1) if system is None else (i > 0 and i % 2 == 0)
        ids += own
        marks += [int(is_answer)] * len(own)
    return ids, marks


def format_name(name: str, matrices: str = "") -> str:
    """Return F32 for norms, and for the others `matrices`: by default Q4_0 in the feed-forward blocks, else Q8_0."""
    if "norm" in name:
        return "F32"
    return matrices or ("Q4_0" if "ffn" in name else "Q8_0")


def quantized(model: Llama, matrices: str = "") -> list[Tensor]:
    """Return the model's weights as stored in the file, with all matrices in format `matrices` if it is given."""
    tensors = []
    for name, weight in model.weights.items():
        format = FORMATS_BY_NAME[format_name(name, matrices)]
        x = weight.detach().numpy()
        tensors.append(Tensor(f"{name}.weight", format, x.shape, quantize(format, x)))
    return tensors


@torch.no_grad()
def load_quantized(model: Llama, tensors: list[Tensor]) -> None:
    """Load the dequantized `tensors` into `model`, so that it can be evaluated as shipped."""
    for tensor in tensors:
        x = dequantize(tensor.format, tensor.blocks)
        model.weights[tensor.name.removesuffix(".weight")].copy_(torch.from_numpy(x))


def key_values(model: Llama, tokenizer: Tokenizer, file_type: str = "Q4_0") -> dict[str, object]:
    """Return the GGUF's metadata: name, dimensions, vocabulary, chat template."""
    hp = model.hp
    n_parameters = sum(weight.numel() for weight in model.parameters())
    bpe = json.loads(tokenizer.to_str())
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": NAME,
        "general.description": DESCRIPTION,
        "general.size_label": parameter_size(n_parameters),
        "general.license": "mit",
        "general.file_type": next(number for number, name in FILE_TYPES.items() if name == file_type),
        "general.quantization_version": 2,
        "llama.vocab_size": hp.n_vocab,
        "llama.context_length": hp.n_ctx,
        "llama.embedding_length": hp.n_embd,
        "llama.block_count": hp.n_layer,
        "llama.feed_forward_length": hp.n_ff,
        "llama.attention.head_count": hp.n_head,
        "llama.attention.head_count_kv": hp.n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": hp.norm_eps,
        "llama.rope.dimension_count": hp.n_head_dim,
        "llama.rope.freq_base": hp.rope_base,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [piece for piece, _ in pieces],
        "tokenizer.ggml.token_type": [SPECIALS.get(piece, NORMAL) for piece, _ in pieces],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in bpe["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.token_to_id("<|begin|>"),
        "tokenizer.ggml.eos_token_id": tokenizer.token_to_id("<|end|>"),
        "tokenizer.ggml.eot_token_id": tokenizer.token_to_id("<|end|>"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def write_store(folder: Path, model: Llama, tokenizer: Tokenizer, tensors: list[Tensor]) -> None:
    """Write the model to `folder` as `ollama create` would store it."""
    store = Store(folder)
    with TemporaryDirectory() as temporary:
        file = Path(temporary, "primer.gguf")
        write_gguf(file, key_values(model, tokenizer), tensors)
        digest, size = store.put_blob([file.read_bytes()])
    for status in create(
        store, NAME, files={"primer.gguf": digest}, parameters=PARAMETERS, license=LICENSE.read_text(encoding="utf-8")
    ):
        print(status["status"])
    print(f"{folder}: {size:,} bytes of GGUF")


def write_f16(file: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Write the model with its matrices in F16, the best that `numllama create -q` can quantize from."""
    write_gguf(file, key_values(model, tokenizer, "F16"), quantized(model, "F16"))
    print(f"{file}: {file.stat().st_size:,} bytes of GGUF")
