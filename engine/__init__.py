"""The engine: GGUF models, tokens, sequences, models on disk.  It is independent of the HTTP server.

    from numllama.engine.run.request import complete
    from numllama.engine.model.load import load_model

    for piece in complete(load_model("model.gguf"), "Once upon a time"):
        print(piece.text, end="")

This module imports nothing, so that a command that only lists models does not load Numba.
"""
