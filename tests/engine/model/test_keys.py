"""Keys that some architectures read, against logits that llama.cpp computed (tests/golden/make_keys.py)."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from libllama import LibLlama
from tiny_encoder import tiny_encoder

from numllama.engine.errors import BadGGUF, RequestError
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.kernels import SETS
from tiny import tiny_gguf

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_keys.py"))
TOKENS, COLUMNS = GOLDEN["TOKENS"], GOLDEN["COLUMNS"]
RECORDED = np.load(GOLDEN["PATH"])


def logits(path, kernels="numpy-float64"):
    model, n = load_model(path), len(TOKENS)
    cache = model.new_cache(256, type="f64" if kernels == "numpy-float64" else "f32")
    return forward(model, Batch.of(TOKENS, outputs=range(n)), cache, SETS[kernels])


@pytest.mark.parametrize("case", GOLDEN["CASES"])
def test_logits_match_llama_cpp(tmp_path, case):
    got = logits(GOLDEN["make"](tmp_path / "keys.gguf", case))[:, COLUMNS]
    # measured 4e-6; 5e-3 for gemma, whose GELU comes from a float16 table in ggml
    np.testing.assert_allclose(got, RECORDED[case], rtol=0, atol=2e-2 if case.startswith("gemma") else 2e-5)


@pytest.mark.parametrize("kernels", ["exact", "ggml", *(["numba"] if "numba" in SETS else [])])
def test_every_kernel_set_looks_ahead_where_attention_is_not_causal(tmp_path, kernels):
    got = logits(GOLDEN["make"](tmp_path / "keys.gguf", "qwen3 not causal"), kernels)[:, COLUMNS]
    np.testing.assert_allclose(got, RECORDED["qwen3 not causal"], rtol=0, atol=1e-4)


def test_a_model_without_causal_attention_embeds_whole_texts_and_generates_none(tmp_path):
    """A text longer than a batch is still one chunk: its vector is that of one forward pass."""
    from numllama.engine.handle import RequestHandle
    from numllama.engine.run.embed import embedding_job
    from numllama.engine.run.scheduler import Scheduler

    keys = {"llama__attention__causal": False, "llama__pooling_type": 1}
    model = load_model(tiny_gguf(tmp_path / "tiny.gguf", **keys))
    scheduler, delivered = Scheduler(model, model.new_cache(64), SETS["exact"], num_batch=5), []
    scheduler.submit(embedding_job(RequestHandle(), TOKENS, Options(), "mean", delivered.append))
    while not scheduler.idle:
        scheduler.step()
    batch = Batch.of(TOKENS, outputs=range(len(TOKENS)))
    rows = model.family.hidden(model, batch, model.new_cache(64), SETS["exact"])
    np.testing.assert_allclose(delivered[-1].embeddings[0], rows.mean(axis=0), rtol=0, atol=1e-6)
    with pytest.raises(RequestError, match=r"its key 'llama\.attention\.causal' is false"):
        next(complete(model, "hello"))


def test_an_encoder_attends_to_the_whole_text_whatever_its_file_says(tmp_path):
    """llama.cpp's vector of a text is the same for both values of the key."""
    models = [load_model(tiny_encoder(tmp_path / "m.gguf", "bert", bert__attention__causal=c)) for c in (True, False)]
    batch = Batch.of([2, 5, 6, 7], outputs=range(4))
    one, two = (model.family.hidden(model, batch, model.new_cache(8), SETS["exact"]) for model in models)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("key", ["attention.causal", "rope.scaling.finetuned"])
def test_a_flag_of_another_type_is_refused(tmp_path, key):
    path = tiny_gguf(tmp_path / "tiny.gguf", "granite", **{f"granite__{key}".replace(".", "__"): 1})
    with pytest.raises(BadGGUF, match=f"key 'granite.{key}' is 1, expected a bool"):
        load_model(path)


@pytest.mark.peer
def test_llama_cpp_still_gives_the_recorded_logits():
    llama = LibLlama.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libllama.so")
    for case, expected in GOLDEN["record"](llama).items():
        np.testing.assert_allclose(RECORDED[case], expected, rtol=0, atol=1e-5)
