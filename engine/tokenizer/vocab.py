"""Vocab: the pieces of a GGUF vocabulary, what each is for, and which of them begin and end a text.

Everything here is llama.cpp's reading of the `tokenizer.ggml.*` arrays (src/llama-vocab.cpp, commit 0c1e57098), also
what it concludes from the spelling of a piece: `<|im_end|>` ends a generation whatever the file says about it.
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
from .pre import DEFAULT, PRE, Pre

log = logging.getLogger(__name__)

SPACE = "\u2581"  # LOWER ONE EIGHTH BLOCK: how sentencepiece writes a blank


class Attr(IntFlag):
    """What a token is for.  Names and values are llama.cpp's llama_token_attr."""

    UNDEFINED = 0
    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32
    LSTRIP = 128
    RSTRIP = 256


# plain numbers for Vocab.piece, which is asked for every token there is: arithmetic on flags takes most of its time
_HIDDEN, _AS_WRITTEN = int(Attr.CONTROL | Attr.UNKNOWN), int(Attr.CONTROL | Attr.UNKNOWN | Attr.USER_DEFINED)
_NORMAL, _BYTE = int(Attr.NORMAL), int(Attr.BYTE)

# tokenizer.ggml.token_type, as sentencepiece numbers them, to Attr; any other number is UNDEFINED
_ATTR_OF_TYPE = [0, Attr.NORMAL, Attr.UNKNOWN, Attr.CONTROL, Attr.USER_DEFINED, Attr.UNUSED, Attr.BYTE]

# Spellings that give a token its role where the file names none.  The first that exists has it.
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
# Spellings that end a generation, beside the tokens of the roles eos, eot, eom, fim_pad, fim_rep and fim_sep.
_EOG = (
    _ROLES["eot"] + " <|return|> <|call|> <|flush|> <|calls|> </s> <|eom_id|> [EOS] <eos> <turn|> <|tool_response> [e~["
)

# role: its keys, of which a later one wins
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
_NO_TOKEN = 0xFFFFFFFF  # -1 as the u32 of these keys: converters write it for "none"


@dataclass(frozen=True, eq=False)
class Vocab:
    """The vocabulary of one file.

    model         tokenizer.ggml.model: "llama" (SPM), "gpt2" (byte-level BPE), "gemma4" (BPE on UTF-8) or "bert"
                  (WordPiece)
    tokens        piece of each id, as the file spells it;  ids: the inverse
    scores        f32 [n_vocab] or None;  SPM merges the pair whose piece has the highest
    merges        "left right", best first;  BPE's own
    attr          i64 [n_vocab], Attr
    roles         id of the token with that role: bos eos eot eom unk sep pad mask fim_pre ...; absent: None
    eog           every id that ends a generation
    lowercase, strip_accents   what WordPiece does to a text before it looks for pieces
    """

    model: str
    pre: Pre
    tokens: Sequence[str]
    ids: Mapping[str, int]
    scores: np.ndarray | None
    merges: Sequence[str]
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
        """The vocabulary in the key-values of a GGUF.

        Raises: ModelError where arrays are missing, disagree or name what is not there; UnsupportedArchitecture for
        a `tokenizer.ggml.model` or `pre` that is not built here.
        """
        model, pre = _kinds(kv)
        tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(_array(kv, "tokens", str))]
        ids = {text: id for id, text in enumerate(tokens)}
        if not tokens:
            raise ModelError("'tokenizer.ggml.tokens' is empty")
        if len(ids) < len(tokens):
            again = next(id for id, text in enumerate(tokens) if ids[text] != id)
            raise ModelError(
                f"'tokenizer.ggml.tokens' has {tokens[again]!r} twice, as {again} and as {ids[tokens[again]]}"
            )

        scores = merges = None
        if model == "llama":
            scores = np.asarray(_array(kv, "scores", float, len(tokens)), np.float32)
            if np.isnan(scores).any():
                raise ModelError(f"'tokenizer.ggml.scores' is not a number for token {int(np.isnan(scores).argmax())}")
        elif model != "bert":
            merges = list(dict.fromkeys(_array(kv, "merges", str)))  # a pair named twice keeps its first rank
        attr = np.full(len(tokens), Attr.NORMAL, np.int64)
        if "tokenizer.ggml.token_type" in kv:
            types = np.asarray(_array(kv, "token_type", int, len(tokens)))
            known = (types >= 0) & (types < len(_ATTR_OF_TYPE))
            attr = np.asarray(_ATTR_OF_TYPE, np.int64)[np.where(known, types, 0)]

        roles = _roles(kv, model, pre, ids, attr)
        eog = _end_of_generation(roles, tokens, ids, attr)
        _strip(kv, ids, attr)
        lowercase = _flag(kv, "normalizer.lowercase", True)
        vocab = cls(
            model=model,
            pre=pre,
            tokens=tokens,
            ids=ids,
            scores=scores,
            merges=merges or [],
            attr=attr,
            roles=roles,
            eog=frozenset(eog),
            # gemma4 adds BOS even where its file says not to: llama.cpp's workaround for files that do
            add_bos=_flag(kv, "add_bos_token", model in ("llama", "bert") or pre.add_bos) or pre is PRE["gemma4"],
            add_eos=_flag(kv, "add_eos_token", False),
            add_space_prefix=_flag(kv, "add_space_prefix", model == "llama"),
            lowercase=lowercase,
            strip_accents=_flag(kv, "normalizer.strip_accents", lowercase),
        )
        for role in ("bos", "eos"):
            if getattr(vocab, f"add_{role}") and role not in roles:
                raise ModelError(
                    f"'tokenizer.ggml.add_{role}_token' asks for a token, but the vocabulary has no {role.upper()}"
                )
        for role in ("bos", "sep", "unk") if model == "bert" else ():
            if role not in roles:
                raise ModelError(f"WordPiece needs a token for {role.upper()}, and the vocabulary names none")
        return vocab

    @property
    def spm_blanks(self) -> bool:
        """Blanks are written as U+2581 in the pieces."""
        return self.model in ("llama", "bert") or not self.pre.byte_level

    @cached_property
    def longest(self) -> int:
        """Characters of the longest piece."""
        return max(map(len, self.tokens))

    @cached_property
    def specials(self) -> list[int]:
        """Ids of what is cut out of a text before the rest is tokenized, longest piece first."""
        special = np.flatnonzero(self.attr & (Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN)).tolist()
        return sorted(special, key=lambda id: -len(self.tokens[id].encode("utf-8", "surrogateescape")))

    @cached_property
    def byte_ids(self) -> list[int | None]:
        """Id of the token that stands for each byte where no piece matches; `<0x0A>` is the byte 10."""
        return [self.ids.get(f"<0x{byte:02X}>", self.ids.get(chr(byte)) if byte < 128 else None) for byte in range(256)]

    @cached_property
    def ranks(self) -> dict[tuple[str, str], int]:
        """Rank of each pair that BPE merges; 0 is merged first."""
        return {split_merge(merge): rank for rank, merge in enumerate(self.merges)}

    def piece(self, id: int, special: bool = True) -> bytes:
        """What the token adds to a text; nothing for control and unknown tokens unless `special`.

        As llama_token_to_piece: a piece may be half a character, and an unused one is empty.
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
    """Left and right of a line of `tokenizer.ggml.merges`, parted by the first blank that has something before it.

    Raises: ModelError where there is none.
    """
    cut = merge.find(" ", 1)
    if cut < 0:
        raise ModelError(f"'tokenizer.ggml.merges' has {merge!r}, which is not two pieces with a blank between")
    return merge[:cut], merge[cut + 1 :]


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's way to write any byte as a visible character: itself where it is one in Latin-1, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + n) for n, byte in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()
_BYTE_SPELLING = re.compile("<0x[0-9A-Fa-f]{2}>")
_BYTE_OF = {char: bytes([byte]) for byte, char in BYTE_ALPHABET.items()}


def _unknown_byte(char: str, text: str) -> bytes:
    """What llama_decode_text puts where a byte-level piece has a character outside the alphabet."""
    spelled = char.encode("utf-8", "surrogateescape")
    return b"[UNK_BYTE_0x" + spelled.hex().encode() + text.encode("utf-8", "surrogateescape") + b"]"


def _kinds(kv: Mapping[str, Any]) -> tuple[str, Pre]:
    """`tokenizer.ggml.model` and the Pre of `tokenizer.ggml.pre`."""
    model = kv.get("tokenizer.ggml.model")
    if model is None:
        raise ModelError("no 'tokenizer.ggml.model': this file has no vocabulary")
    architecture = str(kv.get("general.architecture", ""))
    if not isinstance(model, str) or model not in _DEFAULT_ROLES:
        raise UnsupportedArchitecture(
            architecture, f"'tokenizer.ggml.model' is {model!r}; known here: {', '.join(_DEFAULT_ROLES)}"
        )
    if model in ("llama", "bert"):
        return model, DEFAULT
    name = "gemma4" if model == "gemma4" else kv.get("tokenizer.ggml.pre", "")
    if isinstance(name, str) and not name:
        log.warning("no 'tokenizer.ggml.pre': words are cut as in the first GGUFs, which few models were trained with")
        name = "default"
    if not isinstance(name, str) or name not in PRE:
        raise UnsupportedArchitecture(architecture, f"'tokenizer.ggml.pre' is {name!r}, which is not known here")
    return model, PRE[name]


def _array(kv: Mapping[str, Any], name: str, kind: type, length: int | None = None) -> Any:
    """The array `tokenizer.ggml.NAME`, whose elements are `kind`.

    Raises: ModelError where it is missing, not such an array, or not `length` long.
    """
    key = f"tokenizer.ggml.{name}"
    if key not in kv:
        raise ModelError(f"no {key!r}, which this kind of vocabulary needs")
    array = kv[key]
    wanted = {str: "strings", int: "integers", float: "numbers"}[kind]
    if isinstance(array, np.ndarray):
        good = array.dtype.kind in {str: "", int: "iu", float: "iuf"}[kind] or len(array) == 0
    else:
        good = isinstance(array, (list, tuple)) and all(
            isinstance(x, (int, float) if kind is float else kind) for x in array
        )
    if not good:
        raise ModelError(f"{key!r} is not an array of {wanted}")
    if length is not None and len(array) != length:
        raise ModelError(f"{key!r} has {len(array)} elements, 'tokenizer.ggml.tokens' has {length}")
    return array


def _flag(kv: Mapping[str, Any], name: str, default: bool) -> bool:
    value = kv.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, (bool, np.bool_)):
        raise ModelError(f"'tokenizer.ggml.{name}' is {value!r}, expected a bool")
    return bool(value)


def _roles(kv: Mapping[str, Any], model: str, pre: Pre, ids: Mapping[str, int], attr: np.ndarray) -> dict[str, int]:
    """Id of the token in each role: as the file says, else llama.cpp's default, else by spelling.

    The last makes the token control in `attr`, as in llama.cpp, whatever the file says.
    """
    roles = {role: id for role, id in _DEFAULT_ROLES[model].items() if id < len(ids)}
    if model == "gpt2" and not pre.has_bos:
        roles.pop("bos", None)
    for role, keys in _ROLE_KEYS.items():
        for key in keys:
            id = kv.get(key, _NO_TOKEN)
            if not isinstance(id, (int, np.integer)) or isinstance(id, bool):
                raise ModelError(f"{key!r} is {id!r}, expected the id of a token")
            if id in (_NO_TOKEN, -1):
                continue
            if not 0 <= id < len(ids):
                raise ModelError(f"{key!r} is {id}, but the vocabulary has {len(ids)} tokens")
            roles[role] = int(id)
    for role, spellings in _ROLES.items():
        if role not in roles:
            for id in _found(spellings.split(), ids)[:1]:
                roles[role] = id
                attr[id] |= Attr.CONTROL
    return roles


def _found(spellings: Iterable[str], ids: Mapping[str, int]) -> list[int]:
    return [ids[text] for text in spellings if text in ids]


def _end_of_generation(
    roles: Mapping[str, int], tokens: Sequence[str], ids: Mapping[str, int], attr: np.ndarray
) -> set[int]:
    """Every id that ends a generation; `attr` is corrected where a spelling says otherwise than the file."""
    eog = {roles[role] for role in ("fim_pad", "fim_rep", "fim_sep") if role in roles}
    for id in _found(_EOG.split(), ids):
        eog.add(id)
        attr[id] |= Attr.CONTROL
    for id in _found(["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"], ids):
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


def _strip(kv: Mapping[str, Any], ids: Mapping[str, int], attr: np.ndarray) -> None:
    """Mark the tokens that swallow blanks beside them.  No GGUF says so; llama.cpp goes by the model's name."""
    name, pre = str(kv.get("general.name", "")).lower(), str(kv.get("tokenizer.ggml.pre", ""))
    if pre.startswith(("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        attr[_found(["<mask>"], ids)] |= Attr.LSTRIP
    elif "phi-3" in name or "phi3" in name:
        special = (attr & (Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN)) != 0
        attr[special] |= Attr.RSTRIP
        attr[_found(["</s>"], ids)] |= Attr.RSTRIP
        attr[_found(["<unk>", "<s>", "<|endoftext|>"], ids)] &= ~Attr.RSTRIP
    elif "modern-bert" in name:
        attr[_found(["[MASK]"], ids)] |= Attr.LSTRIP
