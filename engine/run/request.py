"""A request without a server: generate.py's loop, and the features of a request.

text in, pieces of text out     special tokens, half characters held back, stop strings
echo, log-probabilities         the prompt as the start of the answer; each token's log-probability
a full window                   the prompt is truncated; later the older half is discarded
timings                         counts and durations in the last piece
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from time import perf_counter_ns

import numpy as np

from ...kernels import NUMBA, Kernels
from ..errors import ContextFull
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import forward
from ..model.model import Model, require_decoder
from ..model.trace import Tap, no_tap
from ..options import Options
from ..sampling.grammar import Grammar
from .echo import echo as echoed
from .generate import prefill
from .piece import Piece, Timings
from .sequence import Sequence, SequenceState, resolve_num_keep, shift_window, truncated


def complete(
    model: Model,
    prompt: str | list[int],
    options: Options | None = None,
    *,
    kernels: Kernels = NUMBA,
    cache: KVCache | None = None,
    truncate: bool = True,
    shift: bool = True,
    n_logprobs: int | None = None,
    embeds: Mapping[int, np.ndarray] | None = None,
    shown: Collection[int] = (),
    echo: bool = False,
    grammar: Grammar | None = None,
    tap: Tap = no_tap,
) -> Iterator[Piece]:
    """Yield the model's completion of `prompt` piece by piece; the last piece carries done_reason and timings.

    prompt      text, parsed with special tokens and preceded by BOS if the file says so; or ids, used unchanged
    cache       one made by `model.new_cache` for options.num_ctx; made here if absent
    truncate    cut a prompt longer than the window, else raise ContextFull
    shift       discard the older half of a full window and continue, else end with done_reason "length"; without
                effect on a model whose layers keep only a part of the window
    n_logprobs  report each token's log-probability and those of the n likeliest; None: neither
    embeds      the row of each id below 0: an image's, see vision/prompt.py
    shown       control tokens whose text is part of the answer; others have no text
    echo        yield the prompt's tokens first, see echo.py; num_predict 0 then means none after them
    grammar     what the text must match: `Grammars(model.tokenizer).grammar("json")`, or one of a JSON schema
    Raises: RequestError for an encoder, ContextFull
    """
    require_decoder(model)
    options = (options or Options()).clamped(model.hparams.n_ctx_train)
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else list(prompt)
    n_whole = len(ids)
    if n_whole > options.num_ctx and not truncate:
        raise ContextFull(n_whole, options.num_ctx)
    ids = truncated(ids, options.num_ctx, resolve_num_keep(options.num_keep, n_whole, tokenizer.add_bos))
    cache = cache or model.new_cache(options.num_ctx)
    shift = shift and model.hparams.can_shift(options.num_ctx)
    seq = Sequence(
        tokenizer, ids, options, shift=shift, n_logprobs=n_logprobs, embeds=embeds, shown=shown, grammar=grammar
    )

    began = perf_counter_ns()
    if echo:
        logits = yield from echoed(model, seq, cache, kernels, tap)
    else:
        logits = prefill(model, seq.tokens, cache, kernels, options.num_batch, tap, embeds)
    seq.n_cached, seq.state = seq.n_prompt, SequenceState.DECODE
    prefilled = perf_counter_ns()
    if echo and options.num_predict == 0:
        seq.end("length")
    while not seq.is_done:
        yield seq.sample(logits)
        if not seq.is_done:
            shift_window(seq, cache, kernels, model.hparams.ropes(cache.n_ctx))
            (logits,) = forward(model, Batch.of(seq.tokens[-1:], seq.slot, seq.n_cached), cache, kernels, tap)
            seq.n_cached += 1
    timings = Timings(
        model.load_duration,
        seq.n_prompt,
        prefilled - began,
        seq.n_sampled,
        perf_counter_ns() - prefilled,
        n_whole=n_whole if n_whole > seq.n_prompt else 0,
    )
    yield Piece(seq.rest(), done_reason=seq.done_reason, timings=timings, met=seq.met)
