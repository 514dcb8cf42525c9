"""Memory: the size of a model and its cache, and the memory available on the machine or in its container."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import OutOfMemory
from ..model.cache import n_kept_positions, position_bytes
from ..model.model import Model

DEFAULT_SLOTS = 4  # if their caches fit into a quarter of the available memory; else 1


def cache_size(model: Model, n_ctx: int, n_slot: int, cache_type: str, n_batch: int = 0) -> int:
    """Return the bytes of a cache, see Model.new_cache; 0 for an encoder, which caches nothing."""
    if not model.family.causal:
        return 0
    hp = model.hparams
    n_position = sum(n_kept_positions(window, n_ctx, n_batch) for window in hp.windows)
    return n_slot * n_position * hp.n_head_kv * position_bytes(cache_type, hp.n_head_dim)


def default_slots(model: Model, n_ctx: int, cache_type: str, n_batch: int = 0) -> int:
    """Return the number of slots for a model if none is set."""
    available = available_memory()
    fits = available is None or 4 * cache_size(model, n_ctx, DEFAULT_SLOTS, cache_type, n_batch) <= available
    return DEFAULT_SLOTS if fits else 1


def check_memory(models: Sequence[Model], n_ctx: int, n_slot: int, cache_type: str, n_batch: int = 0) -> None:
    """Check that the weights of `models` and a cache for each fit into the available memory.  Raises: OutOfMemory

    Pages of mapped files count as available, since the system may drop them.  Where the available memory is unknown,
    every size passes.
    """
    needed = sum(model.nbytes + cache_size(model, n_ctx, n_slot, cache_type, n_batch) for model in models)
    available = available_memory()
    if available is not None and needed > available:
        sizes = [f"{n / 2**30:.1f} GiB" for n in (needed, available)]
        raise OutOfMemory(
            needed, available, f"model requires more system memory ({sizes[0]}) than is available ({sizes[1]})"
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes available without swapping: the machine's or the container's, whichever are fewer.

    root   the folder of proc/ and sys/
    None if unknown (outside Linux)
    """
    found = re.search(r"MemAvailable: *(\d+) kB", _read(root / "proc/meminfo"))
    machine = [int(found[1]) * 1024] if found else []
    return min([*machine, *_left_in_cgroups(root)], default=None)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Yield the bytes that each control group of this process, and each group above it, may still allocate.

    Pages of mapped files are charged to a group, and dropped when it reaches its limit.
    Source: Linux, Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names, prefix = root / "sys/fs/cgroup", ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            mount, prefix = root / "sys/fs/cgroup/memory", "total_"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = mount / path.strip("/")
        if not (group / names[0]).exists():  # a container sees its own group as the mount's root
            group = mount
        for folder in (group, *group.parents):
            limit, used = (_read(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():  # not "max"
                cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                yield max(int(limit) - int(used) + sum(map(int, cached)), 0)
            if folder == mount:
                break


def _read(path: Path) -> str:
    """Return the text of a file of the kernel, or "" if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
