"""Unmodified clients for embeddings: each gets the vectors of /api/embed."""

from __future__ import annotations

import base64
import gc
import warnings

import numpy as np
import pytest

# These libraries emit warnings about their own code.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
TEXTS = ["the little dog", "", "once" + " upon a time" * 5]


@pytest.fixture(autouse=True)
def sockets_are_left_to_the_collector():
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@pytest.fixture(scope="module")
def expected(served):
    return np.float32(served.ok("/api/embed", model="e", input=TEXTS)["embeddings"])


def same(got, expected):
    np.testing.assert_array_equal(np.float32(got), expected)


def test_ollama(served, expected):
    ollama = pytest.importorskip("ollama")
    with ollama.Client(host=served.url) as client:
        same(client.embed("e", TEXTS).embeddings, expected)
        same(client.embed("e", TEXTS[0]).embeddings, expected[:1])
        same(client.embeddings("e", TEXTS[0]).embedding, expected[0])
        assert len(client.embed("e", TEXTS[0], dimensions=8, truncate=True).embeddings[0]) == 8
        with pytest.raises(ollama.ResponseError, match="the input length exceeds the context length"):
            client.embed("e", "the dog " * 300, truncate=False)


@pytest.mark.parametrize("how", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
def test_openai(served, expected, how):
    """The client requests base64 by default."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.embeddings.create(model="e", input=TEXTS, **how)
        got = [item.embedding for item in answer.data]
        if how.get("encoding_format") == "base64":
            got = [np.frombuffer(base64.b64decode(text), "<f4") for text in got]
        same(got, expected)
        assert [item.index for item in answer.data] == [0, 1, 2] and answer.usage.total_tokens > 10
        assert len(client.embeddings.create(model="e", input="x", dimensions=4).data[0].embedding) == 4
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="nope", input="x")


def test_langchain(served, expected):
    embeddings = pytest.importorskip("langchain_ollama").OllamaEmbeddings(model="e", base_url=served.url)
    same(embeddings.embed_documents(TEXTS), expected)
    same(embeddings.embed_query(TEXTS[0]), expected[0])


def test_llama_index(served, expected):
    module = pytest.importorskip("llama_index.embeddings.ollama")
    embedding = module.OllamaEmbedding(model_name="e", base_url=served.url)
    same(embedding.get_text_embedding_batch([TEXTS[0], TEXTS[2]]), expected[[0, 2]])
    same(embedding.get_query_embedding(TEXTS[0]), expected[0])


@pytest.mark.parametrize("name", ["ollama/e", "openai/e"])
def test_litellm(served, expected, name, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # without it, the library downloads a price list
    litellm = pytest.importorskip("litellm")
    how = (
        {"api_base": served.url} if name == "ollama/e" else {"api_base": f"{served.url}/v1", "encoding_format": "float"}
    )
    answer = litellm.embedding(name, TEXTS, api_key="unused", **how)
    same([item["embedding"] for item in answer.data], expected)
