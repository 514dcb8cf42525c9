"""Memory: the size of a model and its cache, and the memory available."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import OutOfMemory
from ..model.cache import row_bytes
from ..model.model import Model

DEFAULT_SLOTS = 4  # if their caches fit into a quarter of the available memory; else 1


def cache_size(model: Model, n_ctx: int, n_slot: int, cache_type: str) -> int:
    """Return the bytes of a cache; 0 for an encoder, which caches nothing."""
    if not model.family.causal:
        return 0
    hp = model.hparams
    return 2 * hp.n_layer * n_slot * n_ctx * hp.n_head_kv * row_bytes(cache_type, hp.n_head_dim)


def default_slots(model: Model, n_ctx: int, cache_type: str) -> int:
    """Return the number of slots for a model if none is set."""
    available = available_memory()
    fits = available is None or 4 * cache_size(model, n_ctx, DEFAULT_SLOTS, cache_type) <= available
    return DEFAULT_SLOTS if fits else 1


def check_memory(model: Model, n_ctx: int, n_slot: int, cache_type: str) -> None:
    """Check that weights and cache fit into the available memory.  Raises: OutOfMemory

    Pages of mapped files count as available, since the system may drop them.  Where the available memory is unknown,
    every size passes.
    """
    cache = cache_size(model, n_ctx, n_slot, cache_type)
    needed, available = cache + model.nbytes, available_memory()
    if available is not None and needed > available:
        sizes = [f"{n / 2**30:.1f} GiB" for n in (needed, available)]
        raise OutOfMemory(
            needed, available, f"model requires more system memory ({sizes[0]}) than is available ({sizes[1]})"
        )


def available_memory() -> int | None:
    """Return the bytes available without swapping; None if unknown (outside Linux)."""
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
