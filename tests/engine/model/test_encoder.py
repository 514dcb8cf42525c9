"""Encoders against llama.cpp's rows of the same files, and properties of their computation."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libllama import LibLlama
from tiny_encoder import ENCODERS, tiny_encoder

from numllama.engine.errors import BadGGUF, RequestError, UnsupportedArchitecture
from numllama.engine.gguf.read import read_gguf
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.batch import Batch
from numllama.engine.model.encoder import alibi_slopes
from numllama.engine.model.load import load_model
from numllama.engine.model.trace import Trace
from numllama.engine.run.embed import Pooled
from numllama.engine.run.request import complete
from numllama.kernels import NUMPY, SETS, threads

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_embeddings.py"))
TOKENS = GOLDEN["TOKENS"]
names = pytest.mark.parametrize("name", ENCODERS)
sets = pytest.mark.parametrize("kernels", SETS.values(), ids=SETS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    loaded = {}

    def model(name, format="F32"):
        if (name, format) not in loaded:
            loaded[name, format] = load_model(GOLDEN["make"](folder, name, format))
        return loaded[name, format]

    return model


def rows(model, texts, kernels=NUMPY, tap=lambda name, il, value: value):
    """Compute the rows of each of `texts` in one batch.  -> [float [n_tok, n_embd]]"""
    batch = Batch.join([Batch.of(tokens, slot, outputs=range(len(tokens))) for slot, tokens in enumerate(texts)])
    out = model.family.hidden(model, batch, model.new_cache(64, len(texts)), kernels, tap)
    return np.split(out, np.cumsum([len(tokens) for tokens in texts])[:-1])


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@sets
@names
def test_float32_encoders_match_llama_cpp(models, name, kernels):
    if "llamacpp" in kernels.name:
        pytest.skip("llama.cpp was recorded with its plainest options, without flash attention")
    expected = np.load(GOLDEN["path_of"](name))["F32"]
    (got,) = rows(models(name), [TOKENS], kernels)
    if name == "nomic-bert":
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-5)  # SwiGLU; measured 7e-6 at a deviation of 1
    else:
        # ggml looks GELU up by a float16 of 11 bits, which the last bit of the input may change
        same_gelu = kernels.name in ("ggml", "numba")
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3 if same_gelu else 5e-3)  # measured 3e-4, 3e-3
        assert np.median(np.abs(got - expected)) < (3e-5 if same_gelu else 1e-3)


@sets
@names
@pytest.mark.parametrize("format", ["F16", "Q8_0"])
def test_other_formats_match_llama_cpp(models, name, format, kernels):
    """ggml rounds activations to the partner format of the weights; other sets differ by that rounding."""
    expected = np.load(GOLDEN["path_of"](name))[format]
    (got,) = rows(models(name, format), [TOKENS], kernels)
    rounds = kernels.name in ("ggml", "numba")
    if format == "Q8_0" and rounds:
        assert np.median(np.abs(got - expected)) < 1e-6  # measured 1e-7, and 2e-2 where a rounding flips
    assert cosines(expected, got).min() > (0.9999 if rounds or format == "F16" else 0.99)


@names
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_rows_are_pooled_as_llama_cpp_pools_them(name, pooling):
    recorded = np.load(GOLDEN["path_of"](name))
    pooled = Pooled(pooling, len(TOKENS))
    pooled.add(recorded["F32"][list(pooled.outputs(0, len(TOKENS)))])
    np.testing.assert_allclose(pooled.vector(), recorded[pooling], rtol=0, atol=1e-6)


@pytest.mark.peer
@names
def test_llama_cpp_still_gives_the_recorded_rows(name):
    llama = LibLlama.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    expected, got = np.load(GOLDEN["path_of"](name)), GOLDEN["record"](llama, name)
    assert got.keys() == set(expected.files)
    for key in set(got) - {"made_by"}:
        np.testing.assert_allclose(got[key], expected[key], rtol=0, atol=1e-5)


@pytest.mark.skipif("numba" not in SETS, reason="LLVM's vectors need the compiler")
@names
@pytest.mark.parametrize("format", ["F32", "F16", "Q8_0"])
@given(others=st.lists(st.integers(1, 40), max_size=4), index=st.integers(0, 4), n_thread=st.integers(1, 2))
@settings(deadline=None, max_examples=10)
def test_a_text_has_the_same_bits_in_any_batch(models, name, format, others, index, n_thread):
    model, dice = models(name, format), np.random.default_rng(0)
    threads.limit(1)
    (alone,) = rows(model, [TOKENS], SETS["numba"])
    threads.limit(n_thread)
    texts = [dice.integers(5, 120, n).tolist() for n in others]
    texts.insert(index, TOKENS)
    together = rows(model, texts, SETS["numba"])[min(index, len(others))]
    threads.limit(None)
    assert together.tobytes() == alone.tobytes()


@names
def test_every_token_attends_to_every_other(models, name):
    (one,), (other,) = rows(models(name), [TOKENS]), rows(models(name), [[*TOKENS[:-1], 50]])
    assert (np.abs(one - other).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "jina-bert-v2"])
def test_the_order_of_tokens_matters(models, name):
    swapped = [*TOKENS[:3], TOKENS[4], TOKENS[3], *TOKENS[5:]]
    (one,), (other,) = rows(models(name), [TOKENS]), rows(models(name), [swapped])
    assert np.abs(one[[*range(3), 4, 3]] - other[:5]).max() > 0.01


def test_alibi_is_symmetric(models):
    (one,), (other,) = rows(models("jina-bert-v2"), [TOKENS]), rows(models("jina-bert-v2"), [TOKENS[::-1]])
    np.testing.assert_allclose(one, other[::-1], rtol=0, atol=1e-5)


def test_alibi_slopes_of_8_and_of_6_heads():
    assert alibi_slopes(8).tolist() == [2**-n for n in range(1, 9)]
    assert alibi_slopes(6).tolist() == [
        2**-2,
        2**-4,
        2**-6,
        2**-8,
        2**-1,
        2**-3,
    ]  # those of four heads, then every other one of 8


def test_fused_matrices_give_the_same_rows(tmp_path):
    options = {"family": "nomic-bert", "gate": "apart", "bias": False}  # the same random numbers in both
    one, other = (
        load_model(tiny_encoder(tmp_path / f"{fused}.gguf", fused=fused, **options)) for fused in (False, True)
    )
    np.testing.assert_array_equal(rows(one, [TOKENS]), rows(other, [TOKENS]))


def test_traced_values_have_llama_cpp_s_names(models):
    trace = Trace()
    rows(models("jina-bert-v2-code"), [TOKENS], tap=trace)
    got = list(dict.fromkeys(name for name, _ in trace.values))
    expected = (
        "inp_embd inp_norm Qcur Kcur Vcur kq kq_soft_max kqv_out attn_out ffn_inp ffn_up ffn_gate ffn_geglu ffn_out"
    )
    assert got == [*expected.split(), "l_out", "result_embd"]


def test_an_encoder_does_not_generate(models):
    with pytest.raises(RequestError, match="'bert' is an encoder"):
        next(complete(models("bert"), "hello"))


def changed(path, target, change):
    """Write the model at `path` to `target`, its tensors (name, format, shape, blocks) passed through `change`."""
    gguf = read_gguf(path)
    tensors = [(t.name, t.format, t.shape, t.blocks) for t in gguf.tensors.values()]
    write_gguf(target, gguf.kv, change(tensors))
    return target


def test_a_missing_or_unused_tensor_is_named(tmp_path):
    path = tiny_encoder(tmp_path / "a.gguf")
    without = changed(path, tmp_path / "b.gguf", lambda tensors: [t for t in tensors if t[0] != "position_embd.weight"])
    with pytest.raises(BadGGUF, match=r"tensor 'position_embd.weight' is missing"):
        load_model(without)
    more = changed(path, tmp_path / "c.gguf", lambda tensors: [*tensors, ("cls.weight", *tensors[0][1:])])
    with pytest.raises(UnsupportedArchitecture, match=r"tensor 'cls.weight' is not used by this architecture"):
        load_model(more)
