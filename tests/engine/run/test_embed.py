"""Embeddings: pooling, and that a vector depends on its text alone."""

from __future__ import annotations

import runpy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libllama import LibLlama
from serving import until
from tiny_encoder import tiny_encoder

from numllama.engine.errors import Cancelled, ContextFull, ModelError, ModelNotFound, RequestError
from numllama.engine.handle import RequestHandle
from numllama.engine.model.batch import Batch
from numllama.engine.model.families import BERT
from numllama.engine.model.load import load_model
from numllama.engine.options import Options, RequestOptions
from numllama.engine.run.embed import Pooled, Vectors, embedding_job, embedding_tokens, pooling_of, unit_vector
from numllama.engine.run.job import Job
from numllama.engine.run.piece import Piece, Timings
from numllama.engine.run.request import complete
from numllama.engine.run.scheduler import PREFILL_WHILE_DECODING, Scheduler
from numllama.engine.serve.engine import Engine
from numllama.engine.serve.runner import Runner
from numllama.engine.settings import Settings
from numllama.kernels import GGML, NUMBA, SETS, Tensor, threads
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_embeddings.py"))
ROWS = np.array([[1, 2], [3, 4], [5, 9]], np.float32)
N_CTX = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q4_0", seed=3))


@pytest.fixture(autouse=True)
def all_threads():
    yield
    threads.limit(None)


# pooling


@pytest.mark.parametrize(("pooling", "vector"), [("mean", [3, 5]), ("cls", [1, 2]), ("last", [5, 9])])
@pytest.mark.parametrize("sizes", [[3], [1, 2], [2, 1], [1, 1, 1]])
def test_three_rows_by_hand(pooling, vector, sizes):
    pooled, start = Pooled(pooling, 3), 0
    for n in sizes:
        pooled.add(ROWS[start : start + n][list(pooled.outputs(start, n))])
        start += n
    np.testing.assert_array_equal(pooled.vector(), np.float32(vector))


def test_dense_matrices_multiply_the_vector_in_order():
    def matrix(rows):
        x = np.float32(rows)
        return Tensor("dense", FORMATS_BY_NAME["F32"], x.shape, x)

    pooled = Pooled("mean", 3, (matrix([[1, 0], [0, 2], [1, 1]]), matrix([[1, 0, 0], [0, 1, 10]])))
    pooled.add(ROWS)  # their mean is 3, 5
    np.testing.assert_array_equal(pooled.vector(), [3, 2 * 5 + 10 * (3 + 5)])


@given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.integers(0, 2**32))
def test_a_mean_has_the_same_bits_in_any_chunks(sizes, seed):
    rows = np.random.default_rng(seed).standard_normal((sum(sizes), 5), np.float32) * np.float32(1e3)
    whole, parts = Pooled("mean", len(rows)), Pooled("mean", len(rows))
    whole.add(rows)
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        parts.add(part)
    assert parts.vector().tobytes() == whole.vector().tobytes()
    np.testing.assert_allclose(whole.vector(), rows.mean(0, np.float64), rtol=0, atol=1e-3)  # 64 float32 sums of 1e3


def test_a_unit_vector_has_length_1_and_the_requested_dimensions():
    np.testing.assert_array_equal(unit_vector(np.float32([3, 4])), np.float32([0.6, 0.8]))
    np.testing.assert_array_equal(unit_vector(np.float32([3, 4, 12]), 2), np.float32([0.6, 0.8]))
    for dimensions in (0, -1, 3, 4):
        np.testing.assert_allclose(
            unit_vector(np.float32([3, 4, 12]), dimensions), np.float32([3, 4, 12]) / 13, rtol=1e-7
        )
    np.testing.assert_array_equal(unit_vector(np.zeros(2, np.float32)), np.zeros(2, np.float32))
    np.testing.assert_allclose(unit_vector(np.float32([3e30, 4e30])), [0.6, 0.8], rtol=1e-7)  # squares overflow float32


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_vector_with_nan_or_inf_is_refused(wrong):
    with pytest.raises(RequestError, match=r"^embedding contains NaN or Inf values$"):
        unit_vector(np.float32([1, wrong, 2]), dimensions=1)


@pytest.mark.parametrize(("pooling", "used"), [("", "mean"), ("none", "mean"), ("cls", "cls"), ("last", "last")])
def test_the_default_pooling_is_the_mean(model, pooling, used):
    assert pooling_of(replace(model.hparams, pooling=pooling)) == used


def test_a_reranker_has_no_embeddings(model):
    with pytest.raises(RequestError, match="the model is a reranker"):
        pooling_of(replace(model.hparams, pooling="rank"))


# tokens


def test_a_long_text_is_cut_at_its_end(model):
    tokenizer = model.tokenizer
    whole = tokenizer.encode("the dog and the boy")
    assert embedding_tokens("the dog and the boy", tokenizer, len(whole), truncate=False) == whole
    with pytest.raises(ContextFull, match=r"^the input length exceeds the context length$"):
        embedding_tokens("the dog and the boy", tokenizer, len(whole) - 1, truncate=False)
    kept = embedding_tokens("the dog and the boy", tokenizer, 4)
    assert len(kept) == 4 and kept[0] == tokenizer.bos
    assert tokenizer.decode(kept[1:]) == " the dog"  # one more blank: the kept text is tokenized again, as in Ollama


def test_a_cut_text_still_ends_in_eos(tmp_path):
    path = tiny_gguf(tmp_path / "eos.gguf", tokenizer="bpe", tokenizer__ggml__add_eos_token=True)
    tokenizer = load_model(path).tokenizer
    whole, kept = tokenizer.encode("the dog and the boy"), embedding_tokens("the dog and the boy", tokenizer, 4)
    assert whole[-1] == tokenizer.eos and kept == [*whole[:3], tokenizer.eos]
    with pytest.raises(ContextFull, match=r"^input after truncation exceeds maximum context length$"):
        embedding_tokens("the dog and the boy", tokenizer, 2)


def test_a_text_without_any_token_is_refused(tmp_path):
    tokenizer = load_model(tiny_gguf(tmp_path / "m.gguf", tokenizer__ggml__add_bos_token=False)).tokenizer
    with pytest.raises(RequestError, match="the input has no tokens"):
        embedding_tokens("", tokenizer, 8)


# in the scheduler


@dataclass(eq=False)
class Text:
    """A text to embed in the scheduler, and its pieces."""

    ids: list[int]
    pooling: str = "mean"
    handle: RequestHandle = field(default_factory=RequestHandle)
    pieces: list = field(default_factory=list)

    def job(self):
        return embedding_job(self.handle, self.ids, Options(num_ctx=N_CTX), self.pooling, self.pieces.append)

    @property
    def vector(self):
        (last,) = self.pieces
        return last.embeddings[0]


@dataclass(eq=False)
class Question(Text):
    """A prompt to answer in the scheduler."""

    def job(self):
        return Job(handle=self.handle, prompt=self.ids, options=self.options, deliver=self.pieces.append)

    @property
    def options(self):
        return Options(temperature=0.0, num_predict=8, num_ctx=N_CTX)

    def is_answered_as_alone(self, model):
        expected = [(piece.text, piece.token) for piece in complete(model, self.ids, self.options)]
        return [(piece.text, piece.token) for piece in self.pieces] == expected


def scheduler_of(model, n_slot=2, kernels=NUMBA, **more):
    return Scheduler(model, model.new_cache(N_CTX, n_slot), kernels, **more)


def finish(scheduler, *texts):
    for one in texts:
        scheduler.submit(one.job())
    while not scheduler.idle:
        scheduler.step()
    return texts


def by_hand(model, ids, pooling, kernels):
    """Compute every row in one pass, then pool."""
    rows = model.family.hidden(model, Batch.of(ids, outputs=range(len(ids))), model.new_cache(N_CTX), kernels)
    return {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1]}[pooling]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("kernels", SETS.values(), ids=SETS)
def test_a_vector_is_its_pooled_rows(model, kernels, pooling):
    ids = list(range(5, 30))
    (text,) = finish(scheduler_of(model, kernels=kernels, num_batch=10), Text(ids, pooling))
    # chunks change the order of BLAS sums in the numpy set: 1.9e-5 by OpenBLAS for Haswell
    np.testing.assert_allclose(text.vector, by_hand(model, ids, pooling, kernels), rtol=0, atol=5e-5)
    assert text.pieces[0].timings.prompt_eval_count == 25


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def any_model(request, model, tmp_path_factory):
    if request.param == "decoder":
        return model
    return load_model(tiny_encoder(tmp_path_factory.mktemp("models") / "bert.gguf", quant="Q8_0"))


TEXTS = st.lists(st.integers(3, 120), min_size=1, max_size=N_CTX)


@given(
    texts=st.lists(st.tuples(TEXTS, st.sampled_from(["mean", "cls", "last"])), min_size=1, max_size=5),
    questions=st.lists(TEXTS.filter(lambda ids: len(ids) < N_CTX), max_size=2),
    num_batch=st.integers(1, 64),
    n_slot=st.integers(1, 3),
    n_thread=st.integers(1, 2),
)
@settings(max_examples=25)
def test_a_vector_depends_on_its_text_alone(any_model, texts, questions, num_batch, n_slot, n_thread):
    """Not on other texts, other requests in its batch or before it in its slot, chunks, slots or threads."""
    model, questions = any_model, questions if any_model.family.causal else []
    threads.limit(1)
    alone = [finish(scheduler_of(model), Text(ids, pooling))[0].vector for ids, pooling in texts]
    threads.limit(n_thread)
    scheduler = scheduler_of(model, n_slot, num_batch=num_batch)
    questions, embedded = list(map(Question, questions)), [Text(ids, pooling) for ids, pooling in texts]
    finish(scheduler, *questions, *embedded)
    assert [one.vector.tobytes() for one in embedded] == [vector.tobytes() for vector in alone]
    assert all(question.is_answered_as_alone(model) for question in questions)


def test_a_prompt_reuses_the_prefix_of_an_embedded_text(model):
    scheduler = scheduler_of(model, n_slot=1)
    ids = list(range(5, 20))
    finish(scheduler, Text(ids))
    (question,) = finish(scheduler, Question([*ids, 7]))
    assert question.is_answered_as_alone(model)
    assert question.pieces[-1].timings.prompt_eval_cached_count == len(ids)


@pytest.fixture
def encoder(tmp_path):
    """An encoder, and the lengths of the texts in each of its forward passes."""
    model, passes = load_model(tiny_encoder(tmp_path / "bert.gguf")), []

    def hidden(model, batch, *more):
        passes.append([span.length for span in batch.spans])
        assert all(span.start == 0 for span in batch.spans), "a text was split"
        return BERT.hidden(model, batch, *more)

    return replace(model, family=replace(model.family, hidden=hidden)), passes


def test_an_encoder_batches_whole_texts_up_to_num_batch(encoder):
    model, passes = encoder
    texts = [list(range(5, 5 + n)) for n in (6, 6, 6, 20, 3, 3, 3, 3, 3)]
    embedded = finish(scheduler_of(model, n_slot=4, num_batch=16), *map(Text, texts))
    assert passes == [[6, 6], [6], [20], [3, 3, 3, 3], [3]]
    for one, ids in zip(embedded, texts, strict=True):
        (alone,) = finish(scheduler_of(model), Text(ids))
        assert alone.vector.tobytes() == one.vector.tobytes()


def test_an_encoder_cannot_generate(encoder):
    (question,) = finish(scheduler_of(encoder[0]), Question([5, 6]))
    assert str(question.pieces[0]) == "'bert' is an encoder: it embeds texts and does not generate any"


def test_an_encoder_has_no_cache_and_64_slots(encoder):
    model, passes = encoder
    runner = Runner(model, Options(num_batch=2048), n_slot=2)  # OLLAMA_NUM_PARALLEL does not limit encoders
    assert runner.cache.n_slot == 64 and runner.nbytes == model.nbytes and passes == [[1]]
    runner.close()


def test_texts_are_embedded_in_small_chunks_while_another_sequence_decodes(model):
    sizes, hidden = [], model.family.hidden

    def seen(model, batch, *more):
        sizes.append(len(batch.tokens))
        return hidden(model, batch, *more)

    scheduler = scheduler_of(replace(model, family=replace(model.family, hidden=seen)), n_slot=4)
    question = Question([5, 6])
    scheduler.submit(question.job())
    scheduler.step()
    finish(scheduler, *(Text([9] * 39) for _ in range(4)))
    assert max(sizes) == PREFILL_WHILE_DECODING and question.is_answered_as_alone(model)


def test_a_cancelled_text_is_dropped_within_a_layer(model):
    text, layers, hidden = Text(list(range(5, 40))), [], model.family.hidden

    def cancelling(model, batch, cache, kernels, tap):
        def watched(name, il, value):
            layers.append(il)
            text.handle.cancel()
            return tap(name, il, value)

        return hidden(model, batch, cache, kernels, watched)

    scheduler = scheduler_of(replace(model, family=replace(model.family, hidden=cancelling)), num_batch=8)
    finish(scheduler, text)
    assert isinstance(text.pieces[0], Cancelled) and layers == [-1]


# many texts, one piece


def last(vector, n=2):
    return Piece("", done_reason="stop", timings=Timings(prompt_eval_count=n), embeddings=(np.float32(vector),))


def test_vectors_are_delivered_together_in_the_order_of_the_texts():
    out = []
    vectors = Vectors(3, 0, RequestHandle(), out.append, lambda: out.append("released"))
    vectors.start(3, lambda i: None)
    vectors.add(2, last([0, 5])), vectors.add(0, last([2, 0]))
    assert out == []
    vectors.add(1, last([3, 4]))
    assert out[0] == "released" and out[1].timings.prompt_eval_count == 6
    np.testing.assert_array_equal(out[1].embeddings, np.float32([[1, 0], [0.6, 0.8], [0, 1]]))


def test_each_finished_text_submits_the_next():
    submitted, out = [], []
    vectors = Vectors(5, 0, RequestHandle(), out.append, lambda: None)
    vectors.start(2, submitted.append)
    assert submitted == [0, 1]
    vectors.add(1, last([1, 0]))
    assert submitted == [0, 1, 2]
    for i in (0, 2, 3):
        vectors.add(i, last([1, 0]))
    assert submitted == [0, 1, 2, 3, 4] and out == []
    vectors.add(4, last([1, 0]))
    assert len(out[0].embeddings) == 5


def test_the_first_error_cancels_the_other_texts_and_is_delivered():
    out, handle, submitted = [], RequestHandle(), []
    vectors = Vectors(9, 0, handle, out.append, lambda: out.append("released"))
    vectors.start(2, submitted.append)
    vectors.add(0, last([1, 0]))
    error = ModelError("the file became shorter")
    vectors.add(1, error)
    assert handle.cancelled and out == []
    vectors.add(2, handle.why())
    assert out == ["released", error] and submitted == [0, 1, 2]


# Engine.embed


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    engine = Engine(Settings(models=folder / "store", builtin=False))
    for name, more in {"m": {}, "e": {"llama__pooling_type": 1}, "r": {"llama__pooling_type": 4}}.items():
        digest, _ = engine.store.put_blob([tiny_gguf(folder / f"{name}.gguf", **more).read_bytes()])
        list(engine.create(name, files={f"{name}.gguf": digest}))
    yield engine
    engine.close()


def embedded(engine, *args, **more):
    (piece,) = engine.embed(*args, **more)
    return np.array(piece.embeddings)


@pytest.mark.parametrize("name", ["m", "e"])
def test_texts_in_one_request_have_the_vectors_of_each_alone(engine, name):
    texts = ["once", "upon a time", "", "there was a girl"] * 3
    together = embedded(engine, name, texts)
    assert together.shape == (12, 64) and together.dtype == np.float32
    for text, vector in zip(texts[:4], together, strict=False):
        assert embedded(engine, name, [text])[0].tobytes() == vector.tobytes()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_a_prompt_is_answered_before_many_texts_are_embedded(engine):
    """Texts are submitted a few at a time, so that a later request does not wait for all of them."""
    order = []
    many = engine.embed("m", ["there was a girl"] * 500, deliver=lambda piece: order.append("texts"))
    text = "".join(
        piece.text for piece in engine.generate("m", "once", RequestOptions({"num_predict": 5, "temperature": 0}))
    )
    order.append("answer")
    until(lambda: len(order) == 2)
    assert order == ["answer", "texts"] and text and not many.handle.cancelled


def test_an_embedding_is_the_pooled_unit_vector_of_the_text(engine):
    answer = engine.embed("e", ["once upon"])
    model = answer.model
    (piece,) = answer
    expected = unit_vector(by_hand(model, model.tokenizer.encode("once upon"), "mean", NUMBA))
    np.testing.assert_allclose(piece.embeddings[0], expected, rtol=0, atol=1e-6)
    assert piece.timings.prompt_eval_count == answer.n_prompt == len(model.tokenizer.encode("once upon"))


def test_an_empty_list_of_texts_only_loads(engine):
    answer = engine.embed("e", [], RequestOptions(keep_alive=0))
    assert answer.is_over and answer.done_reason == "load"
    assert not any(entry.model.name.model == "e" for entry in engine.pool.loaded())


def test_every_request_releases_the_model(engine):
    for texts, request, expected in (
        (["once", "upon"], RequestOptions(), None),
        (["once", "the " * 300], RequestOptions(truncate=False), ContextFull),
        (["once"], RequestOptions(options={"logit_bias": {"9999": 1}}), RequestError),
    ):
        try:
            list(engine.embed("m", texts, request))
            assert expected is None
        except RequestError as error:
            assert isinstance(error, expected)
        assert all(entry.n_using == 0 for entry in engine.pool.loaded())


def test_the_default_num_batch_of_an_embedding_model_is_2048(engine):
    def num_batch(name, **options):
        list(engine.embed(name, ["once"], RequestOptions(options)))
        return next(e.runner.options.num_batch for e in engine.pool.loaded() if e.model.name.model == name)

    assert (num_batch("e"), num_batch("e", num_batch=64), num_batch("m")) == (2048, 64, 512)


def test_a_disconnect_is_noticed_before_all_texts_are_tokenized(engine, monkeypatch):
    handle, seen = RequestHandle(), []

    def disconnecting(text, *more):
        seen.append(text)
        handle.cancel()
        return embedding_tokens(text, *more)

    monkeypatch.setattr("numllama.engine.serve.engine.embedding_tokens", disconnecting)
    with pytest.raises(Cancelled):
        engine.embed("m", ["a", "b", "c"], handle=handle)
    assert seen == ["a"] and not any(entry.n_using for entry in engine.pool.loaded())


def test_an_encoder_logs_no_warning_about_the_cache_type(tmp_path, caplog):
    engine = Engine(Settings(models=tmp_path / "store", builtin=False, kv_cache_type="q8_0"))
    for name, file in (("e", tiny_encoder(tmp_path / "e.gguf")), ("m", tiny_gguf(tmp_path / "m.gguf"))):
        list(engine.create(name, files={"x.gguf": engine.store.put_blob([file.read_bytes()])[0]}))
        embedded(engine, name, ["once"])
        assert [record.levelname for record in caplog.records if "cache" in record.name] == ["WARNING"] * (name == "m")
    engine.close()


def test_errors_of_embed_give_the_reason(engine):
    with pytest.raises(RequestError, match="the model is a reranker"):
        engine.embed("r", ["once"])
    with pytest.raises(ModelNotFound, match=r'^model "nope" not found, try pulling it first$'):
        engine.embed("nope", ["once"])
    with pytest.raises(ModelNotFound, match=r"^model '' not found$"):
        engine.embed("", ["once"])


def test_a_vector_that_is_not_finite_ends_the_request(engine, monkeypatch):
    monkeypatch.setattr(Pooled, "vector", lambda self: np.float32([np.nan]))
    with pytest.raises(RequestError, match="NaN or Inf"):
        list(engine.embed("e", ["once", "upon", "a", "time", "there", "was"]))
    assert all(entry.n_using == 0 for entry in engine.pool.loaded())


def test_an_embedding_model_never_computes_logits(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("an embedding model computed logits")

    monkeypatch.setattr("numllama.engine.serve.runner.logits", fail)
    monkeypatch.setattr("numllama.engine.run.scheduler.logits", fail)
    runner = Runner(load_model(tiny_gguf(tmp_path / "e.gguf", llama__pooling_type=1)), Options())
    runner.close()


# against llama.cpp for the same tokens: tests/golden


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("name", GOLDEN["ENCODERS"] | GOLDEN["DECODERS"])
def test_models_pool_as_llama_cpp_does(tmp_path, name, pooling):
    model, recorded = load_model(GOLDEN["make"](tmp_path, name, "F32")), np.load(GOLDEN["path_of"](name))
    scheduler = Scheduler(model, model.new_cache(N_CTX, type="f32"), GGML, num_batch=5)
    (text,) = finish(scheduler, Text(recorded["tokens"].tolist(), pooling))
    # float32 sums in other orders: measured 5e-6, and 2e-5 where one flips an index into GELU's float16 table
    atol = 1e-5 if name in ("llama", "qwen2", "nomic-bert") else 1e-3
    np.testing.assert_allclose(text.vector, recorded[pooling], rtol=0, atol=atol)


@pytest.mark.peer
@pytest.mark.parametrize("name", GOLDEN["DECODERS"])
def test_llama_cpp_still_gives_the_recorded_vectors(name):
    llama = LibLlama.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    expected, got = np.load(GOLDEN["path_of"](name)), GOLDEN["record"](llama, name)
    for key in set(got) - {"made_by"}:
        np.testing.assert_allclose(got[key], expected[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["none", "mean", "cls", "last"])
@pytest.mark.parametrize(
    ("name", "kernels", "atol"),
    [
        # measured 1e-5, at a deviation of 2; without flash attention
        *(("stories260K-F32", kernels, 1e-4) for name, kernels in SETS.items() if "llamacpp" not in name),
        *((f"tiny-spm-{quant}", GGML, 1e-4) for quant in ("Q4_0", "Q8_0")),  # measured 7e-7: the same roundings
        *((f"tiny-spm-{quant}", NUMBA, 1e-4) for quant in ("Q4_0", "Q8_0")),
        ("tiny256-Q4_K", GGML, 1e-4),
        ("tiny256-Q4_K", NUMBA, 1e-4),
        ("stories260K-Q8_0", GGML, 0.05),  # one activation lies between two roundings: 0.011, else 5e-5
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_decoders_embed_as_llama_cpp_does(kept, name, kernels, atol, pooling):
    model, recorded = load_model(kept.model(name)), kept.arrays(f"embed_{name}")
    for i in range(3):
        ids = recorded[f"ids_{i}"].tolist()
        batch, cache = Batch.of(ids, outputs=range(len(ids))), model.new_cache(len(ids), type="f32")
        got = model.family.hidden(model, batch, cache, kernels)
        if pooling != "none":
            pooled = Pooled(pooling, len(ids))
            pooled.add(got[list(pooled.outputs(0, len(ids)))])
            got = pooled.vector()
        np.testing.assert_allclose(got, recorded[f"{pooling}_{i}"], rtol=0, atol=atol)
        if pooling in ("mean", "last"):
            np.testing.assert_allclose(unit_vector(got), recorded[f"{pooling}_norm_{i}"], rtol=0, atol=atol)
