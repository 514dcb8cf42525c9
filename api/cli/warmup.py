"""`numllama warmup`: compile the kernels now, so that no first answer waits for it."""

from __future__ import annotations

from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...kernels.jit import cache_folder
from ...kernels.warmup import warmups


def compile_all() -> None:
    """Every kernel of the NUMBA set compiled, or found compiled; says where machine code is kept."""
    jobs, began = warmups(), perf_counter()
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for name, compile_it in jobs:
            progress.update(task, description=name)
            compile_it()
            progress.advance(task)
    folder = cache_folder()
    where = f"kept in {folder}" if folder else "kept nowhere, as no folder can be written; NUMBA_CACHE_DIR names one"
    print(f"{len(jobs)} kernels ready in {perf_counter() - began:.1f} s, {where}")
