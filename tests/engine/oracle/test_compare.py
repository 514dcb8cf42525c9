"""Distances between predictions against their definitions, and their bounds with the likeliest tokens only."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import RequestError
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.oracle.compare import (
    Distances,
    LocalSource,
    Prediction,
    TextToken,
    check_vocabularies,
    common_tokens,
    compare_text,
    cut_pieces,
)
from numllama.engine.oracle.passage import PASSAGE
from numllama.kernels import SETS
from tiny import tiny_gguf

N_VOCAB = 40
TEXTS = [b"%d" % i for i in range(N_VOCAB)]


def distribution(seed, sharpness):
    x = np.random.default_rng(seed).standard_normal(N_VOCAB) * sharpness
    return x - np.log(np.exp(x).sum())


def listed(ln, n, by_id=True):
    """The n likeliest tokens, as a server lists them; n = N_VOCAB: all, as a model here has them."""
    if n == N_VOCAB:
        return Prediction(ln, TEXTS, range(N_VOCAB), True, float(ln[7]))
    best = np.argsort(-ln)[:n]
    ids = [int(i) for i in best]
    next_ln = float(ln[7]) if 7 in ids else None
    return Prediction(ln[best], [TEXTS[i] for i in ids], ids if by_id else None, False, next_ln)


@given(st.integers(0, 10**6), st.floats(0.1, 6), st.floats(0, 3), st.integers(1, N_VOCAB), st.integers(1, N_VOCAB))
def test_lists_of_the_likeliest_bound_the_true_distances(seed, sharpness, noise, n_a, n_b):
    a = distribution(seed, sharpness)
    b = a + noise * np.random.default_rng(seed + 1).standard_normal(N_VOCAB)
    b -= np.log(np.exp(b).sum())
    kl, variation = (np.exp(a) * (a - b)).sum(), np.abs(np.exp(a) - np.exp(b)).sum() / 2
    for by_id in (True, False):
        c = Distances()
        c.add(listed(a, n_a, by_id), listed(b, n_b, by_id))
        assert c.kl[0] <= kl + 1e-5 and c.least[0] <= variation + 1e-9 and c.most[0] >= min(variation, 1) - 1e-9
        assert c.complete == (n_a == n_b == N_VOCAB)
        if c.complete:
            assert c.kl[0] == pytest.approx(kl, abs=1e-12) and c.most == c.least
            assert c.least[0] == pytest.approx(variation, abs=1e-12)
        assert c.same_top == [a.argmax() == b.argmax()]
        assert c.nll_a[0] <= -a[7] + 1e-9 and (c.bounded_a or c.nll_a[0] == -a[7])
        assert (c.first is None) == c.same_top[0]


def test_the_first_other_token_and_the_largest_divergence_are_kept():
    c, p = Distances(), np.log([0.5, 0.3, 0.2])
    texts = [b"x", b"y", b"z"]
    for token, q in enumerate(([0.5, 0.3, 0.2], [0.4, 0.41, 0.19], [0.01, 0.01, 0.98], [0.3, 0.4, 0.3])):
        c.add(Prediction(p, texts, range(3), True, p[0]), Prediction(np.log(q), texts, range(3), True), 1, token, "so")
    assert (c.first.token, c.largest.token) == (1, 2) and c.first.tokens == (b"x", b"y")
    assert np.allclose(c.first.p, ((0.5, 0.4), (0.3, 0.41))) and c.first.before == "so"
    assert c.mean("same_top") == (0.25, pytest.approx(np.sqrt(0.25 * 0.75 / 3)))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def source(name, kernels="exact", **options):
        path = tiny_gguf(folder / f"{name}.gguf", **options)
        return LocalSource(name, load_model(path), SETS[kernels], "f32")

    return {
        "a": source("a"),
        "b": source("b", seed=1),
        "bpe": source("bpe", tokenizer="bpe"),
        "f64": source("f64", "numpy-float64"),
    }


def test_a_model_beside_itself_differs_by_rounding_only(sources):
    c = Distances()
    *_, done = compare_text(sources["a"], sources["f64"], PASSAGE[:150], c)
    assert done == 150 and c.mean("kl")[0] < 1e-6 and c.mean("same_top") == (1, 0) and c.complete
    assert c.n_skipped == 0 and len(c.kl) == len(sources["a"].split(PASSAGE[:150]))


def test_the_perplexity_is_that_of_the_whole_prompt(sources):
    source, text = sources["a"], "once upon a time there was a boy"
    c = Distances()
    list(compare_text(source, sources["b"], text, c))
    ids, nll = [source.model.tokenizer.bos, *(token.id for token in source.split(text))], []
    for i in range(1, len(ids)):
        logits = forward(source.model, Batch.of(ids[:i]), source.new_cache(i), source.kernels)[0].astype(float)
        nll.append(np.log(np.exp(logits).sum()) - logits[ids[i]])
    assert c.perplexity("a")[0] == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    assert c.mean("kl")[0] > 0.1 and c.ln_ratio[0] == pytest.approx(np.log(c.perplexity("b")[0] / c.perplexity("a")[0]))


def test_other_vocabularies_are_refused(sources):
    with pytest.raises(RequestError, match=r"a and bpe have other vocabularies: \d+ tokens and \d+"):
        check_vocabularies(sources["a"], sources["bpe"])
    check_vocabularies(sources["a"], sources["b"])
    with pytest.raises(RequestError, match="token 0 of the text is"):
        common_tokens(sources["a"], sources["bpe"], "zebra zebra")


def test_a_text_is_cut_into_prompts_without_loss():
    pieces = cut_pieces(PASSAGE, 300)
    assert "".join(pieces) == PASSAGE.removesuffix("\n") or "".join(pieces) == PASSAGE
    assert max(map(len, pieces)) <= 300 and len(pieces) > 4
    assert cut_pieces("x" * 20, 8) == ["x" * 8, "x" * 8, "x" * 4] and cut_pieces(" \n") == []


def test_where_neither_side_can_split_a_text_places_are_words():
    class Wordless:
        name = kind = "w"

        def split(self, text):
            return None

        def predictions(self, text, tokens):
            yield from (Prediction(np.log([0.5, 0.25]), [b"x", b"y"]) for _ in tokens)

    assert common_tokens(Wordless(), Wordless(), "a b") == [TextToken(b"a", None, True), TextToken(b" b", None, True)]
    c = Distances()
    list(compare_text(Wordless(), Wordless(), "a b", c))
    assert c.by_words and c.kl == [0, 0]
