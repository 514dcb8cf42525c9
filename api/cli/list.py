"""`numllama list`: the models there are, the newest first."""

from __future__ import annotations

import time
from contextlib import closing

from ...engine.store import default_store
from .find import server_if_any
from .words import ago, seconds_until, size, table


def list_models(prefix: str = "", *, as_told: bool = True) -> str:
    """A table of the models whose name begins with `prefix`, in whatever case; `as_told` as in server_if_any."""
    if client := server_if_any(as_told=as_told):
        with closing(client):
            found = [(m["name"], m["digest"], m["size"], -seconds_until(m["modified_at"])) for m in client.list()]
    else:
        now = time.time()
        found = [(m.name.short, m.digest, m.size, now - m.modified_ns / 1e9) for m in default_store().list()]
    rows = [
        (name, digest[:12], size(n_bytes), ago(seconds))
        for name, digest, n_bytes, seconds in found
        if name.lower().startswith(prefix.lower())
    ]
    return table([("NAME", "ID", "SIZE", "MODIFIED"), *rows])
