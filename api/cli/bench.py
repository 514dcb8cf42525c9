"""`numllama bench`: a model's speed, beside llama.cpp's where --peer says where that is."""

from __future__ import annotations

from contextlib import suppress

from ...benchmarks.decode import main
from .find import local_model


def run_bench(arguments: list[str]) -> None:
    """The table of benchmarks/decode.py, whose flags these are."""
    with suppress(SystemExit):  # after --help; what is wrong is a RequestError
        main(arguments, local_model, "numllama bench")
