"""Sizes, times and tables, as formatted by Ollama's format package."""

from datetime import UTC, datetime, timedelta

import pytest

from numllama.api.cli.format import format_size, format_span, format_table, format_time, format_until, seconds_until

MINUTE, HOUR, DAY = 60, 3600, 86_400


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1000, "1 KB"),
        (1049, "1.0 KB"),
        (343_999, "343 KB"),
        (3_623_552, "3.6 MB"),
        (637_700_138, "637 MB"),
        (4_661_224_676, "4.7 GB"),
        (5_000_000_000, "5 GB"),
        (42_999_999_999, "42 GB"),
        (1_500_000_000_000, "1.5 TB"),
    ],
)
def test_sizes_have_one_decimal_below_ten(n_bytes, expected):
    assert format_size(n_bytes) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (MINUTE, "About a minute"),
        (2 * MINUTE - 1, "About a minute"),
        (59 * MINUTE, "59 minutes"),
        (89 * MINUTE, "About an hour"),
        (90 * MINUTE, "2 hours"),
        (47.4 * HOUR, "47 hours"),
        (47.6 * HOUR, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
    ],
)
def test_durations_are_formatted_as_by_ollama(seconds, expected):
    assert format_span(seconds) == expected


def test_past_and_future_times_are_formatted_as_by_ollama():
    now = datetime.now(UTC)
    assert format_time((now - timedelta(days=3)).isoformat()) == "3 days ago"
    assert format_time((now + timedelta(hours=3, seconds=9)).isoformat()) == "3 hours from now"
    assert format_time("2262-01-01T00:00:00.123456789+02:00") == "Forever"
    assert format_until(299) == "4 minutes from now"
    assert format_until(-1) == "Stopping..."
    assert format_until(292 * 365 * DAY) == "Forever"


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00.5+00:00", "", "x", "2020-01-01T00:00:00"]
)
def test_a_model_without_a_time_was_never_modified(moment):
    """Go's zero time, which servers send for an unknown one."""
    assert format_time(moment) == "Never"
    assert format_until(seconds_until(moment)) == "Stopping..."


def test_columns_fit_their_widest_cell_and_are_four_spaces_apart():
    assert format_table([("NAME", "ID"), ("a", "1"), ("longer", "")]) == "NAME      ID\na         1\nlonger\n"
    assert format_table([("a", "1"), ("你好", "2"), ("กู้", "3")]) == "a       1\n你好    2\nกู้       3\n"
