"""Weights and blocks for tests of the formats: random ones, and ones from formulas that do not depend on a library."""

import numpy as np


def random_blocks(format, n, seed=0):
    """Return random blocks with finite weights, in which every code occurs.  -> format.layout [n]"""
    raw = np.random.default_rng(seed).integers(0, 256, (4 * n, format.block_bytes), np.uint8)
    blocks = raw.view(format.layout)[:, 0]
    return blocks[np.isfinite(format.dequantize(blocks)).all(axis=1)][:n]


def noise(n_rows, n_columns, stream=0):
    """Return numbers in -1..1, two thirds of them below 0.3, from an integer formula.  -> f32 [n_rows, n_columns]"""
    state = np.arange(n_rows * n_columns, dtype=np.uint64) + np.uint64(stream << 32)
    for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):  # splitmix64's mixing function
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    uniform = (state >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - 1
    return (uniform * uniform * uniform).reshape(n_rows, n_columns)


def rows_by_formula():
    """Return rows of 256 weights that reach all branches of an encoder, by name.  -> {name: f32 [n, 256]}"""
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
