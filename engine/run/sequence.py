"""One running request: its tokens, its slot in the cache, its stop rules and its pieces.

WAITING -> PREFILL -> DECODE -> DONE
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from enum import Enum

import numpy as np

from ...kernels import Kernels
from ..errors import ContextFull
from ..model.cache import KVCache, Ropes
from ..options import Options
from ..sampling import Sampler, logprobs_of
from ..sampling.grammar import Grammar
from ..sampling.sampler import LookAtSampling, no_look
from ..tokenizer import Tokenizer
from ..tokenizer.detokenize import Detokenizer
from .piece import Piece


class SequenceState(Enum):
    WAITING, PREFILL, DECODE, DONE = range(4)


class Sequence:
    """The state of one request.

    tokens    the prompt, then every sampled token, including those that a window shift has discarded
    n_cached  positions cached in `slot`
    options   clamped, so that num_ctx is the window: the positions that it may use
    embeds    the row of each token below 0: an image's, see vision/prompt.py
    shown     control tokens whose text is part of the answer; others have no text
    grammar   what the text must match
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: list[int],
        options: Options,
        *,
        slot: int = 0,
        shift: bool = True,
        n_logprobs: int | None = None,
        embeds: Mapping[int, np.ndarray] | None = None,
        shown: Collection[int] = (),
        grammar: Grammar | None = None,
    ):
        self.options, self.slot, self.shift, self.n_logprobs = options, slot, shift, n_logprobs
        self.embeds = embeds
        self.window = options.num_ctx
        self.tokens, self.n_prompt, self.n_cached = list(prompt), len(prompt), 0
        self.state = SequenceState.WAITING
        self.done_reason: str | None = None
        self.sampler = Sampler(options, tokenizer.n_vocab)
        n_keep = resolve_num_keep(options.num_keep, len(prompt), tokenizer.add_bos)
        self.n_keep = align_to_images(prompt, max(0, min(n_keep, self.window - 4)), -1)
        self._text_tokens = [token for token in prompt if token >= 0]
        limit = 10 * self.window
        self.n_predict = options.num_predict if 0 < options.num_predict <= limit else limit
        self._eog = tokenizer.eog
        self._n_min = math.inf if options.ignore_eos else options.min_tokens  # tokens before the first EOG
        self._text = Detokenizer(tokenizer, options.stop, shown=shown)
        self._grammar = grammar

    @property
    def is_done(self) -> bool:
        """Whether the sequence has ended; done_reason says why."""
        return self.state is SequenceState.DONE

    @property
    def n_sampled(self) -> int:
        return len(self.tokens) - self.n_prompt

    def n_ahead(self) -> int:
        """Return how many tokens after the newest one can be cached before the sequence ends or its window shifts."""
        return min(self.n_predict - self.n_sampled - 1, self.window - 2 - self.n_cached)

    @property
    def met(self) -> str | None:
        """The stop string that ended it."""
        return self._text.met

    def sample(self, logits: np.ndarray, look: LookAtSampling = no_look) -> Piece:
        """Sample the next token from `logits` f32 [n_vocab] and return its piece; the last token sets `done_reason`."""
        token = self._draw(logits, look)
        self.tokens.append(token)
        self._text_tokens.append(token)
        if self._grammar:
            self._grammar.accept(token)
        logprob = None if self.n_logprobs is None else logprobs_of(logits, token, self.n_logprobs)
        if token in self._eog:
            self.end("stop")
            return Piece("", token, logprob)
        piece = Piece(self._text.push(token), token, logprob)
        if self._text.stopped:
            self.end("stop")
        elif self.n_sampled >= self.n_predict or (not self.shift and self.n_cached + 1 >= self.window):
            self.end("length")
        return piece

    def _draw(self, logits: np.ndarray, look: LookAtSampling) -> int:
        """Sample a token; if the grammar does not allow it, sample again among those that it allows, as llama.cpp does.

        So a grammar that the model follows anyway changes nothing, and seeds give Ollama's answers.
        """
        free = self._longer(None, len(logits))
        token = self.sampler.sample(logits, self._text_tokens, free, look)
        if self._grammar is None:
            return token
        allowed = self._longer(self._grammar.mask(), len(logits))
        assert allowed is not None
        return token if allowed[token] else self.sampler.sample(logits, self._text_tokens, allowed, look)

    def _longer(self, mask: np.ndarray | None, n_vocab: int) -> np.ndarray | None:
        """Remove the end of generation from `mask`, bool [n_vocab] or None for all, while the answer is too short.

        A grammar that allows nothing but the end is not kept from it.
        """
        if self.n_sampled >= self._n_min or not self._eog:
            return mask
        longer = np.ones(n_vocab, np.bool_) if mask is None else mask.copy()
        longer[list(self._eog)] = False
        return longer if longer.any() else mask

    def discards(self) -> int:
        """Return how many positions after the first `n_keep` a shift discards: half, and the rest of a cut image.

        At least one, so that a window of any size has room for the next token.
        """
        n = self.n_cached - self.n_keep
        oldest = len(self.tokens) - 1 - n  # the newest token is not in the cache yet
        return align_to_images(self.tokens, oldest + max(1, n // 2), 1) - oldest

    def end(self, reason: str) -> None:
        """End the sequence with `done_reason`."""
        self.state, self.done_reason = SequenceState.DONE, reason

    def rest(self) -> str:
        """Return the text that is still held back; empty after a stop string."""
        return self._text.flush()


def resolve_num_keep(num_keep: int, n_prompt: int, add_bos: bool) -> int:
    """Return how many prompt tokens truncation and shift keep: num_keep and BOS, or all if num_keep is negative."""
    return n_prompt if num_keep < 0 else min(n_prompt, num_keep + add_bos)


def truncated(prompt: list[int], window: int, n_keep: int) -> list[int]:
    """Cut `prompt` to `window` tokens by dropping the ones after the first `n_keep`.

    Images are dropped whole.  Raises: ContextFull if the prompt ends in an image larger than the window
    """
    if len(prompt) <= window:
        return prompt
    n_keep = align_to_images(prompt, min(n_keep, window - 1), -1)
    start = align_to_images(prompt, len(prompt) - (window - n_keep), 1)
    if start == len(prompt):
        raise ContextFull(len(prompt), window)
    return prompt[:n_keep] + prompt[start:]


def align_to_images(tokens: list[int], i: int, step: int) -> int:
    """Move index `i` by `step` until a cut before it leaves every image whole."""
    while 0 < i < len(tokens) and tokens[i] < 0 and tokens[i - 1] == tokens[i] + 1:
        i += step
    return i


def shift_window(seq: Sequence, cache: KVCache, kernels: Kernels, ropes: Ropes) -> int:
    """Make room for one token: if the window is full, discard the older half of the positions after `n_keep`.

    -> the number of leading positions that did not move
    """
    if seq.n_cached < seq.window - 1:
        return seq.n_cached
    seq.n_cached = cache.shift(seq.slot, seq.n_cached, seq.n_keep, seq.discards(), kernels, ropes)
    return seq.n_keep
