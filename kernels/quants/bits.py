"""Codes of 1, 2 or 4 bits in bytes, in the one order that all of ggml's formats use.

Each byte holds 8 / bits codes, the first in its lowest bits.  Within a `run` of bytes the first codes of all bytes
come first, then all second ones: 4 bits and run 16 is Q4_0, where byte j holds weights j and j + 16.  Run 1 is plain
order, byte by byte.

    bits 4, run 3       byte      0        1        2    |    3        4        5
                        codes   0 | 3    1 | 4    2 | 5  |  6 | 9    7 | 10   8 | 11       (low four bits | high four)
"""

from __future__ import annotations

import numpy as np


def pack(codes, bits, run):
    """u8 [n, k], each below 2**bits -> u8 [n, k * bits / 8]"""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = codes.reshape(len(codes), -1, 8 // bits, run) << shifts
    return np.bitwise_or.reduce(parts, axis=2).reshape(len(codes), -1)


def unpack(packed, bits, run):
    """The inverse of `pack`.  u8 [n, m] -> u8 [n, m * 8 / bits]"""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return ((packed.reshape(len(packed), -1, 1, run) >> shifts) & (2**bits - 1)).reshape(len(packed), -1)
