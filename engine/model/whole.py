"""Layers as one call each: how decoding runs, one token of each sequence a step, where nobody looks inside a layer.

What a layer computes stands in decoder.py; kernels/decode_layer.py does the same without Python in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from ...kernels import Kernels
from ...kernels.decode_layer import LayerCall
from .batch import Batch
from .cache import KVCache
from .trace import Tap, sees_values

PRODUCTS_PER_CALL = 1_000_000  # products of layers that are one call: a tenth of a millisecond


class LayerCalls:
    """A model's layers, each with what a cache has for it; made when it is first wanted."""

    def __init__(self, model, cache: KVCache):
        self.model, self.k, self.v = model, cache.k, cache.v
        self.ropes = model.hparams.ropes(cache.n_ctx)
        self.made: dict[int, LayerCall] = {}

    @cached_property
    def fit(self) -> bool:
        """Whether all of them can be one call: no experts, adapters, or formats without a kernel of their own."""
        hp, act = self.model.hparams, self.model.family.act
        blks = zip(self.model.weights.blk, self.k, strict=True)
        return not hp.attn_temp and all(LayerCall.fits(vars(blk), k, act) for blk, k in blks)

    def __getitem__(self, il: int) -> LayerCall:
        if il not in self.made:
            hp, weights = self.model.hparams, vars(self.model.weights.blk[il])
            cache, how = (self.k[il], self.v[il]), (hp.attention[il], self.ropes[il], self.model.family.act)
            self.made[il] = LayerCall(weights, *cache, hp.n_head, *how, hp.norm_eps, hp.residual_scale)
        return self.made[il]


_layers: WeakKeyDictionary[KVCache, LayerCalls] = WeakKeyDictionary()


def whole_layers(
    model, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap
) -> Callable[[int, np.ndarray], np.ndarray] | None:
    """(il, x) -> x, which may be changed; None where model, batch, kernels or tap want a layer's steps.

    Small layers are one call together, with the last of them: until then x is as it was.
    """
    run, places = kernels.layers, batch.places
    if run is None or places is None or sees_values(tap):
        return None
    layers = _layers.get(cache)
    if layers is None or layers.model is not model:
        layers = _layers[cache] = LayerCalls(model, cache)
    if not layers.fit:
        return None
    n_layer = model.hparams.n_layer
    n = max(1, PRODUCTS_PER_CALL // (len(places) * layers[0].n_weight))

    def whole(il: int, x: np.ndarray) -> np.ndarray:
        if (il + 1) % n and il + 1 < n_layer:
            return x
        return run([layers[i] for i in range(il // n * n, il + 1)], x, places)

    return whole
