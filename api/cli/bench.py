"""`numllama bench`: the parts of benchmarks/command.py, with models by name."""

from __future__ import annotations

from ...benchmarks.command import run_part
from .backend import local_model


def run_bench(arguments: list[str]) -> int:
    """Run a part of the harness with its flags.  -> exit status"""
    try:
        return run_part(arguments, local_model)
    except SystemExit:  # after --help; errors are RequestErrors
        return 0
