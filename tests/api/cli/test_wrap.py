"""Word wrap on a terminal, for text in pieces of any size."""

import io
import re

from hypothesis import example, given
from hypothesis import strategies as st

from numllama.api.cli.wrap import WrappedOutput, display_width, text_width

TEXT = st.text(alphabet="ab 你\n", max_size=60)


def shown(written):
    """Return the lines on a terminal that implements the two escape codes used here."""
    lines = [""]
    for back, c in re.findall(r"\x1b\[(\d+)D\x1b\[K|(.)", written, re.DOTALL):
        if back:
            lines[-1] = lines[-1][: len(lines[-1]) - int(back)]  # only narrow characters are erased
        elif c == "\n":
            lines.append("")
        else:
            lines[-1] += c
    return lines


def wrapped(pieces, width):
    out = io.StringIO()
    with WrappedOutput(out, width) as screen:
        for piece in pieces:
            screen.put(piece)
    return out.getvalue()


@given(TEXT, st.integers(4, 20), st.integers(1, 60))
def test_no_line_exceeds_the_width_and_no_character_is_lost(text, width, cut):
    lines = shown(wrapped([text[:cut], text[cut:]], width))
    assert all(display_width(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=20), st.integers(10, 20))
@example(["abcde", "abcd"], 10)
def test_short_words_stay_whole(words, width):
    assert " ".join(shown(wrapped([" ".join(words)], width))).split() == words


def test_a_word_that_does_not_fit_moves_to_the_next_line():
    assert wrapped(["one two th", "ree"], 10) == "one two th\x1b[2D\x1b[K\nthree\n"


@given(TEXT)
def test_a_pipe_is_not_wrapped(text):
    assert wrapped([text], 0) == text + "\n" * (not text.endswith("\n"))
    assert text_width(io.StringIO()) == 0


def test_an_error_before_any_text_prints_no_newline():
    out = io.StringIO()
    try:
        with WrappedOutput(out):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert out.getvalue() == ""


def test_an_answer_cannot_steer_the_terminal():
    out = io.StringIO()
    out.isatty = lambda: True
    with WrappedOutput(out, 40) as screen:
        screen.put("a\x1b]0;title\x07b\u202ec\td\n")
    assert out.getvalue() == r"a\x1b]0;title\ab\u202ec" + "\td\n"
    assert screen.text == "a\x1b]0;title\x07b\u202ec\td\n"
