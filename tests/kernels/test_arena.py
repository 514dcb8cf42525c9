import sys

import numpy as np
import pytest

from numllama.kernels.packed import arena


@pytest.mark.skipif(sys.platform != "linux", reason="tests glibc's allocator")
def test_freed_memory_is_reused():
    import resource

    def faults(n):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(n):
            arrays = [np.ones(3 << 18, np.float32) for _ in range(8)]  # 768 pages each
            del arrays
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    arena.zeros(64)
    faults(1)
    assert faults(10) < 1000  # glibc's default settings cause 60,000


@pytest.mark.skipif(sys.platform != "linux", reason="tests glibc's allocator")
def test_freed_memory_goes_back_when_it_is_asked_for():
    import resource

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    arena.zeros(64)
    arrays = [np.ones(1 << 18, np.float32) for _ in range(40)]  # 40 MiB, in the heap
    del arrays
    before = resident()
    arena.trim()
    assert before - resident() > 30 << 20
