"""Memory for packed weights: a few large pieces, so that the system can back them with large pages.

    zeros       a part of such a piece
    let_go      what was packed need not stay in memory twice
    keep_freed  what one operation has freed, the next one gets

Reading 600 MB a token touches 150,000 pages of 4 KiB but 300 of 2 MiB; measured 16 against 25 GB/s on one core.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from threading import Lock

import numpy as np

PIECE = 64 << 20  # bytes; what is never written to costs no memory
LINE = 64  # a cache line, and the longest load

_lock = Lock()
_piece = np.empty(0, np.uint8)
_used = 0


def zeros(n: int) -> np.ndarray:
    """u8 [n] of zeros that begins a cache line.  Freed with the last array of its piece."""
    global _piece, _used
    keep_freed()
    with _lock:
        if _used + n > _piece.size:
            _piece, _used = new_piece(max(n, PIECE)), 0
        array = _piece[_used : _used + n]
        _used += -(-n // LINE) * LINE
        return array


def new_piece(n: int) -> np.ndarray:
    """u8 [n] of zeros, on large pages where the system has them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(n, np.uint8)
    memory = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory, the default, stays small
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        pass
    return np.frombuffer(memory, np.uint8)


def let_go(a: np.ndarray) -> None:
    """If `a` is a view into a mapped file, the process gives its pages back; touched again, they are read again."""
    n, begin = a.nbytes, a.__array_interface__["data"][0]
    while isinstance(a.base, np.ndarray):
        a = a.base
    file = a.base.obj if isinstance(a.base, memoryview) else a.base
    if isinstance(file, mmap.mmap) and hasattr(file, "madvise"):
        begin -= np.frombuffer(file, np.uint8).__array_interface__["data"][0]
        first, last = -(-begin // mmap.PAGESIZE), (begin + n) // mmap.PAGESIZE  # whole pages
        if first < last:
            file.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


@cache
def keep_freed() -> None:
    """Arrays below 32 MiB come from the heap, and a quarter of a GiB freed there stays with the process (glibc).

    Else every layer's results are fresh pages, a quarter of a microsecond each: up to a fifth of an encoder's time, and
    a twentieth of a prompt's of 512 tokens in a model of 1.1B.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, as high as it goes
        libc.mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
