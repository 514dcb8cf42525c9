"""Records tests/golden/embeddings_<name>.npz: what a native llama.cpp makes of the encoders of tests/tiny_encoder.py
and of decoders of tests/tiny.py.

    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_embeddings.py [NAME ...]

Each file holds

    tokens      i32 [17]        one text
    <format>    f32 [17, n_embd]    its rows, of the model with matrices of that format, one array for each of FORMATS
    mean, cls, last     f32 [n_embd]    the rows of the F32 model, pooled
    made_by     str             llama.cpp's commit, and how it computed
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from libllama import LibLlama
from tiny_encoder import ENCODERS, tiny_encoder

from tiny import tiny_gguf

DECODERS = {
    "llama": {},
    "qwen2": {"family": "qwen2", "bias": True},
    "gemma-embedding": {"family": "gemma-embedding"},
}  # arguments of tiny_gguf
FORMATS = ("F32", "F16", "Q8_0")
TOKENS = [2, 20, 7, 61, 90, 33, 12, 120, 5, 77, 20, 44, 101, 9, 64, 30, 3]
MADE_BY = "llama.cpp 0c1e57098, x86-64: one thread, not repacked, no flash attention"


def path_of(name):
    return Path(__file__).parent / f"embeddings_{name}.npz"


def make(folder, name, format):
    """The model's file, made in `folder`."""
    path = Path(folder) / f"{name}-{format}.gguf"
    if name in DECODERS:
        return tiny_gguf(path, quant=format, **DECODERS[name])
    return tiny_encoder(path, quant=format, **ENCODERS[name])


def record(llama, name):
    """What goes into the file of `name`."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {format: llama.embeddings(make(folder, name, format), TOKENS, "none") for format in FORMATS}
        pooled = {
            pooling: llama.embeddings(make(folder, name, "F32"), TOKENS, pooling) for pooling in ("mean", "cls", "last")
        }
    return {"tokens": np.array(TOKENS, np.int32), **rows, **pooled, "made_by": MADE_BY}


def main():
    llama = LibLlama.from_environment() or sys.exit("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    for name in sys.argv[1:] or ENCODERS | DECODERS:
        np.savez_compressed(path_of(name), **record(llama, name))


if __name__ == "__main__":
    main()
