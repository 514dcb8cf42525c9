"""One request as it runs: its tokens, its place in the cache, its rules for stopping, and the pieces it gives out.

WAITING -> PREFILL -> DECODE -> DONE
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import numpy as np

from .grammar import Grammar
from .options import Options
from .piece import Piece
from .sampling import Sampler, logprobs
from .tokenizer import Tokenizer
from .tokenizer.detokenize import Detokenizer


class State(Enum):
    WAITING, PREFILL, DECODE, DONE = range(4)


class Sequence:
    """The state of one request.

    tokens    prompt, then every sampled token, whatever a window shift has forgotten since
    n_cached  positions that the cache holds for it in `slot`
    options   clamped, so that num_ctx is the window: the positions it may use
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
        shown: Collection[int] = (),
        grammar: Grammar | None = None,
    ):
        self.options, self.slot, self.shift, self.n_logprobs = options, slot, shift, n_logprobs
        self.window = options.num_ctx
        self.tokens, self.n_prompt, self.n_cached = list(prompt), len(prompt), 0
        self.state = State.WAITING
        self.done_reason: str | None = None
        self.sampler = Sampler(options, tokenizer.n_vocab)
        self.n_keep = kept(options.num_keep, len(prompt), tokenizer.add_bos)
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
        token = self.sampler.sample(logits, self.tokens, mask=self._grammar.mask() if self._grammar else None)
        self.tokens.append(token)
        if self._grammar:
            self._grammar.accept(token)
        logprob = None if self.n_logprobs is None else logprobs(logits, token, self.n_logprobs)
        if token in self._eog:
            self.end("stop")
            return Piece("", token, logprob)
        piece = Piece(self._text.push(token), token, logprob)
        if self._text.stopped:
            self.end("stop")
        elif self.n_sampled >= self.n_predict or (not self.shift and self.n_cached + 1 >= self.window):
            self.end("length")
        return piece

    def end(self, reason: str) -> None:
        self.state, self.done_reason = State.DONE, reason

    def rest(self) -> str:
        """Text still held back when the sequence ended otherwise than by a stop string."""
        return self._text.flush()


def kept(num_keep: int, n_prompt: int, add_bos: bool) -> int:
    """Tokens of the prompt that outlive truncation and shift: num_keep and BOS; all where num_keep is negative."""
    return n_prompt if num_keep < 0 else min(n_prompt, num_keep + add_bos)


def truncated(prompt: list[int], window: int, n_keep: int) -> list[int]:
    """`prompt` cut to `window` tokens: what is lost comes right after the first `n_keep`, so that it loses least."""
    n_keep = min(n_keep, window - 1)
    return prompt if len(prompt) <= window else prompt[:n_keep] + prompt[len(prompt) - (window - n_keep) :]
