"""Items about sampling: logits, options and a seed to tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....kernels.activation import softmax_numpy
from ...options import Options
from ...sampling.sampler import Sampler
from ...sampling.steps import Candidates
from ..injection import SHAKE
from .item import Item, rms
from .numbers import WIDE, Numbers

N_VOCAB, N_STEP = 64, 12
RECENT = [1, 5, 9, 5]
CANDIDATES_BITS = 10.0  # probabilities in float16
PARAMETERS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "seed",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.3, "top_k": 0, "top_p": 1.0},
    "top_k": {"top_k": 5, "top_p": 1.0, "temperature": 1.0},
    "top_p": {"top_k": 0, "top_p": 0.6, "temperature": 1.0},
    "min_p": {"top_k": 0, "top_p": 1.0, "min_p": 0.2, "temperature": 1.0},
    "typical_p": {"top_k": 0, "top_p": 1.0, "typical_p": 0.5, "temperature": 1.0},
    "penalties": {"repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25, "repeat_last_n": 8},
    "defaults": {},
    "logit_bias": {"logit_bias": ((3, 4.0), (7, -8.0))},
    "mirostat": {"mirostat": 2, "mirostat_tau": 3.0},
}


def sampling_items() -> Iterator[Item]:
    """Yield two items for each option."""
    for variant, chosen in VARIANTS.items():
        options = Options(seed=42, **chosen)
        logits = (2 * Numbers(f"sample {variant}").normal(N_STEP, N_VOCAB)).astype(np.float32)
        tokens, probabilities = drawn(options, logits)
        parameters = {name: getattr(options, name) for name in PARAMETERS}
        parameters |= {"logit_bias": [list(pair) for pair in options.logit_bias], "recent": RECENT}
        yield Item(
            f"sample/{variant}",
            "a token for each row of logits, appended to `recent` for the next; MT19937 of `seed`, as in llama.cpp",
            {"logits": logits},
            parameters,
            {"tokens": tokens},
        )
        moved = SHAKE * rms(probabilities * (1 + np.abs(logits.astype(np.float64))))
        yield Item(
            f"candidates/{variant}",
            "the probability of each token at the draw, 0 if an option excludes it, after the tokens drawn before",
            {"logits": logits},
            {**parameters, "tokens": tokens},
            {"probabilities": probabilities},
            {"probabilities": moved.astype(np.float32)},
            CANDIDATES_BITS,
        )


def drawn(options: Options, logits: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return the tokens that are drawn, and the probabilities at each draw.  -> list, f64 [n_step, n_vocab]"""
    sampler, recent, tokens = Sampler(options, N_VOCAB), list(RECENT), list[int]()
    probabilities = np.zeros(logits.shape)
    last: list[Candidates] = []

    def look(step: str, parameter: float, c: Candidates) -> None:
        if step in ("temperature", "mirostat"):
            last[:] = [c]

    for i, row in enumerate(logits):
        tokens.append(sampler.sample(row, recent, look=look))
        probabilities[i, last[0].ids] = softmax_numpy(last[0].logits.astype(WIDE))
        recent.append(tokens[-1])
    return tokens, probabilities
