"""Times as Go's encoding/json writes them: RFC 3339 with up to nine digits for the fraction of a second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def rfc3339(ns: int, *, local: bool = False) -> str:
    """Format a time, given in nanoseconds since 1970, in UTC or, if `local`, with this machine's offset from UTC.

    rfc3339(1_700_000_000_120_000_000)   2023-11-14T22:13:20.12Z
    """
    second, fraction = divmod(ns, 10**9)
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    if local:
        when = when.astimezone()
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    offset = when.strftime("%z")
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}"
    return f"{when:%Y-%m-%dT%H:%M:%S}{digits}{zone}"
