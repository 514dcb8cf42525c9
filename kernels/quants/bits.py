"""Codes of 1, 2 or 4 bits packed into bytes, in the order that all of ggml's formats use.

Each byte holds 8 / bits codes, the first in its lowest bits.  Bytes are grouped in runs of `run`: the first codes of
all bytes of a run come first, then all second codes.  4 bits and run 16 is Q4_0: byte j holds weights j and j + 16.
Run 1 is plain order, byte by byte.

    bits 4, run 3       byte      0        1        2    |    3        4        5
                        codes   0 | 3    1 | 4    2 | 5  |  6 | 9    7 | 10   8 | 11       (low four bits | high four)
"""

from __future__ import annotations

import numpy as np


def pack(codes, bits, run):
    """Pack codes into bytes.  u8 [n, k], each below 2**bits -> u8 [n, k * bits / 8]"""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = codes.reshape(len(codes), -1, 8 // bits, run) << shifts
    return np.bitwise_or.reduce(parts, axis=2).reshape(len(codes), -1)


def unpack(packed, bits, run):
    """Unpack bytes, the inverse of `pack`.  u8 [n, m] -> u8 [n, m * 8 / bits]"""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return ((packed.reshape(len(packed), -1, 1, run) >> shifts) & (2**bits - 1)).reshape(len(packed), -1)
