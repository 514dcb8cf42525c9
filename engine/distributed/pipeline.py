"""A model cut by layers into stages, each an actor on a Ray cluster.

    driver                      stage 0            stage 1            stage 2
    embeddings of a batch  -->  layers 0 .. 7  --> layers 8 .. 15 --> layers 16 .. 21  -->  output matrix, sampling
         part 1                    part 1
         part 2                    part 2             part 1
         part 3                    part 3             part 2              part 1

A pass of many tokens is sent in parts that follow each other through the stages (ring.py), so that none is idle: chunks
of a prompt, groups of sequences that decode.  Parts stay in order, so each finds the keys and values before it.  Each
part reads a stage's weights again, so there are few, and one only where all stages share the same cores.
The bits are those of one process, as a token's values do not depend on its batch.

The scheduler sees a cache (`StagedCache`) and knows nothing of stages.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels import NUMBA, Kernels
from ...kernels.hadamard import key_group, value_group
from ...kernels.kv import in_blocks, types_of_keys_and_values
from ..errors import CacheLost, EngineError
from ..model.batch import Batch, Span
from ..model.cache import KVCache, Ropes, n_kept_positions, position_bytes
from ..model.model import Model
from ..model.trace import Tap, sees_values
from .cluster import actor_places, join_cluster
from .relay import TapRelay
from .ring import RELAY_GROUP, Ring, as_engine_error
from .stage import Stage, block_nbytes

log = logging.getLogger(__name__)

ROWS_AS_WEIGHTS = 8  # rows whose products take as long as reading the weights: 1.1B in Q4_0, two cores
LEAST_BYTES = 1  # that a stage asks Ray for: one that asks for nothing goes to any node, whatever its place
START_S = 300.0  # for a stage to load
PROCESS_BYTES = 400 << 20  # of a process without weights: Python, Numba, Ray


def cut_by_bytes(sizes: Sequence[int], n_stage: int) -> list[range]:
    """Cut layers of these sizes into `n_stage` runs whose largest is as small as possible.

    >>> cut_by_bytes([1, 1, 1, 1, 4], 2)
    [range(0, 4), range(4, 5)]
    """
    low, high = max(sizes), sum(sizes)
    while low < high:  # the least size of a stage that suffices
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(sizes, middle)) <= n_stage else (middle + 1, high)
    cuts = _filled(sizes, low)
    while len(cuts) < n_stage:  # fewer would do: halve the longest
        i = max(range(len(cuts)), key=lambda i: len(cuts[i]))
        first, last = cuts[i].start, cuts[i].stop
        cuts[i : i + 1] = [range(first, (first + last) // 2), range((first + last) // 2, last)]
    return cuts


def _filled(sizes: Sequence[int], limit: int) -> list[range]:
    cuts, first, total = list[range](), 0, 0
    for i, size in enumerate(sizes):
        if total + size > limit and i > first:
            cuts.append(range(first, i))
            first, total = i, 0
        total += size
    return [*cuts, range(first, len(sizes))]


def stages_of(
    model: Model, n_ctx: int, n_slot: int, cache_type: str, n_stage: int, memory: int = 0, n_batch: int = 0
) -> list[range]:
    """Return the layers of each stage.

    n_stage   how many; 0: as few as fit
    memory    bytes of each stage's process; 0: any
    n_batch   see Model.new_cache
    Raises: EngineError if a layer needs more, or there are more stages than layers
    """
    hp = model.hparams
    position = n_slot * hp.n_head_kv * position_bytes(cache_type, hp.n_head_dim)
    sizes = [  # in the mapped file, and packed
        2 * block_nbytes(blk) + position * n_kept_positions(window, n_ctx, n_batch)
        for blk, window in zip(model.decoder.blk, hp.windows, strict=True)
    ]
    if n_stage > hp.n_layer:
        raise EngineError(
            f"{n_stage} stages, and the model has {hp.n_layer} layers: expected at most one stage for each"
        )
    if not memory:
        return cut_by_bytes(sizes, max(1, n_stage))
    room = memory - PROCESS_BYTES
    if max(sizes) > room:
        found = f"{memory >> 20} MiB for a stage"
        raise EngineError(
            f"{found}, expected at least {(PROCESS_BYTES + max(sizes)) >> 20} MiB: one layer and its cache"
        )
    return cut_by_bytes(sizes, max(n_stage, len(_filled(sizes, room))))


class StagedCache(KVCache):
    """A cache whose layers lie in stages, which also run these layers.

    adapters         LoRA files of the model
    n_stage, memory  see stages_of
    address          of the Ray cluster; "": one on this machine
    n_thread         of each stage; 0: one for each core
    stage_class      Stage, or one that watches it
    Raises: RequestError without Ray; EngineError for a cut that cannot be made, or if a stage does not start
    """

    def __init__(
        self,
        adapters: Sequence[Path],
        model: Model,
        n_ctx: int,
        n_slot: int,
        type: str,
        n_batch: int = 0,
        *,
        kernels: Kernels = NUMBA,
        n_stage: int = 0,
        memory: int = 0,
        address: str = "",
        n_thread: int = 0,
        stage_class: type[Stage] = Stage,
    ):
        self.cuts = stages_of(model, n_ctx, n_slot, type, n_stage, memory, n_batch)
        self._ray = ray = join_cluster(address)
        self.n_ctx, self.n_slot, self.type = n_ctx, n_slot, type
        k_type, v_type = types_of_keys_and_values(type)
        self.k_group = key_group(model.hparams.n_head_dim) if in_blocks(k_type) else 0
        self.v_group = value_group(model.hparams.n_head_dim) if in_blocks(v_type) else 0
        self.k, self.v = (
            [np.empty(0, one)] * model.hparams.n_layer for one in (k_type, v_type)
        )  # how many, which type
        self._set_windows(model.hparams.windows, n_batch)
        actor = ray.remote(max_restarts=-1, num_cpus=0, memory=LEAST_BYTES, concurrency_groups={RELAY_GROUP: 1})(
            stage_class
        )
        shape = n_ctx, n_slot, type, n_batch, kernels.name, n_thread
        self.stages = [
            actor.options(scheduling_strategy=place).remote(model.path, adapters, cut.start, cut.stop, *shape)
            for cut, place in zip(self.cuts, actor_places(ray, len(self.cuts)), strict=True)
        ]
        self._ring: Ring | None = None
        self._sizes: list[int] = []  # until all have loaded
        self._sizes = self._call([stage.ready.remote() for stage in self.stages], START_S)
        self.n_at_once = count_at_once(self._all(lambda stage: stage.place.remote()), n_thread)

    def __repr__(self) -> str:
        return f"<StagedCache: {len(self.stages)} stages, {self.n_slot} slots of {self.n_ctx} positions, {self.type}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the stages' weights and caches."""
        return sum(self._sizes)

    def run_layers(
        self, model: Model, x: np.ndarray, batch: Batch, cache: KVCache, kernels: Kernels, tap: Tap
    ) -> np.ndarray:
        """Run all layers.  x float [n_tok, n_embd] -> as x.  Raises: CacheLost if a stage ends"""
        if sees_values(tap):
            return self._run_tapped(x, batch, tap)
        with self._losses():
            self._ring = self._ring or Ring(self._ray, self.stages)
            sent = [(x[rows], part) for rows, part in parts(batch, self.n_at_once)]
            done = [rows for rows, _ in self._ring.run(sent)]
        tap("l_out", model.hparams.n_layer - 1, x)
        return np.concatenate(done) if len(done) > 1 else done[0]

    def _run_tapped(self, x: np.ndarray, batch: Batch, tap: Tap) -> np.ndarray:
        """Run the layers in steps, each value passing through `tap` in this process."""
        relay = TapRelay(self._ray)
        for i, stage in enumerate(self.stages):
            try:
                x = relay.serve(stage.run_tapped.remote(x, batch, relay.remote), tap)
            except self._ray.exceptions.RayActorError:
                raise self._lost(i) from None
        return np.array(x)

    def read(self, il: int, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """Return what `span` attends to in layer `il`.  Raises: CacheLost"""
        i = next(i for i, cut in enumerate(self.cuts) if il in cut)
        ((keys, values),) = self._call([self.stages[i].read.remote(il, span)])
        return keys, values

    def rebase(self, slot: int, base: int, n: int) -> None:
        """Drop positions before `base` in layers with a window, in every stage.  Raises: CacheLost"""
        self.base[slot] = base  # at first: a stage that ends begins again at 0, and so does the next text
        self._all(lambda stage: stage.rebase.remote(slot, base, n))

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy positions from slot to slot, in every stage.  Raises: CacheLost"""
        self.base[target] = self.base[source]
        self._all(lambda stage: stage.copy.remote(source, target, start, end))

    def shift(self, slot: int, n_cached: int, keep: int, discard: int, kernels: Kernels, ropes: Ropes) -> int:
        """Discard positions in every stage.  -> positions now cached.  Raises: CacheLost"""
        self._all(lambda stage: stage.shift.remote(slot, n_cached, keep, discard))
        return n_cached - discard

    def snapshot(self, slot: int, n: int, start: int = 0) -> list[np.ndarray]:
        """Copy positions start .. n - 1 of `slot`, all layers.  Raises: CacheLost"""
        return [array for arrays in self._all(lambda stage: stage.snapshot.remote(slot, n, start)) for array in arrays]

    def restore(self, slot: int, arrays: Sequence[np.ndarray], n: int, start: int, end: int) -> None:
        """Copy positions of all layers into `slot`.  Raises: CacheLost"""
        self.base[slot] = self.restored_base(arrays, n, end)
        calls = [
            stage.restore.remote(slot, list(arrays[2 * cut.start : 2 * cut.stop]), n, start, end)
            for stage, cut in zip(self.stages, self.cuts, strict=True)
        ]
        self._call(calls)

    def close(self) -> None:
        """End the stages."""
        if self._ring:
            self._ring.close()
        for stage in self.stages:
            self._ray.kill(stage)

    def resident(self) -> list[int]:
        """Return the bytes of memory that each stage's process occupies."""
        return self._all(lambda stage: stage.resident.remote())

    def _all(self, call: Callable[[Any], Any]) -> list[Any]:
        return self._call([call(stage) for stage in self.stages])

    def _call(self, calls: list[Any], timeout: float | None = None) -> list[Any]:
        """Return the results of calls.  Raises: CacheLost if a stage ends before"""
        with self._losses():
            results: list[Any] = self._ray.get(calls, timeout=timeout)
        return results

    @contextmanager
    def _losses(self) -> Iterator[None]:
        """Turn errors of Ray and of the ring into ours.  Raises: CacheLost if a stage ends; EngineError if one fails"""
        names = self._ray.exceptions
        try:
            yield
        except names.RayActorError as error:
            if not self._sizes:
                raise not_started(str(error)) from None
            raise self._lost(self._dead(error)) from None
        except names.GetTimeoutError:
            raise CacheLost(f"a stage did not start within {START_S:.0f} s") from None
        except names.RayTaskError as error:
            raise as_engine_error(error.cause) from None
        except (names.ObjectLostError, EOFError, OSError):
            raise self._lost(None) from None

    def _dead(self, error: Exception) -> int | None:
        id = getattr(error, "actor_id", None)
        return next((i for i, stage in enumerate(self.stages) if id and stage._actor_id.hex() == id), None)

    def _lost(self, i: int | None) -> CacheLost:
        """Return the error after the end of stage `i`; it is started again by Ray, with an empty cache."""
        if self._ring:
            self._ring.close()
            self._ring = None
        if i is None:
            return CacheLost("a stage of the model ended, and what it had cached is lost: ask again")
        cut = self.cuts[i]
        where = f"stage {i + 1} of {len(self.cuts)} (layers {cut.start} to {cut.stop - 1})"
        log.warning("%s ended; it is started again", where)
        return CacheLost(f"{where} ended, and what it had cached is lost: ask again")


def not_started(reason: str) -> EngineError:
    """Return the error after a stage did not start.  reason: Ray's, whose last line says most"""
    last = reason.strip().rpartition("\n")[2].strip()
    has_token = os.environ.get("RAY_AUTH_MODE") == "token"
    hint = "; a cluster without a token needs RAY_AUTH_MODE=disabled here" if has_token else ""
    return EngineError(f"a stage did not start: {last}{hint}")


def count_at_once(places: Sequence[tuple[str, int]], n_thread: int) -> int:
    """Count the stages that can work at the same time: on each node as many as have cores for their threads.

    places   node and number of its cores, of each stage
    n_thread of each stage; 0: one for each core

    >>> count_at_once([("a", 2), ("a", 2), ("b", 2)], 0), count_at_once([("a", 2)] * 3, 1)
    (2, 2)
    """
    return sum(min(n, max(1, n_core // (n_thread or n_core))) for (_, n_core), n in Counter(places).items())


def count_parts(n_tok: int, n_at_once: int) -> int:
    """Count the parts in which `n_tok` rows pass soonest through stages of which `n_at_once` can work together.

    A pass has n_at_once + n_part - 1 turns, each as long as ROWS_AS_WEIGHTS + n_tok / n_part rows.  That is least for
    n_part**2 = (n_at_once - 1) * n_tok / ROWS_AS_WEIGHTS.

    >>> count_parts(512, 1), count_parts(8, 4), count_parts(256, 2), count_parts(256, 4)
    (1, 2, 6, 10)
    """
    return max(1, min(n_tok, round(math.sqrt((n_at_once - 1) * n_tok / ROWS_AS_WEIGHTS))))


def parts(batch: Batch, n_at_once: int) -> list[tuple[slice, Batch]]:
    """Cut a batch into parts that follow each other through the stages; tokens stay in order.

    -> (rows of the batch, part)
    """
    n_tok, n_part = len(batch.tokens), count_parts(len(batch.tokens), n_at_once)
    bounds = [n_tok * i // n_part for i in range(n_part + 1)]
    return [(slice(a, b), batch.rows(a, b)) for a, b in pairwise(bounds)]
