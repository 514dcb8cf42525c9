"""Key-values of small vocabularies, as in a GGUF."""

import numpy as np
from hypothesis import strategies as st

from numllama.engine.tokenizer.vocab import BYTE_ALPHABET

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# characters that Google's and llama.cpp's word splitting treat alike; \v and \f, for example, separate words only in
# llama.cpp's
ALIKE = st.characters(codec="latin-1", exclude_characters="\x0b\x0c\x1c\x1d\x1e\x1f\x85")


def spm(*more, types=(), **kv):
    """Return an SPM vocabulary: unknown, BOS, EOS, the bytes and `more` pieces (normal unless given in `types`)."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *more]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *types, *[NORMAL] * (len(more) - len(types))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.arange(len(tokens), dtype=np.float32)[::-1],
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
    } | {f"tokenizer.ggml.{key}": value for key, value in kv.items()}


def bpe(*more, types=(), merges=("t h", "th e"), pre="qwen2", **kv):
    """Return a byte-level vocabulary: the bytes, "th", "the" and `more` pieces."""
    tokens = [*BYTE_ALPHABET.values(), "th", "the", *more]
    kinds = [*[NORMAL] * 258, *types, *[NORMAL] * (len(more) - len(types))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
    } | {f"tokenizer.ggml.{key}": value for key, value in kv.items()}


def wordpiece(*more, types=(), **kv):
    """Return a WordPiece vocabulary: [PAD], [UNK], [CLS], [SEP], [MASK] and `more` pieces, "_" for U+2581."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(piece.replace("_", "\u2581") for piece in more)]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([*[CONTROL] * 5, *types, *[NORMAL] * (len(more) - len(types))], np.int32),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    } | {f"tokenizer.ggml.{key}": value for key, value in kv.items()}


def without(kv, key):
    return {k: v for k, v in kv.items() if k != f"tokenizer.ggml.{key}"}
