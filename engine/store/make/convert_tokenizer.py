"""Conversion of a Hugging Face tokenizer to GGUF key-values.

tokenizer.json    byte-level BPE: pieces, merges, and the regular expression that splits text into words
tokenizer.model   SPM, sentencepiece's protocol buffer: pieces with scores
Special tokens and the chat template come from tokenizer_config.json, the special tokens' ids also from
generation_config.json and config.json.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import ModelError, RequestError
from ...gguf.read import I32, STR, U32, ArrayType

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
# tokenizer.ggml.pre, by the regular expression in tokenizer.json
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PRE = {LLAMA3: "llama-bpe", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2", "": "gpt-2"}


def tokenizer_kv(
    tokenizer: Mapping[str, Any] | None,
    spm: bytes | None,
    config: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]],
    n_vocab: int,
) -> dict[str, Any]:
    """Return the keys tokenizer.ggml.* and the chat template.

    tokenizer, spm   tokenizer.json, tokenizer.model
    config, more     config.json; tokenizer_config.json and generation_config.json, if present
    n_vocab          rows of the embedding; missing pieces are filled up with padding
    Raises: RequestError, ModelError
    """
    if spm is not None:
        pieces, kv = _spm(spm)
    elif tokenizer is not None:
        pieces, kv = _bpe(tokenizer)
    else:
        raise ModelError("open tokenizer.model: no such file or directory")
    own = more.get("tokenizer_config.json", {})
    for id, added in sorted(_added(tokenizer, own).items()):
        while len(pieces) <= id < n_vocab:
            pieces.append((f"[PAD{len(pieces)}]", -1000.0, UNUSED))
        if id < n_vocab:
            kind = CONTROL if added.get("special") else USER_DEFINED
            _, score, known = pieces[id]
            pieces[id] = (added["content"], score, known if known in (UNKNOWN, CONTROL) else kind)
    pieces += [(f"[PAD{i}]", -1000.0, UNUSED) for i in range(len(pieces), n_vocab)]
    if len(pieces) > n_vocab:
        raise RequestError(f"the tokenizer has {len(pieces)} pieces, expected at most vocab_size, {n_vocab}")
    kv["tokenizer.ggml.tokens"] = ArrayType(STR)([text for text, _, _ in pieces])
    kv["tokenizer.ggml.token_type"] = ArrayType(I32)([kind for _, _, kind in pieces])
    if spm is not None:
        kv["tokenizer.ggml.scores"] = np.array([score for _, score, _ in pieces], np.float32)
    ids = {text: id for id, (text, _, _) in enumerate(pieces)}
    generation = more.get("generation_config.json", {})
    token: Any
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = own.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        token = ids.get(token) if isinstance(token, str) else None
        for source in (generation, config):
            found = source.get(f"{role}_token_id")
            token = (found[0] if isinstance(found, list) and found else found) if token is None else token
        if type(token) is int and 0 <= token < n_vocab:
            kv[f"tokenizer.ggml.{key}_token_id"] = U32(token)
    for role in ("bos", "eos"):
        if isinstance(own.get(f"add_{role}_token"), bool):
            kv[f"tokenizer.ggml.add_{role}_token"] = own[f"add_{role}_token"]
    if spm is not None:
        kv.setdefault("tokenizer.ggml.add_bos_token", True)
    template = own.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return kv | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})


def _added(tokenizer: Mapping[str, Any] | None, own: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Return the added tokens by id, each with `content` and `special`."""
    listed = (tokenizer or {}).get("added_tokens") or []
    decoder = own.get("added_tokens_decoder") or {}
    entries = (
        [(entry.get("id"), entry) for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    )
    if isinstance(decoder, dict):
        entries += [(int(id), entry) for id, entry in decoder.items() if id.isdecimal() and isinstance(entry, dict)]
    return {id: entry for id, entry in entries if type(id) is int and id >= 0 and isinstance(entry.get("content"), str)}


def _bpe(tokenizer: Mapping[str, Any]) -> tuple[list[tuple[str, float, int]], dict[str, Any]]:
    """Return the pieces and the keys of a byte-level BPE."""
    model = tokenizer.get("model")
    vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if (
        not isinstance(model, dict)
        or model.get("type") != "BPE"
        or not isinstance(vocab, dict)
        or model.get("byte_fallback")
    ):
        raise RequestError("tokenizer.json: not a byte-level BPE, expected tokenizer.model beside it")
    merges = [" ".join(map(str, merge)) if isinstance(merge, list) else merge for merge in merges or []]
    if not all(isinstance(merge, str) for merge in merges) or not all(type(id) is int for id in vocab.values()):
        raise RequestError("tokenizer.json: invalid vocab or merges, expected token ids and pairs of tokens")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise RequestError(f"tokenizer.json: invalid ids in vocab, expected 0 to {len(vocab) - 1}")
    kv: dict[str, Any] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _pre(tokenizer.get("pre_tokenizer"))}
    kv["tokenizer.ggml.merges"] = ArrayType(STR)(merges)
    return [(text, 0.0, NORMAL) for text in sorted(vocab, key=vocab.__getitem__)], kv


def _pre(step: Any) -> str:
    """Return tokenizer.ggml.pre for a `pre_tokenizer`: a Split by a known expression, then ByteLevel."""
    steps = step.get("pretokenizers") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    steps = [step for step in steps or [] if isinstance(step, dict)]
    patterns = [step.get("pattern") for step in steps if step.get("type") == "Split"]
    expression = str(patterns[0].get("Regex")) if patterns and isinstance(patterns[0], dict) else ""
    if len(patterns) > 1 or expression not in PRE or not any(step.get("type") == "ByteLevel" for step in steps):
        known = ", ".join(PRE.values())
        raise RequestError(f"tokenizer.json: unknown pre-tokenizer {expression[:200]!r}, expected that of {known}")
    return PRE[expression]


def _spm(data: bytes) -> tuple[list[tuple[str, float, int]], dict[str, Any]]:
    """Return the pieces and the keys of a sentencepiece model.  Source: sentencepiece_model.proto"""
    pieces: list[tuple[str, float, int]] = []
    ids: dict[str, Any] = {"unknown": 0, "bos": 1, "eos": 2}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):  # pieces: piece = 1, score = 2, type = 3
            entry = dict(_fields(value))
            text, score, type = entry.get(1, b""), entry.get(2, 0.0), entry.get(3, NORMAL)
            if not (isinstance(text, bytes) and isinstance(score, float) and isinstance(type, int)):
                raise RequestError(f"tokenizer.model: invalid piece {len(pieces)}, expected text, score and type")
            pieces.append((text.decode("utf-8", "replace"), score, type))
        elif number == 2 and isinstance(value, bytes):  # trainer_spec: unk_id = 40, bos_id = 41, eos_id = 42
            spec = dict(_fields(value))
            ids |= {role: spec[field] for role, field in (("unknown", 40), ("bos", 41), ("eos", 42)) if field in spec}
    if not pieces:
        raise RequestError("tokenizer.model: no pieces, expected a sentencepiece model")
    kv: dict[str, Any] = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    return pieces, kv | {
        f"tokenizer.ggml.{role}_token_id": U32(id) for role, id in ids.items() if 0 <= id < len(pieces)
    }


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield the fields of a protocol buffer message as (number, value); messages and text are bytes.

    Raises: RequestError
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise IndexError

    try:
        while at < len(data):
            number, kind = divmod(varint(), 8)
            if kind == 0:
                yield number, varint()
            elif kind in (1, 5):
                size, code = (8, "<d") if kind == 1 else (4, "<f")
                yield number, struct.unpack_from(code, data, at)[0]
                at += size
            elif kind == 2:
                size = varint()
                if size > len(data) - at:
                    raise IndexError
                yield number, data[at : at + size]
                at += size
            else:
                raise IndexError
    except (IndexError, struct.error):
        raise RequestError(f"tokenizer.model: invalid protocol buffer at byte {at}") from None
