"""A loaded model's runner: its cache, its thread, and the requests that it answers.

caller            runner's thread
------            ---------------
submit(job)  -->  scheduler: waiting, first come first served, then a slot
                  step() ... deliver(piece) ... deliver(last piece)
handle.cancel()   takes effect between two steps, or within one if every request in it is cancelled
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
from ..model.cache import KVCache, usable_type
from ..model.decoder import forward, logits
from ..model.model import Model
from ..model.trace import Tap, Watch, no_tap
from ..options import Options
from ..run.draft_model import DraftModel
from ..run.job import Job
from ..run.kept import KeptPrefixes
from ..run.scheduler import Scheduler, conclude
from ..sampling.grammar import Grammars
from ..vision.prompt import Images
from .keeping import NOT_KEPT, Keeping
from .memory import check_memory, default_slots

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 5.0  # between two log lines about one load
MIN_VISION_CTX = 2048  # smallest num_ctx of a vision model, as in Ollama
IDLE_S = 3.0  # without a request, until what is cached is saved to disk
DRAFT_NUM_PREDICT = 4  # Ollama's default with a draft model
N_ENCODER_SLOTS = 64  # an encoder's slots take no memory


NewCache = Callable[[Model, int, int, str, int], KVCache]


def loading(n_layer: int, progress: Callable[[float], None], facts: dict[str, Any]) -> Tap:
    """Make the tap for the first forward pass, which packs weights and compiles kernels.

    progress   called with the fraction of layers done; an exception from it ends the pass
    facts      fields of the log lines about a long load
    """
    logged = monotonic()

    def check(il: int) -> None:
        nonlocal logged
        progress((il + 1) / n_layer)
        if monotonic() - logged > LOG_INTERVAL_S:
            logged = monotonic()
            log.info("loading", extra={"fields": facts | {"layer": f"{il + 1}/{n_layer}"}})

    return Watch(check)


def kernel_names(model: Model) -> list[str]:
    """Return the names, as in warmups(), of the kernels that `model` uses."""
    attached = [side for w in model.gguf.tensors.values() for term in w.low_rank for side in (term.a, term.b)]
    weights = [w for w in (*model.gguf.tensors.values(), *attached) if len(w.shape) > 1]
    if model.vision:
        weights += [blk.attn_q.weight for blk in model.vision.blk]
    products = dict.fromkeys(f"{w.format.name} product" for w in weights)
    if not model.family.causal:
        ropes = [f"rope, {model.family.rope_style}"] if model.family.positions == "rope" else []
        return ["attention", *products, *ropes, "layer_norm", "gelu, gelu_erf, quick_gelu"]
    others = f"rope, {model.family.rope_style}", "silu_mul, gelu_mul", "cache", "whole layers", "rms_norm", "descending"
    router = ["softmax", "experts"] if model.hparams.n_expert else []
    vision = ["layer_norm", "gelu, gelu_erf, quick_gelu", "resize"] if model.vision else []
    return ["attention", *products, *others, *router, *vision]


class Runner:
    """One loaded model, one cache, one thread.

    options   load options, with num_ctx at most the model's context length
    n_slot    sequences at once; 0: chosen by the available memory
    tap       tap of the first forward pass, which is part of loading
    draft     a smaller model that guesses this one's next tokens; it gets a cache of its own
    keeping   where beginnings that lose their slot are kept
    new_cache   makes the cache: (model, n_ctx, n_slot, cache_type, n_batch) -> cache; by default in this process
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        cache_type: str = "f16",
        kernels: Kernels = NUMBA,
        n_slot: int = 0,
        tap: Tap = no_tap,
        draft: Model | None = None,
        keeping: Keeping = NOT_KEPT,
        new_cache: NewCache = Model.new_cache,
    ):
        self.model, self.options = model, self._clamped(model, options)
        n_ctx, n_batch = self.options.num_ctx, self.options.num_batch
        n_slot = (
            (n_slot or default_slots(model, n_ctx, cache_type, n_batch)) if model.family.causal else N_ENCODER_SLOTS
        )
        self.files = [*model.files, *(draft.files if draft else ())]
        if new_cache is Model.new_cache:
            check_memory([one for one in (model, draft) if one], n_ctx, n_slot, cache_type, n_batch)
        for file in self.files:
            file.check()
        self.cache: KVCache = new_cache(model, n_ctx, n_slot, cache_type, n_batch)
        # Force the lazy parts now, so that their cost counts as load time: tokenizer, packed weights, compiled kernels.
        _ = model.tokenizer
        if kernels is NUMBA:
            prepare(kernel_names(model))
        hidden = model.family.hidden(model, Batch.of([0]), self.cache, kernels, tap)
        if model.family.causal and not model.hparams.pooling:  # an embedding model never needs its output matrix
            logits(model, hidden, kernels, tap)
        if vision := model.vision:
            size = vision.hparams.image_size
            vision.rows(np.zeros((size, size, 3), np.uint8), kernels, tap)
        self.images = Images(vision, kernels) if vision else None
        self.grammars = Grammars(model.tokenizer)
        self.draft = self._draft_model(draft, kernels, n_slot, cache_type) if draft else None
        files = keeping.files(model, self.cache, kernels, cache_type)
        kept = KeptPrefixes(self.cache, keeping.memory, files)
        self.scheduler = Scheduler(model, self.cache, kernels, n_batch, draft=self.draft, kept=kept)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._is_over = False
        self._thread = Thread(target=self._work, name=f"runner {model.path.name}", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Bytes of weights and cache, a draft model's included, and of what is kept in memory."""
        draft = self.draft.model.nbytes + self.draft.cache.nbytes if self.draft else 0
        return self.model.nbytes + self.cache.nbytes + draft + self.scheduler.kept.nbytes

    def serves(self, options: Options) -> bool:
        """Return whether a request with `options` can be answered without a reload."""
        reload = self.options.needs_reload(self._clamped(self.model, options))
        return not reload and not self.scheduler.stopped

    @staticmethod
    def _clamped(model: Model, options: Options) -> Options:
        return options.clamped(model.hparams.n_ctx_train, *([MIN_VISION_CTX] if model.vision else []))

    def _draft_model(self, model: Model, kernels: Kernels, n_slot: int, cache_type: str) -> DraftModel:
        """Load a draft model's lazy parts, too.  Its window is at most the one that it was trained for."""
        n_ctx = min(self.options.num_ctx, model.hparams.n_ctx_train)
        kept_type = usable_type(cache_type, model.hparams.n_head_dim)
        cache = model.new_cache(n_ctx, n_slot, kept_type, self.options.num_batch)
        if kernels is NUMBA:
            prepare(kernel_names(model))
        forward(model, Batch.of([0]), cache, kernels)
        n_most = self.options.draft_num_predict or DRAFT_NUM_PREDICT
        return DraftModel(model, cache, kernels, n_most, self.options.num_batch)

    def submit(self, job: Job) -> None:
        """Queue `job` for the runner's thread."""
        self._jobs.put(job)
        if self._is_over:  # the thread will not see it
            self._reject_queued()

    def close(self) -> None:
        """End the thread after all submitted jobs.  Does not wait."""
        self._jobs.put(None)

    def stop(self, error: EngineError) -> None:
        """End all submitted jobs with `error` now, then the thread.  Does not wait."""
        self.scheduler.stopped = error
        self.close()

    def saved(self, timeout: float) -> bool:
        """Wait after `close` or `stop` until what is cached is saved, at most `timeout` seconds.  -> whether it is

        Returns True at once if nothing is to be saved.
        """
        if self.scheduler.kept.files:
            self._thread.join(timeout)
        return not (self.scheduler.kept.files and self._thread.is_alive())

    def _work(self) -> None:
        threads.limit(min(max(self.options.num_thread, 0), threads.N_CORE))
        is_open = True
        while is_open or not self.scheduler.idle:
            while is_open and (self.scheduler.idle or not self._jobs.empty()):
                if job := self._next_job():
                    self.scheduler.submit(job)
                is_open = job is not None
                del job  # do not keep its caller's objects alive
            self._check_files()
            try:
                self.scheduler.step()
            except Exception as error:  # a bug of ours: end every job, so that no client waits forever
                self.scheduler.stopped = error
        self._is_over = True
        self._reject_queued()
        self._save()
        self.cache.close()

    def _next_job(self) -> Job | None:
        """Wait for the next job, and save what is cached after some idle seconds.  None: there will be no more"""
        if self.scheduler.idle and self.scheduler.kept.files:
            with suppress(Empty):
                return self._jobs.get(timeout=IDLE_S)
            self._save()
        return self._jobs.get()

    def _save(self) -> None:
        """Save what is cached, if it is kept on disk.  A failure costs only what was to be saved."""
        try:
            self.scheduler.save()
        except Exception:
            log.warning("caches could not be saved", exc_info=True)

    def _check_files(self) -> None:
        """End every job if a file was truncated: reading a lost page of its mapping would kill the process.

        A deleted file stays mapped.  Takes 2 us.
        """
        try:
            for file in self.files:
                file.check()
        except ModelError as error:
            self.scheduler.stopped = error

    def _reject_queued(self) -> None:
        while not self._jobs.empty():
            with suppress(Empty):  # other threads may empty the queue, too
                if job := self._jobs.get_nowait():
                    conclude(job, self.scheduler.stopped or ShuttingDown())
