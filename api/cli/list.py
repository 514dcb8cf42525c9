"""`numllama list`: the installed models, newest first."""

from __future__ import annotations

import time
from contextlib import closing

from ...engine.store import default_store
from .backend import connect_if_running
from .format import format_ago, format_size, format_table, seconds_until


def list_models(prefix: str = "", *, require_named_host: bool = True) -> str:
    """Format a table of the models whose name starts with `prefix`, ignoring case.

    require_named_host   as in connect_if_running
    """
    if client := connect_if_running(require_named_host=require_named_host):
        with closing(client):
            found = [(m["name"], m["digest"], m["size"], -seconds_until(m["modified_at"])) for m in client.list()]
    else:
        now = time.time()
        found = [(m.name.short, m.digest, m.size, now - m.modified_ns / 1e9) for m in default_store().list()]
    rows = [
        (name, digest[:12], format_size(n_bytes), format_ago(seconds))
        for name, digest, n_bytes, seconds in found
        if name.lower().startswith(prefix.lower())
    ]
    return format_table([("NAME", "ID", "SIZE", "MODIFIED"), *rows])
