"""`numllama --version`: the versions of the server and of this program."""

from __future__ import annotations

from contextlib import closing

from ... import __version__
from .backend import connect_if_running


def version_text() -> str:
    """Return Ollama's lines: the server's version, then this program's if it differs or no server is running."""
    own = __version__
    client = connect_if_running()
    if client is None:
        return f"Warning: could not connect to a running Ollama instance\nWarning: client version is {own}\n"
    with closing(client):
        program, found = client.version()
    line = f"{program} version is {found}\n"
    return line if (program, found) == ("numllama", own) else f"{line}Warning: client version is {own}\n"
