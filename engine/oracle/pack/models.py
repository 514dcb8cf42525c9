"""Items about whole models: every value of a forward pass, the logits among them, and greedy text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ....kernels import Kernels, Rope, numpy_kernels
from ....kernels.rope import rope_numpy
from ...model.batch import Batch
from ...model.decoder import logits
from ...model.load import load_model
from ...model.model import Model
from ...model.trace import Trace, label
from ...options import Options
from ...run.generate import generate
from .item import ROUNDED_BITS, Item
from .numbers import WIDE
from .tiny import DECODERS, ENCODERS, write_tiny

PROMPT = "Once upon a time there was a"
N_GENERATED = 16


def wide_rope(x: np.ndarray, positions: np.ndarray, rule: Rope) -> np.ndarray:
    """Compute RoPE with angles in extended precision."""
    changes: Mapping[str, Any] = {"base": WIDE(rule.base), "scale": WIDE(rule.scale)}
    wide = replace(rule, **changes)
    return np.asarray(rope_numpy(x, np.asarray(positions).astype(WIDE), wide))


def wide_kernels() -> Kernels:
    """Return the NumPy set in extended precision, without BLAS and vector code."""
    kernels = numpy_kernels(WIDE)
    return replace(
        kernels,
        matmul=lambda w, x: np.einsum("tn,on->to", x, w.dequantize().astype(x.dtype)),
        rope=wide_rope,
    )


def model_items(folder: Path) -> Iterator[Item]:
    """Write the models to `folder`/models, and yield the items of each."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for name in (*DECODERS, *ENCODERS):
        path = folder / "models" / f"{name}.gguf"
        write_tiny(path, name)
        model = load_model(path)
        ids = model.tokenizer.encode(PROMPT)
        given = {"model": f"../models/{path.name}", "prompt": PROMPT, "tokens": ids}
        yield Item(
            f"forward/{name}",
            "all values of a forward pass over the tokens; return those that you have, judged as by `numllama diff`",
            parameters=given,
            expected=values_of(model, ids),
            bits=ROUNDED_BITS,
        )
        if name in DECODERS:
            tokens = greedy(model, ids)
            text = model.tokenizer.decode(tokens, special=False)
            yield Item(
                f"generate/{name}",
                f"the {N_GENERATED} tokens that greedy decoding appends; it does not end at an end of text",
                parameters={**given, "n": N_GENERATED},
                expected={"tokens": tokens, "text": text},
            )


def values_of(model: Model, ids: list[int]) -> dict[str, np.ndarray]:
    """Return all values of a pass by label, rounded to float64."""
    trace, kernels = Trace("*"), wide_kernels()
    batch = Batch.of(ids, outputs=range(len(ids)))
    hidden = model.family.hidden(model, batch, model.new_cache(len(ids), type="f64"), kernels, trace)
    if model.family.causal:
        logits(model, hidden, kernels, trace)
    return {
        label(*key): value.astype(np.float64) if value.dtype.kind == "f" else value.astype(np.int32)
        for key, value in trace.values.items()
    }


def greedy(model: Model, ids: list[int]) -> list[int]:
    """Return the most probable tokens after `ids`, each appended to the next step's."""
    options = Options(temperature=0.0, num_predict=1, num_ctx=len(ids) + N_GENERATED, repeat_penalty=1.0)
    tokens: list[int] = []
    for _ in range(N_GENERATED):
        tokens += generate(model, [*ids, *tokens], options, kernels=numpy_kernels(np.float64))
    return tokens
