"""Generated model files: a few random layers of any family and a vocabulary of a few hundred pieces."""

import os

import numpy as np

from numllama.engine.gguf.write import write_gguf
from numllama.kernels.quants import FORMATS_BY_NAME, quantize

WORDS = " the then there they once upon a time was were hello world is in it ing ed little big girl boy cat dog"
ROLES = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
CHAT_TEMPLATE = ROLES + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # tokenizer.ggml.token_type

HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
FAMILIES = {
    # Defaults of tiny_gguf by family; keys without the architecture's name.  Windows, soft-caps and scales are so
    # chosen that they affect two dozen tokens of a small model.
    "mistral3": {
        "n_head_dim": 32,
        "keys": {
            "attention.temperature_scale": 0.5,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 8,
            "rope.scaling.yarn_beta_fast": 1.0,  # few turns, as the window is small: pairs at both ends of the ramp
            "rope.scaling.yarn_beta_slow": 0.125,
            "rope.scaling.yarn_log_multiplier": 0.5,
        },
    },
    "qwen2": {"bias": True},
    "qwen3": {"norms": HEAD_NORMS, "n_head_dim": 32},
    "qwen3moe": {
        "norms": HEAD_NORMS,
        "n_head_dim": 32,
        "n_expert": 8,
        "n_ff_exp": 64,
        "keys": {"expert_used_count": 3},
    },
    "gemma": {"tied": True, "n_head_dim": 32},
    "gemma2": {
        "tied": True,
        "n_head_dim": 32,
        "norms": POST_NORMS,
        "keys": {"attention.sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0},
    },
    "gemma3": {
        "tied": True,
        "n_head_dim": 32,
        "n_layer": 7,  # the sixth has full attention
        "norms": (*HEAD_NORMS, *POST_NORMS),
        "keys": {
            "attention.sliding_window": 8,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    },
    "gemma-embedding": {
        "tied": True,
        "n_head_dim": 32,
        "n_layer": 7,
        "norms": (*HEAD_NORMS, *POST_NORMS),
        "keys": {"attention.sliding_window": 8, "rope.freq_base": 1e6, "pooling_type": 1},
    },
    "phi3": {
        "fused": ("attn_qkv", "ffn_up"),
        "keys": {"attention.sliding_window": 8, "rope.scaling.original_context_length": 256},
    },
    "smollm3": {"n_layer": 4},  # the fourth has no RoPE
    "glm4": {"bias": True, "norms": POST_NORMS, "fused": ("ffn_up",), "n_rot": 8},
    "gpt-oss": {
        "n_head_dim": 32,
        "bias": True,
        "n_expert": 4,
        "n_ff_exp": 64,
        "names": {"ffn_norm": "post_attention_norm"},
        "more_bias": True,
        "sinks": True,
        "keys": {
            "attention.sliding_window": 8,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 8,
        },
    },
    "granite": {
        "tied": True,
        "keys": {"attention.scale": 0.125, "embedding_scale": 4.0, "residual_scale": 0.5, "logit_scale": 2.0},
    },
}


def tiny_gguf(
    path: str | os.PathLike[str],
    family: str = "llama",
    quant: str = "F32",
    seed: int = 0,
    *,
    tokenizer: str = "spm",
    tied: bool | None = None,
    bias: bool | None = None,
    rope_factors: str = "",
    chat_template: str | None = None,
    n_layer: int = 0,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_head_dim: int = 0,
    n_rot: int = 0,
    n_embd: int = 0,
    n_ff: int = 0,
    n_expert: int = 0,
    n_ctx: int = 256,
    n_vocab: int = 0,
    **kv,
) -> str | os.PathLike[str]:
    """Write a model to `path`, the same bytes for the same arguments, in milliseconds.

    family         general.architecture; FAMILIES holds the differences from a Llama
    quant          format of the matrices; norms, biases and factors are F32
    tokenizer      "spm" or "bpe" (byte-level, pre llama-bpe)
    tied           no output.weight: the embedding is used instead
    bias           attn_q, attn_k and attn_v have biases
    rope_factors   "freqs": rope_freqs.weight, as Llama 3 stretches its low frequencies; "factors": Phi 3's, for long
                   windows and short ones
    n_layer        0: the family's, or two;  n_head_dim: the family's, or n_embd / n_head;  n_rot: n_head_dim
    n_embd, n_ff   0: 64 and 96, or 256 and 512 for formats with blocks of 256
    n_vocab        0: the vocabulary's few hundred; more: pieces are added that no text has
    n_expert       0: the family's, or none; otherwise the number of experts per layer, two of which are used per token
    kv             key-values to add or replace, with "__" for "."
    """
    format = FORMATS_BY_NAME[quant]
    n_embd = n_embd or max(64, format.block_size)
    n_ff = n_ff or (96 if format.block_size <= 32 else 512)
    own = FAMILIES.get(family, {})
    tied, bias = (own.get(name, False) if asked is None else asked for name, asked in (("tied", tied), ("bias", bias)))
    n_layer = n_layer or own.get("n_layer", 2)
    n_head_dim = n_head_dim or max(own.get("n_head_dim", 0), n_embd // n_head)
    n_expert, n_ff_exp = n_expert or own.get("n_expert", 0), max(own.get("n_ff_exp", n_ff), format.block_size)
    n_rot, fused = n_rot or own.get("n_rot", n_head_dim), own.get("fused", ())
    n_q, n_kv = n_head * n_head_dim, n_head_kv * n_head_dim
    vocabulary = {"spm": spm_vocabulary, "bpe": bpe_vocabulary}[tokenizer]()
    n_more = max(0, n_vocab - len(vocabulary["tokenizer.ggml.tokens"]))
    more = {
        "tokens": [f"<unused{i}>" for i in range(n_more)],
        "token_type": [NORMAL] * n_more,
        "scores": [-1e6] * n_more,
    }
    for key, added in more.items() if n_more else ():
        if f"tokenizer.ggml.{key}" in vocabulary:
            vocabulary[f"tokenizer.ggml.{key}"] = [*vocabulary[f"tokenizer.ggml.{key}"], *added]
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])
    random = np.random.default_rng(seed)
    tensors = []

    def matrix(name, n_out, n_in, std, *stack):
        x = random.standard_normal((*stack, n_out, n_in), np.float32) * np.float32(std)
        tensors.append((f"{name}.weight", format, x.shape, quantize(format, x)))

    def vector(name, x):
        tensors.append((name, FORMATS_BY_NAME["F32"], x.shape, x.astype("<f4")))

    matrix("token_embd", n_vocab, n_embd, 0.5 if tied else 1)
    if rope_factors == "freqs":
        vector("rope_freqs.weight", np.geomspace(1, 8, n_rot // 2))
    elif rope_factors == "factors":
        vector("rope_factors_long.weight", np.geomspace(1, 8, n_rot // 2))
        vector("rope_factors_short.weight", np.geomspace(1, 2, n_rot // 2))
    for blk in (f"blk.{il}" for il in range(n_layer)):
        vector(f"{blk}.attn_norm.weight", random.uniform(0.75, 1.25, n_embd))
        parts = {"attn_qkv": n_q + 2 * n_kv} if "attn_qkv" in fused else {"attn_q": n_q, "attn_k": n_kv, "attn_v": n_kv}
        for name, n_out in parts.items():
            matrix(f"{blk}.{name}", n_out, n_embd, n_embd**-0.5)
            if bias:
                vector(f"{blk}.{name}.bias", random.normal(0, 0.5, n_out))
        matrix(f"{blk}.attn_output", n_embd, n_q, n_q**-0.5)
        if own.get("more_bias"):
            vector(f"{blk}.attn_output.bias", random.normal(0, 0.5, n_embd))
            vector(f"{blk}.ffn_gate_inp.bias", random.normal(0, 0.5, n_expert))
            for name, n in (("gate", n_ff_exp), ("up", n_ff_exp), ("down", n_embd)):
                vector(f"{blk}.ffn_{name}_exps.bias", random.normal(0, 2, (n_expert, n)))
        if own.get("sinks"):
            vector(f"{blk}.attn_sinks.weight", random.normal(0, 1, n_head))
        vector(f"{blk}.{own.get('names', {}).get('ffn_norm', 'ffn_norm')}.weight", random.uniform(0.75, 1.25, n_embd))
        for name in own.get("norms", ()):
            n = n_head_dim if name in HEAD_NORMS else n_embd
            vector(f"{blk}.{name}.weight", random.uniform(0.75, 1.25, n))
        if n_expert:
            vector(f"{blk}.ffn_gate_inp.weight", random.normal(0, n_embd**-0.5, (n_expert, n_embd)))
        stack, exps, n = ((n_expert,), "_exps", n_ff_exp) if n_expert else ((), "", n_ff)
        if "ffn_up" not in fused:
            matrix(f"{blk}.ffn_gate{exps}", n, n_embd, n_embd**-0.5, *stack)
        matrix(f"{blk}.ffn_up{exps}", 2 * n if "ffn_up" in fused else n, n_embd, n_embd**-0.5, *stack)
        matrix(f"{blk}.ffn_down{exps}", n_embd, n, n**-0.5, *stack)
    vector("output_norm.weight", random.uniform(0.75, 1.25, n_embd))
    if not tied:
        matrix("output", n_vocab, n_embd, 2.5 * n_embd**-0.5)

    values = {
        "general.architecture": family,
        "general.name": f"tiny-{tokenizer}-{quant}",
        f"{family}.block_count": n_layer,
        f"{family}.context_length": n_ctx,
        f"{family}.embedding_length": n_embd,
        f"{family}.feed_forward_length": n_ff,
        f"{family}.attention.head_count": n_head,
        f"{family}.attention.head_count_kv": n_head_kv,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.attention.key_length": n_head_dim,
        f"{family}.attention.value_length": n_head_dim,
        f"{family}.rope.dimension_count": n_rot,
        f"{family}.rope.freq_base": 10000.0,
        f"{family}.vocab_size": n_vocab,
        **({f"{family}.expert_count": n_expert, f"{family}.expert_used_count": 2} if n_expert else {}),
        **({f"{family}.expert_feed_forward_length": n_ff_exp} if n_ff_exp != n_ff else {}),
        **{f"{family}.{key}": value for key, value in own.get("keys", {}).items()},
        **vocabulary,
        **({"tokenizer.ggml.add_space_prefix": False} if family.startswith("gemma") else {}),
        **({"tokenizer.chat_template": chat_template} if chat_template is not None else {}),
        **{key.replace("__", "."): value for key, value in kv.items()},
    }
    write_gguf(path, values, tensors)
    return path


def prefixes(words):
    """Return all prefixes of two letters or more, each after the one it is merged from: th the they."""
    return list(dict.fromkeys(word[:n] for word in words for n in range(2, len(word) + 1)))


def spm_vocabulary():
    """Return pieces, scores and types like sentencepiece's: specials, bytes, words and their prefixes, characters."""
    merged = prefixes(WORDS.replace(" ", " \u2581").split())
    characters = ["\u2581", *map(chr, range(33, 127)), "\u00e9"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *characters]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.r_[np.zeros(259), -np.arange(len(pieces) - 259)].astype(np.float32),
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(pieces) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def bpe_vocabulary():
    """Return pieces and merges as GPT-2 has them: 256 letters for bytes first, Llama 3's special tokens last."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merged = prefixes(WORDS.replace(" ", " \u0120").split())
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    n_normal = len(letters) + len(merged)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": letters + merged + specials,
        "tokenizer.ggml.token_type": [NORMAL] * n_normal + [CONTROL] * len(specials),
        "tokenizer.ggml.merges": [f"{piece[:-1]} {piece[-1]}" for piece in merged],
        "tokenizer.ggml.bos_token_id": n_normal,
        "tokenizer.ggml.eos_token_id": n_normal + 1,
        "tokenizer.ggml.eot_token_id": n_normal + 2,
    }
