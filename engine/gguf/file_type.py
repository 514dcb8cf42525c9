"""Short descriptions of a model: the quantization of the whole file and the number of parameters."""

from __future__ import annotations

from typing import Any

# general.file_type, as in llama.h's enum llama_ftype, 0c1e57098: the type that llama-quantize was called with
FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K"},
    **{11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"},
    **{26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16"},
    **{36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0"},
}


def file_type_name(value: Any) -> str:
    """Return the name of a general.file_type; "unknown" if it is missing or not defined by llama.cpp."""
    return FILE_TYPES.get(value, "unknown") if isinstance(value, int) else "unknown"


def parameter_size(n: int) -> str:
    """Format a parameter count: 8030261248 -> 8.0B, 7000000000 -> 7B, 134515008 -> 134.52M, 260032 -> 260K"""
    if n >= 10**9:
        return f"{n // 10**9}B" if n % 10**9 == 0 else f"{n / 1e9:.1f}B"
    if n >= 10**6:
        return f"{n // 10**6}M" if n % 10**6 == 0 else f"{n / 1e6:.2f}M"
    return f"{n / 1e3:.0f}K" if n >= 1000 else str(n)
