"""Echo: the prompt as the start of its own answer, with the log-probability of each token.

tokens   The   cat   sat                     log-probability of "The cat sat":
logits    0     1     2                      ln p(cat | The) + ln p(sat | The cat)
            \\     \\     \\_ next token
             cat   sat
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator

import numpy as np

from ...kernels import Kernels
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import forward
from ..model.model import Model
from ..model.trace import Tap, no_tap
from ..sampling import Logprob, logprobs_of
from ..tokenizer import Tokenizer
from ..tokenizer.detokenize import Detokenizer
from .piece import Piece
from .sequence import Sequence, SequenceState

MAX_LOGITS = 2**24  # in one forward pass: 64 MiB


class Echo:
    """The prompt of `seq` as pieces, made from its logits chunk by chunk.

    n_rows   tokens whose logits are computed in one pass

    The first token has the log-probability nan, since no logits precede it.  Control tokens have text, too.
    """

    def __init__(self, tokenizer: Tokenizer, seq: Sequence):
        self.seq, self._text = seq, Detokenizer(tokenizer, special=True)
        self.n_rows = max(1, min(seq.options.num_batch, MAX_LOGITS // tokenizer.n_vocab))

    def pieces(self, start: int, logits: Collection[np.ndarray]) -> Iterator[Piece]:
        """Yield the tokens after positions start, start + 1, ..., given the logits f32 [n_vocab] of these positions."""
        seq = self.seq
        if start == 0:
            yield Piece(self._text.push(seq.tokens[0]), seq.tokens[0], Logprob(seq.tokens[0], math.nan))
        following = seq.tokens[start + 1 : start + 1 + len(logits)]
        for row, token in zip(logits, following, strict=False):  # the prompt's last position has no next token yet
            yield Piece(self._text.push(token), token, logprobs_of(row, token, seq.n_logprobs or 0))


def echo(
    model: Model, seq: Sequence, cache: KVCache, kernels: Kernels, tap: Tap = no_tap
) -> Generator[Piece, None, np.ndarray]:
    """Prefill the prompt and yield it token by token.  -> logits of its last token, f32 [n_vocab]"""
    echo = Echo(model.tokenizer, seq)
    seq.state = SequenceState.PREFILL
    while seq.n_cached < seq.n_prompt:
        start, chunk = seq.n_cached, seq.tokens[seq.n_cached : min(seq.n_cached + echo.n_rows, seq.n_prompt)]
        logits = forward(model, Batch.of(chunk, seq.slot, start, range(len(chunk))), cache, kernels, tap)
        seq.n_cached += len(chunk)
        yield from echo.pieces(start, logits)
    seq.state = SequenceState.DECODE
    last: np.ndarray = logits[-1]
    return last
