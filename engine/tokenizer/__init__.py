"""Text to token ids and back.

Hello <|eot_id|>
  vocab.py       the pieces, and which are special
  special.py     special tokens, cut out of the text         fragments: "Hello ", 128009
  chunks.py      fragments too long to be encoded at once
  spm.py bpe.py  each fragment of plain text to ids          9906, 220
  wordpiece.py   the same for BERT models, which put [CLS] and [SEP] around a text
  explain.py     the same in plain Python, with every step
  detokenize.py  ids to text during streaming
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from ..errors import RequestError
from ..go.text import LONE_SURROGATE
from . import explain as plain
from .chunks import MAX_TOKENS, Encoder, chunks
from .special import SpecialTokens
from .vocab import BYTE_ALPHABET, SPACE, Attr, Vocab
from .wordpiece import wordpiece_encoder

__all__ = ["Attr", "Tokenizer", "Vocab", "from_gguf"]

log = logging.getLogger(__name__)

_LONE_EXCEPT_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def from_gguf(kv: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer from the key-values of a GGUF.  Takes 0.5 s for 128k pieces, most of it in `tokenizers`.

    Raises: ModelError, UnsupportedArchitecture: see Vocab.from_gguf.
    """
    vocab = Vocab.from_gguf(kv)
    return Tokenizer(vocab, encoder_for(vocab))


def encoder_for(vocab: Vocab) -> Encoder:
    """Return the encoder of `vocab`'s algorithm.  Only its library is loaded: the two take 2 and 5 MiB."""
    if vocab.model == "llama":
        from .spm import spm_encoder

        return spm_encoder(vocab)
    if vocab.model == "bert":
        return wordpiece_encoder(vocab)
    from .bpe import bpe_encoder

    return bpe_encoder(vocab)


class Tokenizer:
    """A vocabulary and the function that encodes plain text with it.  Immutable, safe to share between threads."""

    def __init__(self, vocab: Vocab, encoder: Encoder | None = None):
        """Use `encoder`, or explain.py's by default."""
        self.vocab = vocab
        self._encoder = encoder or Encoder(lambda text: plain.encode(vocab, text))
        self.eog: frozenset[int] = vocab.eog
        self.bos: int | None = vocab.roles.get("bos")
        self.eos: int | None = vocab.roles.get("eos")
        self.add_bos: bool = vocab.add_bos
        self.add_eos: bool = vocab.add_eos
        self.n_vocab: int = len(vocab.tokens)
        is_bert = vocab.model == "bert"  # always adds [CLS] and [SEP], whatever the file says
        self.first: int | None = self.bos if self.add_bos or is_bert else None  # added before a text
        self.last: int | None = vocab.roles["sep"] if is_bert else self.eos if self.add_eos else None  # and after it

    @cached_property
    def max_chars_per_token(self) -> int | None:
        """The most characters of a text that become one token; None if some may become none."""
        vocab = self.vocab
        bytewise = vocab.model == "gpt2" and vocab.pre.byte_level
        covered = set(BYTE_ALPHABET.values()) <= vocab.ids.keys() if bytewise else None not in vocab.byte_ids
        absorbs = (vocab.attr & (Attr.LSTRIP | Attr.RSTRIP)).any()
        return vocab.longest if covered and not absorbs and vocab.model != "bert" else None

    def __repr__(self) -> str:
        return f"<Tokenizer {self.vocab.model}: {self.n_vocab} tokens, bos {self.bos}, eos {self.eos}>"

    def encode(
        self,
        text: str,
        add_special: bool = True,
        parse_special: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> list[int]:
        """Encode `text` to ids, as llama_tokenize does.

        add_special     put `first` before and `last` after the text, if the vocabulary requires them
        parse_special   "<|eot_id|>" in the text is that token; otherwise only user-defined tokens are recognized
        check           called between chunks of a long text; an error that it raises ends the encoding
        Raises: RequestError for more than MAX_TOKENS tokens, or a word of more than MAX_UNCUT_CHARS characters
        Bytes that are not UTF-8 may come as lone surrogates (PEP 383); BPE replaces them with U+FFFD, SPM keeps them.
        """
        ids = [self.first] if add_special and self.first is not None else []
        for fragment in self.fragments(text, parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
                continue
            for chunk in chunks(fragment, self._encoder.boundary):
                check()
                ids += self._encoder.encode(chunk)
                if len(ids) > MAX_TOKENS:
                    raise RequestError(f"the text has more than {MAX_TOKENS} tokens")
        if add_special and self.add_bos and ids[1:2] == [self.bos]:
            log.warning("the prompt begins with the BOS token %r, and the vocabulary adds another", self.bos)
        if add_special and self.last is not None:
            ids.append(self.last)
        return ids

    def explain(self, text: str, parse_special: bool = True) -> list[plain.Word]:
        """Return the words of `text` with the merges behind their tokens; a special token is a word without merges."""
        out = []
        for fragment in self.fragments(text, parse_special):
            if isinstance(fragment, int):
                piece = self.vocab.tokens[fragment]
                out.append(plain.Word(piece, [], [piece], [fragment]))
            else:
                out += plain.explain(self.vocab, fragment)
        return out

    def fragments(self, text: str, parse_special: bool = True) -> Iterator[int | str]:
        """Split `text` into special tokens and the plain text between them, with blanks escaped as in the pieces.

        The longest special token is cut out first, wherever it occurs.  With `add_space_prefix`, SPM puts a blank
        before the first fragment and before each one that follows a special token.
        """
        vocab = self.vocab
        prefix = SPACE if vocab.add_space_prefix and vocab.model == "llama" else ""
        for part in (self._all_specials if parse_special else self._user_defined).partition(text):
            if isinstance(part, int):
                yield part
                continue
            if vocab.spm_blanks and vocab.model != "bert":
                part = prefix + part.replace(" ", SPACE)
            invalid = _LONE_EXCEPT_BYTES if vocab.model == "llama" else LONE_SURROGATE
            yield invalid.sub("\ufffd", part)

    @cached_property
    def _all_specials(self) -> SpecialTokens:
        return SpecialTokens(self.vocab, self.vocab.specials)

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        """The special tokens that are cut out even if special tokens are not parsed."""
        attr = self.vocab.attr
        return SpecialTokens(
            self.vocab, [id for id in self.vocab.specials if not attr[id] & (Attr.CONTROL | Attr.UNKNOWN)]
        )

    def controls(self, texts: Iterable[str]) -> frozenset[int]:
        """Return the control tokens that occur in `texts`."""
        ids = (id for text in texts for id in self.encode(text, add_special=False))
        return frozenset(id for id in ids if self.vocab.attr[id] & Attr.CONTROL)

    def piece(self, id: int, special: bool = True) -> bytes:
        """Return the bytes of a token, possibly part of a character; empty for control and unknown unless `special`."""
        return self.vocab.piece(id, special)

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """Decode `ids` to text; with `special`, control tokens too.  Bytes that are not UTF-8 become U+FFFD."""
        return self.detokenize(ids, remove_special=not special, unparse_special=special).decode("utf-8", "replace")

    def detokenize(self, ids: Iterable[int], remove_special: bool = False, unparse_special: bool = True) -> bytes:
        """Decode `ids` to bytes, as llama_detokenize does.

        remove_special    omit the BOS and EOS that `encode` added
        unparse_special   include control tokens
        The blank that `add_space_prefix` added is removed, except after a BOS that was itself removed, as in llama.cpp.
        """
        ids, vocab = list(ids), self.vocab
        blank = vocab.add_space_prefix
        if remove_special and self.add_bos and ids[:1] == [self.bos]:
            ids, blank = ids[1:], False
        if remove_special and self.add_eos and ids[-1:] == [self.eos]:
            ids = ids[:-1]
        pieces = [vocab.piece(id, unparse_special) for id in ids]
        if pieces and blank:
            pieces[0] = pieces[0].removeprefix(b" ")
        text = b"".join(pieces)
        return _clean_spaces(text) if vocab.model != "llama" and vocab.pre.clean_spaces else text


def _clean_spaces(text: bytes) -> bytes:
    """Remove the blanks that English text does not have: "it 's , so" -> "it's, so".

    Source: clean_up_tokenization of Hugging Face's transformers, the part of it that llama_detokenize has.
    """
    text = re.sub(rb" (?=[?!.,])", b"", text)
    text = re.sub(rb" ' ", b"'", text)
    return re.sub(rb" (?='(?:s|m|re|ve))", b"", text)
