"""A reference inference engine for GGUF models in Python, NumPy and Numba, with Ollama's HTTP API.

    import numllama

    model = numllama.load("primer")                     # or "FILE.gguf", or a name in the store
    for text in model.generate("Why is the grass green?"):
        print(text, end="")

Importing this takes milliseconds; NumPy and Numba are imported with the first model.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.errors import EngineError
    from .language_model import LanguageModel, Reply, load
    from .looked import Looked

__all__ = ["EngineError", "LanguageModel", "Looked", "Reply", "__version__", "load"]
__version__ = "0.2.0"  # the only place: pyproject.toml, the server and the commands read it here

_HERE = Path(__file__).parent
if not (_HERE / "engine").exists():  # a source tree: the other packages lie beside this folder, not in it
    __path__.append(str(_HERE.parent))
    sys.modules["numllama.numllama"] = None  # type: ignore[assignment]  # or a walk through all packages would not end


def __getattr__(name: str) -> Any:
    """Import the front door when it is first used."""
    if name == "EngineError":
        from .engine.errors import EngineError

        return EngineError
    if name == "Looked":
        from .looked import Looked

        return Looked
    if name in ("LanguageModel", "Reply", "load"):
        from . import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module 'numllama' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
