"""Writes tests/golden/errors.json: how far logits of the models in make_logits.py are from other implementations'.

    pip install '.[oracle]' && PYTHONPATH=tests python tests/golden/make_errors.py [NAME ...]

For each model, the largest error of any logit (of any log-probability for xllamacpp):

    llama.cpp       {format: ...}   against the recorded logits; F32 in float64 (but GELU by float16, as there), Q8_0 by
                    the GGML set
    xllamacpp       {format: ...}   the same against the published wheel
    transformers    F32, both sides in float64
    std             standard deviation of the recorded float32 logits, to see what the errors mean

Encoders are measured likewise by their rows, without the wheel.  scripts/families.py shows all in docs/families.md.
"""

import json
import runpy
import sys
import tempfile
from pathlib import Path

import make_embeddings
import numpy as np
from make_logits import FORMATS, MODELS, OUTPUTS, TOKENS, make, path_of
from oracles import log_softmax, our_logits, our_rows, transformers_logits, xllamacpp_logprobs
from tiny_encoder import ENCODERS

FILE = Path(__file__).parent / "errors.json"
NAMED = ("bert", "nomic-bert", "jina-bert-v2")  # what transformers can be made to compute
SETS = {"F32": "numpy-float64", "Q8_0": "ggml"}


def largest(got, expected):
    return float(f"{np.abs(got - expected).max():.1e}")


def measure(folder, name):
    recorded = np.load(path_of(name))
    files = {format: make(folder, name, format) for format in FORMATS}
    ours = {format: our_logits(files[format], TOKENS, SETS[format], gelu="ggml") for format in FORMATS}
    prefixes = [TOKENS[: t + 1] for t in OUTPUTS]
    return {
        "llama.cpp": {format: largest(ours[format][OUTPUTS], recorded[format]) for format in FORMATS},
        "xllamacpp": {
            format: largest(log_softmax(ours[format][OUTPUTS]), xllamacpp_logprobs(files[format], prefixes))
            for format in FORMATS
        },
        "transformers": largest(
            our_logits(files["F32"], TOKENS, SETS["F32"]), transformers_logits(files["F32"], name, TOKENS)
        ),
        "std": round(float(recorded["F32"].std()), 2),
    }


def measure_encoder(folder, name):
    recorded, tokens = np.load(make_embeddings.path_of(name)), make_embeddings.TOKENS
    files = {format: make_embeddings.make(folder, name, format) for format in FORMATS}
    ours = {format: our_rows(files[format], tokens, SETS[format], gelu="ggml") for format in FORMATS}
    found = {"llama.cpp": {format: largest(ours[format], recorded[format]) for format in FORMATS}}
    if name in NAMED:
        found["transformers"] = largest(our_rows(files["F32"], tokens, SETS["F32"]), theirs(files["F32"], name))
    return found | {"std": round(float(recorded["F32"].std()), 2)}


def theirs(path, name):
    oracles = runpy.run_path(str(Path(__file__).parents[1] / "engine/test_encoder_oracles.py"))
    return oracles["transformers_rows"](path, name)


def main():
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or [*MODELS, *ENCODERS]:
            found[name] = (measure if name in MODELS else measure_encoder)(folder, name)
    FILE.write_text(json.dumps({name: found[name] for name in [*MODELS, *ENCODERS] if name in found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
