"""The pages of LLVM's library: 80 MiB of code, of which a process that only runs kernels needs none."""

from __future__ import annotations

import ctypes
import mmap
import re
from functools import cache
from pathlib import Path

LIBRARY = "libllvmlite.so"  # as llvmlite names it on Linux; where it has another name, nothing is given back
MAPS = Path("/proc/self/smaps")


def release_llvm() -> None:
    """Give LLVM's code and constants back to the system, 30 to 70 MiB: what is used again is read from its file."""
    for start, end in llvm_pages():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


@cache
def llvm_pages() -> list[tuple[int, int]]:
    """Return the parts of memory, from .. to, in which LLVM's library is as in its file and cannot change (Linux)."""
    parts = []
    try:
        maps = MAPS.read_text()
    except OSError:  # missing, or forbidden
        return []
    for part in re.split("(?m)^(?=[0-9a-f]+-)", maps)[1:]:
        first_line, _, sizes = part.partition("\n")
        addresses, rights, *_, path = first_line.split()
        if path.endswith("/" + LIBRARY) and "w" not in rights and re.search("^Anonymous: +0 kB", sizes, re.M):
            start, end = (int(address, 16) for address in addresses.split("-"))
            parts.append((start, end))
    return parts
