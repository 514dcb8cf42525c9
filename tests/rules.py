"""Attention rules for property tests: all combinations of window, soft-cap, slopes and causal mask."""

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
        slopes=st.none() | st.just((2.0 ** -np.arange(1, n_head + 1)).astype(np.float32)),
    )
