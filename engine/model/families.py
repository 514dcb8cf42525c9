"""Families of models: what differs between architectures, as values.

llama is complete; every other family lists only its differences.  Differences between *files* of one family are the
presence of a tensor or the value of a key, not fields here: a model has attention biases if it has `blk.0.attn_q.bias`.

Where a file leaves a choice open, llama.cpp (0c1e57098) decides.  It does not read the sliding window of Phi-3, nor
that of Mistral 7B 0.1, whose files have the architecture "llama"; neither is used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ...kernels import Rope, yarn_stretch
from ..errors import UnsupportedArchitecture
from ..gguf.read import described
from . import decoder, encoder
from .architecture import Family
from .encoder_weights import read_encoder_weights
from .weights import read_weights


def scale_by_embd_at(n_layer: int) -> Callable[[int, int, int, int], float]:
    """Make an attn_scale: 1 / sqrt(n_embd / n_head) for the variant with `n_layer` layers, else scale_by_head_dim.

    GGUF has no key for this scale.
    """
    return lambda n, n_embd, n_head, n_head_dim: (n_embd // n_head if n == n_layer else n_head_dim) ** -0.5


def unstretched_window(rope: Rope) -> Rope:
    """Return the RoPE of layers with a window where only the others' is stretched, also by YaRN; its base is 10,000."""
    stretch = 1.0 if rope.ramp is None else yarn_stretch(1 / rope.scale)
    return replace(rope, base=10000.0, scale=1.0, ramp=None, attn_factor=rope.attn_factor / stretch)


LLAMA = Family(name="llama", rope_style="norm", weights=read_weights, hidden=decoder.hidden_states)
MISTRAL3 = replace(
    LLAMA,
    name="mistral3",
    keys=(
        "attention.temperature_scale",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
    ),
)
QWEN2 = replace(LLAMA, name="qwen2", rope_style="neox")
QWEN3 = replace(QWEN2, name="qwen3", norms=("attn_q_norm", "attn_k_norm"))
QWEN3MOE = replace(QWEN3, name="qwen3moe")
PHI3 = replace(LLAMA, name="phi3", rope_style="neox")
SMOLLM3 = replace(LLAMA, name="smollm3", uses_rope=lambda il: (il + 1) % 4 != 0)
GRANITE = replace(
    LLAMA,
    name="granite",
    keys=("embedding_scale", "residual_scale", "logit_scale", "attention.scale", "rope.scaling.finetuned"),
)
GEMMA = replace(LLAMA, name="gemma", rope_style="neox", act="gelu", embed_scale=math.sqrt, attn_sum="sa_out")
GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    norms=("post_attention_norm", "post_ffw_norm"),
    keys=("attn_logit_softcapping", "final_logit_softcapping"),
    defaults={
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "attention.sliding_window": 4096,
    },
    window_pattern=2,
    attn_scale=scale_by_embd_at(46),
)
GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    norms=(*GEMMA2.norms, *QWEN3.norms),
    keys=("final_logit_softcapping",),
    defaults={},
    window_pattern=6,
    window_rope=unstretched_window,
    attn_scale=scale_by_embd_at(62),
)
GEMMA_EMBEDDING = replace(GEMMA3, name="gemma-embedding", defaults={"attention.causal": False}, symmetric=True)
GPT_OSS = replace(
    LLAMA,
    name="gpt-oss",
    rope_style="neox",
    act="swiglu_oai",
    window_pattern=2,
    tensors={"ffn_norm": "post_attention_norm"},
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

DECODERS = (
    LLAMA,
    MISTRAL3,
    QWEN2,
    QWEN3,
    QWEN3MOE,
    PHI3,
    SMOLLM3,
    GRANITE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA_EMBEDDING,
    GLM4,
    GPT_OSS,
)
ENCODERS = (BERT, NOMIC_BERT, JINA_BERT_V2)
FAMILIES = {family.name: family for family in DECODERS + ENCODERS}


def family_of(architecture: object) -> Family:
    """Return the family of `architecture`.  Raises: UnsupportedArchitecture, whose message lists the supported ones"""
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        name = architecture if isinstance(architecture, str) else described(architecture)
        raise UnsupportedArchitecture(
            name, f"unsupported architecture '{name}'; this build supports {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[architecture]
