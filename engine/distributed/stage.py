"""A stage: some layers of a model with their part of the cache, in a process of its own.

It is the model itself, cut: its layers run as all layers do in one process, with the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels import SETS, Kernels, threads
from ..model.batch import Batch, Span
from ..model.cache import KVCache
from ..model.decoder import layer_by_layer
from ..model.load import load_model
from ..model.model import Model
from ..model.trace import Tap, no_tap
from ..model.whole import whole_layers
from .cluster import node_address
from .ring import Address, Port, relay

RemoteTap = Callable[[str, int, np.ndarray], "np.ndarray | None"]  # None: the value itself


def cut(model: Model, layers: range) -> Model:
    """Return `model` with `layers` only; its embeddings and output stay, and are not read."""
    hp, part = model.hparams, slice(layers.start, layers.stop)
    hparams = replace(
        hp,
        n_layer=len(layers),
        attention=hp.attention[part],
        rope=hp.rope[part],
        rope_long=hp.rope_long[part] if hp.rope_long else hp.rope_long,
    )
    return replace(model, hparams=hparams, weights=replace(model.decoder, blk=model.decoder.blk[part]))


class Stage:
    """Layers `first` .. `last` - 1 of the model in a file at the same path on every node."""

    def __init__(
        self,
        path: Path,
        adapters: Sequence[Path],
        first: int,
        last: int,
        n_ctx: int,
        n_slot: int,
        cache_type: str,
        n_batch: int,
        kernels: str,
        n_thread: int = 0,
    ):
        self.first, self.kernels, self.n_thread = first, SETS[kernels], n_thread
        self.model = cut(load_model(path, dict.fromkeys(adapters, 1.0)), range(first, last))
        self.cache = self.model.new_cache(n_ctx, n_slot, cache_type, n_batch)
        run_layers(
            self.model, np.zeros((1, self.model.hparams.n_embd), np.float32), Batch.of([0]), self.cache, self.kernels
        )

    def ready(self) -> int:
        """Return the bytes of this stage's weights and cache."""
        return sum(block_nbytes(blk) for blk in self.model.decoder.blk) + self.cache.nbytes

    def place(self) -> tuple[str, int]:
        """Return the id of this process's node, and the number of cores there."""
        import ray

        return ray.get_runtime_context().get_node_id(), threads.N_CORE

    def pid(self) -> int:
        """Return the process id."""
        return os.getpid()

    def resident(self) -> int:
        """Return the bytes of memory that this process occupies."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def listen(self, key: bytes) -> Address:
        """Open a port for the stage before.  -> its address"""
        import ray

        self._port = Port(node_address(ray), key)
        return self._port.address

    def relay(self, following: Address, key: bytes) -> None:
        """Run the layers for all parts of batches that come, and send the results on, until the connection ends."""
        relay(self._port, following, key, lambda part: (self.run(*part), part[1]))

    def run(self, x: np.ndarray, batch: Batch) -> np.ndarray:
        """Run the layers.  x float [n_tok, n_embd] -> as x"""
        threads.limit(self.n_thread)
        return run_layers(self.model, x, batch, self.cache, self.kernels)

    def run_tapped(self, x: np.ndarray, batch: Batch, tap: RemoteTap) -> np.ndarray:
        """Run the layers in steps; every value passes through `tap` under its layer in the whole model."""

        def here(name: str, il: int, value: np.ndarray) -> np.ndarray:
            changed = tap(name, il + self.first if il >= 0 else il, value)
            return value if changed is None else changed

        return run_layers(self.model, np.array(x), batch, self.cache, self.kernels, here)

    def read(self, il: int, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """Return what `span` attends to in layer `il` of the whole model; see KVCache."""
        return self.cache.read(il - self.first, span)

    def rebase(self, slot: int, base: int, n: int) -> None:
        """Drop positions before `base` in layers with a window; see KVCache."""
        self.cache.rebase(slot, base, n)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy positions of the cache; see KVCache."""
        self.cache.copy(source, target, start, end)

    def shift(self, slot: int, n_cached: int, keep: int, discard: int) -> None:
        """Discard positions of the cache; see KVCache."""
        ropes = self.model.hparams.ropes(self.cache.n_ctx)
        self.cache.shift(slot, n_cached, keep, discard, self.kernels, ropes)

    def snapshot(self, slot: int, n: int, start: int) -> list[np.ndarray]:
        """Copy positions out of the cache; see KVCache."""
        return self.cache.snapshot(slot, n, start)

    def restore(self, slot: int, arrays: Sequence[np.ndarray], n: int, start: int, end: int) -> None:
        """Copy positions into the cache; see KVCache."""
        self.cache.restore(slot, arrays, n, start, end)


def run_layers(
    model: Model, x: np.ndarray, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap = no_tap
) -> np.ndarray:
    """Run all layers of `model`, as `hidden_states` does between embeddings and output."""
    return (whole_layers(model, batch, cache, kernels, tap) or layer_by_layer)(model, x, batch, cache, kernels, tap)


def block_nbytes(blk: Any) -> int:
    """Return the bytes of a layer's tensors."""
    return sum(tensor.nbytes for tensor in vars(blk).values() if tensor is not None)
