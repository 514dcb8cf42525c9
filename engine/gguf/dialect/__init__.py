"""Ollama's dialect of GGUF, read as llama.cpp's.

Between March 2025 and May 2026 Ollama converted many models itself, for its own engine.  Their files have other
architecture names, keys and tensor names than llama.cpp's, and the vision tower lies inside the text model's file.
Since then Ollama runs llama.cpp, and repairs such files in memory while it loads them.  So does this package.

text_view        the text model as llama.cpp would have written it
projector_view   the vision tower, as the file of its own that llama.cpp expects (an "mmproj")

Each view is made from the file as it is on disk.  Responses about a model (`show`, capabilities) read the file itself.
A file without the marks of the dialect is returned unchanged.

view        key-values and tensors during the translation, and the steps that rules are made of
text        one row for each architecture: marks, rule
projector   the rules for vision towers

Three repairs that might be expected are missing, because Ollama makes none of them either: the blank before a text of
Gemma (`tokenizer.ggml.add_space_prefix`), the soft-cap that early files of Gemma 3 1B have by mistake, and a chat
template for Gemma, which Ollama gives to llama.cpp's server alone and not to its own prompts.
Source: Ollama fb30760, llama/compat.
"""

from __future__ import annotations

from ..read import GGUF, STR
from .projector import PROJECTOR_RULES, projector_type, translate_clip
from .text import TEXT_ROWS, TextRow
from .view import View

# Ollama gives these models' own file as the projector, if it has a tower and the manifest has no projector layer
TOWER_INSIDE = frozenset(
    "gemma3 gemma4 qwen35 qwen35moe qwen25vl qwen3vl qwen3vlmoe mistral3".split()
    + "deepseekocr glmocr llama4 nemotron_h_omni".split()
)


def text_view(gguf: GGUF) -> GGUF:
    """Return the text model in `gguf` under llama.cpp's names; `gguf` itself if it is not in Ollama's dialect."""
    view = View(gguf)
    row = text_row(view)
    if row is None:
        return gguf
    row.translate(view)
    return view.gguf()


def text_row(view: View) -> TextRow | None:
    """Return the first row whose marks the file shows."""
    return next((row for row in TEXT_ROWS if row.architecture == view.arch and row.is_marked(view)), None)


def projector_view(gguf: GGUF) -> GGUF:
    """Return the vision tower in `gguf` as a projector file; `gguf` itself if it is not in Ollama's dialect."""
    view = View(gguf)
    if view.arch == "clip":
        return view.gguf() if translate_clip(view) else gguf
    rule = PROJECTOR_RULES.get(view.arch)
    if rule is None or not view.has_tensor("v."):
        return gguf
    rule(view)
    view.keep("v.", "mm.", "a.")
    view.set("general.architecture", STR("clip"))
    return view.gguf()


def has_tower(gguf: GGUF) -> bool:
    """Return whether the text model's file has a vision tower inside."""
    return gguf.text("general.architecture") in TOWER_INSIDE and View(gguf).has_tensor("v.")


def read_as(gguf: GGUF) -> str:
    """Describe how a file in Ollama's dialect is read: "gpt-oss", "gemma3, vision gemma3"; "" for any other file."""
    text, tower = text_view(gguf), projector_view(gguf)
    parts = [text.text("general.architecture")] if text is not gguf else []
    return ", ".join(parts + ([f"vision {projector_type(tower)}"] if tower is not gguf else []))
