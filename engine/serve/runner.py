"""A loaded model at work: its cache, its thread, and the requests that it answers.

caller            runner's thread
------            ---------------
submit(job)  -->  scheduler: waiting, first come first served, then a slot
                  step() ... deliver(piece) ... deliver(last piece)
call.cancel()     seen between two steps; within one where nobody else is in it
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

import numpy as np

from ...kernels import NUMBA, Kernels, threads
from ...kernels.warmup import prepare
from ..errors import EngineError, ModelError, ShuttingDown
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import logits
from ..model.model import Model
from ..model.trace import Tap, Watch, no_tap
from ..options import Options
from ..run.job import Job
from ..run.scheduler import Scheduler, conclude
from ..sampling.grammar import Grammars
from ..vision.prompt import Images
from .memory import check_memory, default_slots

log = logging.getLogger(__name__)

SAY_EVERY = 5.0  # seconds between two lines in the log about a load
VISION_CTX = 2048  # positions at least where images are to fit, as in Ollama
N_TEXT = 64  # texts at once for an encoder, whose slots cost nothing


def loading(n_layer: int, tell: Callable[[float], None], facts: dict[str, Any]) -> Tap:
    """The tap of a first forward pass, in which weights are packed and kernels compiled.

    It tells how far it is, in the log too if that takes long; what `tell` raises ends it.
    """
    said = monotonic()

    def look(il: int) -> None:
        nonlocal said
        tell((il + 1) / n_layer)
        if monotonic() - said > SAY_EVERY:
            said = monotonic()
            log.info("loading", extra={"fields": facts | {"layer": f"{il + 1}/{n_layer}"}})

    return Watch(look)


def needed(model: Model) -> list[str]:
    """What answers of `model` are made with, by the names of kernels in warmups()."""
    attached = [side for w in model.gguf.tensors.values() for term in w.low_rank for side in (term.a, term.b)]
    weights = [w for w in (*model.gguf.tensors.values(), *attached) if len(w.shape) > 1]
    if model.vision:
        weights += [blk.attn_q.weight for blk in model.vision.blk]
    products = dict.fromkeys(f"{w.format.name} product" for w in weights)
    if not model.family.causal:
        ropes = [f"rope, {model.family.rope_style}"] if model.family.positions == "rope" else []
        return ["attention", *products, *ropes, "layer_norm", "gelu, gelu_erf, quick_gelu"]
    others = f"rope, {model.family.rope_style}", "silu_mul, gelu_mul", "cache", "whole layers", "rms_norm", "descending"
    router = ["softmax"] if model.hparams.n_expert else []
    sight = ["layer_norm", "gelu, gelu_erf, quick_gelu", "resize"] if model.vision else []
    return ["attention", *products, *others, *router, *sight]


class Runner:
    """One loaded model, one cache, one thread.

    options   those it was loaded with, num_ctx within what the model was trained on
    n_slot    sequences at once; 0: as many as seem right
    tap       sees the first forward pass, which belongs to loading
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        cache_type: str = "f16",
        kernels: Kernels = NUMBA,
        n_slot: int = 0,
        tap: Tap = no_tap,
    ):
        self.model, self.options = model, self._clamped(model, options)
        n_ctx = self.options.num_ctx
        n_slot = (n_slot or default_slots(model, n_ctx, cache_type)) if model.family.causal else N_TEXT
        check_memory(model, n_ctx, n_slot, cache_type)
        self.cache: KVCache = model.new_cache(n_ctx, n_slot, cache_type)
        # Made on first use, which is now, as they belong to loading: the tokenizer, packed weights, compiled kernels.
        _ = model.tokenizer
        if kernels is NUMBA:
            prepare(needed(model))
        hidden = model.family.hidden(model, Batch.of([0]), self.cache, kernels, tap)
        if model.family.causal and not model.hparams.pooling:  # else nothing is said, and no output matrix packed
            logits(model, hidden, kernels, tap)
        if vision := model.vision:
            size = vision.hparams.image_size
            vision.rows(np.zeros((size, size, 3), np.uint8), kernels, tap)
        self.images = Images(vision, kernels) if vision else None
        self.grammars = Grammars(model.tokenizer)
        self.scheduler = Scheduler(model, self.cache, kernels, self.options.num_batch)
        self._sizes = {path: path.stat().st_size for path in model.files}
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._is_over = False
        self._thread = Thread(target=self._work, name=f"runner {model.path.name}", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Bytes of weights and cache."""
        return self.model.nbytes + self.cache.nbytes

    def serves(self, options: Options) -> bool:
        """Whether a request with `options` can be answered without loading the model anew."""
        reload = self.options.needs_reload(self._clamped(self.model, options))
        return not reload and not self.scheduler.stopped

    @staticmethod
    def _clamped(model: Model, options: Options) -> Options:
        return options.clamped(model.hparams.n_ctx_train, *([VISION_CTX] if model.vision else []))

    def submit(self, job: Job) -> None:
        self._jobs.put(job)
        if self._is_over:  # it came too late
            self._refuse()

    def close(self) -> None:
        """Let the thread end when what was submitted is done.  Does not wait."""
        self._jobs.put(None)

    def stop(self, why: EngineError) -> None:
        """End everything that was submitted with `why`, now, and then the thread.  Does not wait."""
        self.scheduler.stopped = why
        self.close()

    def _work(self) -> None:
        threads.limit(min(max(self.options.num_thread, 0), threads.N_CORE))
        is_open = True
        while is_open or not self.scheduler.idle:
            while is_open and (self.scheduler.idle or not self._jobs.empty()):
                if job := self._jobs.get():
                    self.scheduler.submit(job)
                is_open = job is not None
                del job  # with it goes all that its caller held
            self._look_at_files()
            try:
                self.scheduler.step()
            except Exception as error:  # a mistake of ours: nobody may wait forever for it
                self.scheduler.stopped = error
        self._is_over = True
        self._refuse()

    def _look_at_files(self) -> None:
        """A file that has become shorter ends everything: to touch what is gone of it would end the process.

        One that was deleted stays mapped whole.  Takes 2 us.
        """
        for path, size in self._sizes.items():
            with suppress(OSError):
                if (now := path.stat().st_size) < size:
                    self.scheduler.stopped = ModelError(f"{path}: {now} bytes, {size} when it was loaded")

    def _refuse(self) -> None:
        while not self._jobs.empty():
            with suppress(Empty):  # others may be refusing, too
                if job := self._jobs.get_nowait():
                    conclude(job, self.scheduler.stopped or ShuttingDown())
