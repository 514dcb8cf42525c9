"""`numllama list`: the installed models, newest first."""

from __future__ import annotations

from contextlib import closing

from ...engine.go.times import rfc3339
from ...engine.store import default_store
from .backend import connect_if_running
from .format import ZERO_TIME, format_size, format_table, format_time


def list_models(prefix: str = "", *, require_named_host: bool = True) -> str:
    """Format a table of the models whose name starts with `prefix`, ignoring case.

    require_named_host   as in connect_if_running
    """
    if client := connect_if_running(require_named_host=require_named_host):
        with closing(client):
            found = [(m["name"], m["digest"], m["size"], m.get("modified_at") or ZERO_TIME) for m in client.list()]
    else:
        found = [(m.name.short, m.digest, m.size, rfc3339(m.modified_ns)) for m in default_store().list()]
    rows = [
        (name, digest[:12], format_size(n_bytes), format_time(modified_at))
        for name, digest, n_bytes, modified_at in found
        if name.lower().startswith(prefix.lower())
    ]
    return format_table([("NAME", "ID", "SIZE", "MODIFIED"), *rows])
