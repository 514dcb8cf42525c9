"""Grammars on trial: what breaks llguidance breaks a child process, and costs one grammar."""

from threading import Timer
from time import monotonic

import pytest

from numllama.engine.errors import Cancelled
from numllama.engine.handle import RequestHandle
from numllama.engine.sampling.trial import TOO_COMPLEX, Trial

GOOD = "start: /a+/"
ENDLESS = 'start: a\na: %json {"type": "integer", "multipleOf": 2147483648}'  # takes memory and time without end
OVERFLOW = 'start: a\na: %json {"const": -9223372036854775808}'  # recursion without end


@pytest.fixture(scope="module")
def trial():
    return Trial(max_cpu_s=1)


def test_a_good_grammar_compiles_and_a_bad_one_gives_its_error(trial):
    assert trial.check(GOOD) == ""
    assert "unknown name" in trial.check("start: nothing")
    assert trial.check('start: a\na: "é\ud800"') != ""  # even if the text has no UTF-8


@pytest.mark.parametrize("grammar", [OVERFLOW, ENDLESS])
def test_a_grammar_that_breaks_the_child_is_refused_and_the_next_one_is_not(trial, grammar):
    assert trial.check(grammar) == TOO_COMPLEX
    assert trial.check(f"{GOOD}\n// after {len(grammar)}") == ""


def test_a_verdict_is_remembered(trial):
    trial.check(ENDLESS)
    began = monotonic()
    assert trial.check(ENDLESS) == TOO_COMPLEX
    assert monotonic() - began < 0.5  # the trial took a second of CPU time


def test_a_cancelled_request_ends_its_trial():
    trial, handle = Trial(max_cpu_s=100), RequestHandle()
    trial.check(GOOD)
    Timer(0.2, handle.cancel).start()
    began = monotonic()
    with pytest.raises(Cancelled):
        trial.check(ENDLESS, handle)
    assert monotonic() - began < 20
    assert trial.check(f"{GOOD}\n// after") == ""
