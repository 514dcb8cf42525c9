"""Records tests/golden/keys.npz: logits of tiny models with keys that llama.cpp reads for some architectures only.

NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_keys.py

<case>      f32 [12, n]         logits at each position of TOKENS, every fifteenth of the vocabulary
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from libllama import LibLlama

from tiny import tiny_gguf

PATH = Path(__file__).parent / "keys.npz"
TOKENS = [1, 270, 271, 280, 285, 262, 275, 259, 260, 264, 290, 291]
COLUMNS = slice(None, None, 15)
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
SCALES = {"attention.scale": 0.5, "embedding_scale": 3.0, "residual_scale": 0.25, "logit_scale": 3.0}
SOFTCAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
BETAS = {
    "rope.scaling.yarn_beta_fast": 8.0,
    "rope.scaling.yarn_beta_slow": 2.0,
    "rope.scaling.yarn_log_multiplier": 0.5,
}
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3", "granite", "mistral3")
CASES = {
    **{f"{family} not causal": (family, {"attention.causal": False}) for family in FAMILIES},
    **{f"{family} two epsilons": (family, {"attention.layer_norm_epsilon": 0.5}) for family in ("llama", "gemma3")},
    **{f"{family} scales": (family, SCALES) for family in ("llama", "qwen3", "gemma3", "granite", "mistral3")},
    **{f"{family} soft-caps": (family, SOFTCAPS) for family in ("llama", "phi3", "gemma2", "gemma3", "granite")},
    **{f"{family} yarn": (family, YARN) for family in ("llama", "qwen3", "gemma2", "gemma3")},
    **{f"{family} yarn betas": (family, YARN | BETAS) for family in ("llama", "qwen3", "phi3", "gemma3", "mistral3")},
    "gemma3 yarn factor": ("gemma3", YARN | {"rope.scaling.attn_factor": 1.5}),
    "gemma2 not scaled": ("gemma2", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "granite not fine-tuned": ("granite", {"rope.scaling.finetuned": False}),
    "llama not fine-tuned": ("llama", {"rope.scaling.finetuned": False}),
}


def make(path, case):
    """Write the model of `case` to `path`."""
    family, keys = CASES[case]
    return tiny_gguf(path, family, **{f"{family}.{key}".replace(".", "__"): value for key, value in keys.items()})


def record(llama):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.gguf"
        return {case: llama.logits(make(path, case), TOKENS)[:, COLUMNS] for case in CASES}


def main():
    llama = LibLlama.from_environment() or sys.exit("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    np.savez_compressed(PATH, **record(llama))


if __name__ == "__main__":
    main()
