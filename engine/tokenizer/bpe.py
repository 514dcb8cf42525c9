"""BPE by the library `tokenizers`: byte-level (gpt2), and on UTF-8 with U+2581 for blanks (gemma4)."""

from __future__ import annotations

import os

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ..errors import ModelError
from .chunks import Encoder, blank_boundary, word_boundary
from .pre import Pre
from .vocab import Vocab, split_merge

# Replaces a byte that the vocabulary lacks, so that nothing merges across it; yields no id, as in llama.cpp.
_MISSING = "<missing>\uffff"


def bpe_encoder(vocab: Vocab) -> Encoder:
    """Return the encoder of `vocab`.  Takes 0.3 s for 128k pieces and 280k merges.

    Raises: ModelError if a merge names a piece that is not in the vocabulary.
    """
    pre, n_vocab = vocab.pre, len(vocab.tokens)
    pieces = {text: id for text, id in vocab.ids.items() if text.isprintable() or _is_utf8(text)}
    pieces[_MISSING] = n_vocab
    try:
        model = models.BPE(
            pieces,
            [split_merge(merge) for merge in vocab.merges],
            ignore_merges=pre.ignore_merges,
            byte_fallback=not pre.byte_level,
            unk_token=_MISSING,
        )
    except ModelError:
        raise
    except Exception as error:  # `tokenizers` raises no narrower class
        message = " ".join(str(error).split()).removeprefix("Error while initializing BPE: ")
        raise ModelError(f"'tokenizer.ggml.merges': {message}") from error
    tokenizer = Tokenizer(model)
    words = tokenizer.pre_tokenizer = pre_tokenizer(pre)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a batch is one text: no threads, no warning at a fork

    def encode(text: str) -> list[int]:
        # unlike `encode`, this releases Python's lock; and it leaves out offsets, which take half of the time
        [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids = encoding.ids
        return ids if n_vocab not in ids else [id for id in ids if id != n_vocab]

    def word_ends(text: str) -> set[int]:
        return {end for _, (_, end) in words.pre_tokenize_str(text)}

    return Encoder(encode, word_boundary(word_ends) if pre.byte_level else blank_boundary(vocab.tokens))


def pre_tokenizer(pre: Pre) -> pre_tokenizers.PreTokenizer:
    """Build the library's pre-tokenizer for `pre`."""
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(expression), "isolated") for expression in pre.split
    ]
    if pre.byte_level:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(cuts)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
