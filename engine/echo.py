"""The prompt as the beginning of its own answer, and how likely the model held each of its tokens.

    tokens   The   cat   sat                     "The cat sat" is this likely:
    logits    0     1     2                      ln p(cat | The) + ln p(sat | The cat)
                \\     \\     \\_ what comes next
                 cat   sat
"""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from ..kernels import Kernels
from .batch import Batch
from .cache import KVCache
from .model import Model, forward
from .piece import Piece
from .sampling import Logprob, logprobs
from .sequence import Sequence, State
from .tokenizer.detokenize import Detokenizer
from .trace import Tap, no_tap

MAX_LOGITS = 2**24  # so many at once, which is 64 MiB


def echo(
    model: Model, seq: Sequence, cache: KVCache, kernels: Kernels, tap: Tap = no_tap
) -> Generator[Piece, None, np.ndarray]:
    """Bring the prompt into the cache, and give it out token by token.  -> logits of its last token, f32 [n_vocab]

    The first token has the log-probability nan: nothing stands before it.  Control tokens show their text.
    """
    text = Detokenizer(model.tokenizer, special=True)
    n_rows = max(1, min(seq.options.num_batch, MAX_LOGITS // model.tokenizer.n_vocab))
    seq.state = State.PREFILL
    yield Piece(text.push(seq.tokens[0]), seq.tokens[0], Logprob(seq.tokens[0], math.nan))
    while seq.n_cached < seq.n_prompt:
        chunk = seq.tokens[seq.n_cached : min(seq.n_cached + n_rows, seq.n_prompt)]
        logits = forward(model, Batch.of(chunk, seq.slot, seq.n_cached, range(len(chunk))), cache, kernels, tap)
        following = seq.tokens[seq.n_cached + 1 : seq.n_cached + 1 + len(chunk)]
        seq.n_cached += len(chunk)
        for row, token in zip(logits, following, strict=False):  # after the prompt's last token nothing follows yet
            yield Piece(text.push(token), token, logprobs(row, token, seq.n_logprobs or 0))
    seq.state = State.DECODE
    return logits[-1]
