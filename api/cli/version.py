"""`numllama --version`: which program a server is, and which one this is."""

from __future__ import annotations

from contextlib import closing

from ... import __version__
from .find import server_if_any


def version_text() -> str:
    """Ollama's lines: the server's version, and this program's where it is another one or there is no server."""
    own = __version__
    client = server_if_any()
    if client is None:
        return f"Warning: could not connect to a running Ollama instance\nWarning: client version is {own}\n"
    with closing(client):
        program, found = client.version()
    line = f"{program} version is {found}\n"
    return line if (program, found) == ("numllama", own) else f"{line}Warning: client version is {own}\n"
