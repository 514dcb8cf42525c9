"""Lines on a terminal: broken between words, whatever pieces the text comes in."""

import io
import re

from hypothesis import example, given
from hypothesis import strategies as st

from numllama.api.cli.wrap import Wrapped, columns, text_width

TEXT = st.text(alphabet="ab 你\n", max_size=60)


def shown(written):
    """What stays on a terminal that obeys the two codes used here."""
    lines = [""]
    for back, c in re.findall(r"\x1b\[(\d+)D\x1b\[K|(.)", written, re.DOTALL):
        if back:
            lines[-1] = lines[-1][: len(lines[-1]) - int(back)]  # only narrow letters are taken back
        elif c == "\n":
            lines.append("")
        else:
            lines[-1] += c
    return lines


def wrapped(pieces, width):
    out = io.StringIO()
    with Wrapped(out, width) as screen:
        for piece in pieces:
            screen.put(piece)
    return out.getvalue()


@given(TEXT, st.integers(4, 20), st.integers(1, 60))
def test_no_line_is_wider_than_the_terminal_and_no_letter_is_lost(text, width, cut):
    lines = shown(wrapped([text[:cut], text[cut:]], width))
    assert all(columns(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=20), st.integers(10, 20))
@example(["abcde", "abcd"], 10)
def test_short_words_stay_whole(words, width):
    assert " ".join(shown(wrapped([" ".join(words)], width))).split() == words


def test_a_word_that_does_not_fit_is_taken_to_the_next_line():
    assert wrapped(["one two th", "ree"], 10) == "one two th\x1b[2D\x1b[K\nthree\n"


@given(TEXT)
def test_nothing_is_broken_in_a_pipe(text):
    assert wrapped([text], 0) == text + "\n" * (not text.endswith("\n"))
    assert text_width(io.StringIO()) == 0


def test_what_fails_before_its_first_letter_leaves_no_line():
    out = io.StringIO()
    try:
        with Wrapped(out):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert out.getvalue() == ""
