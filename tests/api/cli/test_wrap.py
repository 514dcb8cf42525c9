"""Word wrap on a terminal, for text in pieces of any size."""

import io
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wcwidth import iter_graphemes, wcswidth, wcwidth

from numllama.api.cli.wrap import WrappedOutput, display_width, text_width

TEXT = st.text(alphabet="ab 你\n", max_size=60)
SCRIPTS = {
    "Thai": "ภาษาไทย กู้ชีพ มีคำ ที่เขียนไว้ มีคำ ครับ น้ำ ผู้ใหญ่",
    "Tamil": "தமிழ் மொழி க்ஷேத்திரம் எழுத்துக்கள் வணக்கம் நன்றி",
    "Bengali": "বাংলা ভাষায় কিছু শব্দ লেখা হয়েছে এখানে ধন্যবাদ",
    "Hindi": "हिन्दी में कुछ शब्द क्षत्रिय नमस्ते श्रीमान् की कहानी",
    "emoji": "a 👩\u200d👩\u200d👧 family ❤\ufe0f 🇩🇪 👍🏽 and 🧑\u200d🚀x text",
    "accents": "e\u0301te\u0301 nai\u0308f ca\u0327a vie\u0323\u0302t a\u0300\u0300 Zoë Ж\u0301",
    "Hebrew": "שָׁלוֹם עוֹלָם טוֹב",
    "Korean": "\u1112\u1161\u11ab\u1100\u1173\u11af 한글 텍스트",
}
MIXED = st.lists(st.sampled_from([*iter_graphemes(" ".join(SCRIPTS.values()))]), max_size=40).map("".join)


def cells_by_character(line, c):
    """Add `c` to a line of cells as terminals do that know no clusters, such as tmux with the C library's widths."""
    n = 1 if unicodedata.category(c) == "Mc" else max(wcwidth(c), 0)
    if n:
        return [*line, c, *[""] * (n - 1)]
    return [*line[:-1], line[-1] + c] if line and line[-1] else [*line[:-2], line[-2] + c, ""] if line else line


def cells_by_cluster(line, c):
    """Add `c` to a line of cells as terminals do that know clusters, with the columns of wcwidth."""
    last = next((i for i in reversed(range(len(line))) if line[i]), 0)
    if line and len(list(iter_graphemes(line[last] + c))) == 1:
        cluster, line = line[last] + c, line[:last]
    else:
        cluster = c
    return [*line, cluster, *[""] * (wcswidth(cluster) - 1)]


def shown(written, place=cells_by_cluster):
    """Return the lines on a terminal that implements the escape codes used here; all text is added at a line's end."""
    lines, saved = [[]], 0
    for back, code, c in re.findall(r"\x1b\[(\d+)D|\x1b([78]|\[K)|(.)", written, re.DOTALL):
        if back:
            assert int(back) <= len(lines[-1])
            lines[-1] = lines[-1][: len(lines[-1]) - int(back)]
        elif code == "7":
            saved = len(lines[-1])
        elif code == "8":
            lines[-1] = lines[-1][:saved]
        elif c == "\n":
            lines.append([])
        elif c:
            lines[-1] = place(lines[-1], c)
    return ["".join(line) for line in lines]


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


@given(st.sampled_from(list(SCRIPTS.values())) | MIXED, st.integers(8, 40), st.sampled_from([1, 3, 1000]))
@example(SCRIPTS["Thai"], 25, 1)
def test_no_letter_of_any_script_is_lost_on_any_terminal(text, width, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for place in (cells_by_cluster, cells_by_character):
        assert "".join("".join(shown(wrapped(pieces, width), place)).split()) == "".join(text.split())


def clusters(text):
    return [cluster for word in text.split() for cluster in iter_graphemes(word)]


@given(st.sampled_from(list(SCRIPTS.values())) | MIXED, st.integers(8, 40))
def test_lines_break_between_clusters_only(text, width):
    lines = shown(wrapped(list(text), width))
    assert clusters(text) == [cluster for line in lines for cluster in clusters(line)]
    assert all(display_width(line) <= width + 2 for line in lines)  # a selector may widen the last cluster


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_words_of_every_script_with_blanks_move_whole(text):
    assert " ".join(" ".join(shown(wrapped(list(text), 24))).split()) == text


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


def test_a_tab_advances_to_the_next_eighth_column():
    assert shown(wrapped(["ab\tcd ef"], 12))[:2] == ["ab\tcd ", "ef"]
