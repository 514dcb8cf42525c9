"""The command `numllama`: one module per subcommand, imported on demand."""

from __future__ import annotations

from .commands import app
from .usage import call_app


def main(args: list[str] | None = None) -> int:
    """Run the command with `args`, by default those of the process.  -> exit status"""
    return call_app(app, args)
