"""Conversion of BERT's tokenizer, WordPiece, to GGUF key-values.

tokenizer.json    vocabulary, normalizer and the tokens around a text
vocab.txt         the vocabulary alone, a piece a line, in older folders; tokenizer_config.json has the settings

Pieces within a word are spelled ##ing by Google; GGUF marks the first piece of a word instead, with U+2581.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import RequestError
from ...gguf.read import U32

CONTINUES, BEGINS = "##", "\u2581"
SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROLES = {
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}  # a special token: its name in GGUF
GOOGLES_CLS_ID = 101  # what readers take for [CLS] in a file without bos_token_id


def is_wordpiece(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer.json has a WordPiece."""
    model = tokenizer.get("model")
    return isinstance(model, dict) and model.get("type") == "WordPiece"


def wordpiece_of_lines(text: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return vocab.txt in the form of a tokenizer.json; `own` is tokenizer_config.json."""
    pieces = text.splitlines()
    special = [own.get(f"{role}_token", default) for role, default in SPECIAL.items()]
    return {
        "model": {"type": "WordPiece", "vocab": {piece: id for id, piece in enumerate(pieces)}},
        "added_tokens": [
            {"id": id, "content": piece, "special": True} for id, piece in enumerate(pieces) if piece in special
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "lowercase": own.get("do_lower_case", True),
            "strip_accents": own.get("strip_accents"),
            "handle_chinese_chars": own.get("tokenize_chinese_chars", True),
        },
    }


def wordpiece(tokenizer: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the pieces as Google spells them, and the keys.

    Raises: RequestError for a step that GGUF has no key for
    """
    model = tokenizer["model"]
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(id) is int for id in vocab.values()):
        raise RequestError("tokenizer.json: invalid vocab, expected token ids")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise RequestError(f"tokenizer.json: invalid ids in vocab, expected 0 to {len(vocab) - 1}")
    if (prefix := model.get("continuing_subword_prefix", CONTINUES)) != CONTINUES:
        raise RequestError(f"tokenizer.json: continuing_subword_prefix is {str(prefix)[:50]!r}, expected {CONTINUES!r}")
    if (pre := tokenizer.get("pre_tokenizer") or {"type": "BertPreTokenizer"}) != {"type": "BertPreTokenizer"}:
        raise RequestError(f"tokenizer.json: pre-tokenizer {str(pre)[:100]!r}, expected BertPreTokenizer")
    _check_around(tokenizer.get("post_processor"))
    kv: dict[str, Any] = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.pre": "default"}
    return sorted(vocab, key=vocab.__getitem__), kv | _normalizer(tokenizer.get("normalizer"))


def _normalizer(step: Any) -> dict[str, bool]:
    """Return the keys of a normalizer whose settings differ from what a file without keys means."""
    if not isinstance(step, dict) or step.get("type") != "BertNormalizer":
        raise RequestError(f"tokenizer.json: normalizer {str(step)[:100]!r}, expected BertNormalizer")
    for name in ("clean_text", "handle_chinese_chars"):
        if step.get(name, True) is not True:
            raise RequestError(f"tokenizer.json: {name} is {str(step[name])[:20]!r}, which GGUF has no key for")
    lowercase = step.get("lowercase", True) is True
    strips = lowercase if step.get("strip_accents") is None else step["strip_accents"] is True
    kv = {} if lowercase else {"tokenizer.ggml.normalizer.lowercase": False}
    return kv | ({} if strips == lowercase else {"tokenizer.ggml.normalizer.strip_accents": strips})


def _check_around(step: Any) -> None:
    """Check that a text gets one token before and one after it.  Raises: RequestError"""
    if not isinstance(step, dict) or step.get("type") == "BertProcessing":
        return
    single = step.get("single") if step.get("type") == "TemplateProcessing" else None
    kinds = [next(iter(item), "") for item in single if isinstance(item, dict)] if isinstance(single, list) else []
    if kinds != ["SpecialToken", "Sequence", "SpecialToken"]:
        raise RequestError(f"tokenizer.json: post-processor {str(step)[:100]!r}, expected [CLS], the text and [SEP]")


def wordpiece_roles(special: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the keys of the special tokens; `special` has their texts by role, where they are not Google's."""
    kv: dict[str, Any] = {}
    for role, name in ROLES.items():
        token = special.get(f"{role}_token", SPECIAL[role])
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in ids:
            kv[f"tokenizer.ggml.{name}_token_id"] = U32(ids[token])
            if role == "cls" and ids[token] != GOOGLES_CLS_ID:
                kv["tokenizer.ggml.bos_token_id"] = U32(ids[token])
    return kv


def spelled_as_in_gguf(piece: str, is_control: bool) -> str:
    """Return a piece of Google's as GGUF spells it: ##ing -> ing, run -> ▁run, [CLS] as it is."""
    if is_control:
        return piece
    return piece.removeprefix(CONTINUES) if piece.startswith(CONTINUES) else BEGINS + piece
