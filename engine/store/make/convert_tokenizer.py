"""Conversion of a Hugging Face tokenizer to GGUF key-values.

tokenizer.json    byte-level BPE: pieces, merges, and the steps that split text into words; or WordPiece
tokenizer.model   SPM, sentencepiece's protocol buffer: pieces with scores; added_tokens.json has more pieces
Special tokens and the chat template come from tokenizer_config.json, the special tokens' ids also from
generation_config.json and config.json.

A model reads other tokens than it was trained on if a step is lost, so a step that GGUF has no key for is refused.
Exceptions, as in llama.cpp's converter: NFC, which Qwen's files ask for and nearly all text has, and the removal of
repeated blanks in SPM.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import ModelError, RequestError
from ...gguf.read import I32, STR, U32, ArrayType
from ...tokenizer.vocab import EOG_SPELLINGS
from .convert_wordpiece import is_wordpiece, spelled_as_in_gguf, wordpiece, wordpiece_roles

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# tokenizer.ggml.pre, by the steps of a pre-tokenizer and whether a word that is a piece is merged (ignore_merges false)
PRE = {
    ((f"Split {LLAMA3}", "ByteLevel"), True): "llama-bpe",
    ((f"Split {LLAMA3}", "ByteLevel"), False): "smaug-bpe",
    ((f"Split {QWEN2}", "ByteLevel"), False): "qwen2",
    (("ByteLevel by regex",), False): "gpt-2",
    (("Digits", "ByteLevel by regex"), False): "smollm",
}
UNIGRAM, BPE = 1, 2  # sentencepiece_model.proto, TrainerSpec.ModelType


def tokenizer_kv(
    tokenizer: Mapping[str, Any] | None,
    spm: bytes | None,
    config: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]],
    n_vocab: int,
) -> dict[str, Any]:
    """Return the keys tokenizer.ggml.* and the chat template.

    tokenizer, spm   tokenizer.json, tokenizer.model
    config, more     config.json; tokenizer_config.json, generation_config.json and added_tokens.json, if present
    n_vocab          rows of the embedding; missing pieces are filled up with padding
    Raises: RequestError, ModelError
    """
    is_bert = tokenizer is not None and is_wordpiece(tokenizer)
    if is_bert and tokenizer is not None:
        texts, kv = wordpiece(tokenizer)
        pieces = [(text, 0.0, NORMAL) for text in texts]
    elif spm is not None:
        pieces, kv = _spm(spm)
    elif tokenizer is not None:
        pieces, kv = _bpe(tokenizer)
    else:
        raise ModelError("open tokenizer.model: no such file or directory")
    own = {**more.get("special_tokens_map.json", {}), **more.get("tokenizer_config.json", {})}
    _keep_prefix(kv, own)
    listed = more.get("added_tokens.json", {}) if spm is not None else {}
    for id, added in sorted(_added(tokenizer, own, listed).items()):
        while len(pieces) <= id < n_vocab:
            pieces.append((f"[PAD{len(pieces)}]", -1000.0, UNUSED))
        if id < n_vocab:
            kind = CONTROL if added.get("special") else USER_DEFINED
            _, score, known = pieces[id]
            pieces[id] = (added["content"], score, known if known in (UNKNOWN, CONTROL) else kind)
    pieces += [(f"[PAD{i}]", -1000.0, UNUSED) for i in range(len(pieces), n_vocab)]
    if len(pieces) > n_vocab:
        raise RequestError(f"the tokenizer has {len(pieces)} pieces, expected at most vocab_size, {n_vocab}")
    ids = {text: id for id, (text, _, _) in enumerate(pieces)}
    if is_bert:
        kv |= wordpiece_roles(own, ids)
        pieces = [(spelled_as_in_gguf(text, kind in (CONTROL, UNUSED)), score, kind) for text, score, kind in pieces]
    kv["tokenizer.ggml.tokens"] = ArrayType(STR)([text for text, _, _ in pieces])
    kv["tokenizer.ggml.token_type"] = ArrayType(I32)([kind for _, _, kind in pieces])
    if spm is not None or is_bert:
        kv["tokenizer.ggml.scores"] = np.array([score for _, score, _ in pieces], np.float32)
    generation = more.get("generation_config.json", {})
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = own.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = [ids.get(token)] if isinstance(token, str) else []
        for source in (generation, config):
            named = source.get(f"{role}_token_id")
            found += named if isinstance(named, list) else [named]
        valid = list(dict.fromkeys(id for id in found if type(id) is int and 0 <= id < n_vocab))
        if valid:
            kv[f"tokenizer.ggml.{key}_token_id"] = U32(valid[0])
        if role == "eos":
            kv |= _more_ends(valid[1:], pieces)
    around = _added_around(tokenizer if spm is None and not is_bert else None)
    kv |= {f"tokenizer.ggml.add_{role}_token": is_added for role, is_added in around.items()}
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


def _more_ends(ends: list[int], pieces: list[tuple[str, float, int]]) -> dict[str, Any]:
    """Return the keys that make the ids `ends`, besides EOS, end an answer.  Raises: RequestError if there are too many

    Some spellings end an answer anyway.  GGUF has two keys for others: end of turn and end of message.
    """
    unknown = [id for id in ends if pieces[id][0] not in EOG_SPELLINGS.split()]
    keys = ("eot", "eom")
    if len(unknown) > len(keys):
        raise RequestError(f"eos_token_id has {len(unknown)} more ids, {unknown}, expected at most {len(keys)}")
    return {f"tokenizer.ggml.{key}_token_id": U32(id) for key, id in zip(keys, unknown, strict=False)}


def _keep_prefix(kv: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Keep tokenizer_config.json's add_prefix_space: a blank before a text.  Raises: RequestError for BPE"""
    prefix = own.get("add_prefix_space")
    if kv["tokenizer.ggml.model"] == "llama":
        kv |= {"tokenizer.ggml.add_space_prefix": prefix} if isinstance(prefix, bool) else {}
    elif prefix is True:
        raise RequestError(
            "tokenizer_config.json: add_prefix_space is true, which byte-level BPE in GGUF has no key for"
        )


def _added_around(tokenizer: Mapping[str, Any] | None) -> dict[str, bool]:
    """Return whether tokenizer.json's template adds a token before and after a text; nothing without a template."""
    step = (tokenizer or {}).get("post_processor")
    steps = step.get("processors") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and step.get("type") in ("RobertaProcessing", "BertProcessing"):
            return {"bos": True, "eos": True}
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing" and isinstance(step.get("single"), list):
            special = [isinstance(item, dict) and "SpecialToken" in item for item in step["single"]]
            return {"bos": special[0], "eos": special[-1]} if special else {}
    return {}


def _looks_special(text: str) -> bool:
    """Check whether an added token without a kind is a control token, as llama.cpp's converter does."""
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>") or any(text.startswith(first) and text.endswith(last) for first, last in pairs)


def _added(
    tokenizer: Mapping[str, Any] | None, own: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[int, Mapping[str, Any]]:
    """Return the added tokens by id, each with `content` and `special`; `more` is added_tokens.json, ids by text."""
    listed = (tokenizer or {}).get("added_tokens") or []
    decoder = own.get("added_tokens_decoder") or {}
    entries: list[tuple[Any, Mapping[str, Any]]]
    entries = [(id, {"content": text, "special": _looks_special(text)}) for text, id in more.items()]
    entries += (
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
    if not isinstance(merges, list):
        raise RequestError("tokenizer.json: merges is not a list of pairs of tokens")
    merges = [" ".join(map(str, merge)) if isinstance(merge, list) else merge for merge in merges]
    if not all(isinstance(merge, str) for merge in merges) or not all(type(id) is int for id in vocab.values()):
        raise RequestError("tokenizer.json: invalid vocab or merges, expected token ids and pairs of tokens")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise RequestError(f"tokenizer.json: invalid ids in vocab, expected 0 to {len(vocab) - 1}")
    for name in ("end_of_word_suffix", "continuing_subword_prefix", "dropout"):
        if model.get(name):
            raise RequestError(f"tokenizer.json: {name} is {str(model[name])[:50]!r}, which GGUF has no key for")
    _check_normalizer(tokenizer.get("normalizer"))
    pre = _pre(tokenizer.get("pre_tokenizer"), model.get("ignore_merges"))
    kv: dict[str, Any] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    kv["tokenizer.ggml.merges"] = ArrayType(STR)(merges)
    return [(text, 0.0, NORMAL) for text in sorted(vocab, key=vocab.__getitem__)], kv


def _steps(step: Any, name: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer; those of a Sequence are under `name`."""
    steps = step.get(name) if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    return [step for step in steps or [] if isinstance(step, dict)] if isinstance(steps, list) else []


def _check_normalizer(normalizer: Any) -> None:
    """Check that no step of the normalizer is lost, except NFC.  Raises: RequestError"""
    for step in _steps(normalizer, "normalizers"):
        if step.get("type") != "NFC":
            raise RequestError(f"tokenizer.json: normalizer {str(step.get('type'))[:50]!r}, which GGUF has no key for")


def _pre(pre_tokenizer: Any, ignore_merges: Any) -> str:
    """Return tokenizer.ggml.pre for the steps of a `pre_tokenizer`.  Raises: RequestError for other steps"""
    steps = tuple(_named(step) for step in _steps(pre_tokenizer, "pretokenizers"))
    if ignore_merges is None:  # Llama 3's first files
        ignore_merges = steps[:1] == (f"Split {LLAMA3}",)
    if pre := PRE.get((steps, bool(ignore_merges))):
        return pre
    found = f"{' then '.join(steps)[:200] or 'none'}{', ignore_merges' if ignore_merges else ''}"
    raise RequestError(f"tokenizer.json: unknown pre-tokenizer {found}, expected that of {', '.join(PRE.values())}")


def _named(step: Mapping[str, Any]) -> str:
    """Name a step of a pre-tokenizer with the settings that matter, as in PRE."""
    match step:
        case {"type": "Split", "pattern": {"Regex": str(expression)}}:
            behavior, invert = step.get("behavior", "Isolated"), step.get("invert", False)
            return (
                f"Split {expression}"
                if (behavior, invert) == ("Isolated", False)
                else f"Split({behavior}, invert={invert})"
            )
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return "ByteLevel(add_prefix_space=True)"
        case {"type": "ByteLevel"}:
            return "ByteLevel by regex" if step.get("use_regex", True) else "ByteLevel"
    settings = ", ".join(f"{name}={value}" for name, value in sorted(step.items()) if name != "type")
    return f"{str(step.get('type'))[:50]}({settings[:100]})"


def _spm(data: bytes) -> tuple[list[tuple[str, float, int]], dict[str, Any]]:
    """Return the pieces and the keys of a sentencepiece model.  Source: sentencepiece_model.proto"""
    pieces: list[tuple[str, float, int]] = []
    ids: dict[str, Any] = {"unknown": 0, "bos": 1, "eos": 2}
    space_prefix = True
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
            if spec.get(3, UNIGRAM) != BPE:
                raise RequestError(
                    "tokenizer.model: not a BPE model, expected model_type 2; GGUF has no key for others"
                )
        elif number == 3 and isinstance(value, bytes):
            space_prefix = _space_prefix(dict(_fields(value)))
    if not pieces:
        raise RequestError("tokenizer.model: no pieces, expected a sentencepiece model")
    kv: dict[str, Any] = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    kv["tokenizer.ggml.add_space_prefix"] = space_prefix
    return pieces, kv | {
        f"tokenizer.ggml.{role}_token_id": U32(id) for role, id in ids.items() if 0 <= id < len(pieces)
    }


def _space_prefix(spec: Mapping[int, Any]) -> bool:
    """Return a NormalizerSpec's add_dummy_prefix.  Raises: RequestError if it changes text in other ways

    name = 1, precompiled_charsmap = 2, add_dummy_prefix = 3, remove_extra_whitespaces = 4, escape_whitespaces = 5
    """
    if spec.get(2):
        raise RequestError("tokenizer.model: the normalizer has precompiled_charsmap, which GGUF has no key for")
    if not spec.get(5, True):
        raise RequestError("tokenizer.model: escape_whitespaces is false, which GGUF has no key for")
    return bool(spec.get(3, True))


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
