"""Whole layers as one call: how decoding runs, one token of each sequence a step, where no tap looks inside a layer.

decoder.py says what a layer computes; kernels/decode_layer.py does the same without Python in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from weakref import WeakKeyDictionary

import numpy as np

from ...kernels import Kernels
from ...kernels.decode_layer import LayerCall, LayerRun
from ...kernels.warmup import is_compiling
from .batch import Batch
from .cache import KVCache
from .model import Model
from .trace import Tap, sees_values

PRODUCTS_PER_CALL = 1_000_000  # multiplications in one call, about 0.1 ms

RunLayers = Callable[[Model, np.ndarray, Batch, KVCache, Kernels, Tap], np.ndarray]


class LayerCalls:
    """A model's layers bound to a cache's keys and values; each is built on first use."""

    def __init__(self, model: Model, cache: KVCache):
        self.model, self.k, self.v, self.bases = model, cache.k, cache.v, cache.bases
        self.ropes, self.groups = model.hparams.ropes(cache.n_ctx), (cache.k_group, cache.v_group)
        self._built: dict[int, LayerCall] = {}
        self._runs: dict[int, list[LayerRun]] = {}  # by number of tokens

    @cached_property
    def fit(self) -> bool:
        """Whether every layer can run as one call: no format without a kernel of its own, nor gpt-oss's activation."""
        hp, act = self.model.hparams, self.model.family.act
        blks = zip(self.model.decoder.blk, self.k, self.v, strict=True)
        return hp.causal and all(LayerCall.fits(vars(blk), k, v, act) for blk, k, v in blks)

    def __getitem__(self, il: int) -> LayerCall:
        if il not in self._built:
            hp, act = self.model.hparams, self.model.family.act
            weights, rule, rope = vars(self.model.decoder.blk[il]), hp.attention[il], self.ropes[il]
            self._built[il] = LayerCall(
                weights,
                self.k[il],
                self.v[il],
                hp.n_head,
                rule,
                rope,
                act,
                hp.norm_eps,
                hp.residual_scale,
                self.groups,
                bases=self.bases[il],
                n_used=hp.n_expert_used,
                factors=partial(hp.query_factors, dtype=np.dtype(np.float32)) if hp.attn_temp else None,
            )
        return self._built[il]

    def run(self, model: Model, x: np.ndarray, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap) -> np.ndarray:
        """Run all layers, small ones several to a call.  x float [n_tok, n_embd], may be overwritten -> as x

        The tap is called once a call, with the last layer of it.
        """
        assert kernels.layers is not None and batch.places is not None
        for run in self._runs.get(n := len(batch.places)) or self._runs_of(n):
            x = tap("l_out", run.last, kernels.layers(run, x, batch.places))
        return x

    def _runs_of(self, n_tok: int) -> list[LayerRun]:
        """Return all layers in runs for so many tokens."""
        n_layer = self.model.hparams.n_layer
        together = groups(n_layer, PRODUCTS_PER_CALL // (n_tok * self[0].n_weight))
        self._runs[n_tok] = [LayerRun([self[il] for il in layers], layers[-1]) for layers in together]
        return self._runs[n_tok]


def groups(n_layer: int, n_together: int) -> list[range]:
    """Cut layers 0 .. n_layer - 1 into runs of `n_together`, at least 1; the last may be shorter.

    >>> groups(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    n = max(1, n_together)
    return [range(first, min(first + n, n_layer)) for first in range(0, n_layer, n)]


_calls: WeakKeyDictionary[KVCache, LayerCalls] = WeakKeyDictionary()


def whole_layers(model: Model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap) -> RunLayers | None:
    """Return a function that runs all layers in whole calls; None if this batch must run step by step."""
    if kernels.layers is None or batch.places is None or sees_values(tap) or is_compiling():
        return None
    calls = _calls.get(cache)
    if calls is None or calls.model is not model:
        calls = _calls[cache] = LayerCalls(model, cache)
    return calls.run if calls.fit else None
