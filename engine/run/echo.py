"""The prompt as the beginning of its own answer, and how likely the model held each of its tokens.

tokens   The   cat   sat                     "The cat sat" is this likely:
logits    0     1     2                      ln p(cat | The) + ln p(sat | The cat)
            \\     \\     \\_ what comes next
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

MAX_LOGITS = 2**24  # so many at once, which is 64 MiB


class Echo:
    """The prompt of `seq`, to be given out as its logits come.

    n_rows   tokens whose logits are computed at once

    The first token has the log-probability nan: nothing stands before it.  Control tokens show their text.
    """

    def __init__(self, tokenizer: Tokenizer, seq: Sequence):
        self.seq, self._text = seq, Detokenizer(tokenizer, special=True)
        self.n_rows = max(1, min(seq.options.num_batch, MAX_LOGITS // tokenizer.n_vocab))

    def pieces(self, start: int, logits: Collection[np.ndarray]) -> Iterator[Piece]:
        """The tokens that follow positions start, start + 1, ..., whose logits are n of f32 [n_vocab]."""
        seq = self.seq
        if start == 0:
            yield Piece(self._text.push(seq.tokens[0]), seq.tokens[0], Logprob(seq.tokens[0], math.nan))
        following = seq.tokens[start + 1 : start + 1 + len(logits)]
        for row, token in zip(logits, following, strict=False):  # after the prompt's last token nothing follows yet
            yield Piece(self._text.push(token), token, logprobs_of(row, token, seq.n_logprobs or 0))


def echo(
    model: Model, seq: Sequence, cache: KVCache, kernels: Kernels, tap: Tap = no_tap
) -> Generator[Piece, None, np.ndarray]:
    """Bring the prompt into the cache, and give it out token by token.  -> logits of its last token, f32 [n_vocab]"""
    echo = Echo(model.tokenizer, seq)
    seq.state = SequenceState.PREFILL
    while seq.n_cached < seq.n_prompt:
        start, chunk = seq.n_cached, seq.tokens[seq.n_cached : min(seq.n_cached + echo.n_rows, seq.n_prompt)]
        logits = forward(model, Batch.of(chunk, seq.slot, start, range(len(chunk))), cache, kernels, tap)
        seq.n_cached += len(chunk)
        yield from echo.pieces(start, logits)
    seq.state = SequenceState.DECODE
    return logits[-1]
