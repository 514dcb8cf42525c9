"""Records tests/golden/defaults.npz: logits of tiny models and of primer, computed by llama.cpp with its defaults.

    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_defaults.py

Defaults on a CPU: weights repacked, flash attention, a cache in f16; one thread, on a CPU with AVX-512.

Keys and values in blocks are rotated by a Hadamard matrix first.

    <model> <cache> <n>     f32 [2, n_vocab]    logits of the last two of the first n tokens of a text; n = 20 and 80,
                                                as flash attention has one way for fewer than 64 tokens, and another;
                                                K-quants also 3, as their products have another for fewer than 8
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from libllama import LibLlama

from numllama.engine.store import default_store
from tiny import tiny_gguf

PATH = Path(__file__).parent / "defaults.npz"
TOKENS = [1, *np.random.default_rng(0).integers(259, 330, 79).tolist()]
LENGTHS = (20, 80)
SIZES = {"n_embd": 128, "n_ff": 192, "n_head": 2, "n_head_kv": 1}  # heads of 64
K_SIZES = {"n_embd": 256, "n_ff": 512}
MODELS = {
    **{
        f"llama {quant}": {"quant": quant} for quant in ("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")
    },
    "gemma2 Q8_0": {"family": "gemma2", "quant": "Q8_0", "n_head_dim": 64},
    "qwen3 Q4_0": {"family": "qwen3", "quant": "Q4_0", "n_head_dim": 64},
    "phi3 Q8_0": {"family": "phi3", "quant": "Q8_0"},
    "heads of 128": {"quant": "Q8_0", "n_head_dim": 128},
    "moe Q4_0": {"quant": "Q4_0", "n_expert": 4},
    **{f"llama {quant}": {"quant": quant, **K_SIZES} for quant in ("Q3_K", "Q4_K", "Q5_K", "Q6_K")},
    **{f"moe {quant}": {"quant": quant, "n_expert": 4, **K_SIZES} for quant in ("Q4_K", "Q6_K")},
}
CACHES = [("llama F32", "q8_0"), ("llama Q4_0", "q8_0"), ("heads of 128", "q8_0"), ("heads of 128", "q4_0")]
CACHES += [("llama F32", cache) for cache in ("q5_1", "q5_0", "iq4_nl", "q8_0/q4_0", "f16/q8_0", "q4_0/f16")]
CASES = [*((name, "f16") for name in (*MODELS, "primer")), *CACHES, ("primer", "q8_0"), ("primer", "q4_0")]


def make(folder, name):
    """The model's file, made in `folder`."""
    if name == "primer":
        return default_store().resolve("primer").weights
    path = Path(folder) / f"{name}.gguf"
    return path if path.exists() else tiny_gguf(path, **{**SIZES, **MODELS[name]})


def lengths(name):
    return (3, *LENGTHS) if name.endswith("_K") else LENGTHS


def record(llama):
    with tempfile.TemporaryDirectory() as folder:
        return {
            f"{name} {cache} {n}": llama.logits(make(folder, name), TOKENS[:n], cache=cache, defaults=True)[-2:]
            for name, cache in CASES
            for n in lengths(name)
        }


def main():
    llama = LibLlama.from_environment() or sys.exit("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    np.savez_compressed(PATH, **record(llama))


if __name__ == "__main__":
    main()
