"""The front door: what `import numllama` gives, against the engine below it."""

import subprocess
import sys

import numpy as np
import pytest
from adapters import tiny_lora
from tiny_encoder import tiny_encoder

import numllama
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.kernels import NUMBA
from tiny import CHAT_TEMPLATE, tiny_gguf

GREEDY = {"temperature": 0, "num_predict": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_gguf(tmp_path_factory.mktemp("front") / "m.gguf", chat_template=CHAT_TEMPLATE)
    with numllama.load(path, num_ctx=64) as model:
        yield model


@pytest.fixture(scope="module")
def primer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_MODELS", str(tmp_path_factory.mktemp("empty")))
        patch.delenv("NUMLLAMA_BUILTIN", raising=False)
        with numllama.load("primer") as model:
            yield model


def modules_of(code, *names):
    """Return which of the modules `names` a new process loads that runs `code`."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sorted({{*{names}}} & set(sys.modules)))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_importing_takes_no_heavy_library():
    assert modules_of("import numllama", "numpy", "numba", "fastapi", "tokenizers") == []


def test_an_answer_takes_no_library_of_transfers_and_images():
    """httpx loads click, rich and pygments with its own command line: 8 MiB and 60 ms of every server."""
    assert modules_of("import numllama.engine.serve.engine", "httpx", "rich", "PIL") == []


def test_an_answer_takes_the_library_of_its_own_vocabulary_alone(model):
    """llguidance takes 3 MiB, which only answers with a format need; tokenizers 5, sentencepiece 2."""
    path = str(model.stored.weights)
    answer = f"import numllama; str(numllama.load({path!r}, num_ctx=64).generate('a', num_predict=2))"
    assert modules_of(answer, "llguidance", "tokenizers", "sentencepiece") == ["sentencepiece"]


def test_primer_answers(primer):
    reply = primer.generate("Why is the grass green?", temperature=0)
    assert "chlorophyll" in str(reply) and reply.done_reason == "stop"
    assert "".join(reply) == str(reply) == reply.text  # read twice
    assert repr(reply).startswith("<Reply 'Grass is green") and reply.timings.eval_count == len(reply.ids)


def test_a_raw_prompt_is_the_completion_of_its_text(model):
    pieces = list(complete(model.model, "once upon a time", Options(temperature=0, num_predict=6, num_ctx=64)))
    reply = model.generate("once upon a time", raw=True, **GREEDY)
    assert reply.ids == [piece.token for piece in pieces[:-1]] and str(reply) == "".join(p.text for p in pieces)


def test_a_chat_is_the_generation_of_its_template(model):
    messages = [{"role": "user", "content": "hello"}]
    prompt = model.template(messages)
    assert prompt == model.template("hello") != "hello"
    reply = model.chat(messages, **GREEDY)
    assert reply.prompt == prompt and reply.ids == model.generate(prompt, raw=True, **GREEDY).ids
    assert reply.message == {"role": "assistant", "content": reply.text}


def test_pieces_come_before_the_end(model):
    reply = model.generate("once", raw=True, temperature=0, num_predict=50)
    first = next(reply.pieces())
    assert first.done_reason is None and "being generated" in repr(reply)
    reply.close()


def test_text_becomes_ids_and_back(model):
    ids = model.encode("once upon a time")
    assert ids == model.model.tokenizer.encode("once upon a time") and ids[1:] == model.encode(
        "once upon a time", special=False
    )
    assert "once upon a time" in model.decode(ids)
    assert "".join(model.pieces(ids[1:])).strip() == "once upon a time"


def test_logits_are_those_of_one_forward_pass(model):
    ids = model.encode("once upon")
    expected = forward(
        model.model, Batch.of(ids, outputs=range(len(ids))), model.model.new_cache(64, type="f32"), NUMBA
    )
    np.testing.assert_array_equal(model.logits(ids), expected)
    np.testing.assert_array_equal(model.logits("once upon"), expected)
    exact = model.logits(ids, kernels="numpy-float64")
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, expected, atol=0.05)  # 8-bit activations


def test_a_trace_has_the_values_by_name(model):
    trace = model.trace("once upon", "l_out", "result_output")
    assert list(trace.values) == [("l_out", 0), ("l_out", 1), ("result_output", -1)]
    np.testing.assert_array_equal(trace["result_output"][0], model.logits("once upon")[-1])
    assert repr(trace) == "<Trace: 3 values: l_out, result_output>"
    html = trace._repr_html_()
    assert html.count("<tr>") == 4 and "<td>result_output</td><td></td>" in html
    weights = model.trace("once upon", "kq_soft_max")["kq_soft_max", 0]  # inside attention: NumPy's kernels
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


def test_vectors_have_length_1(model, tmp_path):
    two = model.embed(["once upon", "a time"])
    assert two.shape == (2, model.model.hparams.n_embd)
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.embed("a time"), two[1])
    assert model.embed([]).shape == (0, model.model.hparams.n_embd)
    with numllama.load(tiny_encoder(tmp_path / "bert.gguf")) as bert:
        assert bert.embed("the cat").shape == (bert.model.hparams.n_embd,)
        with pytest.raises(numllama.EngineError, match="does not support generate"):
            bert.generate("a")
        with pytest.raises(numllama.EngineError, match="is an encoder"):
            bert.logits("a")


def test_representations_are_one_line(model, primer):
    cache = model.model.new_cache(64, 2)
    for thing in (model, primer, model.model, model.model.tokenizer, cache, Batch.of([1, 2]), model.model.weights):
        assert len(repr(thing)) < 160 and "\n" not in repr(thing)
    assert repr(cache) == "<KVCache: 2 layers, 2 slots of 64 positions, f16, 0.0 MiB>"
    assert repr(Batch.of([1, 2])) == "<Batch: 2 tokens in 1 spans, 1 outputs>"
    assert repr(model).startswith("<LanguageModel m.gguf: llama, ") and repr(model).endswith("2 layers, window 64>")


def test_a_window_is_taken_from_load(model):
    assert model._loaded.runner.options.num_ctx == 64
    assert model.generate("once", raw=True, temperature=0, num_predict=3).timings.eval_count == 3
    assert len(model.engine.pool.loaded()) == 1 and model.engine.pool.loaded()[0] is model._loaded  # never loaded again


def test_an_adapter_goes_with_a_file(tmp_path):
    path = tiny_gguf(tmp_path / "m.gguf")
    with numllama.load(path) as plain, numllama.load(path, adapters=[tiny_lora(tmp_path / "a.gguf", path)]) as adapted:
        assert not np.array_equal(plain.logits([1, 5]), adapted.logits([1, 5]))


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    with pytest.raises(
        numllama.EngineError, match="'nope' is neither a GGUF file nor an installed model; installed: primer"
    ):
        numllama.load("nope")
    with pytest.raises(numllama.EngineError, match=r"nope\.gguf: no such file"):
        numllama.load(tmp_path / "nope.gguf")
    with pytest.raises(numllama.EngineError, match="unknown kernel set 'x'; choose from"):
        numllama.load("primer", kernels="x")
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = numllama.nope
