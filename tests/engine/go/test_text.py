import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.go.text import WHITE_SPACE, is_print, one_line, quote, several_lines, unquote, valid_text

TEXTS = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))


def test_white_space_is_that_of_unicode():
    """Python's isspace() also accepts the four information separators, which have no White_Space property."""
    expected = {c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()} - set("\x1c\x1d\x1e\x1f")
    assert set(WHITE_SPACE) == expected
    assert len(WHITE_SPACE) == len(expected)


@given(st.binary())
def test_valid_text_has_one_replacement_for_each_bad_byte(raw):
    text = raw.decode("utf-8", "surrogateescape")
    got = valid_text(text)
    assert len(got) == len(text)
    assert got.encode().decode() == got
    assert all(a == b or (b == "\ufffd" and "\udc80" <= a <= "\udcff") for a, b in zip(text, got, strict=True))


@pytest.mark.parametrize(
    "text, expected",
    [
        ('say "hi"\n', r'"say \"hi\"\n"'),
        ("caf\u00e9 \u4f60 \U0001f600", '"caf\u00e9 \u4f60 \U0001f600"'),
        ("\u200b\x7f\x00", r'"\u200b\x7f\x00"'),
        (b"\xff!".decode("utf-8", "surrogateescape"), r'"\xff!"'),
    ],
)
def test_a_quoted_text_is_that_of_strconv(text, expected):
    assert quote(text) == expected


@given(TEXTS, st.booleans())
def test_a_quoted_text_unquotes_to_itself(text, ascii_only):
    assert unquote(quote(text, ascii_only=ascii_only)) == text


def test_every_known_character_is_printable_by_its_category():
    for c in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(c)
        assert is_print(c) == (category[0] in "LMNPS" or c == " ") or category == "Cn"
    assert is_print("\U0001fa75") and not any(map(is_print, "\ufdd0\uffff\U0010fffe\u200b\ue000\ud800\xa0\n"))
    assert quote("\U0001fa75\u200b") == '"\U0001fa75\\u200b"'


def test_text_of_others_cannot_steer_a_terminal_or_forge_lines():
    hostile = "a\x1b[2J\r\n\x9b1m\0\u202eb\u2028c\ud800\t\x7f\u2066"
    assert one_line(hostile) == r"a\x1b[2J\r\n\u009b1m\x00\u202eb\u2028c\ud800\t\x7f\u2066"
    assert several_lines(hostile) == "a\\x1b[2J\n\\u009b1m\\x00\\u202eb\\u2028c\\ud800\t\\x7f\\u2066"


def test_letters_of_all_scripts_stay_as_they_are():
    plain = "Grüße 你好 สวัสดี नमस्ते שלום 👩\u200d👩\u200d👧 ❤\ufe0f \u00a0\U0001fa75 \u0645\u06cc\u200c\u062e"
    assert one_line(plain) == plain and several_lines(plain) == plain
