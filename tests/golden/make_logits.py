"""Records tests/golden/logits_<name>.npz: what a native llama.cpp makes of the models that tests/tiny.py makes.

    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_logits.py [NAME ...]

A new family is a line in MODELS and this command with its name.  Each file holds

    tokens      i32 [24]        one text
    outputs     i32 [4]         the positions whose logits are kept
    <format>    f32 [4, n_vocab]    logits of the model with matrices of that format, one array for each of FORMATS
    made_by     str             llama.cpp's commit, and how it computed

An x86-64 CPU with AVX2 recorded them: elsewhere llama.cpp rounds activations, and so Q8_0's logits, a little otherwise.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from libllama import LibLlama

from tiny import tiny_gguf

MODELS = {  # arguments of tiny_gguf
    "llama": {},
    "llama-tied-factors": {"tied": True, "rope_factors": "freqs", "tokenizer": "bpe"},
    "llama-yarn": {
        "llama__rope__scaling__type": "yarn",
        "llama__rope__scaling__factor": 4.0,
        "llama__rope__scaling__original_context_length": 64,
    },
    "mistral": {"n_head_dim": 32, "llama__attention__sliding_window": 8},  # a window that llama.cpp does not read
    "mistral3": {"family": "mistral3"},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3"},
    "gemma": {"family": "gemma"},
    "gemma2": {"family": "gemma2"},
    "gemma3": {"family": "gemma3"},
    "phi3": {"family": "phi3"},
    "phi3-short": {
        "family": "phi3",
        "rope_factors": "factors",
        "n_ctx": 512,
        "phi3__rope__scaling__attn_factor": 1.0606601717798212,  # sqrt(1 + ln(512 / 256) / ln 256)
    },
    "phi3-long": {
        "family": "phi3",
        "rope_factors": "factors",
        "n_rot": 12,
        "phi3__rope__scaling__original_context_length": 16,
        "phi3__rope__scaling__attn_factor": 1.4142135623730951,  # sqrt(1 + ln(256 / 16) / ln 16)
    },
    "smollm3": {"family": "smollm3"},
    "granite": {"family": "granite"},
    "glm4": {"family": "glm4"},
    "gpt-oss": {"family": "gpt-oss"},
    "mixtral": {"n_expert": 4},
    "qwen3moe": {"family": "qwen3moe"},
}
FORMATS = ("F32", "Q8_0")
TOKENS = [1, 270, 5, 293, 262, 7, 297, 290, 9, 40, 3, 77, 281, 300, 299, 13, 8, 250, 161, 290, 22, 291, 264, 271]
OUTPUTS = [1, 7, 15, 23]
MADE_BY = "llama.cpp 0c1e57098, x86-64: one thread, not repacked, no flash attention, float32 keys and values"


def path_of(name):
    return Path(__file__).parent / f"logits_{name}.npz"


def make(folder, name, format):
    """The model's file, made in `folder`."""
    return tiny_gguf(Path(folder) / f"{name}-{format}.gguf", quant=format, **MODELS[name])


def record(llama, name):
    """What goes into the file of `name`."""
    with tempfile.TemporaryDirectory() as folder:
        logits = {format: llama.logits(make(folder, name, format), TOKENS)[OUTPUTS] for format in FORMATS}
    return {"tokens": np.array(TOKENS, np.int32), "outputs": np.array(OUTPUTS, np.int32), **logits, "made_by": MADE_BY}


def main():
    llama = LibLlama.from_environment() or sys.exit("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    for name in sys.argv[1:] or MODELS:
        np.savez_compressed(path_of(name), **record(llama, name))


if __name__ == "__main__":
    main()
