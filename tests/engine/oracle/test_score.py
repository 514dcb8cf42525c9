"""Perplexity and base files against their definitions, written here in plain loops."""

import math
import struct

import numpy as np
import pytest

from numllama.engine.errors import RequestError
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.oracle.base_file import BaseReader, BaseWriter
from numllama.engine.oracle.score import Divergence, Scores, cut_chunks, scored_logits, text_ids
from numllama.kernels import SETS
from tiny import tiny_gguf

TEXT = "once upon a time there was a little boy and a dog in the world. " * 6
KERNELS = SETS["numpy-float64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "m.gguf"))


def rows_of(model, chunk, *n_at_once):
    pairs = list(scored_logits(model, chunk, model.new_cache(len(chunk), type="f64"), KERNELS, *n_at_once))
    return np.concatenate([rows for rows, _ in pairs]), np.concatenate([ids for _, ids in pairs])


@pytest.mark.parametrize("n_ctx", [16, 33])
def test_the_second_half_of_each_chunk_is_scored_after_a_bos(model, n_ctx):
    scores, nll = Scores(), []
    chunks = cut_chunks(text_ids(model, TEXT), n_ctx, 3)
    assert chunks.shape == (3, n_ctx)
    for chunk in chunks:
        scores.add(*rows_of(model, chunk))
        ids = [model.tokenizer.bos, *chunk[1:].tolist()]
        logits = forward(model, Batch.of(ids, outputs=range(n_ctx)), model.new_cache(n_ctx, type="f64"), KERNELS)
        for i in range(n_ctx // 2, n_ctx - 1):
            nll.append(math.log(sum(math.exp(x) for x in logits[i])) - logits[i, chunk[i + 1]])
    mean = sum(nll) / len(nll)
    variance = sum(x * x for x in nll) / len(nll) - mean**2
    value, error = scores.perplexity
    assert value == pytest.approx(math.exp(mean), rel=1e-10)
    assert error == pytest.approx(math.exp(mean) * math.sqrt(variance / (len(nll) - 1)), rel=1e-8)


def test_a_chunk_longer_than_a_batch_gives_the_same_rows(model, monkeypatch):
    (chunk,) = cut_chunks(text_ids(model, TEXT), 100, 1)
    whole, ids = rows_of(model, chunk)
    monkeypatch.setattr("numllama.engine.oracle.score.ROWS_PER_PRODUCT", 7)
    pieces, same = rows_of(model, chunk, 7)
    assert len(whole) == 49 and np.array_equal(ids, same)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-12)


def test_special_tokens_in_the_text_are_text(model):
    assert text_ids(model, "a </s> b").count(model.tokenizer.eos) == 0
    assert text_ids(model, "a b\n") == text_ids(model, "a b") != text_ids(model, "a b\n\n")


def test_a_text_of_less_than_a_chunk_is_refused():
    for ids, n_ctx, n_chunk, message in [
        (range(15), 16, None, "the text has 15 tokens, expected at least 16"),
        (range(15), 3, None, "a context of 3 tokens, expected at least 4"),
        (range(99), 16, 0, "0 chunks, expected at least 1"),
    ]:
        with pytest.raises(RequestError, match=message):
            cut_chunks(range(15) if ids is None else ids, n_ctx, n_chunk)


def logits_of(n, n_vocab, seed=0):
    return (4 * np.random.default_rng(seed).standard_normal((n, n_vocab))).astype(np.float32)


def test_a_base_file_has_the_bytes_of_llama_perplexity(tmp_path):
    chunks, logits = np.arange(12, dtype=np.int32).reshape(2, 6) % 7, logits_of(4, 7)
    logits[1] = 1  # all alike: the scale is 0
    logits[2, 3] = 40  # all others are cut off
    with BaseWriter(tmp_path / "base", chunks, 7) as writer:
        writer.write(logits[:1])
        writer.write(logits[1:])
    expected = struct.pack("<8siii12i", b"_logits_", 6, 7, 2, *chunks.ravel())
    for row in logits.astype(float):
        largest = max(row)
        least, ln_sum = max(min(row), largest - 16), math.log(sum(math.exp(x - largest) for x in row))
        scale = (largest - least) / 65535
        codes = [0 if scale == 0 or x <= least else round((x - least) / scale) for x in row]
        expected += struct.pack("<2f8H", scale, least - largest - ln_sum, *codes, 0)
    data = (tmp_path / "base").read_bytes()
    assert len(data) == len(expected) and data[:68] == expected[:68]
    for at in range(
        68, len(data), 24
    ):  # f32 sums: the last bits of a row's two floats, and a code in a tie, may differ
        ours, theirs = (struct.unpack_from("<2f8H", bytes, at) for bytes in (data, expected))
        np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-6)
        np.testing.assert_allclose(ours[2:], theirs[2:], rtol=0, atol=1)


def test_what_is_written_is_read(tmp_path):
    chunks, logits = np.arange(18, dtype=np.int32).reshape(2, 9), logits_of(8, 20)
    with BaseWriter(tmp_path / "base", chunks, 20) as writer:
        writer.write(logits)
    reader = BaseReader(tmp_path / "base")
    assert np.array_equal(reader.chunks, chunks) and reader.n_vocab == 20
    expected = np.maximum(logits, logits.max(axis=1, keepdims=True) - 16) - np.log(np.exp(logits).sum(1))[:, None]
    got = np.concatenate([reader.log_probs(0, 0, 4), reader.log_probs(1, 0, 1), reader.log_probs(1, 1, 4)])
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)  # 16 / 65535 / 2


def test_an_interrupted_base_file_has_the_chunks_that_were_done(tmp_path, monkeypatch):
    monkeypatch.setattr("numllama.engine.oracle.base_file.COPY_BYTES", 10)
    chunks, logits = np.arange(27, dtype=np.int32).reshape(3, 9), logits_of(12, 27)
    for name, n in (("whole", 2), ("cut", 3)):
        with pytest.raises(KeyboardInterrupt) if n == 3 else BaseWriter(tmp_path / "x", chunks, 27):
            with BaseWriter(tmp_path / name, chunks[:n], 27) as writer:
                writer.write(logits[:8])
                if n == 3:
                    writer.write(logits[8:10])
                    raise KeyboardInterrupt
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]  # one without a chunk is removed


def test_a_bad_base_file_is_refused_by_a_line(tmp_path):
    chunks = np.arange(9, dtype=np.int32).reshape(1, 9)
    with BaseWriter(tmp_path / "base", chunks, 9) as writer:
        writer.write(logits_of(4, 9))
    good = (tmp_path / "base").read_bytes()
    for data, message in [
        (b"GGUF" + good[4:], "not a file of log-probabilities: begins b'GGUFits_'"),
        (good[:15], "not a file of log-probabilities"),
        (good[:-1], f"truncated: {len(good) - 1} bytes, expected {len(good)} for 1 chunks"),
        (good[:8] + struct.pack("<3i", 9, 9, 2**30) + good[20:], "truncated"),
        (good[:8] + struct.pack("<3i", 9, 9, -1) + good[20:], "-1 chunks: not valid"),
        (good[:20] + struct.pack("<i", 99) + good[24:], "token id 99, expected 0 to 8"),
    ]:
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(RequestError, match=message):
            BaseReader(tmp_path / "bad")
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        BaseReader(tmp_path / "none")


def test_the_divergence_is_that_of_the_definition():
    """Formulas as in llama.cpp's documentation of its tables, in plain loops."""
    logits, base_logits, ids = logits_of(200, 30, 1), logits_of(200, 30, 2), np.arange(200) % 30
    base = base_logits - np.log(np.exp(base_logits).sum(1, keepdims=True))
    base[0, 3] = -20  # below the cut: not in the sum
    d = Divergence()
    for rows in (slice(0, 150), slice(150, 200)):
        d.add_beside(logits[rows], ids[rows], base[rows])
    p, q = np.exp(base.astype(float)), np.exp(logits.astype(float))
    q /= q.sum(1, keepdims=True)
    kld = [sum(p[i, j] * math.log(p[i, j] / q[i, j]) for j in range(30) if base[i, j] > -16) for i in range(200)]
    np.testing.assert_allclose(d.kld, kld, rtol=1e-5)
    differences = [q[i, ids[i]] - p[i, ids[i]] for i in range(200)]
    np.testing.assert_allclose(d.p_diff, differences, atol=1e-7)
    assert d.rms_p_diff[0] == pytest.approx(math.sqrt(sum(x * x for x in differences) / 200), rel=1e-6)
    assert d.same_top_share[0] == np.mean([p[i].argmax() == q[i].argmax() for i in range(200)])
    nll, nll_base = (np.array([-math.log(x[i, ids[i]]) for i in range(200)]) for x in (q, p))
    assert d.perplexity_base[0] == pytest.approx(math.exp(nll_base.mean()), rel=1e-6)
    # the error of the difference is that of two dependent means, as llama-perplexity has it
    covariance = np.cov(nll, nll_base, bias=True) / 199
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert d.ln_ratio == pytest.approx((nll.mean() - nll_base.mean(), error), rel=1e-5)
    assert d.correlation == pytest.approx(np.corrcoef(nll, nll_base)[0, 1], rel=1e-5)
