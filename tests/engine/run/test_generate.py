"""Generated texts against reference programs, and the rules by which they end."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import ContextFull
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.generate import generate, generate_uncached
from numllama.engine.run.request import complete
from numllama.engine.run.sequence import truncated
from numllama.engine.sampling.grammar import Grammars
from numllama.kernels import EXACT, GGML, NUMBA
from tiny import tiny_gguf

GREEDY = replace(Options(), temperature=0.0)


def text(model, prompt, options, type="f32", **more):
    cache = model.new_cache(options.num_ctx, type=type)
    return "".join(piece.text for piece in complete(model, prompt, options, cache=cache, **more))


def test_stories260k_prints_the_reference_program_s_text(kept):
    """karpathy's llama2.c prints its prompt, then the text, at temperature 0; its n counts positions."""
    expected = kept.path("stories260K/expected_stdout_t0_n200.txt").read_text()
    model = load_model(kept.model("stories260K-F32"))
    got = "Once upon a time" + text(model, "Once upon a time", replace(GREEDY, num_ctx=512, num_predict=200))
    assert got.startswith(expected.rstrip("\n")) and len(expected) > 400


def test_tinystories_prints_the_text_published_with_the_model(kept):
    for case in kept.json("tinystories-656k/published_llama_cpp_greedy"):
        model = load_model(kept.model(case["file"].removesuffix(".gguf")))
        options = replace(GREEDY, num_predict=case["new_tokens"])
        assert text(model, case["prompt"], options, kernels=EXACT) == case["text"]


@pytest.mark.parametrize("kernels", [GGML, NUMBA], ids=lambda kernels: kernels.name)
def test_tinystories_with_rounded_activations_is_llama_cpp_s_without_flash_attention(kept, kernels):
    """In the first published text the logits of the two likeliest tokens are once 0.017 apart, less than the error of
    8-bit activations.  There llama.cpp 0c1e57098 itself depends on flash attention; `expected` is its text without
    (-fa off -ctk f32 -ctv f32)."""
    expected = (
        ", a little girl named Lily lived in a small house with her mom. Lily loved to play with her toys and read her"
        " favorite book. One day, she found a big, round book in her room. It was shiny and shiny.\nLily wanted to show"
    )
    model = load_model(kept.model("TinyStories-656K-Q8_0"))
    got = text(model, "Once upon a time", replace(GREEDY, num_predict=32), kernels=kernels)
    assert len(got) > 150 and expected.startswith(got.rstrip())


@pytest.mark.parametrize("kernels", [EXACT, GGML], ids=lambda kernels: kernels.name)
def test_greedy_tokens_equal_the_recorded_ones_up_to_a_narrow_margin(kept, kernels):
    model = load_model(kept.model("stories260K-F32"))
    recorded = kept.arrays("logits_stories260K-F32")
    clear = int(np.argmax(recorded["greedy_margin"] < 1e-3)) or len(recorded["greedy_tokens"])
    pieces = complete(model, recorded["tokens"].tolist(), replace(GREEDY, num_predict=clear), kernels=kernels)
    assert [piece.token for piece in pieces][:-1] == recorded["greedy_tokens"][:clear].tolist()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=3))


def run(model, prompt, options, **more):
    *pieces, last = complete(model, prompt, options, **more)
    return pieces, last


@pytest.mark.parametrize("kernels", [EXACT, GGML, NUMBA], ids=lambda kernels: kernels.name)
def test_the_ids_without_a_cache_are_those_with_it(tiny, kernels):
    ids = tiny.tokenizer.encode("once upon a time there was a cat")
    for options in (
        replace(GREEDY, num_predict=7),
        Options(seed=5, num_predict=9),
        Options(seed=2, num_ctx=len(ids) + 3),
    ):
        expected = list(generate(tiny, ids, options, kernels=kernels))
        assert list(generate_uncached(tiny, ids, options, kernels=kernels)) == expected and len(expected) > 2


def test_num_predict_ends_the_text_with_reason_length(tiny):
    pieces, last = run(tiny, "once upon a time", replace(GREEDY, num_predict=5))
    assert len(pieces) == 5 and last.done_reason == "length"
    assert last.timings.eval_count == 5
    assert last.timings.prompt_eval_count == len(tiny.tokenizer.encode("once upon a time"))
    assert min(last.timings.prompt_eval_duration, last.timings.eval_duration, last.timings.load_duration) > 0


def test_a_stop_string_is_cut_across_tokens(tiny):
    whole = text(tiny, "the cat", replace(GREEDY, num_predict=30))
    stop = whole[7:12]
    pieces, last = run(tiny, "the cat", replace(GREEDY, num_predict=30, stop=(stop,)))
    got = "".join(piece.text for piece in (*pieces, last))
    assert last.done_reason == "stop" and got == whole[: whole.index(stop)]


def test_an_end_of_generation_token_ends_the_text_with_reason_stop(tiny):
    eog = min(tiny.tokenizer.eog)

    def force_eog(name, il, value):
        if name == "result_output":
            value = value.copy()
            value[:, eog] = 1e6
        return value

    pieces, last = run(tiny, "the cat", GREEDY, tap=force_eog)
    assert [piece.token for piece in pieces] == [eog] and last.done_reason == "stop"
    assert last.timings.eval_count == 1 and "".join(piece.text for piece in (*pieces, last)) == ""


def test_without_shift_a_full_window_ends_with_length(tiny):
    ids = tiny.tokenizer.encode("the cat and the dog")
    pieces, last = run(tiny, ids, replace(GREEDY, num_ctx=len(ids) + 6), shift=False)
    assert last.done_reason == "length" and len(ids) + len(pieces) == len(ids) + 6


def test_with_shift_generation_continues_beyond_the_window(tiny):
    _, last = run(tiny, "the cat", replace(GREEDY, num_ctx=16, num_predict=60))
    assert last.done_reason == "length" and last.timings.eval_count == 60


def test_a_prompt_longer_than_the_window_is_truncated_or_refused(tiny):
    ids = [tiny.tokenizer.bos, *range(10, 40)]
    _, last = run(tiny, ids, replace(GREEDY, num_ctx=16, num_predict=1))
    assert last.timings.prompt_eval_count == 16
    with pytest.raises(ContextFull, match="the input length exceeds the context length"):
        run(tiny, ids, replace(GREEDY, num_ctx=16), truncate=False)


def test_truncation_keeps_the_first_and_last_tokens():
    assert truncated(list(range(10)), 6, 2) == [0, 1, 6, 7, 8, 9]


@given(n=st.integers(1, 40), window=st.integers(4, 20), n_keep=st.integers(0, 50))
def test_truncation_fills_the_window_and_keeps_the_last_token(n, window, n_keep):
    got = truncated(list(range(n)), window, n_keep)
    assert len(got) == min(n, window) and got[-1] == n - 1 and got == sorted(got)


def test_num_batch_changes_nothing(tiny):
    texts = {
        text(tiny, "once upon a time a cat and a dog", replace(Options(), seed=7, num_predict=12, num_batch=n))
        for n in (1, 3, 512)
    }
    assert len(texts) == 1


def test_logprobs_ignore_temperature(tiny):
    pieces, _ = run(tiny, "the cat", replace(Options(), seed=1, num_predict=4, temperature=5.0), n_logprobs=3)
    for piece in pieces:
        assert piece.logprob.id == piece.token and piece.logprob.logprob <= 0
        top = [logprob for _, logprob in piece.logprob.top]
        assert len(top) == 3 and top == sorted(top, reverse=True) and top[0] >= piece.logprob.logprob


@pytest.mark.parametrize("options", [GREEDY, Options(seed=7, temperature=1.5), Options(seed=1, repeat_penalty=1.3)])
@pytest.mark.parametrize(("num_batch", "kernels"), [(512, NUMBA), (3, NUMBA), (3, GGML)])
def test_the_loop_and_a_request_sample_the_same_ids(tmp_path, options, num_batch, kernels):
    """generate() is the loop alone; complete() adds the features of a request."""
    model = load_model(tiny_gguf(tmp_path / "m.gguf"))
    ids = model.tokenizer.encode("once upon a time")
    options = replace(options, num_predict=20, num_ctx=64, num_batch=num_batch)
    expected = [piece.token for piece in complete(model, ids, options, kernels=kernels) if piece.token is not None]
    assert list(generate(model, ids, options, kernels=kernels)) == expected and len(expected) > 3


@pytest.mark.parametrize("grammar", [None, "json"])
def test_an_answer_has_the_tokens_that_min_tokens_and_ignore_eos_ask_for(tiny, grammar):
    """Logits that favour the closing token end every answer at once, unless it may not be sampled."""
    ends = replace(GREEDY, num_predict=12, logit_bias=((tiny.tokenizer.eos, 100.0),))

    def kinds(**more):
        matched = Grammars(tiny.tokenizer).grammar(grammar) if grammar else None
        pieces = list(complete(tiny, "the cat", replace(ends, **more), grammar=matched))
        return [piece.token in tiny.tokenizer.eog for piece in pieces if piece.token is not None], pieces[
            -1
        ].done_reason

    if not grammar:
        assert kinds() == ([True], "stop")
    free = [False] * 5
    n_free, reason = kinds(min_tokens=5)
    assert n_free[:5] == free and (grammar or (n_free, reason) == ([*free, True], "stop"))
    assert kinds(ignore_eos=True) == ([False] * 12, "length")


def test_the_loop_ends_where_the_window_is_full(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "m.gguf"))
    ids = [1, 5, 9]
    assert len(list(generate(model, ids, replace(GREEDY, num_ctx=10, logit_bias=((model.tokenizer.eos, -1e30),))))) == 7


def test_the_loop_s_window_ends_where_the_model_s_training_did(tmp_path):
    model = load_model(tiny_gguf(tmp_path / "m.gguf", n_ctx=12))
    options = replace(GREEDY, num_ctx=4096, logit_bias=((model.tokenizer.eos, -1e30),))
    assert len(list(generate(model, [1, 5, 9], options))) == 9
