"""Echo: each token of the prompt with its log-probability."""

import math
from dataclasses import replace

import numpy as np
import pytest

from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.kernels import NUMBA
from tiny import tiny_gguf

PROMPT = "once upon a time there was"
ECHO_ONLY = Options(num_predict=0, num_ctx=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("echo") / "tiny.gguf", seed=5))


def echo(model, prompt=PROMPT, options=ECHO_ONLY, n_logprobs=0):
    *pieces, last = complete(model, prompt, options, echo=True, n_logprobs=n_logprobs)
    return pieces, last


def test_every_token_of_the_prompt_is_echoed_and_none_follows(model):
    pieces, last = echo(model)
    assert [piece.token for piece in pieces] == model.tokenizer.encode(PROMPT)
    assert last.done_reason == "length" and last.timings.eval_count == 0
    assert "".join(piece.text for piece in pieces).endswith(PROMPT)


def test_a_probability_is_the_softmax_of_the_preceding_logits(model):
    pieces, _ = echo(model)
    ids = [piece.token for piece in pieces]
    logits = forward(model, Batch.of(ids, outputs=range(len(ids))), model.new_cache(64), NUMBA)
    p = np.exp(logits.astype(np.float64))
    expected = np.log(p / p.sum(axis=1, keepdims=True))[np.arange(len(ids) - 1), ids[1:]]
    assert math.isnan(pieces[0].logprob.logprob)
    np.testing.assert_allclose([piece.logprob.logprob for piece in pieces[1:]], expected, atol=1e-5)  # float32 logits


@pytest.mark.parametrize("num_batch", [1, 3, 512])
def test_num_batch_changes_no_logprob(model, num_batch):
    expected = [piece.logprob for piece in echo(model, n_logprobs=3)[0][1:]]
    got = [piece.logprob for piece in echo(model, options=replace(ECHO_ONLY, num_batch=num_batch), n_logprobs=3)[0][1:]]
    assert got == expected


def test_an_echo_does_not_change_the_answer(model):
    options = Options(num_predict=6, num_ctx=64, temperature=1.5, seed=4)
    *expected, last = complete(model, PROMPT, options, n_logprobs=2)
    pieces, echoed_last = echo(model, options=options, n_logprobs=2)
    assert pieces[-6:] == expected and echoed_last.timings.eval_count == last.timings.eval_count == 6


def test_a_prompt_of_one_token_has_no_probability(model):
    [piece], _ = echo(model, [model.tokenizer.bos])
    assert math.isnan(piece.logprob.logprob) and piece.text == "<s>"
