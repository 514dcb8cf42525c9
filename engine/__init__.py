"""The engine: GGUF models, tokens, sequences, models on disk.  It never sees HTTP.

    from numllama.engine.run.request import complete
    from numllama.engine.model.load import load_model

    for piece in complete(load_model("model.gguf"), "Once upon a time"):
        print(piece.text, end="")

Nothing is imported here, so that a command which only lists models does not wait for Numba.
"""
