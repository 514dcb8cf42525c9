"""Records tests/golden/caches.npz: a tiny model's logits when llama.cpp keeps its keys and values in blocks.

    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_caches.py

    tokens      i32 [24]            one text
    q8_0, q4_0  f32 [24, n_vocab]   logits with such a cache

Heads are of 32: of 64 and more, llama.cpp turns keys by a Hadamard matrix first (unless LLAMA_ATTN_ROT_DISABLE=1).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from libllama import LibLlama

from tiny import tiny_gguf

PATH = Path(__file__).parent / "caches.npz"
TOKENS = [1, 270, 5, 293, 262, 7, 297, 290, 9, 40, 3, 77, 281, 300, 299, 13, 8, 250, 161, 290, 22, 291, 264, 271]


def make(folder):
    """The model's file, made in `folder`."""
    return tiny_gguf(Path(folder) / "heads-of-32.gguf", n_head=2, n_head_kv=1)


def record(llama):
    with tempfile.TemporaryDirectory() as folder:
        return {name: llama.logits(make(folder), TOKENS, cache=name) for name in ("q8_0", "q4_0")}


def main():
    llama = LibLlama.from_environment() or sys.exit("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    np.savez_compressed(PATH, tokens=np.array(TOKENS, np.int32), **record(llama))


if __name__ == "__main__":
    main()
