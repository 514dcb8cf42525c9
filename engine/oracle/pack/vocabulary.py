"""Small vocabularies: the key-values of a tokenizer, of each algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tokenizer.vocab import BYTE_ALPHABET, SPACE

WORDS = " the then there they once upon a time was were hello world is in it ing ed little big girl boy cat dog"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type


def prefixes(words: list[str]) -> list[str]:
    """Return all prefixes of two letters or more, each after the one that it is merged from: th the they."""
    return list(dict.fromkeys(word[:n] for word in words for n in range(2, len(word) + 1)))


def tiny_spm(add_space_prefix: bool = True) -> dict[str, Any]:
    """Return pieces, scores and types as sentencepiece has them: specials, bytes, words, characters."""
    merged = prefixes(WORDS.replace(" ", f" {SPACE}").split())
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *merged]
    pieces += [SPACE, *map(chr, range(33, 127)), "\u00e9", "<|user|>"]
    n = len(pieces)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.r_[np.zeros(259), -np.arange(n - 259)].astype(np.float32),
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (n - 260), USER_DEFINED],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }


def tiny_bpe(pre: str) -> dict[str, Any]:
    """Return pieces and merges as GPT-2 has them, split by the pre-tokenizer `pre`."""
    letters = list(BYTE_ALPHABET.values())
    words = WORDS.replace(" ", f" {BYTE_ALPHABET[32]}").split()
    merged = [*prefixes(words), "12", "123", "..", "\u00c3\u00a9"]
    specials = ["<|begin|>", "<|end|>", "<|user|>"]
    n = len(letters) + len(merged)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": letters + merged + specials,
        "tokenizer.ggml.token_type": [NORMAL] * n + [CONTROL] * 2 + [USER_DEFINED],
        "tokenizer.ggml.merges": [f"{piece[:-1]} {piece[-1]}" for piece in merged],
        "tokenizer.ggml.bos_token_id": n,
        "tokenizer.ggml.eos_token_id": n + 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def tiny_wordpiece() -> dict[str, Any]:
    """Return words, letters and signs that begin words, then letters and endings within them."""
    words = sorted(prefixes(WORDS.split()))
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*(f"{SPACE}{piece}" for piece in [*words, *letters, *"0123456789.,!?"]), *letters, "ing", "ed"]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [CONTROL] * 5 + [NORMAL] * (len(pieces) - 5),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
        "tokenizer.ggml.token_type_count": 2,
    }
