"""SPM on `sentencepiece`, from a model file that is written here from the GGUF's arrays."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator

from sentencepiece import SentencePieceProcessor

from . import explain
from .vocab import Vocab

log = logging.getLogger(__name__)

# sentencepiece_model.proto: SentencePiece.Type and TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6
_BPE = 2


def spm_encoder(vocab: Vocab) -> Callable[[str], list[int]]:
    """Text without special tokens, its blanks escaped -> ids.  Builds in 0.05 s for 32k pieces.

    `sentencepiece` wants a piece for every byte, none with a NUL, none too long, and text that is UTF-8; where that is
    not so, plain Python does the work.
    """
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model_proto(vocab))
    except RuntimeError as error:
        log.info("sentencepiece refuses this vocabulary (%s); text is tokenized in plain Python", error)
        return lambda text: explain.encode(vocab, text)

    def encode(text: str) -> list[int]:
        try:
            utf8 = text.encode()
        except UnicodeEncodeError:
            return explain.encode(vocab, text)
        return processor.EncodeAsIds(utf8)

    return encode


def model_proto(vocab: Vocab) -> bytes:
    """The vocabulary as sentencepiece's ModelProto.

    Every piece is NORMAL but the bytes, since special tokens have been cut out of the text before, and llama.cpp merges
    by spelling alone.  The UNKNOWN that a model must have is one more piece at the end, which byte fallback never uses.
    """
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}

    def pieces() -> Iterator[bytes]:
        for text, score in zip(vocab.tokens, vocab.scores.tolist(), strict=True):  # type: ignore[union-attr]
            kind = _BYTE if text in bytes_ else _NORMAL
            yield _piece(text.encode("utf-8", "surrogateescape"), score, kind)
        yield _piece("<unknown>\uffff".encode(), 0.0, _UNKNOWN)

    trainer = _varint(3 << 3) + _varint(_BPE) + _varint(35 << 3) + _varint(True)  # model_type, byte_fallback
    # name; add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces: off, all of it is done before
    normalizer = _bytes(1, b"identity") + b"".join(_varint(field << 3) + _varint(False) for field in (3, 4, 5))
    return b"".join(pieces()) + _bytes(2, trainer) + _bytes(3, normalizer)


def _piece(text: bytes, score: float, kind: int) -> bytes:
    """ModelProto.pieces: piece, score, type."""
    return _bytes(1, _bytes(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))


def _bytes(field: int, value: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, low ones first; the top bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
