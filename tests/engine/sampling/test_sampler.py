"""The whole chain: the same tokens as llama.cpp, one random number each, and robust against any input."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import BadOptions, ModelError
from numllama.engine.options import Options
from numllama.engine.sampling import Sampler

RECORDED = json.loads(Path(__file__).with_name("llama_cpp.json").read_text())
N_VOCAB = 50


def rows(n, n_vocab=N_VOCAB, seed=0):
    """Return n rows of plausible logits, f32 [n, n_vocab]"""
    return (np.random.default_rng(seed).standard_normal((n, n_vocab)) * 2.5).astype(np.float32)


def tokens(options, logits, masks=None):
    sampler, recent = Sampler(Options.parse({"seed": 7}, options), logits.shape[1]), []
    for i, row in enumerate(logits):
        recent.append(sampler.sample(row, recent, None if masks is None else masks[i]))
    return recent


@pytest.mark.parametrize("case", RECORDED, ids=range(len(RECORDED)))
def test_sampled_tokens_equal_those_of_llama_cpp(case):
    """Compare with record_llama_cpp.py's output, which is based on the same logits."""
    sampler, picks = Sampler(Options.parse(case["options"]), 3000), []
    for step in range(len(case["picks"])):
        logits = (np.random.RandomState(1000 + step).standard_normal(3000) * 2.5).astype(np.float32)
        logits[:8] += 6
        picks.append(sampler.sample(logits, picks))
    assert picks == case["picks"]


def test_equal_seeds_give_equal_tokens_and_others_differ():
    logits = rows(40)
    assert tokens({"seed": 3}, logits) == tokens({"seed": 3}, logits) != tokens({"seed": 4}, logits)


def test_a_bias_is_added_to_the_logits_before_everything_else():
    logits = rows(20)
    biased = logits.copy()
    biased[:, 3] += 4
    biased[:, 5] = -np.inf
    got = tokens({"logit_bias": {"3": 4, "5": False}}, logits)
    assert got == tokens({}, biased) != tokens({}, logits) and 3 in got and 5 not in got


def test_a_bias_on_an_unknown_token_or_against_all_is_a_bad_option():
    with pytest.raises(BadOptions, match="unknown token 50: the vocabulary ends at 49"):
        tokens({"logit_bias": {"50": 1}}, rows(1))
    with pytest.raises(BadOptions, match="excludes every token"):
        tokens({"logit_bias": {str(id): False for id in range(N_VOCAB)}}, rows(1))


def test_a_random_seed_differs_between_requests():
    logits = np.zeros((40, N_VOCAB), np.float32)
    assert tokens({"seed": -1}, logits) != tokens({"seed": -1}, logits)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1}, {"top_k": 0}, {}])
def test_every_sample_draws_one_random_number(options):
    sampler, reference = (Sampler(Options.parse({"seed": 7}, options), N_VOCAB) for _ in range(2))
    for row in rows(5):
        sampler.sample(row, [])
        reference.rng.draw()
    assert sampler.rng.draw() == reference.rng.draw()


def test_greedy_takes_the_first_of_the_largest():
    assert tokens({"temperature": 0}, np.array([[1, 5, 2, 5, 5]], np.float32)) == [1]
    assert tokens({"temperature": 0, "top_k": 0, "top_p": 1}, np.array([[1, 5, 2, 5, 5]], np.float32)) == [1]


def test_truncation_comes_before_temperature():
    # the first token alone reaches 0.9 of e**3 : 1 : 1; after the temperature it would take all three
    assert set(tokens({"top_p": 0.9, "temperature": 100}, np.array([[3, 0, 0]] * 50, np.float32))) == {0}


def test_penalties_look_back_repeat_last_n_tokens():
    options = {"repeat_penalty": 100, "temperature": 0}
    logits = np.array([4, 3, 2, 1], np.float32)
    picks = {
        n: Sampler(Options.parse({**options, "repeat_last_n": n, "num_ctx": 4}), 4).sample(logits, [0, 9, 9, 1, 9, 2])
        for n in (0, 1, 2, 3, 6, 64, -1)
    }
    # the last 1, 2: token 2; the last 3: 1 and 2; from 6 on also 0; -1 is num_ctx, here 4
    assert picks == {0: 0, 1: 0, 2: 0, 3: 0, 6: 3, 64: 3, -1: 0}


def test_a_mask_excludes_even_the_most_likely_token():
    masks = np.random.default_rng(1).random((60, N_VOCAB)) < 0.1
    masks[:, 0] = True
    assert all(masks[i, t] for i, t in enumerate(tokens({}, rows(60), masks)))


def test_a_mask_that_allows_everything_changes_nothing():
    logits = rows(40)
    assert tokens({}, logits, np.ones(logits.shape, bool)) == tokens({}, logits)


def test_a_logit_of_minus_infinity_is_never_chosen():
    logits = np.full((60, N_VOCAB), -np.inf, np.float32)
    logits[:, [3, 8]] = 1
    assert set(tokens({"temperature": 5}, logits)) == {3, 8}


def test_float64_logits_give_the_tokens_of_their_float32():
    logits = rows(20)
    assert tokens({}, logits.astype(np.float64)) == tokens({}, logits)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_give_an_error(bad):
    logits = rows(1)
    logits[0, 17] = bad
    with pytest.raises(ModelError, match="logits are not finite"):
        tokens({}, logits)


def test_the_models_logits_are_not_modified():
    logits = rows(10)
    before = logits.copy()
    tokens({"repeat_penalty": 1.5, "typical_p": 0.5, "temperature": 0.3}, logits)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_steers_towards_its_surprise(version):
    """Check that the average surprise -log2 p of the sampled tokens approaches tau bits."""
    logits = rows(400, n_vocab=2000)
    for tau in (2.0, 4.0):
        options = {"mirostat": version, "mirostat_tau": tau, "temperature": 1}
        sampler = Sampler(Options.parse({"seed": 5}, options), 2000)
        mus = []
        for row in logits:
            sampler.sample(row, [])
            mus.append(sampler.mu)
        # mu moves by eta * (tau - surprise): where it stops moving, the two are equal on average
        assert abs(mus[-1] - mus[100]) / (0.1 * 300) < 0.15


def test_mirostat_does_not_act_at_temperature_0():
    logits = rows(20)
    assert tokens({"mirostat": 1, "temperature": 0}, logits) == logits.argmax(axis=1).tolist()


def test_tfs_z_does_not_act_at_temperature_0():
    """Combine it with typical_p, which may exclude the most likely token, so that an effect would show."""
    logits, how = rows(20), {"temperature": 0, "typical_p": 0.2}
    assert tokens(how, logits) != logits.argmax(axis=1).tolist()
    assert tokens({"tfs_z": 0.5} | how, logits) == tokens(how, logits)


anything = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.integers(-5, 100),
        "top_p": st.floats(-1, 2),
        "min_p": st.floats(-1, 2),
        "typical_p": st.floats(-1, 2),
        "tfs_z": st.floats(-1, 2),
        "temperature": st.floats(-1, 1e30) | st.sampled_from([1e-50, 1e-42, 1e-10]),
        "repeat_penalty": st.floats(2.0**-126, 3e38),
        "presence_penalty": st.floats(-3e38, 3e38),
        "frequency_penalty": st.floats(-3e38, 3e38),
        "repeat_last_n": st.integers(-1, 100),
        "mirostat": st.integers(0, 2),
        "mirostat_tau": st.floats(-3e38, 3e38),
        "mirostat_eta": st.floats(-3e38, 3e38),
        "seed": st.integers(),
    },
)


@given(anything, st.integers(1, 40), st.sampled_from([0.0, 1.0, 1e4, 1e37]), st.integers(0, 2**32))
def test_any_options_choose_an_allowed_token(options, n_vocab, spread, seed):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((4, n_vocab)) * spread).astype(np.float32)
    masks = rng.random((4, n_vocab)) < 0.5
    masks[:, rng.integers(n_vocab)] = True
    assert all(masks[i, t] for i, t in enumerate(tokens(options, logits, masks)))
    assert all(0 <= t < n_vocab for t in tokens(options, logits))


@given(anything, st.integers(1, 40), st.integers(0, 2**32))
def test_a_look_sees_every_step_and_changes_none(options, n_vocab, seed):
    logits = np.random.default_rng(seed).standard_normal(n_vocab).astype(np.float32)
    options = {"seed": 1} | options | ({"seed": 2} if options.get("seed", 1) % 2**32 == 2**32 - 1 else {})  # not random
    plain, seen = Sampler(Options.parse(options), n_vocab), Sampler(Options.parse(options), n_vocab)
    for _ in range(3):
        steps = []
        token = seen.sample(logits, [0, 0], look=lambda *step, steps=steps: steps.append(step))
        assert token == plain.sample(logits, [0, 0])
        assert steps[0][0] == "logits" and len(steps[0][2].ids) == n_vocab
        assert steps[-1][0] == "dist" and steps[-1][2].ids.tolist() == [token]
        counts = [len(c.ids) for _, _, c in steps]
        assert counts == sorted(counts, reverse=True)
