"""Speculation: several tokens of an answer in one forward pass, bit for bit the plain answer.

    text so far     ... def area ( self ) :  return self . width * self . height \n def area
    found earlier       def area                                        guess: ( self ) : return
    one pass        area ( self ) :      -> 5 rows of logits
    sampled              ( self ) \n     -> 3 guesses were right, the fourth row gave another token: 4 tokens in a pass

Behind a change in a copy (a renamed word in edited code) the copied text is guessed to go on.

A guess changes no bit of an answer: token after token is sampled from the logits that it would have had, with the
random numbers that it would have had, until one differs from its guess.  That needs logits that do not depend on what
else is in a batch, as our kernels guarantee.  Guesses behind the first wrong one are lost work, so their number
follows from what was measured: how often guesses were right, and how long passes of n rows take.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import exp2
from typing import Any

import numpy as np

N_GRAM = 3  # tokens that must agree before a guess
MANY = 32  # new tokens from which on NumPy makes their keys
ID_BITS = (1 << 21) - 1  # of a token in a key; larger ids could only make guesses wrong
MAX_MATCH = 12  # tokens compared at most
N_AROUND, N_SAME = 8, 5  # of so many tokens before a guess behind a change, so many agree with the copied text
DRAFTED, CHANGED = -1, -2  # kinds of guesses: a draft model's, behind a change; others by a quarter of their match
MAX_GUESSES = 15  # with the token before them one tile of a product
PRIOR = (0.6, 0.8), (0.8, 0.5), (0.8, 0.3), (0.8, 0.2)  # guesses right and wrong that are assumed, by their match
MEMORY = 0.99  # weight of earlier guesses after each pass: a text that begins to repeat itself is noticed
PRIOR_ROW = 0.1  # time of one more row, in passes of one row, before it was measured
FALL, RISE = 0.8, 0.05  # weight of a newer measurement that is less, or more: other programs only ever add time
HALF_LIFE = 30e9  # ns of passes without a size that halve its time, so that one is tried again after a bad moment
SURE = 5  # measurements of a size for that; for each one less, a quarter of the time halves it
DOUBT = 3  # a size's first time counts as at most so many times what was expected: it may have compiled something
BRIEF = 500e3  # ns of a pass beside which looking for guesses counts: with a small model ...
PATIENCE, SELDOM = 16, 8  # ... at first, and after so many tokens without a guess, at each eighth token only
HOLDS = 16  # passes for which a number of guesses that was found best is not calculated again


def ngram_key(a: Any, b: Any, c: Any) -> Any:
    """Return the key of an n-gram: integers, since so many tuples would make Python collect garbage."""
    return (a & ID_BITS) << 42 | (b & ID_BITS) << 21 | c & ID_BITS


class Ngrams:
    """Guesses from the text itself: what followed the last tokens when they stood there before."""

    def __init__(self) -> None:
        self._after: dict[int, int] = {}  # key of an n-gram -> index of the token after its latest occurrence
        self._n = N_GRAM  # n-grams before this index are known
        self._source, self._at = 0, 0  # where what is copied went on when the text had `_at` tokens; 0: nowhere

    def guess(self, tokens: Sequence[int], n: int) -> tuple[list[int], int]:
        """Guess at most `n` tokens that follow `tokens`, which only grow from call to call.

        -> the guesses, and how many tokens before them agree, at most MAX_MATCH
        """
        if len(tokens) > self._n + MANY:
            text = np.array(tokens[self._n - N_GRAM :])
            keys = ngram_key(text[:-3], text[1:-2], text[2:-1]).tolist()
            self._after.update(zip(keys, range(self._n, len(tokens)), strict=True))
        else:
            for i in range(self._n, len(tokens)):
                self._after[ngram_key(*tokens[i - N_GRAM : i])] = i
        self._n = max(self._n, len(tokens))
        i = self._after.get(ngram_key(*tokens[-N_GRAM:]), 0) if len(tokens) >= N_GRAM else 0
        if not i or n <= 0:
            return [], 0
        n_match = N_GRAM
        while n_match < min(MAX_MATCH, i) and tokens[i - 1 - n_match] == tokens[len(tokens) - 1 - n_match]:
            n_match += 1
        self._source, self._at = i, len(tokens)
        return following(tokens, i, n), n_match

    def guess_behind_change(self, tokens: Sequence[int], n: int) -> list[int]:
        """Guess at most `n` tokens that follow a change in a copy of what the last guess was taken from."""
        i = self._source + len(tokens) - self._at
        if self._source and sum(tokens[-j] == tokens[i - j] for j in range(1, min(N_AROUND, i) + 1)) < N_SAME:
            self._source = 0
        return following(tokens, i, n) if self._source else []


def following(tokens: Sequence[int], i: int, n: int) -> list[int]:
    """Return the `n` tokens from tokens[i] on; where the text ends within its own repetition, they go on with it."""
    found: list[int] = []
    for j in range(i, i + n):
        found.append(tokens[j] if j < len(tokens) else found[j - len(tokens)])
    return found


class PassTimes:
    """How long forward passes of 1, 2, ... rows take: low running means where measured, straight lines between them.

    A size that was not measured for long is expected to take less than it did, though no less than one row, until
    it is tried once more.
    """

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._times: list[float] = []
        self._measured: list[float] = []  # when each was measured last, in the time of all passes
        self._counts: list[int] = []
        self._elapsed = 0.0

    def add(self, n_row: int, duration: float) -> None:
        """Record a pass; `duration` in ns."""
        self._elapsed += duration
        i = bisect_right(self._rows, n_row) - 1
        if i >= 0 and self._rows[i] == n_row:
            change = duration - self._times[i]
            self._times[i] += change * (FALL if change < 0 else RISE)
            self._measured[i] = self._elapsed
            self._counts[i] += 1
        else:
            self._times.insert(i + 1, min(duration, DOUBT * self.of(n_row) or duration))
            self._rows.insert(i + 1, n_row)
            self._counts.insert(i + 1, 1)
            self._measured.insert(i + 1, self._elapsed)

    def of(self, n_row: int) -> float:
        """Return the expected time of a pass of `n_row` rows, in ns; 0 before the first measurement."""
        if not self._rows:
            return 0.0
        i = bisect_right(self._rows, n_row) - 1
        if i < 0:
            return self._hoped(0) / (1 + PRIOR_ROW * (self._rows[0] - n_row))
        if self._rows[i] == n_row:
            return self._hoped(i)
        if i == len(self._rows) - 1:
            return self._hoped(i) * (1 + PRIOR_ROW * (n_row - self._rows[i]))
        part = (n_row - self._rows[i]) / (self._rows[i + 1] - self._rows[i])
        return self._hoped(i) + part * (self._hoped(i + 1) - self._hoped(i))

    def _hoped(self, i: int) -> float:
        """Return the time of a measured size, less the longer ago that was, and the fewer times."""
        half_life = HALF_LIFE * 4.0 ** min(0, self._counts[i] - SURE)
        return max(self._times[0], self._times[i] * exp2((self._measured[i] - self._elapsed) / half_life))


class Speculation:
    """The guesses of one sequence, and how often they were right.

    n_guessed, n_right   guesses that were computed, and those that were the sampled token
    """

    def __init__(self, mode: str = "auto"):
        self.mode, self.n_guessed, self.n_right = mode, 0, 0
        self._ngrams = Ngrams()
        self._kind = 0
        self._seen: dict[int, tuple[float, float]] = {}  # kind of guess -> right, wrong
        self._n_pass = self._n_seen = 0  # passes, and those that `_seen` knows
        self._n_without, self._each = PATIENCE, 0  # tokens in turn without a guess; one is looked for at each `_each`th
        self._best: dict[tuple[int, ...], tuple[int, int]] = {}  # kind, most, rows, sequences -> best, until a pass

    def ask(self, n: int, times: PassTimes, n_row: int, n_sequence: int, each: float = 0.0) -> int:
        """Return how many guesses to ask a draft model for, at most `n`; arguments as for `guess`.

        each   time of one guess, in ns
        """
        if self.mode != "auto":
            return n if self.mode == "draft" else 0
        self._kind = DRAFTED
        return self._worthwhile(max(n, 0), times, n_row, n_sequence, each)

    def guess(self, tokens: Sequence[int], n: int, times: PassTimes, n_row: int, n_sequence: int) -> list[int]:
        """Guess from the text which tokens follow `tokens`, at most `n`: as many as make the pass's tokens cheapest.

        times, n_row, n_sequence   of the pass without these guesses; they count in mode "auto" alone
        """
        if self.mode not in ("auto", "ngram"):
            return []
        self._n_without += 1
        if self._n_without > PATIENCE:
            self._each = self._each or (SELDOM if self.mode == "auto" and times.of(n_row) < BRIEF else 1)
            if self._n_without % self._each:
                return []
        guesses, n_match = self._ngrams.guess(tokens, n := min(n, MAX_GUESSES))
        self._kind = n_match // 4
        if not guesses:
            guesses, self._kind = self._ngrams.guess_behind_change(tokens, n), CHANGED
            if not guesses:
                return guesses
        guesses = guesses[: next((i for i, token in enumerate(guesses) if token < 0), n)]  # no images
        if self.mode == "auto":
            guesses = guesses[: self._worthwhile(len(guesses), times, n_row, n_sequence)]
        if guesses:
            self._n_without = self._each = 0
        return guesses

    def judge(self, n_guessed: int, n_right: int) -> None:
        """Record that of `n_guessed` guesses the first `n_right` were right."""
        self.n_guessed, self.n_right = self.n_guessed + n_guessed, self.n_right + n_right
        self._n_pass += 1
        if n_guessed:
            self._best.clear()
            right, wrong = self._right_and_wrong()
            self._seen[self._kind] = right + n_right, wrong + (n_right < n_guessed)

    def _right_and_wrong(self) -> tuple[float, float]:
        """Return the guesses of the present kind that were right and wrong, earlier ones counting less."""
        faded = MEMORY ** (self._n_pass - self._n_seen)
        self._n_seen = self._n_pass
        self._seen = {kind: (right * faded, wrong * faded) for kind, (right, wrong) in self._seen.items()}
        return self._seen.get(self._kind, (0.0, 0.0))

    def _worthwhile(self, n: int, times: PassTimes, n_row: int, n_sequence: int, each: float = 0.0) -> int:
        """Return how many guesses, 0 .. n, give the most tokens in a second."""
        case = self._kind, n, n_row, n_sequence
        best, until = self._best.get(case, (0, 0))
        if self._n_pass >= until:
            best = self._most_worthwhile(n, times, n_row, n_sequence, each)
            self._best[case] = best, self._n_pass + HOLDS
        return best

    def _most_worthwhile(self, n: int, times: PassTimes, n_row: int, n_sequence: int, each: float) -> int:
        """Calculate `_worthwhile` from what is known now."""
        right, wrong = self._right_and_wrong()
        prior = PRIOR[max(self._kind, 0)]
        p = (prior[0] + right) / (sum(prior) + right + wrong)
        rates, expected = [], float(n_sequence)
        for k in range(n + 1):
            rates.append(expected / ((times.of(n_row + k) or 1 + PRIOR_ROW * k) + k * each))
            expected += p ** (k + 1)
        return max(range(n + 1), key=rates.__getitem__)
