"""The vocabulary of a GGUF: its pieces, their attributes, and the special tokens.

The `tokenizer.ggml.*` arrays are interpreted as in llama.cpp (src/llama-vocab.cpp, commit 0c1e57098), which also infers
attributes from spelling: `<|im_end|>` ends a generation whatever the file says.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import ModelError, UnsupportedArchitecture
from ..gguf.read import described
from ..gguf.strings import Strings
from .ids import Ids
from .pre import DEFAULT, PRE, Pre

log = logging.getLogger(__name__)

SPACE = "\u2581"  # LOWER ONE EIGHTH BLOCK, which sentencepiece writes for a blank


class Attr(IntFlag):
    """The attributes of a token.  Names and values are llama.cpp's llama_token_attr."""

    UNDEFINED = 0
    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32
    LSTRIP = 128
    RSTRIP = 256


# plain integers for Vocab.piece, which is called for every token: operations on IntFlag would take most of its time
_HIDDEN, _AS_WRITTEN = int(Attr.CONTROL | Attr.UNKNOWN), int(Attr.CONTROL | Attr.UNKNOWN | Attr.USER_DEFINED)
_NORMAL, _BYTE = int(Attr.NORMAL), int(Attr.BYTE)

# tokenizer.ggml.token_type, as sentencepiece numbers them, to Attr; any other number is UNDEFINED
_ATTR_OF_TYPE = [0, Attr.NORMAL, Attr.UNKNOWN, Attr.CONTROL, Attr.USER_DEFINED, Attr.UNUSED, Attr.BYTE]

# Spellings that give a token its role if the file does not.  The first one in the vocabulary wins.
_ROLES = {
    "eot": "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT] "
    "<\uff5cend\u2581of\u2581sentence\uff5c> <end_of_utterance>",
    "eom": "<|eom_id|>",
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c>"
    " <PRE> \u2581<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c>"
    " <SUF> \u2581<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c>"
    " <MID> \u2581<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
# Spellings that end a generation, in addition to the roles eos, eot, eom, fim_pad, fim_rep and fim_sep.
EOG_SPELLINGS = (
    _ROLES["eot"] + " <|return|> <|call|> <|flush|> <|calls|> </s> <|eom_id|> [EOS] <eos> <turn|> <|tool_response> [e~["
)

# role: its keys; a later key overrides an earlier one
_ROLE_KEYS = {
    role: [f"tokenizer.ggml.{name}_token_id" for name in names.split()]
    for role, names in {
        "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "sep": "seperator", "pad": "padding",
        "mask": "mask",
        "fim_pre": "fim_pre prefix", "fim_suf": "fim_suf suffix", "fim_mid": "fim_mid middle",
        "fim_pad": "fim_pad", "fim_rep": "fim_rep", "fim_sep": "fim_sep",
    }.items()
}  # fmt: skip
_DEFAULT_ROLES = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
}
_NO_TOKEN = 0xFFFFFFFF  # -1 as u32, which converters write for "none"


@dataclass(frozen=True, eq=False)
class Vocab:
    """The vocabulary of one file.

    model         tokenizer.ggml.model: "llama" (SPM), "gpt2" (byte-level BPE), "gemma4" (BPE on UTF-8) or "bert"
                  (WordPiece)
    tokens        piece of each id, as spelled in the file;  ids: the inverse, quick only in small numbers
    scores        f32 [n_vocab] or None;  SPM merges the pair whose piece has the highest
    merges        "left right", best first;  for BPE only.  A merge may name pieces that the vocabulary lacks
    attr          i64 [n_vocab], Attr
    roles         id of the token with each role: bos eos eot eom unk sep pad mask fim_pre ...; a missing role is absent
    eog           the ids that end a generation
    lowercase, strip_accents   normalization by WordPiece before it looks up pieces
    """

    model: str
    pre: Pre
    tokens: Strings
    ids: Mapping[str, int]
    scores: np.ndarray | None
    merges: Strings
    attr: np.ndarray
    roles: Mapping[str, int]
    eog: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    lowercase: bool = True
    strip_accents: bool = True

    @classmethod
    def from_gguf(cls, kv: Mapping[str, Any]) -> Vocab:
        """Build the vocabulary from the key-values of a GGUF.

        Raises: ModelError if arrays are missing, inconsistent or refer to missing tokens
        Raises: UnsupportedArchitecture for an unknown `tokenizer.ggml.model` or `pre`
        """
        model, pre = _kinds(kv)
        tokens: Strings = _array(kv, "tokens", str)
        if not tokens.sizes().all():
            tokens = Strings.of(text or f"[EMPTY_{id}]" for id, text in enumerate(tokens))
        if not tokens:
            raise ModelError("'tokenizer.ggml.tokens' is empty")
        ids = Ids(tokens)
        if (again := ids.repeated()) is not None:
            raise ModelError(
                f"'tokenizer.ggml.tokens' has {tokens[again]!r} twice, as {again} and as {ids[tokens[again]]}"
            )

        scores = merges = None
        if model == "llama":
            scores = np.zeros(len(tokens), np.float32)
            if "tokenizer.ggml.scores" in kv:
                scores = np.asarray(_array(kv, "scores", float, len(tokens)), np.float32)
            if np.isnan(scores).any():
                raise ModelError(f"'tokenizer.ggml.scores' is not a number for token {int(np.isnan(scores).argmax())}")
        elif model != "bert":
            merges = _merges(kv)
        attr = np.full(len(tokens), Attr.NORMAL, np.int64)
        if "tokenizer.ggml.token_type" in kv:
            types = np.asarray(_array(kv, "token_type", int, len(tokens)))
            known = (types >= 0) & (types < len(_ATTR_OF_TYPE))
            attr = np.asarray(_ATTR_OF_TYPE, np.int64)[np.where(known, types, 0)]

        roles = _roles(kv, model, pre, ids, attr)
        eog = _end_of_generation(roles, tokens, ids, attr)
        _mark_absorbing_tokens(kv, ids, attr)
        lowercase = _flag(kv, "normalizer.lowercase", True)
        vocab = cls(
            model=model,
            pre=pre,
            tokens=tokens,
            ids=dict(ids.items()) if model == "bert" else ids,  # WordPiece looks up parts of words one after the other
            scores=scores,
            merges=merges or Strings([]),
            attr=attr,
            roles=roles,
            eog=frozenset(eog),
            # gemma4 always adds BOS: llama.cpp's workaround for files that say not to
            add_bos=_flag(kv, "add_bos_token", model in ("llama", "bert") or pre.add_bos) or pre is PRE["gemma4"],
            add_eos=_flag(kv, "add_eos_token", False),
            add_space_prefix=_flag(kv, "add_space_prefix", model == "llama"),
            lowercase=lowercase,
            strip_accents=_flag(kv, "normalizer.strip_accents", lowercase),
        )
        for role in ("bos", "eos"):
            if getattr(vocab, f"add_{role}") and role not in roles:
                raise ModelError(
                    f"'tokenizer.ggml.add_{role}_token' is set, but the vocabulary has no {role.upper()} token"
                )
        for role in ("bos", "sep", "unk") if model == "bert" else ():
            if role not in roles:
                raise ModelError(f"WordPiece requires a token for {role.upper()}, which the vocabulary lacks")
        return vocab

    @property
    def spm_blanks(self) -> bool:
        """Whether pieces spell blanks as U+2581."""
        return self.model in ("llama", "bert") or not self.pre.byte_level

    @cached_property
    def longest(self) -> int:
        """Length of the longest piece in characters."""
        return max(map(len, self.tokens))

    @cached_property
    def specials(self) -> list[int]:
        """Ids of the tokens that are cut out of a text before the rest is tokenized, longest piece first."""
        special = np.flatnonzero(self.attr & (Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN)).tolist()
        return sorted(special, key=lambda id: -len(self.tokens[id].encode("utf-8", "surrogateescape")))

    @cached_property
    def byte_ids(self) -> list[int | None]:
        """Id of the token for each byte, used if no piece matches; `<0x0A>` is byte 10."""
        return [self.ids.get(f"<0x{byte:02X}>", self.ids.get(chr(byte)) if byte < 128 else None) for byte in range(256)]

    @cached_property
    def ranks(self) -> dict[tuple[str, str], int]:
        """Rank of each pair that BPE merges; 0 is merged first."""
        return {split_merge(merge): rank for rank, merge in enumerate(self.merges)}

    def piece(self, id: int, special: bool = True) -> bytes:
        """Return the bytes of a token; empty for control and unknown tokens unless `special`.

        As llama_token_to_piece: a piece may be part of a character, and that of an unused token is empty.
        """
        attr, text = int(self.attr[id]), self.tokens[id]
        if attr & _HIDDEN and not special:
            return b""
        if attr & _AS_WRITTEN:
            return text.encode("utf-8", "surrogateescape")
        if attr & _NORMAL:
            if self.spm_blanks:
                return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
            return b"".join(_BYTE_OF.get(char) or _unknown_byte(char, text) for char in text)
        if attr & _BYTE:
            return (
                bytes([int(text[3:5], 16)])
                if _BYTE_SPELLING.fullmatch(text)
                else text.encode("utf-8", "surrogateescape")
            )
        return b""


def split_merge(merge: str) -> tuple[str, str]:
    """Split one of Vocab.merges into left and right, at the first blank after the first character."""
    cut = merge.index(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _byte_alphabet() -> dict[int, str]:
    """Map every byte to a visible character, as GPT-2 does: Latin-1 if visible there, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + n) for n, byte in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()
_BYTE_SPELLING = re.compile("<0x[0-9A-Fa-f]{2}>")
_BYTE_OF = {char: bytes([byte]) for byte, char in BYTE_ALPHABET.items()}


def _unknown_byte(char: str, text: str) -> bytes:
    """Return llama_decode_text's placeholder for a character of a byte-level piece that is outside the alphabet."""
    spelled = char.encode("utf-8", "surrogateescape")
    return b"[UNK_BYTE_0x" + spelled.hex().encode() + text.encode("utf-8", "surrogateescape") + b"]"


def _kinds(kv: Mapping[str, Any]) -> tuple[str, Pre]:
    """Return `tokenizer.ggml.model` and the Pre of `tokenizer.ggml.pre`."""
    model = kv.get("tokenizer.ggml.model")
    if model is None:
        raise ModelError("'tokenizer.ggml.model' is missing: this file has no vocabulary")
    architecture = kv.get("general.architecture", "")
    architecture = architecture if isinstance(architecture, str) else ""
    if not isinstance(model, str) or model not in _DEFAULT_ROLES:
        raise UnsupportedArchitecture(
            architecture, f"'tokenizer.ggml.model' is {described(model)}, expected one of {', '.join(_DEFAULT_ROLES)}"
        )
    if model in ("llama", "bert"):
        return model, DEFAULT
    name = "gemma4" if model == "gemma4" else kv.get("tokenizer.ggml.pre", "")
    if isinstance(name, str) and not name:
        log.warning("'tokenizer.ggml.pre' is missing: using the default of early GGUFs, which may not fit the model")
        name = "default"
    if not isinstance(name, str) or name not in PRE:
        raise UnsupportedArchitecture(architecture, f"'tokenizer.ggml.pre' is {described(name)}, which is unknown")
    return model, PRE[name]


def _array(kv: Mapping[str, Any], name: str, kind: type, length: int | None = None) -> Any:
    """Return the array `tokenizer.ggml.NAME`, whose elements are `kind`, as Strings if they are strings.

    Elements after the first `length` are dropped, as in llama.cpp.
    Raises: ModelError if it is missing, of another type, or shorter than `length`
    """
    key = f"tokenizer.ggml.{name}"
    if key not in kv:
        raise ModelError(f"{key!r} is missing, which this kind of vocabulary requires")
    array = kv[key]
    wanted = {str: "strings", int: "integers", float: "numbers"}[kind]
    if isinstance(array, np.ndarray):
        good = array.dtype.kind in {str: "", int: "iu", float: "iuf"}[kind] or len(array) == 0
        exact = np.dtype(np.float32 if kind is float else np.int32)  # llama.cpp refuses other widths
        if good and array.dtype != exact and len(array):
            raise ModelError(f"{key!r} is an array of {array.dtype}, expected {exact}")
    else:
        good = (kind is str and isinstance(array, Strings)) or (
            isinstance(array, (list, tuple))
            and all(isinstance(x, (int, float) if kind is float else kind) and not isinstance(x, bool) for x in array)
        )
    if not good:
        raise ModelError(f"{key!r} is not an array of {wanted}")
    if length is not None and len(array) < length:
        raise ModelError(f"{key!r} has {len(array)} elements, 'tokenizer.ggml.tokens' has {length}")
    if kind is str:
        return array if isinstance(array, Strings) else Strings.of(array)
    return array[:length]


def _merges(kv: Mapping[str, Any]) -> Strings:
    """Return the merges in the order of their ranks; a pair named twice keeps its first rank."""
    lines: Strings = _array(kv, "merges", str)
    different = dict.fromkeys(lines.encoded())
    merges = [line for line in different if line.find(b" ", 1) > 0]
    if len(merges) < len(different):
        odd = next(line for line in different if line.find(b" ", 1) < 0).decode("utf-8", "surrogateescape")
        log.warning("'tokenizer.ggml.merges' has lines without two pieces, which are ignored, such as %r", odd[:100])
    return lines if len(merges) == len(lines) else Strings(merges)


def _flag(kv: Mapping[str, Any], name: str, default: bool) -> bool:
    value = kv.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, (bool, np.bool_)):
        raise ModelError(f"'tokenizer.ggml.{name}' is {described(value)}, expected a bool")
    return bool(value)


def _roles(kv: Mapping[str, Any], model: str, pre: Pre, ids: Mapping[str, int], attr: np.ndarray) -> dict[str, int]:
    """Return the id of the token in each role: from the file, else llama.cpp's default, else by spelling.

    A token found by spelling becomes control in `attr`, as in llama.cpp, whatever the file says.
    """
    roles = {role: id for role, id in _DEFAULT_ROLES[model].items() if id < len(ids)}
    if model == "gpt2" and not pre.has_bos:
        roles.pop("bos", None)
    for role, keys in _ROLE_KEYS.items():
        for key in keys:
            id = kv.get(key, _NO_TOKEN)
            if not isinstance(id, (int, np.integer)) or isinstance(id, bool):
                raise ModelError(f"{key!r} is {described(id)}, expected the id of a token")
            if id in (_NO_TOKEN, -1):
                continue
            if not 0 <= id < len(ids):
                default = f"{roles[role]} is used" if role in roles else "it is ignored"
                log.warning("'%s' is %d, but the vocabulary has %d tokens: %s", key, id, len(ids), default)
                continue
            roles[role] = int(id)
    for role, spellings in _ROLES.items():
        if role not in roles:
            for id in _ids_of(spellings.split(), ids)[:1]:
                roles[role] = id
                attr[id] |= Attr.CONTROL
    return roles


def _ids_of(spellings: Iterable[str], ids: Mapping[str, int]) -> list[int]:
    return [ids[text] for text in spellings if text in ids]


def _end_of_generation(
    roles: Mapping[str, int], tokens: Sequence[str], ids: Mapping[str, int], attr: np.ndarray
) -> set[int]:
    """Return every id that ends a generation; correct `attr` where llama.cpp overrides the file by spelling."""
    eog = {roles[role] for role in ("fim_pad", "fim_rep", "fim_sep") if role in roles}
    for id in _ids_of(EOG_SPELLINGS.split(), ids):
        eog.add(id)
        attr[id] |= Attr.CONTROL
    for id in _ids_of(["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"], ids):
        attr[id] = Attr.USER_DEFINED  # gpt-oss: always rendered
    eog |= {roles[role] for role in ("eos", "eot", "eom") if role in roles}

    spelled = {tokens[id] for id in eog}
    if "<|end|>" in spelled and spelled & {"<|call|>", "<|calls|>"} and spelled & {"<|return|>", "<|flush|>"}:
        eog.remove(ids["<|end|>"])  # gpt-oss and solar-open end a message with it, not the answer
        attr[ids["<|end|>"]] = Attr.USER_DEFINED
    if "</s>" in spelled and spelled & {"<|tool_response>", "<|plamo:eos|>"}:
        eog.remove(ids["</s>"])  # an ordinary HTML tag in these vocabularies
        attr[ids["</s>"]] = Attr.NORMAL
    return eog


def _mark_absorbing_tokens(kv: Mapping[str, Any], ids: Mapping[str, int], attr: np.ndarray) -> None:
    """Mark the tokens that absorb blanks beside them.  GGUF has no key for this; llama.cpp goes by the model's name."""
    name, pre = str(kv.get("general.name", "")).lower(), str(kv.get("tokenizer.ggml.pre", ""))
    if pre.startswith(("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        attr[_ids_of(["<mask>"], ids)] |= Attr.LSTRIP
    elif "phi-3" in name or "phi3" in name:
        special = (attr & (Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN)) != 0
        attr[special] |= Attr.RSTRIP
        attr[_ids_of(["</s>"], ids)] |= Attr.RSTRIP
        attr[_ids_of(["<unk>", "<s>", "<|endoftext|>"], ids)] &= ~Attr.RSTRIP
    elif "modern-bert" in name:
        attr[_ids_of(["[MASK]"], ids)] |= Attr.LSTRIP
