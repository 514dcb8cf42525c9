"""Export of a GGUF's tokenizer to the two files that Hugging Face's libraries read.

    tokenizer.json           pieces, merges, and the steps before and after them
    tokenizer_config.json    the special tokens and the chat template

Source: the format that `tokenizers` 0.21 writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .vocab import SPACE, Attr, Vocab, split_merge


def write_tokenizer(kv: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write both files to `folder` and return their paths.  Raises: as Vocab.from_gguf, OSError"""
    vocab = Vocab.from_gguf(kv)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tokenizer.json": tokenizer_json(vocab), "tokenizer_config.json": tokenizer_config(vocab, kv)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return [folder / name for name in files]


def tokenizer_config(vocab: Vocab, kv: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer_config.json: special tokens, whether BOS and EOS are added, chat template."""
    roles = {
        f"{role}_token": vocab.tokens[id]
        for role, id in vocab.roles.items()
        if role in ("bos", "eos", "unk", "sep", "pad", "mask")
    }
    known = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "add_bos_token": vocab.add_bos,
        "add_eos_token": vocab.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": kv.get(f"{kv.get('general.architecture')}.context_length"),
        "chat_template": kv.get("tokenizer.chat_template"),
    }
    return {name: value for name, value in known.items() if value is not None}


def tokenizer_json(vocab: Vocab) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(vocab, id) for id in sorted(vocab.specials)],
        "post_processor": _post_processor(vocab),
        **(_wordpiece(vocab) if vocab.model == "bert" else _bpe(vocab)),
    }


def _bpe(vocab: Vocab) -> dict[str, Any]:
    """Describe BPE; or SPM as BPE, whose merges are all pairs of pieces that make a piece, best score first."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    blank: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if vocab.spm_blanks:
        prefix = [{"type": "Prepend", "prepend": SPACE}] if vocab.add_space_prefix and vocab.model == "llama" else []
        normalizer = _sequence("normalizers", [*prefix, blank])
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
        ]
        decoder = _sequence("decoders", decoders)
    else:
        normalizer, decoder = None, byte_level
    cuts = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in (() if vocab.model == "llama" else vocab.pre.split)
    ]
    steps = cuts + ([] if vocab.spm_blanks else [byte_level])
    return {
        "normalizer": normalizer,
        "pre_tokenizer": _sequence("pretokenizers", steps) if steps else None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocab.tokens[vocab.roles["unk"]] if vocab.model == "llama" and "unk" in vocab.roles else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": vocab.model == "llama",
            "byte_fallback": vocab.spm_blanks,
            "ignore_merges": vocab.model != "llama" and vocab.pre.ignore_merges,
            "vocab": {text: id for id, text in enumerate(vocab.tokens)},
            "merges": merges(vocab),
        },
    }


def _wordpiece(vocab: Vocab) -> dict[str, Any]:
    """Describe WordPiece by Google's spelling and rules, which differ from llama.cpp's on rare text (wordpiece.py)."""

    def spelled(id: int) -> str:
        text = vocab.tokens[id]
        return text if vocab.attr[id] != Attr.NORMAL else text[1:] if text.startswith(SPACE) else f"##{text}"

    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": vocab.strip_accents,
            "lowercase": vocab.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": vocab.tokens[vocab.roles["unk"]],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {spelled(id): id for id in range(len(vocab.tokens))},
        },
    }


def merges(vocab: Vocab) -> list[list[str]]:
    """Return the pairs of pieces that merge, in the order in which they do."""
    ids = {text: id for id, text in enumerate(vocab.tokens)}
    if vocab.model != "llama":
        halves = (split_merge(merge) for merge in vocab.merges)
        return [[left, right] for left, right in halves if {left, right, left + right} <= ids.keys()]
    assert vocab.scores is not None
    pairs = [
        (-float(vocab.scores[id]), ids[text[:cut]], ids[text[cut:]])
        for text, id in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [[vocab.tokens[left], vocab.tokens[right]] for _, left, right in sorted(pairs)]


def _sequence(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", name: steps}


def _added_token(vocab: Vocab, id: int) -> dict[str, Any]:
    attr = vocab.attr[id]
    return {
        "id": id,
        "content": vocab.tokens[id],
        "single_word": False,
        "lstrip": bool(attr & Attr.LSTRIP),
        "rstrip": bool(attr & Attr.RSTRIP),
        "normalized": False,
        "special": bool(attr & (Attr.CONTROL | Attr.UNKNOWN)),
    }


def _post_processor(vocab: Vocab) -> dict[str, Any] | None:
    """Describe the tokens before and after a text, such as BOS and EOS, if the vocabulary adds any."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    added = {role: vocab.roles[role] for role in ("bos", "eos") if getattr(vocab, f"add_{role}")}
    if vocab.model == "bert":
        added = {"bos": vocab.roles["bos"], "eos": vocab.roles["sep"]}
    if not added:
        return None
    at = {role: [{"SpecialToken": {"id": vocab.tokens[id], "type_id": 0}}] for role, id in added.items()}
    single = [*at.get("bos", []), text, *at.get("eos", [])]
    second = [*at.get("bos", []), {"Sequence": {"id": "B", "type_id": 1}}, *at.get("eos", [])]
    known = {
        vocab.tokens[id]: {"id": vocab.tokens[id], "ids": [id], "tokens": [vocab.tokens[id]]} for id in added.values()
    }
    return {"type": "TemplateProcessing", "single": single, "pair": single + second, "special_tokens": known}
