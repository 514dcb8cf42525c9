"""LoRA adapters: low-rank terms that fine-tuning adds to a model's matrices, kept beside them.

    y = x W^T  +  scale * (x A^T) B^T        A [rank, n_in], B [n_out, rank]

This equals a product with W + scale * B A.  It costs two thin products and leaves W in its file, quantized or not.
scale is alpha / rank times a strength that the user chooses, or that strength alone if alpha is 0.

An adapter is a GGUF with the base model's general.architecture, and

    general.type  "adapter"     adapter.type  "lora"     adapter.lora.alpha  f32
    <weight>.lora_a             <weight>.lora_b          for each matrix that it changes, e.g. blk.0.attn_q.weight

Each expert has its own A and B: [n_expert, rank, n_in], [n_expert, n_out, rank].  token_embd is looked up, not
multiplied, so its terms are transposed: rows of A [n_vocab, rank] are looked up, then multiplied by B [n_embd, rank].
They change only the input embeddings, even if the output matrix is tied to them: PEFT treats the two as separate
layers.

Source: Hu et al. 2021, arXiv:2106.09685; llama.cpp's llama-adapter.cpp, 0c1e57098.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...kernels import LowRank, Tensor
from ..errors import BadGGUF
from ..gguf.read import GGUF, described

log = logging.getLogger(__name__)

NOT_ADAPTED = ("position_embd.weight", "token_types.weight")  # an encoder's other tables


def adapted(gguf: GGUF, adapters: Mapping[str | os.PathLike[str], float]) -> GGUF:
    """Return `gguf` with the low-rank terms of `adapters` (strengths by path) attached to its tensors.

    Raises: BadGGUF for a file that is not an adapter, or that was made for another model
    """
    tensors = dict(gguf.tensors)
    mapped = list(gguf.mapped)
    for path, strength in adapters.items():
        adapter = GGUF.open(path)
        for name, term in low_rank_terms(adapter, gguf, strength):
            tensors[name] = replace(tensors[name], low_rank=(*tensors[name].low_rank, term))
        mapped += adapter.mapped
    return replace(gguf, tensors=tensors, mapped=tuple(mapped))


def low_rank_terms(adapter: GGUF, model: GGUF, strength: float) -> Iterator[tuple[str, LowRank]]:
    """Yield the model's tensor names and the terms that `adapter` adds to them.  Raises: BadGGUF if it does not fit"""
    check_kind(adapter, model)
    alpha = adapter.kv.get("adapter.lora.alpha", 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        key = "adapter.lora.alpha"
        raise adapter.bad(key, f"{key} is {described(alpha)}, expected a finite number")
    used = set()
    for name in dict.fromkeys(name.rpartition(".lora_")[0] for name in adapter.tensor_offsets):
        if not name:
            continue
        a, b = (_factor(adapter, f"{name}.lora_{side}") for side in "ab")
        used |= {a.name, b.name}
        _check_shapes(adapter, model, name, a, b)
        rank = b.shape[-1]
        yield name, LowRank(a, b, strength * alpha / rank if alpha else strength)
    for name in sorted(adapter.tensor_offsets.keys() - used):
        if not name.endswith("_norm.weight"):
            raise _bad(adapter, name, "is neither a .lora_a nor a .lora_b")
        log.warning("%s: '%s' is ignored, as in llama.cpp: norms are not adapted", adapter.path, name)


def check_kind(adapter: GGUF, model: GGUF) -> None:
    """Check that `adapter` is a LoRA for the architecture of `model`.  Raises: BadGGUF"""
    expected = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": model.text("general.architecture"),
    }
    for key, value in expected.items():
        if adapter.text(key) != value:
            found = described(adapter.kv[key]) if key in adapter.kv else "missing"
            raise adapter.bad(key, f"{key} is {found}, expected {value!r}")
    if "adapter.alora.invocation_tokens" in adapter.kv:
        raise adapter.bad("adapter.alora.invocation_tokens", "an activated LoRA, which this build does not support")


def _factor(adapter: GGUF, name: str) -> Tensor:
    if name not in adapter.tensors:
        raise BadGGUF(adapter.path, 0, f"tensor '{name}' is missing, expected a .lora_a and a .lora_b of each weight")
    return adapter.tensors[name]


def _check_shapes(adapter: GGUF, model: GGUF, name: str, a: Tensor, b: Tensor) -> None:
    """Check that `a` and `b` fit the tensor `name` of `model`.  Raises: BadGGUF"""
    weight = model.tensors.get(name)
    if weight is None or len(weight.shape) < 2:
        raise _bad(
            adapter,
            a.name,
            "adapts a matrix that the model does not have; the adapter was probably made for another model",
        )
    if name in NOT_ADAPTED:
        raise _bad(adapter, a.name, "adapts a matrix for which this build supports no adapters")
    *experts, n_out, n_in = weight.shape
    rank = b.shape[-1] if b.shape else 0
    if rank < 1:
        raise _bad(adapter, b.name, f"has shape {list(b.shape)}, expected a rank of at least 1")
    shapes = ([*experts, rank, n_in], [*experts, n_out, rank])
    if name == "token_embd.weight":
        shapes = ([n_out, rank], [n_in, rank])
    for tensor, shape in zip((a, b), shapes, strict=True):
        if list(tensor.shape) != shape:
            raise _bad(adapter, tensor.name, f"has shape {list(tensor.shape)}, expected {shape} for this model")


def _bad(adapter: GGUF, name: str, problem: str) -> BadGGUF:
    return BadGGUF(adapter.path, adapter.tensor_offsets[name], f"tensor '{name}' {problem}")
