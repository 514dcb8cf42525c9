"""One prompt, one model, no server.  The page to teach from.

    prefill       ids -> cache, num_batch at a time; keep the logits of the last one
    loop          logits -> sample -> a token; stop?
                  token -> cache; its logits

request.py adds what a request can ask for (text, stop strings, log-probabilities, window shift, timings); the
scheduler does the same for many sequences in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...kernels import NUMBA, Kernels
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import forward
from ..model.model import Model
from ..model.trace import Tap, no_tap
from ..options import Options
from ..sampling import Sampler


def generate(
    model: Model,
    ids: Sequence[int],
    options: Options | None = None,
    *,
    kernels: Kernels = NUMBA,
    cache: KVCache | None = None,
    tap: Tap = no_tap,
) -> Iterator[int]:
    """Yield the token ids that follow `ids`.

    Ends after an end-of-generation token, after `num_predict` tokens, or when the window is full.
    """
    options = (options or Options()).clamped(model.hparams.n_ctx_train)
    cache = cache or model.new_cache(options.num_ctx)
    sampler = Sampler(options, model.hparams.n_vocab)
    tokens, limit = list(ids), cache.n_ctx
    if options.num_predict > 0:
        limit = min(limit, len(tokens) + options.num_predict)

    logits = prefill(model, tokens, cache, kernels, options.num_batch, tap)
    while True:
        token = sampler.sample(logits, tokens)
        yield token
        tokens.append(token)
        if token in model.tokenizer.eog or len(tokens) >= limit:
            return
        (logits,) = forward(model, Batch.of([token], start=len(tokens) - 1), cache, kernels, tap)


def generate_uncached(
    model: Model, ids: Sequence[int], options: Options | None = None, *, kernels: Kernels = NUMBA
) -> Iterator[int]:
    """Yield the ids that generate() yields, without keeping a cache: each step computes all tokens again.

    Token n takes n columns of work in place of one: time both to see what the cache saves.
    """
    options = (options or Options()).clamped(model.hparams.n_ctx_train)
    sampler, tokens = Sampler(options, model.hparams.n_vocab), list(ids)
    limit = min(options.num_ctx, len(tokens) + options.num_predict) if options.num_predict > 0 else options.num_ctx
    while True:
        (logits,) = forward(model, Batch.of(tokens), model.new_cache(options.num_ctx), kernels)
        tokens.append(sampler.sample(logits, tokens))
        yield tokens[-1]
        if tokens[-1] in model.tokenizer.eog or len(tokens) >= limit:
            return


def prefill(
    model: Model,
    ids: Sequence[int],
    cache: KVCache,
    kernels: Kernels,
    num_batch: int,
    tap: Tap = no_tap,
    embeds: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Prefill a prompt into the empty cache, `num_batch` tokens at a time.  -> logits of its last token, f32 [n_vocab]

    embeds   the row of each id below 0: an image's, see vision/prompt.py
    """
    for start in range(0, len(ids), num_batch):
        chunk = ids[start : start + num_batch]
        outputs = [-1] if start + num_batch >= len(ids) else []
        logits = forward(model, Batch.of(chunk, 0, start, outputs, embeds), cache, kernels, tap)
    last: np.ndarray = logits[0]
    return last


def main(argv: list[str]) -> None:
    """Print the most likely continuation: `python -m numllama.engine.run.generate FILE.gguf PROMPT`."""
    from ..model.load import load_model
    from ..tokenizer.detokenize import Detokenizer

    path, prompt = argv
    model = load_model(path)
    text = Detokenizer(model.tokenizer)
    for token in generate(model, model.tokenizer.encode(prompt), replace(Options(), temperature=0.0, num_predict=200)):
        print(text.push(token), end="", flush=True)
    print(text.flush())


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
