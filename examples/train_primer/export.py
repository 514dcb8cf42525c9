"""Export from torch to a GGUF model: quantized tensors, metadata, and Ollama's manifest and blobs."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from model import Llama
from tokenizers import Tokenizer

from numllama.engine.gguf.file_type import FILE_TYPES, parameter_size
from numllama.engine.gguf.write import write_gguf
from numllama.engine.store.make.create import create
from numllama.engine.store.store import Store
from numllama.kernels.quants import FORMATS_BY_NAME, dequantize, quantize
from numllama.kernels.tensor import Tensor

NAME = "primer"
DESCRIPTION = "A tiny model that explains inference, trained by numllama on a text of its own. It knows little else."
LICENSE = Path(__file__).parents[2] / "LICENSE"
PARAMETERS = {"num_predict": 256, "temperature": 0.3, "top_k": 10, "top_p": 0.9}
CHAT_TEMPLATE = """\
{% for message in messages %}
{% set role = message.role if message.role in ['system', 'assistant'] else 'user' %}
{{ '<|' + role + '|>' + message.content | trim + '<|end|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' }}
{%- endif %}
"""
NORMAL, CONTROL = 1, 3  # tokenizer.ggml.token_type


def format_name(name: str) -> str:
    """Return Q4_0 for feed-forward matrices, which are most of the model, Q8_0 for other matrices, F32 for norms."""
    if "norm" in name:
        return "F32"
    return "Q4_0" if "ffn" in name else "Q8_0"


def quantized(model: Llama) -> list[Tensor]:
    """Return the model's weights as stored in the file."""
    tensors = []
    for name, weight in model.weights.items():
        format = FORMATS_BY_NAME[format_name(name)]
        x = weight.detach().numpy()
        tensors.append(Tensor(f"{name}.weight", format, x.shape, quantize(format, x)))
    return tensors


@torch.no_grad()
def load_quantized(model: Llama, tensors: list[Tensor]) -> None:
    """Load the dequantized `tensors` into `model`, so that it can be evaluated as shipped."""
    for tensor in tensors:
        x = dequantize(tensor.format, tensor.blocks)
        model.weights[tensor.name.removesuffix(".weight")].copy_(torch.from_numpy(x))


def key_values(model: Llama, tokenizer: Tokenizer) -> dict[str, object]:
    """Return the GGUF's metadata: name, dimensions, vocabulary, chat template."""
    hp = model.hp
    n_parameters = sum(weight.numel() for weight in model.parameters())
    bpe = json.loads(tokenizer.to_str())
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {token["id"] for token in bpe["added_tokens"]}
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": NAME,
        "general.description": DESCRIPTION,
        "general.size_label": parameter_size(n_parameters),
        "general.license": "mit",
        "general.file_type": next(number for number, name in FILE_TYPES.items() if name == "Q4_0"),
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
        "tokenizer.ggml.token_type": [CONTROL if id in special else NORMAL for _, id in pieces],
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
