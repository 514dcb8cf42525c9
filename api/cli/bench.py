"""`numllama bench`: a model's speed, compared with llama.cpp's if --peer names its folder."""

from __future__ import annotations

from contextlib import suppress

from ...benchmarks.decode import main
from .backend import local_model


def run_bench(arguments: list[str]) -> None:
    """Run benchmarks/decode.py with its flags in `arguments`."""
    with suppress(SystemExit):  # after --help; errors are RequestErrors
        main(arguments, local_model, "numllama bench")
