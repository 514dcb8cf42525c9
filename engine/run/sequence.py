"""One request as it runs: its tokens, its place in the cache, its rules for stopping, and the pieces it gives out.

WAITING -> PREFILL -> DECODE -> DONE
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum

import numpy as np

from ...kernels import Kernels
from ..errors import ContextFull
from ..model.cache import KVCache, Ropes
from ..options import Options
from ..sampling import Sampler, logprobs_of
from ..sampling.grammar import Grammar
from ..tokenizer import Tokenizer
from ..tokenizer.detokenize import Detokenizer
from .piece import Piece


class SequenceState(Enum):
    WAITING, PREFILL, DECODE, DONE = range(4)


class Sequence:
    """The state of one request.

    tokens    prompt, then every sampled token, whatever a window shift has forgotten since
    n_cached  positions that the cache holds for it in `slot`
    options   clamped, so that num_ctx is the window: the positions it may use
    embeds    the row of each token below 0: an image's, see images.py
    shown     control tokens whose text counts: others say nothing
    grammar   what its text is held to
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
        n_keep = kept(options.num_keep, len(prompt), tokenizer.add_bos)
        self.n_keep = beside_images(prompt, min(n_keep, self.window - 4), -1)
        self._words = [token for token in prompt if token >= 0]
        limit = 10 * self.window
        self.n_predict = options.num_predict if 0 < options.num_predict <= limit else limit
        self._eog = tokenizer.eog
        self._text = Detokenizer(tokenizer, options.stop, shown=shown)
        self._grammar = grammar

    @property
    def n_sampled(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def met(self) -> str | None:
        """The stop string that ended it."""
        return self._text.met

    def sample(self, logits: np.ndarray) -> Piece:
        """Draw the next token from `logits` f32 [n_vocab] and say what it adds; the last one sets `done_reason`."""
        token = self.sampler.sample(logits, self._words, mask=self._grammar.mask() if self._grammar else None)
        self.tokens.append(token)
        self._words.append(token)
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

    def discards(self) -> int:
        """Positions after the first `n_keep` that a full window forgets: half of them, and an image's to its end."""
        n = self.n_cached - self.n_keep
        oldest = len(self.tokens) - 1 - n  # the newest token is not in the cache yet
        return beside_images(self.tokens, oldest + n // 2, 1) - oldest

    def end(self, reason: str) -> None:
        self.state, self.done_reason = SequenceState.DONE, reason

    def rest(self) -> str:
        """Text still held back when the sequence ended otherwise than by a stop string."""
        return self._text.flush()


def kept(num_keep: int, n_prompt: int, add_bos: bool) -> int:
    """Tokens of the prompt that outlive truncation and shift: num_keep and BOS; all where num_keep is negative."""
    return n_prompt if num_keep < 0 else min(n_prompt, num_keep + add_bos)


def truncated(prompt: list[int], window: int, n_keep: int) -> list[int]:
    """`prompt` cut to `window` tokens: what is lost comes right after the first `n_keep`, so that it loses least.

    An image goes whole.  Raises: ContextFull where the prompt ends in one that is too large
    """
    if len(prompt) <= window:
        return prompt
    n_keep = beside_images(prompt, min(n_keep, window - 1), -1)
    start = beside_images(prompt, len(prompt) - (window - n_keep), 1)
    if start == len(prompt):
        raise ContextFull(len(prompt), window)
    return prompt[:n_keep] + prompt[start:]


def beside_images(tokens: list[int], i: int, step: int) -> int:
    """The place from `i` on, going by `step`, at which a cut leaves every image whole."""
    while 0 < i < len(tokens) and tokens[i] < 0 and tokens[i - 1] == tokens[i] + 1:
        i += step
    return i


def shift_window(seq: Sequence, cache: KVCache, kernels: Kernels, ropes: Ropes) -> int:
    """Make room for one token: if the window is full, forget the older half of what need not be kept.

    -> the number of positions from the first that did not move
    """
    if seq.n_cached < seq.window - 1:
        return seq.n_cached
    seq.n_cached = cache.shift(seq.slot, seq.n_cached, seq.n_keep, seq.discards(), kernels, ropes)
    return seq.n_keep
