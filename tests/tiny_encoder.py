"""Generated encoders, like the decoders of tests/tiny.py: two random layers and a WordPiece vocabulary."""

import numpy as np
from vocabularies import wordpiece

from numllama.engine.gguf.write import write_gguf
from numllama.kernels.quants import FORMATS_BY_NAME, quantize
from tiny import WORDS

# arguments of tiny_encoder that together reach every line of engine/model/encoder.py
ENCODERS = {
    "bert": {"pooling": "cls"},
    "nomic-bert": {"family": "nomic-bert", "pooling": "mean", "gate": "apart", "fused": True, "bias": False},
    "jina-bert-v2": {"family": "jina-bert-v2", "pooling": "mean", "gate": "within", "n_head": 6},
    "jina-bert-v2-code": {"family": "jina-bert-v2", "pooling": "last", "gate": "apart", "qk_norm": True},
}
F32 = FORMATS_BY_NAME["F32"]
POOLINGS = ("none", "mean", "cls", "last", "rank")


def tiny_encoder(
    path,
    family="bert",
    quant="F32",
    seed=0,
    *,
    pooling="mean",
    gate="",
    fused=False,
    bias=True,
    qk_norm=False,
    n_layer=2,
    n_head=4,
    n_embd=96,
    n_ff=128,
    n_ctx=64,
    **kv,
):
    """Write an encoder to `path`, the same bytes for the same arguments, in milliseconds.

    pooling   one of POOLINGS; "": no key in the file
    gate      "apart": ffn_gate;  "within": ffn_up holds its rows too, before its own;  "": no gate
    fused     attn_qkv in place of attn_q, attn_k and attn_v
    qk_norm   attn_q_norm, attn_k_norm and attn_norm_2, as in jina-embeddings-v2-base-code
    kv        key-values to add or replace, with "__" for "."
    """
    format = FORMATS_BY_NAME[quant]
    vocabulary = wordpiece(*vocabulary_pieces())
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])
    random = np.random.default_rng(seed)
    tensors = []

    def matrix(name, n_out, n_in, std, format=format):
        x = random.standard_normal((n_out, n_in), np.float32) * np.float32(std)
        tensors.append((f"{name}.weight", format, x.shape, quantize(format, x)))

    def vector(name, x):
        tensors.append((name, F32, x.shape, x.astype("<f4")))

    def norm(name):
        vector(f"{name}.weight", random.uniform(0.75, 1.25, n_embd))
        vector(f"{name}.bias", random.normal(0, 0.2, n_embd))

    def linear(name, n_out, n_in):
        matrix(name, n_out, n_in, 1.5 * n_in**-0.5)
        if bias:
            vector(f"{name}.bias", random.normal(0, 0.2, n_out))

    matrix("token_embd", n_vocab, n_embd, 1)
    matrix("token_types", 2, n_embd, 0.3, F32)  # llama.cpp adds these two in F32, so converters do not quantize them
    if family == "bert":
        matrix("position_embd", n_ctx, n_embd, 0.5, F32)
    norm("token_embd_norm")
    for blk in (f"blk.{il}" for il in range(n_layer)):
        if fused:
            linear(f"{blk}.attn_qkv", 3 * n_embd, n_embd)
        for name in () if fused else ("attn_q", "attn_k", "attn_v"):
            linear(f"{blk}.{name}", n_embd, n_embd)
        for name in ("attn_q_norm", "attn_k_norm", "attn_norm_2") if qk_norm else ():
            norm(f"{blk}.{name}")
        linear(f"{blk}.attn_output", n_embd, n_embd)
        norm(f"{blk}.attn_output_norm")
        linear(f"{blk}.ffn_up", 2 * n_ff if gate == "within" else n_ff, n_embd)
        if gate == "apart":
            matrix(f"{blk}.ffn_gate", n_ff, n_embd, 1.5 * n_embd**-0.5)
        linear(f"{blk}.ffn_down", n_embd, n_ff)
        norm(f"{blk}.layer_output_norm")

    values = {
        "general.architecture": family,
        "general.name": f"tiny-{family}-{quant}",
        f"{family}.block_count": n_layer,
        f"{family}.context_length": n_ctx,
        f"{family}.embedding_length": n_embd,
        f"{family}.feed_forward_length": n_ff,
        f"{family}.attention.head_count": n_head,
        f"{family}.attention.layer_norm_epsilon": 1e-12,
        f"{family}.attention.causal": False,
        **({f"{family}.pooling_type": POOLINGS.index(pooling)} if pooling else {}),
        **({f"{family}.rope.freq_base": 1000.0} if family == "nomic-bert" else {}),
        "tokenizer.ggml.token_type_count": 2,
        **vocabulary,
        **{key.replace("__", "."): value for key, value in kv.items()},
    }
    write_gguf(path, values, tensors)
    return path


def vocabulary_pieces():
    """Return words, their prefixes, letters and signs as word starts ("_"), then letters and endings within words."""
    words = sorted({word[:n] for word in WORDS.split() for n in range(2, len(word) + 1)})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    return [*(f"_{piece}" for piece in [*words, *letters, *"0123456789.,!?"]), *letters, "ing", "ed"]
