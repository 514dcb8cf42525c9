"""One prompt, one model, no server.  The page to teach from.

    encode        text -> ids
    prefill       ids -> cache, num_batch at a time; the last one's logits
    loop          logits -> sample -> text; stop?
                  window full? forget the older half, turn the keys back
                  token -> cache; its logits

A server does the same with many sequences in one batch: scheduler instead of loop, same functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from time import perf_counter_ns

import numpy as np

from ...kernels import NUMBA, Kernels
from ..errors import ContextFull, RequestError
from ..model.batch import Batch
from ..model.cache import KVCache, Ropes
from ..model.decoder import forward
from ..model.model import Model
from ..model.trace import Tap, no_tap
from ..options import Options
from ..sampling.grammar import Grammar
from .echo import echo as echoed
from .piece import Piece, Timings
from .sequence import Sequence, SequenceState, kept, truncated


def generate(
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
    """The model's continuation of `prompt`, piece by piece; the last piece says why it ended and how long it took.

    prompt      text, its special tokens read as such and BOS put in front if the file says so; or ids, used as they are
    cache       one made by `model.new_cache` for options.num_ctx; made here if absent
    truncate    cut a prompt over the window, else raise ContextFull
    shift       forget the older half of a full window and go on, else end with done_reason "length"
    n_logprobs  give each token's log-probability and that many most likely ones; None for neither
    embeds      what stands in for ids below 0: an image's rows, see images.py
    shown       control tokens whose text counts; others say nothing
    echo        the prompt's tokens come first, see echo.py; num_predict 0 then means none after them
    grammar     what the text is held to: `Grammars(model.tokenizer).grammar("json")`, or of a JSON schema
    """
    require_decoder(model)
    options = (options or Options()).clamped(model.hparams.n_ctx_train)
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else list(prompt)
    n_whole = len(ids)
    if n_whole > options.num_ctx and not truncate:
        raise ContextFull(n_whole, options.num_ctx)
    ids = truncated(ids, options.num_ctx, kept(options.num_keep, n_whole, tokenizer.add_bos))
    cache = cache or model.new_cache(options.num_ctx)
    seq = Sequence(
        tokenizer, ids, options, shift=shift, n_logprobs=n_logprobs, embeds=embeds, shown=shown, grammar=grammar
    )

    began = perf_counter_ns()
    logits = (yield from echoed(model, seq, cache, kernels, tap)) if echo else prefill(model, seq, cache, kernels, tap)
    prefilled = perf_counter_ns()
    if echo and options.num_predict == 0:
        seq.end("length")
    while seq.state is not SequenceState.DONE:
        piece = seq.sample(logits)
        yield piece
        if seq.state is not SequenceState.DONE:
            logits = decode(model, seq, cache, kernels, tap)
    timings = Timings(
        model.load_duration,
        seq.n_prompt,
        prefilled - began,
        seq.n_sampled,
        perf_counter_ns() - prefilled,
        n_whole=n_whole if n_whole > seq.n_prompt else 0,
    )
    yield Piece(seq.rest(), done_reason=seq.done_reason, timings=timings, met=seq.met)


def require_decoder(model: Model) -> None:
    """Raises: RequestError"""
    if not model.family.causal:
        raise RequestError(f"'{model.family.name}' is an encoder: it embeds texts and does not go on with them")


def prefill(model: Model, seq: Sequence, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Bring the prompt into the cache.  -> logits of its last token, f32 [n_vocab]"""
    seq.state = SequenceState.PREFILL
    while seq.n_cached < seq.n_prompt:
        chunk = seq.tokens[seq.n_cached : min(seq.n_cached + seq.options.num_batch, seq.n_prompt)]
        last = [-1] if seq.n_cached + len(chunk) == seq.n_prompt else []
        logits = forward(model, Batch.of(chunk, seq.slot, seq.n_cached, last, seq.embeds), cache, kernels, tap)
        seq.n_cached += len(chunk)
    seq.state = SequenceState.DECODE
    return logits[0]


def decode(model: Model, seq: Sequence, cache: KVCache, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
    """Bring the newest token into the cache, after making room where the window is full.  -> logits f32 [n_vocab]"""
    shift_window(seq, cache, kernels, model.hparams.ropes(cache.n_ctx))
    logits = forward(model, Batch.of(seq.tokens[-1:], seq.slot, seq.n_cached), cache, kernels, tap)
    seq.n_cached += 1
    return logits[0]


def shift_window(seq: Sequence, cache: KVCache, kernels: Kernels, ropes: Ropes) -> int:
    """Where the window is full, forget the older half of what need not be kept.  -> positions left as they were"""
    if seq.n_cached < seq.window - 1:
        return seq.n_cached
    seq.n_cached = cache.shift(seq.slot, seq.n_cached, seq.n_keep, seq.discards(), kernels, ropes)
    return seq.n_keep


def main(argv: list[str]) -> None:
    """`python -m numllama.engine.run.generate FILE.gguf PROMPT` prints the most likely continuation."""
    from ..model.load import load_model

    path, prompt = argv
    for piece in generate(load_model(path), prompt, replace(Options(), temperature=0.0, num_predict=200)):
        print(piece.text, end="", flush=True)
    print()


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
