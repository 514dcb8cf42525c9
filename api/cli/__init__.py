"""The command `numllama`: one module per subcommand, imported on demand."""

from __future__ import annotations


def main(args: list[str] | None = None) -> int:
    """Run the command with `args`, by default those of the process.  -> exit status"""
    try:
        from .commands import app  # here, so that Ctrl-C in these imports gives no traceback
        from .usage import call_app
    except KeyboardInterrupt:
        return 130
    return call_app(app, args)
