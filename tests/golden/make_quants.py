"""Records tests/golden/quants.json: hashes of the blocks that a native ggml makes of `rows_by_formula`.

    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_quants.py

An x86 CPU with AVX makes "activations"; "weights" come out the same on any.
"""

import json
from hashlib import sha256
from pathlib import Path

from blocks import rows_by_formula
from ggml import Ggml

from numllama.kernels.quants import FORMATS_BY_NAME

ACTIVATIONS = ("Q8_0", "Q8_1", "Q8_K")


def digests(encode, format):
    rows = {name: x.reshape(-1, format.block_size) for name, x in rows_by_formula().items()}
    return {name: sha256(encode(format, x).tobytes()).hexdigest()[:16] for name, x in rows.items()}


def main():
    ggml = Ggml.from_environment()
    formats = [
        f for f in FORMATS_BY_NAME.values() if f.can_quantize and f.block_size > 1 and f.name not in ("Q8_1", "Q8_K")
    ]
    record = {
        "made_by": "tests/golden/make_quants.py with llama.cpp 0c1e57098 (ggml 0.25.3), gcc 12.2, x86-64",
        "what": "first 16 hex digits of the SHA-256 of the blocks of each kind of row in tests/blocks.py",
        "weights": {f.name: digests(ggml.quantize, f) for f in formats},
        "activations": {name: digests(ggml.activations, FORMATS_BY_NAME[name]) for name in ACTIVATIONS},
    }
    (Path(__file__).parent / "quants.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
