"""Key-values of small vocabularies, as a GGUF has them."""

import numpy as np

from numllama.engine.tokenizer.vocab import BYTE_ALPHABET

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def spm(*more, types=(), **kv):
    """An SPM vocabulary: unknown, BOS, EOS, the bytes and `more` pieces (normal unless `types` say)."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *more]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *types, *[NORMAL] * (len(more) - len(types))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.arange(len(tokens), dtype=np.float32)[::-1],
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
    } | {f"tokenizer.ggml.{key}": value for key, value in kv.items()}


def bpe(*more, types=(), merges=("t h", "th e"), pre="qwen2", **kv):
    """A byte-level vocabulary: the bytes, "th", "the" and `more` pieces."""
    tokens = [*BYTE_ALPHABET.values(), "th", "the", *more]
    kinds = [*[NORMAL] * 258, *types, *[NORMAL] * (len(more) - len(types))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
    } | {f"tokenizer.ggml.{key}": value for key, value in kv.items()}


def without(kv, key):
    return {k: v for k, v in kv.items() if k != f"tokenizer.ggml.{key}"}
