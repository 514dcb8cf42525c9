"""GGUF files of real shapes with random weights, for measuring speed only: the text such a model generates is noise.

    python -m numllama.benchmarks.models SOURCE.gguf Q4_K OUT.gguf

takes key-values and shapes from SOURCE and replaces its quantized matrices by random valid blocks of another format.

    python -m numllama.benchmarks.models bge-small F16 OUT.gguf

creates an encoder of that shape, see ENCODERS; each word of its vocabulary is one token.
"""

from __future__ import annotations

import sys

import numpy as np

from ..engine.gguf.read import GGUF
from ..engine.gguf.write import write_gguf
from ..kernels.quants import FORMATS_BY_NAME, QuantFormat, quantize


def random_blocks(format: QuantFormat, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return blocks of `format` for an array of `shape`, drawn from 64 quantized random rows."""
    rng = np.random.default_rng(seed)
    rows = quantize(format, rng.standard_normal((64, shape[-1]), np.float32) * np.float32(0.02))
    return rows[rng.integers(0, 64, int(np.prod(shape[:-1])))].reshape(*shape[:-1], -1)


def requantize_file(source: str, format: QuantFormat, out: str) -> None:
    """Write `source` to `out` with random blocks of `format` in place of every quantized matrix."""
    gguf = GGUF.open(source)
    tensors = (
        (name, format, w.shape, random_blocks(format, w.shape))
        if w.format.block_size > 1
        else (name, w.format, w.shape, w.blocks)
        for name, w in gguf.tensors.items()
    )
    write_gguf(out, gguf.typed, list(tensors))


# --- encoders

N_VOCAB, N_CTX = 30522, 512
SPECIALS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
ENCODERS = {  # name: layers, n_embd, heads, n_ff
    "all-minilm-l6": (6, 384, 12, 1536),
    "bge-small": (12, 384, 12, 1536),
    "bge-base": (12, 768, 12, 3072),
}


def token_word(id: int) -> str:
    """Return the word for token `id`: "aaaaa", "aaaab", ..."""
    return "".join(chr(ord("a") + id // 26**i % 26) for i in range(4, -1, -1))


def write_encoder(shape: str, format: QuantFormat, out: str, seed: int = 0) -> None:
    """Write a bert of that shape with random weights, its matrices in `format`."""
    n_layer, n_embd, n_head, n_ff = ENCODERS[shape]
    rng = np.random.default_rng(seed)
    f32 = FORMATS_BY_NAME["F32"]
    tensors = []

    def add(name: str, format: QuantFormat, *shape: int, mean: float = 0, std: float = 1) -> None:
        x = rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
        tensors.append((name, format, shape, quantize(format, x)))

    def linear(name: str, n_out: int, n_in: int) -> None:
        add(f"{name}.weight", format, n_out, n_in, std=n_in**-0.5)
        add(f"{name}.bias", f32, n_out, std=0.1)

    def norm(name: str) -> None:
        add(f"{name}.weight", f32, n_embd, mean=1, std=0.1)
        add(f"{name}.bias", f32, n_embd, std=0.1)

    add("token_embd.weight", format, N_VOCAB, n_embd)
    add("token_types.weight", f32, 2, n_embd, std=0.1)
    add("position_embd.weight", f32, N_CTX, n_embd, std=0.1)
    norm("token_embd_norm")
    for blk in (f"blk.{il}" for il in range(n_layer)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"{blk}.{name}", n_embd, n_embd)
        norm(f"{blk}.attn_output_norm")
        linear(f"{blk}.ffn_up", n_ff, n_embd)
        linear(f"{blk}.ffn_down", n_embd, n_ff)
        norm(f"{blk}.layer_output_norm")

    values = {
        "general.architecture": "bert",
        "general.name": f"{shape}-{format.name}",
        "bert.block_count": n_layer,
        "bert.context_length": N_CTX,
        "bert.embedding_length": n_embd,
        "bert.feed_forward_length": n_ff,
        "bert.attention.head_count": n_head,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 1,  # mean
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": [SPECIALS.get(id, f"\u2581{token_word(id)}") for id in range(N_VOCAB)],
        "tokenizer.ggml.token_type": [3 if id in SPECIALS else 1 for id in range(N_VOCAB)],
        "tokenizer.ggml.unknown_token_id": 100,
        "tokenizer.ggml.bos_token_id": 101,
        "tokenizer.ggml.seperator_token_id": 102,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 103,
    }
    write_gguf(out, values, tensors)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[2] not in FORMATS_BY_NAME:
        sources, formats = " or ".join(["SOURCE.gguf", *ENCODERS]), " ".join(FORMATS_BY_NAME)
        sys.exit(f"expected {sources}, a format and OUT.gguf; formats: {formats}")
    source, name, out = sys.argv[1:]
    make = write_encoder if source in ENCODERS else requantize_file
    make(source, FORMATS_BY_NAME[name], out)
