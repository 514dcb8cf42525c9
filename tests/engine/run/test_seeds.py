"""Sampled and greedy texts against those that Ollama generated with a small trained model and the same seeds.

Recorded on stories260K-F32 with an f32 cache and without flash attention, so that no float16 rounding occurs.
"""

import pytest

from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.request import complete


@pytest.fixture(scope="module")
def model(kept):
    return load_model(kept.model("stories260K-F32"))


def prompts(kept, transcript):
    """Yield each recorded (request, answer) of /api/generate with a plain prompt."""
    for step in kept.json(f"transcripts/{transcript}")["steps"]:
        request, answer = step["send"].get("body") or {}, step["got"].get("json") or {}
        if step["send"]["path"] == "/api/generate" and "response" in answer and "context" not in request:
            if "ours" not in step:
                yield request, answer


def pieces(model, request, base):
    options = Options.parse(base, request["options"])
    n_logprobs = request.get("top_logprobs") if request.get("logprobs") else None
    cache = model.new_cache(options.num_ctx, type="f32")
    shift = request.get("shift", True)
    return list(complete(model, request["prompt"], options, cache=cache, shift=shift, n_logprobs=n_logprobs))


def differing(model, recorded, base):
    """Yield (options, expected, got) wherever text, done_reason or eval_count differ from the recording."""
    for request, answer in recorded:
        *body, last = pieces(model, request, base)
        got = "".join(piece.text for piece in body) + last.text, last.done_reason, last.timings.eval_count
        expected = answer["response"], answer["done_reason"], answer["eval_count"]
        if got != expected:
            yield request["options"], expected, got


def test_a_seed_gives_the_same_text_as_in_ollama(kept, model):
    recorded = list(prompts(kept, "seeds"))
    assert len(recorded) == 27
    assert list(differing(model, recorded, {})) == []


def test_greedy_texts_equal_ollama_s(kept, model):
    recorded = list(prompts(kept, "greedy"))
    assert len(recorded) >= 11  # penalties, stop strings, a window that fills and shifts
    assert list(differing(model, recorded, {"temperature": 0})) == []


@pytest.mark.parametrize(("transcript", "base"), [("seeds", {}), ("greedy", {"temperature": 0})])
def test_logprobs_equal_ollama_s(kept, model, transcript, base):
    (request, answer), *_ = [pair for pair in prompts(kept, transcript) if pair[0].get("logprobs")]
    for piece, expected in zip(pieces(model, request, base), answer["logprobs"], strict=False):
        assert model.tokenizer.piece(piece.token) == bytes(expected["bytes"])
        assert piece.logprob.logprob == pytest.approx(expected["logprob"], abs=2e-5)
        got = [model.tokenizer.piece(id) for id, _ in piece.logprob.top]
        assert got == [bytes(top["bytes"]) for top in expected["top_logprobs"]]
        for (_, logprob), top in zip(piece.logprob.top, expected["top_logprobs"], strict=True):
            assert logprob == pytest.approx(top["logprob"], abs=2e-5)  # logits differ by about 1e-5 between the engines
