"""The random number generator: MT19937 as published by Matsumoto and Nishimura, and llama.cpp's use of it."""

import itertools

import pytest

from numllama.engine.sampling.rng import Rng


def mt19937(seed):
    """Yield the outputs of the 1998 generator, seeded by the `init_genrand` of 2002, in plain Python."""
    state = [seed]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) % 2**32)
    while True:
        for i in range(624):
            y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7FFFFFFF)
            state[i] = state[(i + 397) % 624] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
        for y in state:
            y ^= y >> 11
            y ^= y << 7 & 0x9D2C5680
            y ^= y << 15 & 0xEFC60000
            yield y ^ y >> 18


def test_the_reference_generator_gives_the_published_number():
    # ISO C++ [rand.predef]: the 10000th output of a default-seeded mt19937
    assert next(itertools.islice(mt19937(5489), 9999, None)) == 4123659995


@pytest.mark.parametrize("seed", [0, 1, 42, 123456, 2**31, 2**32 - 2])
def test_a_draw_is_two_outputs_the_low_one_first(seed):
    outputs, rng = mt19937(seed), Rng(seed)
    for _ in range(700):  # beyond one refill of the state
        low, high = next(outputs), next(outputs)
        assert rng.draw() == (low + 2**32 * high) / 2**64


def test_a_seed_counts_modulo_two_to_the_32():
    assert Rng(-2).seed == Rng(2**32 - 2).seed == 4294967294
    assert Rng(2**32 + 7).draw() == Rng(7).draw()


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**64 - 1])
def test_minus_one_is_another_seed_each_time(seed):
    assert Rng(seed).seed != Rng(seed).seed  # equal once in four billion runs


def test_a_random_seed_is_reported():
    rng = Rng(-1)
    assert rng.draw() == Rng(rng.seed).draw()


def test_zero_is_an_ordinary_seed():
    assert Rng(0).draw() == Rng(0).draw() != Rng(1).draw()


def test_a_draw_is_below_one(monkeypatch):
    class Ones:
        def bytes(self, n):
            return b"\xff" * n

    rng = Rng(0)
    monkeypatch.setattr(rng, "_state", Ones())
    assert 0.9999999 < rng.draw() < 1
