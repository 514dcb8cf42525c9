"""The engine: GGUF models, tokens, sequences, models on disk.  It never sees HTTP.

from numllama.engine import generate, load_model

for piece in generate(load_model("model.gguf"), "Once upon a time"):
    print(piece.text, end="")
"""

from .errors import EngineError
from .generate import generate
from .model import Model, load_model
from .options import Options

__all__ = ["EngineError", "Model", "Options", "generate", "load_model"]
