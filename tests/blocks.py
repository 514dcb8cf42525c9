"""Weights and blocks for tests of the formats: random ones, and ones by a formula that no library can change."""

import numpy as np


def random_blocks(format, n, seed=0):
    """Random bytes as blocks, those kept whose weights are finite, so every code point occurs.  -> format.layout [n]"""
    raw = np.random.default_rng(seed).integers(0, 256, (4 * n, format.block_bytes), np.uint8)
    blocks = raw.view(format.layout)[:, 0]
    return blocks[np.isfinite(format.dequantize(blocks)).all(axis=1)][:n]


def noise(n_rows, n_columns, stream=0):
    """Numbers in -1..1, two thirds of them below 0.3, by a formula in whole numbers.  -> f32 [n_rows, n_columns]"""
    state = np.arange(n_rows * n_columns, dtype=np.uint64) + np.uint64(stream << 32)
    for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):  # as splitmix64 mixes its counter
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    uniform = (state >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - 1
    return (uniform * uniform * uniform).reshape(n_rows, n_columns)


def rows_by_formula():
    """Rows of 256 weights that take an encoder through its branches, by name.  -> {name: f32 [n, 256]}"""
    x = noise(8, 256)
    place = np.arange(256)
    exponents = np.repeat(np.arange(16) - 8, 16)
    return {
        "noise": x,
        "zeros": x * 0,  # of both signs
        "one value": np.broadcast_to(x[:, :1], x.shape),
        "positive": np.abs(x) + np.float32(0.125),
        "negative": -np.abs(x) - np.float32(0.125),
        "sparse": np.where(place % 37 == 5, x, 0),
        "outlier": np.where(place == 77, np.float32(40), x),
        "ties": np.rint(x * 15) / 2,
        "ternary": np.sign(x) * (np.abs(x) > 0.2) * np.float32(0.37),
        "ramp": np.broadcast_to((place - 100).astype(np.float32) / 16, x.shape),
        "groups of many sizes": np.ldexp(x, exponents),
        "groups of extreme sizes": np.ldexp(x, 5 * exponents),
        "tiny": np.ldexp(x, -120),
        "huge": np.ldexp(x, 100),
        "tinier than a reciprocal can be": np.ldexp(x, -140),
    }
