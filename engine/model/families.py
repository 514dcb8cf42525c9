"""Families of models: what differs between architectures, as values.

llama is written out; another family says only what differs.  What differs between *files* of a family is the presence
of a tensor or the value of a key, not a field here: attention biases exist where `blk.0.attn_q.bias` does.

Where a file leaves something open, llama.cpp (0c1e57098) decides.  So the window of Mistral 7B 0.1, which comes as
"llama", and that of Phi-3 are not used: llama.cpp reads neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ..errors import UnsupportedArchitecture
from . import decoder, encoder
from .architecture import Family
from .encoder_weights import read_encoder_weights
from .weights import read_weights


def by_embd_at(wide: int) -> Callable[[int, int, int, int], float]:
    """As by_head, but 1 / sqrt(n_embd / n_head) in the model of `wide` layers, whose files do not tell it."""
    return lambda n_layer, n_embd, n_head, n_head_dim: (n_embd // n_head if n_layer == wide else n_head_dim) ** -0.5


LLAMA = Family(name="llama", rope_style="norm", weights=read_weights, hidden=decoder.hidden_states)
MISTRAL3 = replace(LLAMA, name="mistral3")
QWEN2 = replace(LLAMA, name="qwen2", rope_style="neox")
QWEN3 = replace(QWEN2, name="qwen3", norms=("attn_q_norm", "attn_k_norm"))
QWEN3MOE = replace(QWEN3, name="qwen3moe")
PHI3 = replace(LLAMA, name="phi3", rope_style="neox")
SMOLLM3 = replace(LLAMA, name="smollm3", turns=lambda il: (il + 1) % 4 != 0)
GRANITE = replace(LLAMA, name="granite")
GEMMA = replace(LLAMA, name="gemma", rope_style="neox", act="gelu", embed_scale=math.sqrt, attn_sum="sa_out")
GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    norms=("post_attention_norm", "post_ffw_norm"),
    assumed={
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "attention.sliding_window": 4096,
    },
    window_pattern=2,
    attn_scale=by_embd_at(46),
)
GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    norms=(*GEMMA2.norms, *QWEN3.norms),
    assumed={},
    window_pattern=6,
    window_rope=lambda rope: replace(rope, base=10000.0, scale=1.0),
    attn_scale=by_embd_at(62),
)
GLM4 = replace(LLAMA, name="glm4", norms=GEMMA2.norms)

BERT = Family(
    name="bert",
    rope_style="neox",
    positions="learned",
    act="gelu",
    causal=False,
    weights=read_encoder_weights,
    hidden=encoder.encoder_states,
)
NOMIC_BERT = replace(BERT, name="nomic-bert", positions="rope", act="silu")
JINA_BERT_V2 = replace(BERT, name="jina-bert-v2", positions="alibi")

DECODERS = (LLAMA, MISTRAL3, QWEN2, QWEN3, QWEN3MOE, PHI3, SMOLLM3, GRANITE, GEMMA, GEMMA2, GEMMA3, GLM4)
ENCODERS = (BERT, NOMIC_BERT, JINA_BERT_V2)
FAMILIES = {family.name: family for family in DECODERS + ENCODERS}


def family_of(architecture: object) -> Family:
    """The family that computes `architecture`.  Raises UnsupportedArchitecture, naming those there are."""
    if architecture not in FAMILIES:
        raise UnsupportedArchitecture(
            str(architecture),
            f"architecture '{architecture}' is not computed by this build; it computes {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[str(architecture)]
