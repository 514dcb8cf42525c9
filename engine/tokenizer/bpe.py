"""BPE by the library `tokenizers`: byte-level (gpt2), and on UTF-8 with U+2581 for blanks (gemma4)."""

from __future__ import annotations

import logging
import os

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from . import explain
from .chunks import Encoder, blank_boundary, word_boundary
from .pre import Pre
from .vocab import Vocab, split_merge

log = logging.getLogger(__name__)

# Replaces a byte that the vocabulary lacks, so that nothing merges across it; yields no id, as in llama.cpp.
_MISSING = "<missing>\uffff"


def bpe_encoder(vocab: Vocab) -> Encoder:
    """Return the encoder of `vocab`.  Takes 0.3 s for 128k pieces and 280k merges.

    `tokenizers` refuses merges that name a piece outside the vocabulary.  Those that never apply are left out.  If
    others remain, the encoder is explain.py's, in plain Python.
    """
    pre, n_vocab = vocab.pre, len(vocab.tokens)
    pieces = {text: id for id, text in enumerate(vocab.tokens) if text.isprintable() or _is_utf8(text)}
    pieces[_MISSING] = n_vocab

    def model_of(merges: list[tuple[str, str]]) -> models.BPE:
        return models.BPE(
            pieces,
            merges,
            ignore_merges=pre.ignore_merges,
            byte_fallback=not pre.byte_level,
            unk_token=_MISSING,
        )

    pairs = [split_merge(merge) for merge in vocab.merges]
    try:
        model = model_of(pairs)
    except Exception as error:  # `tokenizers` raises no narrower class
        message = " ".join(str(error).split()).removeprefix("Error while initializing BPE: ")
        log.warning("'tokenizer.ggml.merges': %s", message[:200])
        pairs = applicable(pairs)
        if not all(left in pieces and right in pieces and left + right in pieces for left, right in pairs):
            log.warning("text is tokenized in plain Python")
            return Encoder(lambda text: explain.encode(vocab, text))
        model = model_of(pairs)
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


def applicable(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the merges that may apply: both sides are single characters, or come from a merge."""
    made = {left + right for left, right in pairs}
    return [pair for pair in pairs if all(len(side) == 1 or side in made for side in pair)]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
