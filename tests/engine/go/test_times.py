import time

import pytest

from numllama.engine.go.times import rfc3339


def test_a_time_has_no_trailing_zeros():
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert rfc3339(1) == "1970-01-01T00:00:00.000000001Z"


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone of a process can't be set here")
def test_a_local_time_has_the_offset_of_the_machine(monkeypatch):
    for zone, expected in (("UTC", "2026-09-21T14:13:20.12Z"), ("IST-5:30", "2026-09-21T19:43:20.12+05:30")):
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            assert rfc3339(1_790_000_000_120_000_000, local=True) == expected
    time.tzset()
    assert "." not in rfc3339(1_790_000_000_000_000_000, local=True)
