"""The set `llamacpp` against logits that llama.cpp computed with its defaults (tests/golden/make_defaults.py)."""

import platform
import runpy
from pathlib import Path

import numpy as np
import pytest
from libllama import LibLlama
from oracles import log_softmax, xllamacpp_logprobs

from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.kernels import SETS, simd

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_defaults.py"))
pytestmark = pytest.mark.skipif("llamacpp" not in SETS, reason="LLVM's vectors need the compiler")
# expf, cosf and sinf are the C library's, and a fused product needs an instruction at every level but the portable one
SAME_BITS = platform.libc_ver()[0] == "glibc" and simd.LEVEL != "portable"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return lambda name: GOLDEN["make"](folder, name)


def logits(path, cache, n, kernels="llamacpp"):
    model = load_model(path)
    batch = Batch.of(GOLDEN["TOKENS"][:n], outputs=range(n))  # all, as recorded: products of few rows are others
    return forward(model, batch, model.new_cache(n, type=cache), SETS[kernels])[-2:]


@pytest.mark.parametrize(("name", "cache"), GOLDEN["CASES"], ids=[" ".join(case) for case in GOLDEN["CASES"]])
def test_logits_are_those_of_llama_cpp_to_the_bit(files, name, cache):
    for n in GOLDEN["lengths"](name):
        expected, got = np.load(GOLDEN["PATH"])[f"{name} {cache} {n}"], logits(files(name), cache, n)
        if SAME_BITS and name.startswith("gemma2"):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)  # the logits' soft-cap is NumPy's tanh
        elif SAME_BITS:
            np.testing.assert_array_equal(got, expected)
        else:  # another last bit may round an activation otherwise, which moves logits by up to 0.1 deviations
            assert np.abs(got - expected).max() < 0.5 * expected.std()


def test_the_set_ggml_is_not_equal(files):
    """Each of the steps that the set repeats is seen by the test above."""
    expected = np.load(GOLDEN["PATH"])["llama Q8_0 f16 20"]
    assert np.abs(logits(files("llama Q8_0"), "f16", 20, "ggml") - expected).max() > 1e-3


@pytest.mark.parametrize(("name", "cache"), GOLDEN["CACHES"], ids=[" ".join(case) for case in GOLDEN["CACHES"]])
@pytest.mark.parametrize("kernels", ["ggml", "numba"])
def test_other_sets_answer_as_llama_cpp_with_a_quantized_cache(files, name, cache, kernels):
    expected = np.load(GOLDEN["PATH"])[f"{name} {cache} 20"]
    got = logits(files(name), cache, 20, kernels)
    if "f16" in cache or cache == "q5_1":  # llama.cpp adds up values in f16, and rounds queries or their sums to it
        assert np.abs(got - expected).max() < 0.03  # measured 0.01
    elif kernels == "numba":  # the last bit of a sum rounds a number in the cache otherwise
        assert np.abs(got - expected).max() < 5e-3 and np.median(np.abs(got - expected)) < 1e-4
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)  # measured 3e-6


@pytest.mark.peer
def test_llama_cpp_still_gives_the_recorded_logits_with_its_defaults():
    llama = LibLlama.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    recorded = np.load(GOLDEN["PATH"])
    for name, expected in GOLDEN["record"](llama).items():
        np.testing.assert_allclose(recorded[name], expected, rtol=0, atol=0.3, err_msg=name)  # builds round otherwise


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama F32", "llama F16", "llama Q8_0", "llama Q4_0", "primer"])
def test_the_avx2_set_gives_the_logprobs_of_llama_cpp_in_a_wheel(files, name):
    path, texts = files(name), [GOLDEN["TOKENS"][:n] for n in (1, 3, 6, 12, 20)]
    expected = xllamacpp_logprobs(path, texts, defaults=True)
    got = [logits(path, "f16", max(2, len(text)), "llamacpp-avx2")[-1 if len(text) > 1 else 0] for text in texts]
    # the server computes probabilities in float32; it reads a text's last tokens apart, which changes last bits
    np.testing.assert_allclose(log_softmax(np.array(got)), expected, rtol=0, atol=1e-3)
