"""Every kernel of the NUMBA set, used once: what Numba would compile in a first answer is compiled ahead of it.

Machine code is kept on disk (jit.py), so this is worth doing once after an installation.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from . import NUMBA, Attention
from .packed import PRODUCTS
from .quants import FORMATS
from .rope import Rope
from .tensor import Tensor

N_IN = 256  # one block of the largest kind
N_OUT = 512  # enough work for one token to wake the team of threads


def warmups() -> list[tuple[str, Callable[[], object]]]:
    """What is compiled, and a call that does it: the product of each format, then the other operations."""
    x = np.ones((2, 16, 16), np.float32)
    rows, positions = x.reshape(2, N_IN), np.arange(2, dtype=np.int32)
    jobs: list[tuple[str, Callable[[], object]]] = [
        (f"{FORMATS[type].name} product", partial(_multiply, type, rows)) for type in PRODUCTS
    ]
    for cache_type in (np.float16, np.float32):
        k = np.ones((2, 4, 16), cache_type)
        jobs.append(
            (f"attention, {np.dtype(cache_type).name} cache", partial(NUMBA.attention, x, k, k, 0, Attention(1.0)))
        )
    for style in ("norm", "neox"):
        jobs.append((f"rope, {style}", partial(NUMBA.rope, x, positions, Rope(style, 16))))
    weight = np.ones(N_IN, np.float32)
    weight.flags.writeable = False  # as in a mapped file
    jobs.append(("rms_norm", partial(NUMBA.rms_norm, rows, weight, 1e-5)))
    jobs.append(("layer_norm", partial(NUMBA.layer_norm, rows, weight, weight, 1e-5)))
    jobs.append(("silu_mul, gelu_mul", partial(NUMBA.silu_mul, rows, rows)))
    jobs.append(("gelu, gelu_erf, quick_gelu", partial(NUMBA.gelu, rows)))
    jobs.append(("softmax", partial(NUMBA.softmax, rows)))
    jobs.append(("resize", partial(NUMBA.resize, np.zeros((4, 4, 3), np.uint8), 8, 8)))
    return jobs


def _multiply(type, x):
    """One token and several, on a weight of zeros."""
    format = FORMATS[type]
    blocks = np.zeros((N_OUT, N_IN // format.block_size), format.layout)
    blocks.flags.writeable = False  # as in a mapped file
    w = Tensor("zeros", format, (N_OUT, N_IN), blocks)
    return NUMBA.matmul(w, x[:1]), NUMBA.matmul(w, x)
