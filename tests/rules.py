"""Attention rules for property tests: all combinations of window, soft-cap, slopes, sinks and mask."""

import numpy as np
from hypothesis import strategies as st

from numllama.kernels import Attention


def rules(n_head, causal=None):
    return st.builds(
        Attention,
        scale=st.sampled_from([0.125, 0.3, 1.0]),
        window=st.sampled_from([0, 1, 3, 40, 257]),
        softcap=st.sampled_from([0.0, 2.0, 50.0]),
        causal=st.booleans() if causal is None else causal,
        ahead=st.sampled_from([0, 1, 40]),
        sinks=st.none() | st.just(np.linspace(-3, 3, n_head, dtype=np.float32)),
        slopes=st.none() | st.just((2.0 ** -np.arange(1, n_head + 1)).astype(np.float32)),
    )
