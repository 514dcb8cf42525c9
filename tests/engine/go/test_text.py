import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.go.text import WHITE_SPACE, quote, unquote, valid_text

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
