"""Families of models: what differs between architectures, as values.

llama is written out; another family says only what differs.  What differs between *files* of a family is the presence
of a tensor, not a field here: attention biases exist where `blk.0.attn_q.bias` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UnsupportedArchitecture
from . import decoder


@dataclass(frozen=True)
class Family:
    """How an architecture computes.

    name        general.architecture in the GGUF
    rope_style  which components RoPE turns together: "norm" or "neox", see kernels/rope.py
    hidden      what it makes of a batch: normed rows for `batch.outputs`, which the output matrix or pooling reads
    """

    name: str
    rope_style: str
    hidden: Callable[..., np.ndarray] = decoder.hidden


LLAMA = Family(name="llama", rope_style="norm")
QWEN2 = replace(LLAMA, name="qwen2", rope_style="neox")

FAMILIES = {family.name: family for family in (LLAMA, QWEN2)}


def family_of(architecture: object) -> Family:
    """The family that computes `architecture`.  Raises UnsupportedArchitecture, naming those there are."""
    if architecture not in FAMILIES:
        raise UnsupportedArchitecture(
            str(architecture),
            f"architecture '{architecture}' is not computed by this build; it computes {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[str(architecture)]
