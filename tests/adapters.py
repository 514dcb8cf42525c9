"""Generated LoRA files, and the reference for their effect."""

import os
from dataclasses import replace

import numpy as np

from numllama.engine.gguf.read import F32, GGUF
from numllama.engine.gguf.write import write_gguf
from numllama.kernels import Tensor
from numllama.kernels.quants import FORMATS_BY_NAME, quantize

LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
ALL = ("token_embd", *LAYER, "output")


def tiny_lora(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str],
    weights: tuple[str, ...] = LAYER,
    seed: int = 0,
    *,
    quant: str = "F32",
    rank: int = 4,
    alpha: float = 8.0,
    size: float = 1.0,
    **kv,
) -> str | os.PathLike[str]:
    """Write an adapter for the GGUF `model` to `path`: random matrices for each of its `weights`, in every layer.

    size   0: an adapter that adds nothing
    kv     key-values to add or replace, with "__" for "."
    """
    base, format, random = GGUF.open(model), FORMATS_BY_NAME[quant], np.random.default_rng(seed)
    tensors = []
    for name, tensor in base.tensors.items():
        if name.split(".")[-2] not in weights or not name.endswith(".weight"):
            continue
        *experts, n_out, n_in = tensor.shape
        a, b = ((n_out, rank), (n_in, rank)) if name.startswith("token_embd") else ((rank, n_in), (n_out, rank))
        for side, shape, std in (("a", a, n_in**-0.5), ("b", b, 0.3 * size)):
            x = random.standard_normal((*experts, *shape)).astype(np.float32) * np.float32(std)
            tensors.append((f"{name}.lora_{side}", format, x.shape, quantize(format, x)))
    values = {
        "general.architecture": base.kv["general.architecture"],
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": F32(alpha),
    }
    write_gguf(path, values | {key.replace("__", "."): value for key, value in kv.items()}, tensors)
    return path


DOUBLES = replace(FORMATS_BY_NAME["F64"], dequantize=lambda blocks: blocks[:, None])  # not rounded to float32


def merged(gguf):
    """Return the adapted model `gguf` with its adapters added to its weights, in float64: the reference."""

    def whole(tensor):
        weights = tensor.dequantize().astype(np.float64)
        for term in tensor.low_rank:
            a, b = (side.dequantize().astype(np.float64) for side in (term.a, term.b))
            weights += term.scale * (a @ b.T if tensor.name.startswith("token_embd") else b @ a)
        return Tensor(tensor.name, DOUBLES, tensor.shape, weights)

    return replace(gguf, tensors={name: whole(tensor) for name, tensor in gguf.tensors.items()})
