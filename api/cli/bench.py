"""`numllama bench`: a model's speed, beside llama.cpp's where --peer says where that is."""

from __future__ import annotations

from ...benchmarks.decode import main
from .find import model_file


def bench(model: str, arguments: list[str]) -> None:
    """The table of benchmarks/decode.py for MODEL; its flags are that program's."""
    main([str(model_file(model)), *arguments])
