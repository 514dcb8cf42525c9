"""Families of models: what differs between architectures, as values.

llama is written out; another family says only what differs.  What differs between *files* of a family is the presence
of a tensor, not a field here: attention biases exist where `blk.0.attn_q.bias` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import UnsupportedArchitecture
from . import decoder, encoder
from .weights import read_weights


@dataclass(frozen=True)
class Family:
    """How an architecture computes.

    name        general.architecture in the GGUF
    rope_style  which components RoPE turns together: "norm" or "neox", see kernels/rope.py
    positions   how a token's place comes in: "rope", "learned" (position_embd) or "alibi"
    act         of the feed-forward block: "silu" or "gelu"
    causal      a token looks at those before it, which a cache keeps; False: at the whole text, an encoder
    weights     reads its tensors
    hidden      what it makes of a batch: normed rows for `batch.outputs`, which the output matrix or pooling reads
    """

    name: str
    rope_style: str
    positions: str = "rope"
    act: str = "silu"
    causal: bool = True
    weights: Callable[..., Any] = read_weights
    hidden: Callable[..., np.ndarray] = decoder.hidden


LLAMA = Family(name="llama", rope_style="norm")
QWEN2 = replace(LLAMA, name="qwen2", rope_style="neox")

BERT = Family(
    name="bert",
    rope_style="neox",
    positions="learned",
    act="gelu",
    causal=False,
    weights=encoder.read_weights,
    hidden=encoder.hidden,
)
NOMIC_BERT = replace(BERT, name="nomic-bert", positions="rope", act="silu")
JINA_BERT_V2 = replace(BERT, name="jina-bert-v2", positions="alibi")

FAMILIES = {family.name: family for family in (LLAMA, QWEN2, BERT, NOMIC_BERT, JINA_BERT_V2)}


def family_of(architecture: object) -> Family:
    """The family that computes `architecture`.  Raises UnsupportedArchitecture, naming those there are."""
    if architecture not in FAMILIES:
        raise UnsupportedArchitecture(
            str(architecture),
            f"architecture '{architecture}' is not computed by this build; it computes {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[str(architecture)]
