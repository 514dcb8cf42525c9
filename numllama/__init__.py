"""A reference inference engine for GGUF models in Python, NumPy and Numba, with Ollama's HTTP API."""

from pathlib import Path

__version__ = "0.2.0"  # the only place: pyproject.toml, the server and the commands read it here

_HERE = Path(__file__).parent
if not (_HERE / "engine").exists():  # a source tree: the other packages lie beside this folder, not in it
    __path__.append(str(_HERE.parent))
