"""What a model and its cache take, and what the machine has."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import OutOfMemory
from ..model.cache import row_bytes
from ..model.model import Model

N_SLOT = 4  # sequences at once, where that many caches fit into a quarter of the memory that is free


def cache_size(model: Model, n_ctx: int, n_slot: int, cache_type: str) -> int:
    """Bytes of a cache; an encoder remembers nothing."""
    if not model.family.causal:
        return 0
    hp = model.hparams
    return 2 * hp.n_layer * n_slot * n_ctx * hp.n_head_kv * row_bytes(cache_type, hp.n_head_dim)


def default_slots(model: Model, n_ctx: int, cache_type: str) -> int:
    available = available_memory()
    return N_SLOT if available is None or 4 * cache_size(model, n_ctx, N_SLOT, cache_type) <= available else 1


def check_memory(model: Model, n_ctx: int, n_slot: int, cache_type: str) -> None:
    """Raises: OutOfMemory when weights and cache are more than this machine could free.

    Pages of mapped files count as free, since the system may drop them.  A machine that does not tell refuses nothing.
    """
    cache = cache_size(model, n_ctx, n_slot, cache_type)
    needed, available = cache + model.nbytes, available_memory()
    if available is not None and needed > available:
        sizes = [f"{n / 2**30:.1f} GiB" for n in (needed, available)]
        raise OutOfMemory(
            needed, available, f"model requires more system memory ({sizes[0]}) than is available ({sizes[1]})"
        )


def available_memory() -> int | None:
    """Bytes that could be had without swapping, where the kernel says so (Linux)."""
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
