"""Durations parsed and formatted as by Go; expected values and error texts are those of Go 1.26."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import BadOptions
from numllama.engine.go.duration import FOREVER, SECOND, format_duration, parse_duration, parse_keep_alive

READ = {
    "0": 0,
    "+0": 0,
    "5s": 5 * SECOND,
    "1478s": 1478 * SECOND,
    "-5s": -5 * SECOND,
    "+5s": 5 * SECOND,
    "5.0s": 5 * SECOND,
    "5.s": 5 * SECOND,
    ".5s": SECOND // 2,
    "1.004s": 1_004_000_000,
    "100.00100s": 100_001_000_000,
    "10ns": 10,
    "11us": 11_000,
    "12µs": 12_000,
    "12μs": 12_000,
    "13ms": 13_000_000,
    "15m": 900 * SECOND,
    "16h": 57600 * SECOND,
    "3h30m": 12600 * SECOND,
    "10.5s4m": 250_500_000_000,
    "-2m3.4s": -123_400_000_000,
    "52763797000ns": 52_763_797_000,
    "0.3333333333333333333h": 1200 * SECOND,
    "9007199254740993ns": 9007199254740993,
    "9223372036854775807ns": FOREVER,
    "-9223372036854775808ns": -FOREVER - 1,
    "0.100000000000000000000h": 360 * SECOND,
    "0.830103483285477580700h": 2_988_372_539_827,
    "00000000000000000000001s": SECOND,
}
REFUSED = {
    "": 'time: invalid duration ""',
    "abc": 'time: invalid duration "abc"',
    "10": 'time: missing unit in duration "10"',
    "-1": 'time: missing unit in duration "-1"',
    "300": 'time: missing unit in duration "300"',
    "5x": 'time: unknown unit "x" in duration "5x"',
    "1h 5m": 'time: unknown unit "h " in duration "1h 5m"',
    "1d": 'time: unknown unit "d" in duration "1d"',
    "-": 'time: invalid duration "-"',
    "--1s": 'time: invalid duration "--1s"',
    ".": 'time: invalid duration "."',
    "-.s": 'time: invalid duration "-.s"',
    " 1s": 'time: invalid duration " 1s"',
    "9223372036854775808ns": 'time: invalid duration "9223372036854775808ns"',
    "9223372036854775.808us": 'time: invalid duration "9223372036854775.808us"',
    "3000000h": 'time: invalid duration "3000000h"',
    "9" * 5000 + "s": f'time: invalid duration "{"9" * 5000}s"',
    '"\\1s': 'time: invalid duration "\\"\\\\1s"',
    "5é": 'time: unknown unit "\\xc3\\xa9" in duration "5\\xc3\\xa9"',
    "1\n": 'time: unknown unit "\\x0a" in duration "1\\x0a"',
    "\u0665s": 'time: invalid duration "\\xd9\\xa5s"',
}
PRINTED = {
    0: "0s",
    1: "1ns",
    1100: "1.1µs",
    2_200_000: "2.2ms",
    3_300_000_000: "3.3s",
    245 * SECOND: "4m5s",
    245_001_000_000: "4m5.001s",
    18367_001_000_000: "5h6m7.001s",
    480 * SECOND + 1: "8m0.000000001s",
    300 * SECOND: "5m0s",
    7200 * SECOND: "2h0m0s",
    FOREVER: "2562047h47m16.854775807s",
    -60 * SECOND: "-1m0s",
    -1500: "-1.5µs",
}


@pytest.mark.parametrize("text", READ)
def test_a_duration_is_parsed(text):
    assert parse_duration(text) == READ[text]


@pytest.mark.parametrize("text", REFUSED)
def test_an_invalid_duration_gives_gos_error(text):
    with pytest.raises(BadOptions) as refused:
        parse_duration(text)
    assert str(refused.value) == REFUSED[text]


@pytest.mark.parametrize("nanoseconds", PRINTED)
def test_a_duration_is_formatted(nanoseconds):
    assert format_duration(nanoseconds) == PRINTED[nanoseconds]


@given(st.integers(-FOREVER - 1, FOREVER))
def test_a_formatted_duration_parses_back(nanoseconds):
    # Go adds a fraction in float64, exact up to 2**53 of its units; 9 digits are far below that
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@given(st.text(alphabet="0123456789.-+hmsnuµ x", max_size=12))
def test_any_text_is_a_duration_or_an_error(text):
    try:
        assert -FOREVER - 1 <= parse_duration(text) <= FOREVER
    except BadOptions as refused:
        assert str(refused).startswith("time: ")


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (0, 0),
        (0.0, 0),
        ("0", 0),
        ("0s", 0),
        (300, 300 * SECOND),
        (0.25, SECOND // 4),
        ("5m", 300 * SECOND),
        (-1, FOREVER),
        (-1e-12, FOREVER),
        ("-1m", FOREVER),
        (1e30, FOREVER),
        (10**400, FOREVER),
        ("9223372036854775807ns", FOREVER),
    ],
)
def test_keep_alive_is_seconds_or_a_duration_and_forever_if_negative(value, nanoseconds):
    assert parse_keep_alive(value) == nanoseconds


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, "bool"), ([], "[]interface {}"), ({}, "map[string]interface {}"), (None, "<nil>")],
)
def test_keep_alive_of_another_type_gives_ollamas_error(value, kind):
    with pytest.raises(BadOptions) as refused:
        parse_keep_alive(value)
    assert str(refused.value) == f"Unsupported type: '{kind}'"


def test_the_first_overflow_is_the_error_whatever_follows():
    with pytest.raises(BadOptions, match=r'^time: invalid duration "2562047h1h5x"$'):
        parse_keep_alive("2562047h1h5x")


def test_a_long_duration_is_read_in_one_pass():
    began = time.process_time()
    assert parse_keep_alive("1h" * 500_000) == 500_000 * 3600 * SECOND
    assert time.process_time() - began < 10  # takes 0.5 s; copying the rest for each term took a minute
