"""The command `numllama`: one file per verb, imported when it is asked for."""

from __future__ import annotations

from .commands import app
from .usage import call_app


def main(args: list[str] | None = None) -> int:
    """Do what `args`, or else the command line, says.  -> exit status"""
    return call_app(app, args)
