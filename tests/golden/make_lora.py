"""Records tests/golden/lora.npz: what a native llama.cpp makes of a tiny model with adapters.

    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_lora.py

Logits f32 [4, n_vocab] of the text and at the positions of make_logits.py, by case:

    F32      one adapter of every matrix, embedding and output included
    F16      the same in F16, whose products ggml computes with activations rounded to F16
    several  two adapters, of strengths 0.5 and -2
"""

import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
from adapters import ALL, tiny_lora
from libllama import LibLlama

from tiny import tiny_gguf

LOGITS = runpy.run_path(str(Path(__file__).with_name("make_logits.py")))
TOKENS, OUTPUTS = LOGITS["TOKENS"], LOGITS["OUTPUTS"]
FILE = Path(__file__).with_name("lora.npz")


def make(folder):
    """A model's file in `folder`, and the adapters of each case, strengths by path."""
    base = tiny_gguf(Path(folder) / "base.gguf")
    f32, f16 = (tiny_lora(Path(folder) / f"{quant}.gguf", base, ALL, quant=quant) for quant in ("F32", "F16"))
    other = tiny_lora(Path(folder) / "other.gguf", base, seed=1, rank=2, alpha=0)
    return base, {"F32": {f32: 1.0}, "F16": {f16: 1.0}, "several": {f32: 0.5, other: -2.0}}


def record(llama):
    """What goes into the file."""
    with tempfile.TemporaryDirectory() as folder:
        base, cases = make(folder)
        logits = {name: llama.logits(base, TOKENS, adapters)[OUTPUTS] for name, adapters in cases.items()}
    return logits | {"made_by": LOGITS["MADE_BY"]}


if __name__ == "__main__":
    llama = LibLlama.from_environment() or sys.exit("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    np.savez_compressed(FILE, **record(llama))
