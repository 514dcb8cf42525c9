"""Thinking and text of an answer on the terminal, and the timings."""

import pytest

from numllama.api.cli.display import AnswerDisplay, print_answer, timings_text
from numllama.engine.run.piece import Piece, Timings

PIECES = [
    Piece("", thinking="Two "),
    Piece("", thinking="and two."),
    Piece("Four"),
    Piece("."),
    Piece("", done_reason="stop"),
]


class Answer:
    is_over = False

    def __init__(self, pieces):
        self.pieces = pieces

    def __iter__(self):
        yield from self.pieces


@pytest.mark.parametrize(
    ("hide", "expected"), [(False, "Thinking...\nTwo and two.\n...done thinking.\n\nFour.\n"), (True, "Four.\n")]
)
def test_thinking_is_set_apart_or_hidden(capsys, hide, expected):
    display = AnswerDisplay(hide_thinking=hide)
    print_answer(lambda: Answer(PIECES), display)
    assert capsys.readouterr().out == expected
    assert (display.thinking, display.text) == ("Two and two.", "Four.")


def test_an_answer_that_ends_with_a_newline_gets_no_second_one(capsys):
    print_answer(lambda: Answer([Piece("a\n"), Piece("", done_reason="stop")]), AnswerDisplay())
    assert capsys.readouterr().out == "a\n"


def test_rates_are_tokens_per_second():
    timings = Timings(0, 10, 500_000_000, 30, 2_000_000_000)
    assert timings_text(2_600_000_000, 0, timings) == (
        "total duration:       2.6s\n"
        "prompt eval count:    10 token(s)\n"
        "prompt eval duration: 500ms\n"
        "prompt eval rate:     20.00 tokens/s\n"
        "eval count:           30 token(s)\n"
        "eval duration:        2s\n"
        "eval rate:            15.00 tokens/s\n"
    )
