"""The command `numllama`: one file per verb, imported when it is asked for."""

from __future__ import annotations

import typer

app = typer.Typer(name="numllama", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve() -> None:
    """Start the server."""
    from .serve import serve

    serve()


@app.callback()
def options() -> None:
    """A reference inference engine for GGUF models, with Ollama's HTTP API."""


def main() -> None:
    app()
