"""SPM by the library `sentencepiece`, from a model file built from the GGUF's arrays."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator

from sentencepiece import SentencePieceProcessor

from . import explain
from .chunks import Encoder, blank_boundary
from .vocab import Vocab

log = logging.getLogger(__name__)

# sentencepiece_model.proto: SentencePiece.Type and TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6
_BPE = 2


def spm_encoder(vocab: Vocab) -> Encoder:
    """Return the encoder of `vocab`, for text whose blanks are escaped.  Takes 0.05 s for 32k pieces.

    `sentencepiece` requires a piece for every byte, no NUL in a piece, no overlong piece, and UTF-8 text.  Otherwise
    the encoder is explain.py's, in plain Python.
    """
    processor, boundary = SentencePieceProcessor(), blank_boundary(vocab.tokens)
    try:
        processor.LoadFromSerializedProto(model_proto(vocab))
    except RuntimeError as error:
        log.info("sentencepiece refuses this vocabulary (%s); text is tokenized in plain Python", error)
        return Encoder(lambda text: explain.encode(vocab, text), boundary)

    def encode(text: str) -> list[int]:
        try:
            utf8 = text.encode()
        except UnicodeEncodeError:
            return explain.encode(vocab, text)
        ids: list[int] = processor.EncodeAsIds(utf8)
        return ids

    return Encoder(encode, boundary)


def model_proto(vocab: Vocab) -> bytes:
    """Serialize the vocabulary as sentencepiece's ModelProto.

    Every piece except the bytes is NORMAL, because special tokens are cut out of the text before and llama.cpp merges
    by spelling only.  A model must have an UNKNOWN piece; it is added at the end, and byte fallback never uses it.
    """
    bytes_ = {b"<0x%02X>" % byte for byte in range(256)}

    def pieces() -> Iterator[bytes]:
        for text, score in zip(vocab.tokens.encoded(), vocab.scores.tolist(), strict=True):  # type: ignore[union-attr]
            yield _piece(text, score, _BYTE if text in bytes_ else _NORMAL)
        yield _piece("<unknown>\uffff".encode(), 0.0, _UNKNOWN)

    trainer = _varint(3 << 3) + _varint(_BPE) + _varint(35 << 3) + _varint(True)  # model_type, byte_fallback
    # name; add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces: off, because Tokenizer does all three
    normalizer = _bytes(1, b"identity") + b"".join(_varint(field << 3) + _varint(False) for field in (3, 4, 5))
    return b"".join(pieces()) + _bytes(2, trainer) + _bytes(3, normalizer)


def _piece(text: bytes, score: float, kind: int) -> bytes:
    """Serialize one of ModelProto.pieces: piece, score, type."""
    return _bytes(1, _bytes(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))


def _bytes(field: int, value: bytes) -> bytes:
    """Serialize a length-delimited field of a protocol buffer."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Serialize an integer in groups of seven bits, lowest first; the top bit marks that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
