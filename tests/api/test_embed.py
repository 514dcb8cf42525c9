"""/api/embed, /api/embeddings and /v1/embeddings; docs/compatibility.md, "Embed"."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest
from serving import until
from tiny_encoder import ENCODERS, tiny_encoder

WIDTH = 64


def vectors(served, **body):
    return np.array(served.ok("/api/embed", **body)["embeddings"], np.float32)


@pytest.mark.parametrize("body", [{"input": ""}, {"input": []}, {"input": None}, {}], ids=str)
def test_104_no_input_only_loads_the_model(served, body):
    assert served.ok("/api/embed", model="e", **body) == {"model": "e", "embeddings": []}
    assert "e:latest" in [entry["name"] for entry in served.client.get("/api/ps").json()["models"]]


def test_105_an_empty_text_among_others_is_a_text(served):
    assert vectors(served, model="e", input=[""]).shape == (1, WIDTH)


def test_106_the_tokens_of_all_texts_are_counted(served):
    first, second = (served.ok("/api/embed", model="e", input=text)["prompt_eval_count"] for text in ("the dog", "boy"))
    both = served.ok("/api/embed", model="e", input=["the dog", "boy"])
    assert both["prompt_eval_count"] == first + second
    assert list(both) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert both["total_duration"] > both["load_duration"] > 0


def test_107_a_text_too_long_is_truncated_or_refused(served):
    long, small = "the dog and the boy " * 20, {"num_ctx": 16}
    answer = served.post("/api/embed", model="e", input=["a", long], truncate=False, options=small)
    assert (answer.status_code, answer.json()) == (400, {"error": "the input length exceeds the context length"})
    assert served.ok("/api/embed", model="e", input=long, options=small)["prompt_eval_count"] == 16


def test_108_fewer_dimensions_have_length_one_again(served):
    whole, (eight,) = (
        vectors(served, model="e", input="the dog")[0],
        vectors(served, model="e", input="the dog", dimensions=8),
    )
    assert eight.shape == (8,)
    np.testing.assert_allclose(eight, whole[:8] / np.linalg.norm(whole[:8]), rtol=1e-6)
    for all_of_them in (0, -1, WIDTH, 1000):
        np.testing.assert_array_equal(vectors(served, model="e", input="the dog", dimensions=all_of_them)[0], whole)


def test_109_a_batch_gives_the_same_bits_as_single_texts(served):
    texts = ["the dog", "", "once upon a time " * 9, "boy"] * 4
    together = served.ok("/api/embed", model="e", input=texts)["embeddings"]
    assert together == [served.ok("/api/embed", model="e", input=[text])["embeddings"][0] for text in texts]


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
def test_110_a_missing_model_is_a_404_with_advice_to_pull(served, path):
    answer = served.post(path, model="x", input="a", prompt="a")
    assert (answer.status_code, answer.json()) == (404, {"error": 'model "x" not found, try pulling it first'})


def test_111_the_old_route_returns_one_vector_and_nothing_else(served):
    vector = vectors(served, model="e", input="the dog")[0]
    assert served.ok("/api/embeddings", model="e", prompt="the dog") == {"embedding": vector.astype(float).tolist()}
    for body in ({"prompt": ""}, {}):
        assert served.ok("/api/embeddings", model="e", **body) == {"embedding": []}


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [("/api/embeddings", 400, "model is required"), ("/api/embed", 404, "model '' not found")],
)
def test_112_a_model_must_be_named(served, path, status, text):
    answer = served.post(path, input="a", prompt="a")
    assert (answer.status_code, answer.json()) == (status, {"error": text})


def test_113_a_text_model_embeds_too(served):
    assert vectors(served, model="bare", input=["the dog", "boy"]).shape == (2, WIDTH)


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "jina-bert-v2"])
def test_encoders_embed(served, tmp_path, name):
    path = tmp_path / f"{name}.gguf"
    tiny_encoder(path, **ENCODERS[name])
    served.add(name, path)
    texts = ["the dog", "", "once upon a time there was a little girl"] * 30
    together = vectors(served, model=name, input=texts)
    assert together.shape == (90, 96)
    np.testing.assert_array_equal(together[:3], [vectors(served, model=name, input=[text])[0] for text in texts[:3]])
    assert served.post("/api/chat", model=name, messages=[{"role": "user", "content": "x"}]).status_code == 400


def test_an_embedding_model_does_not_generate(served):
    for path, verb, asked in (
        ("generate", "generate", {"prompt": "x"}),
        ("chat", "chat", {"messages": [{"role": "user"}]}),
    ):
        answer = served.post(f"/api/{path}", model="e", **asked)
        assert (answer.status_code, answer.json()) == (400, {"error": f'"e" does not support {verb}'})


@pytest.mark.parametrize("wrong", [1, {"a": 1}, [1], ["a", 1], [["a"]], True, [None]], ids=str)
def test_invalid_input_is_refused(served, wrong):
    answer = served.post("/api/embed", model="e", input=wrong)
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid input type"})


def test_numbers_have_the_digits_of_a_float32(served):
    text = served.post("/api/embed", model="e", input="the dog").text
    numbers = text[text.index("[[") + 2 : text.index("]]")].split(",")
    assert all(len(number.lstrip("-0.").partition("e")[0]) <= 10 for number in numbers) and len(numbers) == WIDTH


def test_205_openai_base64_has_the_same_vectors(served):
    body = {"model": "e", "input": ["the dog", "boy"]}
    answer = served.ok("/v1/embeddings", **body)
    n = served.ok("/api/embed", **body)["prompt_eval_count"]
    assert answer | {"data": ...} == {
        "object": "list",
        "data": ...,
        "model": "e",
        "usage": {"prompt_tokens": n, "total_tokens": n},
    }
    assert [item | {"embedding": ...} for item in answer["data"]] == [
        {"object": "embedding", "embedding": ..., "index": i} for i in range(2)
    ]
    expected = vectors(served, **body)
    np.testing.assert_array_equal(np.float32([item["embedding"] for item in answer["data"]]), expected)
    for word in ("base64", "BASE64"):
        packed = served.ok("/v1/embeddings", **body, encoding_format=word)["data"]
        got = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed]
        np.testing.assert_array_equal(got, expected)


def test_the_openai_route_accepts_an_empty_text_dimensions_and_options(served):
    (item,) = served.ok("/v1/embeddings", model="e", input="", dimensions=3)["data"]
    assert len(item["embedding"]) == 3
    long = served.ok("/v1/embeddings", model="e", input="the dog " * 50, options={"num_ctx": 16})
    assert long["usage"]["total_tokens"] == 16


def test_token_ids_are_embedded_as_their_text(served):
    """Ids stand for themselves: nothing is added to them.  Ollama's own route takes none."""
    texts = ["the dog", "once upon a time"]
    ids = [served.ok("/api/tokenize", model="e", content=text, add_special=True)["tokens"] for text in texts]
    expected = served.ok("/v1/embeddings", model="e", input=texts)
    assert served.ok("/v1/embeddings", model="e", input=ids) == expected
    assert served.ok("/v1/embeddings", model="e", input=ids[0])["data"] == expected["data"][:1]
    assert served.ok("/v1/embeddings", model="e", input=[texts[0], ids[1]]) == expected
    cut = served.ok("/v1/embeddings", model="e", input=ids[1] * 9, options={"num_ctx": len(ids[1])})
    assert cut["data"][0]["embedding"] == expected["data"][1]["embedding"]


@pytest.mark.parametrize("num_ctx", [0, 1, 2, 3])
def test_a_window_below_four_tokens_counts_for_texts(served, num_ctx):
    """A model's window has at least 4 positions, but a text is cut to num_ctx tokens, of which BOS is one."""
    body = {"model": "e", "input": "the dog and the boy", "options": {"num_ctx": num_ctx}}
    answer = served.post("/api/embed", **body)
    if num_ctx < 2:
        expected = (400, {"error": "input after truncation exceeds maximum context length"})
        assert (answer.status_code, answer.json()) == expected
    else:
        assert answer.json()["prompt_eval_count"] == num_ctx
    refused = served.post("/api/embed", **body, truncate=False)
    assert (refused.status_code, refused.json()) == (400, {"error": "the input length exceeds the context length"})


def test_a_disconnect_cancels_the_remaining_texts(served, slowly):
    """All texts would take 10 s: 4 at a time, at least 5 ms each."""
    vectors(served, model="e", input="the model is loaded")
    with pytest.raises(httpx.ReadTimeout):
        served.client.post("/api/embed", json={"model": "e", "input": ["the dog"] * 8000}, timeout=0.3)
    (entry,) = [entry for entry in served.engine.pool.loaded() if entry.model.name.model == "e"]
    until(lambda: entry.runner.scheduler.idle and not entry.n_using)


def test_metrics_count_the_texts(served):
    def counted(name):
        lines = served.client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name))

    before = counted("numllama_embeddings_total"), counted("numllama_prompt_tokens_total")
    n = served.ok("/api/embed", model="e", input=["the dog", "boy"])["prompt_eval_count"]
    assert counted("numllama_embeddings_total") == before[0] + 2
    assert counted("numllama_prompt_tokens_total") == before[1] + n
