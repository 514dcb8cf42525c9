"""A held answer: its tokens with their keys and values, so that any position can be looked at again.

Looking at position p is one decoding step over the cached positions before it, with the same bits as when it ran.
Several positions share a forward pass, each as a span of its own.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np

from ...kernels import Kernels
from ..errors import RequestError
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import forward
from ..model.model import Model
from .collector import Collector, LookTap
from .request import LookRequest
from .step import LookStep

MAX_HELD = 4  # answers of one model; an older one is dropped


class HeldRun:
    """The tokens of an answer, and a cache of their keys and values.

    look, sources   of the answer: its changes apply again
    queries         of positions whose attention was mapped (maps.py): for each layer f32 [n_head, n_head_dim]
    """

    def __init__(self, model: Model, kernels: Kernels, look: LookRequest, sources: Sequence[np.ndarray], n_prompt: int):
        self.model, self.kernels, self.look, self.sources, self.n_prompt = model, kernels, look, sources, n_prompt
        self.tokens: list[int] = []
        self.cache: KVCache | None = None
        self.queries: dict[int, list[np.ndarray]] = {}
        self._n = 0  # positions in the cache
        self._lock = Lock()

    def follow(self, cache: KVCache, slot: int, n_cached: int) -> None:
        """Copy the positions of `slot` that are new, before layers with a window drop them."""
        if self.cache is None:  # as long a window: RoPE may depend on it
            self.cache = self.model.new_cache(cache.n_ctx, 1, cache.type)
        if n_cached > self._n:
            self.cache.restore(0, cache.snapshot(slot, n_cached, self._n), n_cached, self._n, n_cached)
            self._n = n_cached

    def finish(self, tokens: Sequence[int]) -> None:
        """Make the answer of these tokens ready to be looked at."""
        self.tokens = list(tokens)

    def at(self, position: int, look: LookRequest) -> LookStep:
        """Look at `position` with what `look` wants; what the answer changed is changed again.  Raises: RequestError"""
        self.require_cache()
        if not 0 <= position < len(self.tokens) - 1:
            raise RequestError(f"look: position {position} does not exist, expected 0 to {len(self.tokens) - 2}")
        if self.tokens[position] < 0:
            raise RequestError(f"look: position {position} is a row of an image, which is not kept")
        (step,) = self.steps([position], look)
        return step

    def require_cache(self) -> KVCache:
        """Return the keys and values.  Raises: RequestError while there are none"""
        if self.cache is None or not self.tokens:
            raise RequestError("look: this answer is not finished, or its window has shifted")
        return self.cache

    def steps(self, positions: Sequence[int], look: LookRequest) -> list[LookStep]:
        """Look at `positions`, which are not rows of an image, in one forward pass.  Raises: RequestError"""
        cache = self.require_cache()
        wanted = replace(look, ablate=self.look.ablate, patch=self.look.patch, prompt="all")
        batch = Batch.join([Batch.of([self.tokens[position]], 0, position) for position in positions])
        with self._lock:
            collectors = [Collector(wanted, self.model, sources=self.sources) for _ in positions]
            for collector in collectors:
                collector.begin(self.tokens[: self.n_prompt], cache, self.kernels)
            shown = [(one, slice(i, i + 1), batch.spans[i]) for i, one in enumerate(collectors)]
            rows = forward(self.model, batch, cache, self.kernels, LookTap(shown, len(positions), lambda il: None))
            for one, position, span, row in zip(collectors, positions, batch.spans, rows, strict=True):
                one.end(self.tokens, position, span, row)
        return [step for one in collectors for step in one.take().steps]


class HeldRuns:
    """The last held answers of a model, by name."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, HeldRun] = OrderedDict()
        self._lock = Lock()

    def add(self, run: HeldRun) -> str:
        """Hold `run` and return its name."""
        name = secrets.token_hex(8)
        with self._lock:
            self._runs[name] = run
            while len(self._runs) > MAX_HELD:
                self._runs.popitem(last=False)
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._runs

    def __getitem__(self, name: str) -> HeldRun:
        """Return the answer.  Raises: RequestError if it was dropped"""
        with self._lock:
            run = self._runs.get(name)
        if run is None:
            raise RequestError(f"look: no answer '{name}' is held; the last {MAX_HELD} of a model are: ask again")
        return run
