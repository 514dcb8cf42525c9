"""BERT models behind /api/embed: texts enclosed in [CLS] and [SEP], also after truncation."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_encoder import tiny_encoder

from numllama.engine.model.batch import Batch
from numllama.engine.model.load import load_model
from numllama.engine.run.embed import unit_vector
from numllama.kernels import NUMBA

CLS, SEP = 2, 3
FAMILIES = {
    "bert": {"pooling": "cls"},
    "nomic-bert": {"family": "nomic-bert", "pooling": "mean", "gate": "apart", "fused": True, "bias": False},
    "jina-bert-v2": {"family": "jina-bert-v2", "pooling": "last", "gate": "within"},
}


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, served, models):
    """Serve an encoder -> (name, model)."""
    path = tiny_encoder(models / f"{request.param}.gguf", quant="F16", **FAMILIES[request.param])
    served.add(request.param, path)
    return request.param, load_model(path)


def pooled(model, tokens, pooling=""):
    """Compute the expected vector, with the file's pooling or this one, normalized to length 1."""
    batch = Batch.of(tokens, outputs=range(len(tokens)))
    rows = model.family.hidden(model, batch, model.new_cache(64), NUMBA)
    return unit_vector({"cls": rows[0], "last": rows[-1], "mean": rows.mean(0)}[pooling or model.hparams.pooling])


def test_a_text_is_enclosed_in_cls_and_sep(served, encoder):
    name, model = encoder
    tokens = [CLS, *model.tokenizer.encode("hello little dog", add_special=False), SEP]
    (got,) = served.ok("/api/embed", model=name, input="hello little dog")["embeddings"]
    np.testing.assert_allclose(got, pooled(model, tokens), rtol=0, atol=1e-6)


def test_a_long_text_is_truncated_before_its_sep(served, encoder):
    name, model = encoder
    text = "the little dog went up the hill once upon a time " * 20
    tokens = [CLS, *model.tokenizer.encode(text, add_special=False)[:62], SEP]  # the context has 64 positions
    answer = served.ok("/api/embed", model=name, input=text)
    assert answer["prompt_eval_count"] == 64
    np.testing.assert_allclose(answer["embeddings"][0], pooled(model, tokens), rtol=0, atol=1e-6)


def test_a_batch_gives_the_same_bits_as_single_texts(served, encoder):
    name, _ = encoder
    texts = [" ".join(["the dog and a cat"] * n) for n in (1, 3, 2, 9, 1, 5, 4, 7, 2)] + [""]
    together = served.ok("/api/embed", model=name, input=texts)["embeddings"]
    assert together == [served.ok("/api/embed", model=name, input=text or [""])["embeddings"][0] for text in texts]


def test_an_encoder_has_the_embedding_capability_and_does_not_generate(served, encoder):
    name, _ = encoder
    shown = served.ok("/api/show", model=name)
    assert shown["capabilities"] == ["embedding"] and shown["details"]["family"] == name
    answer = served.post("/api/generate", model=name, prompt="x")
    assert (answer.status_code, answer.json()) == (400, {"error": f'"{name}" does not support generate'})
    (entry,) = (entry for entry in served.client.get("/api/ps").json()["models"] if entry["model"] == f"{name}:latest")
    assert entry["context_length"] == 64


def test_an_encoder_without_a_pooling_type_uses_mean_pooling(served, models):
    served.add("plain", tiny_encoder(models / "plain.gguf", pooling=""))
    assert served.ok("/api/show", model="plain")["capabilities"] == ["embedding"]
    (got,) = served.ok("/api/embed", model="plain", input="hello")["embeddings"]
    model = load_model(models / "plain.gguf")
    np.testing.assert_allclose(got, pooled(model, model.tokenizer.encode("hello"), "mean"), rtol=0, atol=1e-6)
