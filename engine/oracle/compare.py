"""Two models, or two engines with one model, on the same text: how far apart their predictions are.

Source        where predictions come from: a model in this process (LocalSource), or a server
Prediction    log-probabilities of the next token at one place, of every token or of the likeliest
Distances    the distances, place by place, with means and standard errors

With the likeliest tokens only, those that both sides list are compared one by one, and all others as one: that bounds
the divergence from below (the log-sum inequality), and the total variation from both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...kernels import Kernels
from ..errors import RequestError
from ..model.batch import Batch
from ..model.decoder import hidden_states, logits
from ..model.model import Model
from .score import ROWS_PER_PRODUCT, log_softmax, mean_and_error

MIN_REST = 1e-6  # of the probability: servers round theirs, so that a smaller rest may be rounding

PIECE_CHARS = 1500  # of a text are one prompt: within 512 tokens of most vocabularies


class TextToken(NamedTuple):
    """A token of a text: its bytes, and its id where the source tells ids; or a word where no source can split it."""

    text: bytes
    id: int | None = None
    is_word: bool = False


@dataclass(frozen=True, eq=False)
class Prediction:
    """Log-probabilities of the next token at one place of a text.

    ln          f64 [n], in any order
    texts       the n tokens' bytes
    ids         their ids; None if the source tells none
    complete    whether these are all tokens of the vocabulary
    next_ln     that of the text's own next token; None if the source does not tell it
    text_index  indices of tokens by their bytes, for a vocabulary that all predictions share
    """

    ln: np.ndarray
    texts: Sequence[bytes]
    ids: Sequence[int] | None = None
    complete: bool = False
    next_ln: float | None = None
    text_index: Mapping[bytes, Sequence[int]] | None = None

    @cached_property
    def places_of_texts(self) -> Mapping[bytes, Sequence[int]]:
        """The indices of each token by its bytes."""
        return self.text_index or grouped(self.texts)

    @cached_property
    def places_of_ids(self) -> Mapping[int, Sequence[int]]:
        """The indices of each token by its id."""
        return grouped(self.ids or ())

    @property
    def top(self) -> int:
        """The index of the most likely token."""
        return int(self.ln.argmax())

    @cached_property
    def rest(self) -> float:
        """The probability of the tokens that are not listed."""
        return 0.0 if self.complete else max(0.0, 1.0 - float(np.exp(self.ln).sum()))

    def nll(self) -> tuple[float, bool]:
        """Return the negative log-probability of the text's next token, and whether that is only a lower bound."""
        if self.next_ln is not None:
            return -self.next_ln, False
        return -min(float(self.ln.min()), float(np.log(max(self.rest, 1e-12)))), True


class Source(Protocol):
    """Where predictions come from.

    name     as the user gave it;  kind     how it computes or is asked, for the report
    """

    name: str
    kind: str

    def split(self, text: str) -> list[TextToken] | None:
        """Return the tokens of `text`, without BOS; None if the source cannot say."""

    def predictions(self, text: str, tokens: Sequence[TextToken]) -> Iterator[Prediction | None]:
        """Yield the prediction of each of `tokens` after all before it; None where the source gives none."""


class LocalSource:
    """A model in this process.  Its predictions are complete."""

    def __init__(self, name: str, model: Model, kernels: Kernels, cache_type: str):
        self.name, self.model, self.kernels, self.cache_type = name, model, kernels, cache_type
        self.kind = f"kernels {kernels.name}, cache {cache_type}"

    @cached_property
    def vocabulary(self) -> list[bytes]:
        """The bytes of every token."""
        return [self.model.tokenizer.piece(id) for id in range(self.model.tokenizer.n_vocab)]

    @cached_property
    def text_index(self) -> dict[bytes, list[int]]:
        return grouped(self.vocabulary)

    def split(self, text: str) -> list[TextToken]:
        ids = self.model.tokenizer.encode(text, add_special=False, parse_special=False)
        return [TextToken(self.model.tokenizer.piece(id), id) for id in ids]

    def predictions(self, text: str, tokens: Sequence[TextToken]) -> Iterator[Prediction | None]:
        """Yield the prediction of each token of the text, from one forward pass."""
        ids = [token.id for token in self.split(text)]
        first = self.model.tokenizer.first
        if first is None:
            yield None
        prompt = [id for id in (first, *ids[:-1]) if id is not None]
        targets, n_vocab = ids[len(ids) - len(prompt) :], self.model.hparams.n_vocab
        batch = Batch.of(prompt, outputs=range(len(prompt)))
        hidden = hidden_states(self.model, batch, self.new_cache(len(prompt)), self.kernels)
        for i in range(0, len(hidden), ROWS_PER_PRODUCT):
            rows = log_softmax(logits(self.model, hidden[i : i + ROWS_PER_PRODUCT], self.kernels))
            for ln, id in zip(rows, targets[i : i + len(rows)], strict=True):
                assert id is not None
                yield Prediction(ln, self.vocabulary, range(n_vocab), True, float(ln[id]), self.text_index)

    def new_cache(self, n_ctx: int) -> Any:
        """Create a cache.  Raises: RequestError if the type cannot hold the model's heads"""
        try:
            return self.model.new_cache(n_ctx, type=self.cache_type)
        except ValueError as error:
            raise RequestError(f"{self.name}: {error}; choose another --cache-type") from None


def check_vocabularies(a: LocalSource, b: LocalSource) -> None:
    """Check that two models have the same tokens.  Raises: RequestError, which names the first that differs"""
    ours, theirs = a.vocabulary, b.vocabulary
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        detail = f"{len(ours)} tokens and {len(theirs)}"
    else:
        id = next(i for i, (x, y) in enumerate(zip(ours, theirs, strict=True)) if x != y)
        detail = f"token {id} is {quoted_token(ours[id])} and {quoted_token(theirs[id])}"
    raise RequestError(f"{a.name} and {b.name} have other vocabularies: {detail}")


def quoted_token(text: bytes) -> str:
    """Return a token's bytes as a quoted text."""
    return repr(text.decode("utf-8", "replace"))


def cut_pieces(text: str, n_chars: int = PIECE_CHARS) -> list[str]:
    """Cut a text into prompts of at most n_chars, at the end of a paragraph, line or word where there is one.

    >>> cut_pieces("one two three", 8)
    ['one two', ' three']
    """
    pieces, start = [], 0
    while start < len(text):
        end = min(start + n_chars, len(text))
        if end < len(text):
            cuts = (text.rfind(mark, start + n_chars // 2, end) for mark in ("\n\n", "\n", " "))
            end = next((cut for cut in cuts if cut > start), end)
        pieces.append(text[start:end])
        start = end
    return [piece for piece in pieces if piece.strip()]


def common_tokens(a: Source, b: Source, text: str) -> list[TextToken]:
    """Return the tokens of `text` that both sources have, words where neither can say.

    Raises: RequestError if they split it otherwise
    """
    ours, theirs = a.split(text), b.split(text)
    if ours is None and theirs is None:
        words = text.split(" ")
        return [TextToken((" " * bool(i) + word).encode(), is_word=True) for i, word in enumerate(words)]
    if ours is not None and theirs is not None:
        texts = [[token.text.strip() for token in tokens] for tokens in (ours, theirs)]
        if texts[0] != texts[1]:
            at = next((i for i, (x, y) in enumerate(zip(*texts, strict=False)) if x != y), min(map(len, texts)))
            parts = [", ".join(quoted_token(token.text) for token in tokens[at : at + 3]) for tokens in (ours, theirs)]
            raise RequestError(
                f"{a.name} and {b.name} have other vocabularies: token {at} of the text is {parts[0] or 'missing'} "
                f"and {parts[1] or 'missing'}"
            )
    return ours if ours is not None else theirs or []


class Place(NamedTuple):
    """A place of the text where the most likely tokens differ, or the divergence is largest.

    before   the text's last characters before it
    tokens   the most likely token of A and of B;  p: of each the probability under A and under B, None if not listed
    """

    piece: int
    token: int
    before: str
    tokens: tuple[bytes, bytes]
    p: tuple[tuple[float | None, float | None], tuple[float | None, float | None]]
    kl: float


@dataclass
class Distances:
    """The distances between A's and B's predictions, a number for each place.

    kl             Kullback-Leibler divergence of B from A in nats; a lower bound unless `complete`
    least, most    bounds of the total variation: half the sum of absolute differences
    rest           probability under A of the tokens that are not compared one by one
    same_top       whether the most likely token is the same
    nll_a, nll_b   of the text's next token; at places where both are told or bounded
    bounded_a, b   whether some of these are lower bounds
    n_skipped      places where a source gave no prediction
    by_words       places are words, whose probability is unknown, as neither source can split a text
    """

    kl: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)
    same_top: list[bool] = field(default_factory=list)
    nll_a: list[float] = field(default_factory=list)
    nll_b: list[float] = field(default_factory=list)
    complete: bool = True
    bounded_a: bool = False
    bounded_b: bool = False
    n_skipped: int = 0
    by_words: bool = False
    first: Place | None = None
    largest: Place | None = None

    def add(self, a: Prediction, b: Prediction, piece: int = 0, token: int = 0, before: str = "") -> None:
        """Add the predictions of A and B at one place."""
        ours, theirs = shared(a, b)
        ln_a, ln_b = a.ln[ours], b.ln[theirs]
        p, q = np.exp(ln_a), np.exp(ln_b)
        difference, kl = float(np.abs(p - q).sum()), float((p * (ln_a - ln_b)).sum())
        rest_a = rest_b = 0.0
        if not (a.complete and b.complete):
            rest_a, rest_b = max(0.0, 1 - float(p.sum())), max(0.0, 1 - float(q.sum()))
            kl += rest_a * float(np.log(rest_a / max(rest_b, MIN_REST))) if rest_a > MIN_REST else 0.0
        self.complete &= a.complete and b.complete
        self.kl.append(max(kl, 0.0))
        self.least.append((difference + abs(rest_a - rest_b)) / 2)
        self.most.append(min(1.0, (difference + rest_a + rest_b) / 2))
        self.rest.append(rest_a)
        (nll_a, bounded_a), (nll_b, bounded_b) = a.nll(), b.nll()
        self.nll_a.append(nll_a)
        self.nll_b.append(nll_b)
        self.bounded_a, self.bounded_b = self.bounded_a or bounded_a, self.bounded_b or bounded_b
        best = same_token(a, a.top, b), same_token(b, b.top, a)
        self.same_top.append(best[0] == b.top)
        if self.largest is None or self.kl[-1] > self.largest.kl or not (self.same_top[-1] or self.first):
            place = self._place(a, b, best, piece, token, before)
            if self.first is None and not self.same_top[-1]:
                self.first = place
            if self.largest is None or place.kl > self.largest.kl:
                self.largest = place

    def _place(
        self, a: Prediction, b: Prediction, best: tuple[int | None, int | None], piece: int, token: int, before: str
    ) -> Place:
        of_a = float(np.exp(a.ln[a.top])), None if best[0] is None else float(np.exp(b.ln[best[0]]))
        of_b = None if best[1] is None else float(np.exp(a.ln[best[1]])), float(np.exp(b.ln[b.top]))
        return Place(piece, token, before[-40:], (a.texts[a.top], b.texts[b.top]), (of_a, of_b), self.kl[-1])

    def mean(self, name: str) -> tuple[float, float]:
        """Return the mean of the numbers `name` and its standard error."""
        return mean_and_error(np.array(getattr(self, name), np.float64))

    def perplexity(self, side: str) -> tuple[float, float]:
        """Return e^(mean nll) of side "a" or "b", and its standard error."""
        mean, error = self.mean(f"nll_{side}")
        return float(np.exp(mean)), float(np.exp(mean) * error)

    def bounded(self, side: str) -> bool:
        """Return whether the perplexity of side "a" or "b" is a lower bound."""
        return self.bounded_a if side == "a" else self.bounded_b

    @property
    def ln_ratio(self) -> tuple[float, float]:
        """ln (perplexity of B / perplexity of A), and its standard error, from each place's difference."""
        return mean_and_error(np.array(self.nll_b) - np.array(self.nll_a))


def shared(a: Prediction, b: Prediction) -> tuple[Any, Any]:
    """Return the indices, in a and in b, of the tokens that both list."""
    if isinstance(a.ids, range) and a.ids == b.ids:
        return slice(None), slice(None)
    if len(a.ln) > len(b.ln):
        theirs, ours = shared(b, a)
        return ours, theirs
    pairs: list[tuple[int, int]] = []
    for key, places in grouped(a.texts if a.ids is None or b.ids is None else a.ids).items():
        there = places_in(b, key)
        pairs += zip(by_likelihood(a, places), by_likelihood(b, there), strict=False)
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def grouped(keys: Sequence[Any]) -> dict[Any, list[int]]:
    """Return the indices of each key.  Several tokens may have the same bytes: a piece, and the byte by itself."""
    places: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return places


def by_likelihood(prediction: Prediction, places: Sequence[int]) -> Sequence[int]:
    """Sort indices by their probability, the most likely first: tokens of the same bytes are paired in this order."""
    return places if len(places) < 2 else sorted(places, key=lambda i: -prediction.ln[i])


def places_in(prediction: Prediction, key: Any) -> Sequence[int]:
    """Return the indices of the tokens with this id, or with these bytes."""
    if isinstance(key, bytes):
        return prediction.places_of_texts.get(key, ())
    if isinstance(prediction.ids, range):
        return (key,) if key in prediction.ids else ()
    return prediction.places_of_ids.get(key, ())


def same_token(a: Prediction, i: int, b: Prediction) -> int | None:
    """Return the index in b of token i of a, the most likely one of its bytes in a; None if b does not list it."""
    places = places_in(b, a.texts[i] if a.ids is None or b.ids is None else a.ids[i])
    return by_likelihood(b, places)[0] if places else None


def compare_text(a: Source, b: Source, text: str, comparison: Distances) -> Iterator[int]:
    """Add every place of `text` to `comparison`; yields the number of characters done after each place."""
    done = 0
    for n, piece in enumerate(cut_pieces(text), 1):
        tokens = common_tokens(a, b, piece)
        before, comparison.by_words = b"", any(token.is_word for token in tokens)
        both = zip(tokens, a.predictions(piece, tokens), b.predictions(piece, tokens), strict=True)
        for i, (token, ours, theirs) in enumerate(both):
            if ours is None or theirs is None:
                comparison.n_skipped += 1
            else:
                comparison.add(ours, theirs, n, i, before.decode("utf-8", "replace"))
            before += token.text
            yield done + min(len(piece), len(before))
        done += len(piece)
