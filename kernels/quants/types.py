"""All tensor type ids of GGUF, including the retired ones, so that errors can name them."""

from __future__ import annotations

from enum import IntEnum


class GGMLType(IntEnum):
    """ggml's tensor types by their ids.  As in ggml.h, enum ggml_type, 0c1e57098.

    Retired: Q4_2 and Q4_3 in May 2023; the row-interleaved ones (.._4_4, .._4_8, .._8_8) when ggml began to
    interleave Q4_0 and IQ4_NL while loading.  Q8_1 and Q8_K hold activations and never occur in files.
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q4_2 = 4  # retired
    Q4_3 = 5  # retired
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    Q4_0_4_4 = 31  # retired
    Q4_0_4_8 = 32  # retired
    Q4_0_8_8 = 33  # retired
    TQ1_0 = 34
    TQ2_0 = 35
    IQ4_NL_4_4 = 36  # retired
    IQ4_NL_4_8 = 37  # retired
    IQ4_NL_8_8 = 38  # retired
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42
