"""`numllama warmup`: compilation of all kernels ahead of the first request."""

from __future__ import annotations

from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...kernels.folder import cache_folder, can_save, find_cache
from ...kernels.warmup import warmups


def compile_all() -> None:
    """Compile every kernel of the NUMBA set that is not in the cache, and print where the machine code is cached."""
    jobs, began = warmups(), perf_counter()
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for name, compile_kernel in jobs:
            progress.update(task, description=name)
            compile_kernel()
            progress.advance(task)
    where = f"cached in {cache_folder()}"
    if not can_save():
        where = f"not saved, as {find_cache()[1] or f'{cache_folder()} cannot be written'}; set NUMBA_CACHE_DIR"
    print(f"{len(jobs)} kernels ready in {perf_counter() - began:.1f} s, {where}")
