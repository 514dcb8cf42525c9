"""Mixtures: the format of each tensor in a file type, as llama-quantize chooses it.

A file type such as Q4_K_M is a mixture: most matrices get its base format, the more important ones get more bits.
As in llama.cpp's llama-quant.cpp, 0c1e57098, without an importance matrix, and without its exceptions for Falcon and
GLM-5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....kernels.quants import FORMATS_BY_NAME, QuantFormat
from ....kernels.tensor import Tensor
from ...errors import EngineError
from ...gguf.file_type import FILE_TYPES
from ...gguf.read import GGUF

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
IDS = {name: id for id, name in FILE_TYPES.items()}
# File types that need an importance matrix, have no encoder here, or are not made by llama-quantize
UNSUPPORTED = {"Q2_K_S", "NVFP4", *(name for name in IDS if name.startswith(("IQ1", "IQ2", "IQ3")))}

# Name patterns of small matrices that are not worth quantizing; as in tensor_allows_quantization
KEPT_NAMES = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|time_mix_(first|[wva][0-2]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|attn_rel_b\.weight|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_(embd|merger)|a\.rvq\.codebook"
    r"|mm\.a\.code_embd|^position_embd\.weight$|^token_types\.weight$"
)
# Kinds of tensors, as substrings of their names; the first match counts
KINDS = (
    *("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight", "attn_k.weight", "attn_q.weight", "attn_output.weight"),
    *("ffn_up", "ffn_gate", "ffn_down"),
)
LIKE_ATTN_V = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# Replacement formats, with a smaller block, for rows that are not a whole number of blocks
NARROWER = {
    **{"Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "IQ4_XS": "IQ4_NL"},
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
}


def file_type_of(name: str) -> str:
    """Return the file type called `name`, which is case-insensitive.  Raises: EngineError, with Ollama's text"""
    name = name.upper()
    known = ALIASES.get(name, name)
    if known not in IDS or known in UNSUPPORTED:
        supported = "supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"
        raise EngineError(f"unsupported quantization type {name} - {supported}")
    return known


def base_format(file_type: str) -> QuantFormat:
    """Return the format in a file type's name: Q4_K for Q4_K_M."""
    return FORMATS_BY_NAME[re.sub(r"(?<=_K)_[SML]$|_MOE$", "", file_type)]


def is_kept(tensor: Tensor) -> bool:
    """Return whether a tensor is never quantized: a vector, a norm, a router, a vision tower inside a text model, ...

    A reader of Ollama's dialect changes the order of a tower's rows, which it does in float16 alone.
    """
    if tensor.name.startswith(("v.", "mm.")):
        return True
    is_vector = all(n == 1 for n in tensor.shape[:-1])
    return is_vector or not tensor.name.endswith("weight") or bool(KEPT_NAMES.search(tensor.name))


def tensor_formats(gguf: GGUF, file_type: str) -> dict[str, QuantFormat]:
    """Choose the format of every tensor of `gguf` in `file_type`; ordered as in llama-quantize's file."""
    base, model = base_format(file_type).name, _Model.of(gguf)
    is_mixed = base not in ("F32", "F16", "BF16")
    n_attn_v = sum(_kind(name) in LIKE_ATTN_V for name in gguf.tensors)
    i_attn_v = 0
    formats = {}
    for name in sorted(gguf.tensors, key=_place):
        tensor = gguf.tensors[name]
        if is_kept(tensor):
            formats[name] = tensor.format
            continue
        kind, chosen = _kind(name), base
        if is_mixed:
            if kind == "output.weight" or (kind in EMBEDDINGS and "output.weight" not in gguf.tensors):
                fits = tensor.shape[-1] % FORMATS_BY_NAME[base].block_size == 0
                chosen = "Q6_K" if fits and base not in ("Q8_0", "MXFP4") else "Q8_0"
            elif base == "MXFP4":
                chosen = "MXFP4" if len(tensor.shape) == 3 and tensor.shape[0] > 1 else "Q8_0"
            elif kind in EMBEDDINGS:
                chosen = "Q4_K" if base in ("TQ1_0", "TQ2_0", "Q2_0") else base
            elif kind in LIKE_ATTN_V:
                chosen = _attn_v(file_type, base, model, i_attn_v, n_attn_v)
                i_attn_v += 1
            elif kind == "attn_k.weight":
                chosen = "Q8_0" if model.n_expert == 8 else base
            elif kind == "ffn_down":
                chosen = _ffn_down(file_type, base, max(_place(name)[0], 0), model.n_layer)
            elif kind == "attn_output.weight":
                chosen = _attn_output(file_type, base, model)
            chosen = _storable(chosen, tensor.shape[-1])
        formats[name] = FORMATS_BY_NAME[chosen]
    return formats


@dataclass(frozen=True)
class _Model:
    """The model's sizes that the choice depends on.

    n_gqa   query heads per key head, rounded down
    """

    n_layer: int
    n_gqa: int
    n_expert: int
    is_70b: bool

    @classmethod
    def of(cls, gguf: GGUF) -> _Model:
        architecture = gguf.kv.get("general.architecture", "")

        def integer(key: str, default: int = 0) -> int:
            value: Any = gguf.kv.get(f"{architecture}.{key}", default)
            if isinstance(value, np.ndarray) and value.size:  # one per layer; the first counts
                value = value[0].item()
            return value if isinstance(value, int) else default

        n_layer, n_head = integer("block_count"), integer("attention.head_count")
        n_head_kv = integer("attention.head_count_kv", n_head)
        is_70b = n_layer == 80 and (architecture == "qwen2" or (architecture == "llama" and n_head != n_head_kv))
        return cls(n_layer, n_head // n_head_kv if n_head_kv else 0, integer("expert_count"), is_70b)


def _place(name: str) -> tuple[int, str]:
    """Return a sort key: tensors outside the layers first, then by layer, then by name."""
    layer = re.match(r"blk\.(\d+)\.", name)
    return int(layer[1]) if layer else -1, name


def _kind(name: str) -> str:
    if name == "output.weight" or name in EMBEDDINGS:
        return name
    return next((kind for kind in KINDS if kind in name), "")


def _more(i: int, n: int) -> bool:
    """Return whether layer `i` of `n` gets more bits: the first and last eighth, and every third in between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(file_type: str, base: str, model: _Model, i: int, n: int) -> str:
    """Choose the format of value matrix `i` of `n`, which gets more bits: it is small and sensitive to errors."""
    match file_type:
        case "Q2_K":
            chosen = "Q4_K" if model.n_gqa >= 4 else "Q3_K"
        case "Q3_K_M":
            chosen = "Q5_K" if i < 2 else "Q4_K"
        case "Q3_K_L":
            chosen = "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if model.n_gqa >= 4:
            chosen = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more(i, n):
            chosen = "Q6_K"
        case "Q4_K_S" if i < 4:
            chosen = "Q5_K"
        case _:
            chosen = base
    if model.is_70b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if model.n_expert == 8 else chosen


def _ffn_down(file_type: str, base: str, i: int, n: int) -> str:
    match file_type:
        case "Q2_K":
            return "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more(i, n):
            return "Q6_K"
        case "Q4_K_S" | "IQ4_NL" | "IQ4_XS" if i < n // 8:
            return "Q5_K"
        case _:
            return base


def _attn_output(file_type: str, base: str, model: _Model) -> str:
    if model.n_expert == 8:
        lifted = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
        return "Q5_K" if file_type in lifted else base
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(file_type, base)


def _storable(chosen: str, n_row: int) -> str:
    """Return `chosen`, or a replacement whose blocks divide a row of `n_row` weights."""
    for name in (chosen, NARROWER.get(chosen, chosen)):
        if n_row % FORMATS_BY_NAME[name].block_size == 0:
            return name
    return "F16"
