"""A stored model's chat template: its TEMPLATE layer or its file's own, under the renderer and parser that it names."""

from __future__ import annotations

import re
from typing import Any

from ..template import Template
from .store import LocalModel

HARMONY_FAMILIES = ("gptoss", "gpt-oss")
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def chat_template(model: LocalModel, gguf: Any, go_template: bool = True) -> Template:
    """Return the chat template of `model`.

    gguf         its weights, or their key-values
    go_template  whether the TEMPLATE layer is in use
    """
    layer = model.template if go_template else None
    template = Template.from_gguf(gguf, layer)
    more = model.config.more
    renderer, parser = (str(more.get(key) or "") for key in ("renderer", "parser"))
    if renderer == "gemma4":
        renderer = f"gemma4-{'large' if _is_large(model) else 'small'}"
    if not renderer and not parser and _is_harmony(model, template):
        parser = "harmony"
    return template.named(renderer, parser)


def _is_harmony(model: LocalModel, template: Template) -> bool:
    """Return whether the template writes messages with headers, as gpt-oss reads them."""
    marks = all(mark in template.text for mark in ("<|start|>", "<|end|>"))
    return model.config.model_family in HARMONY_FAMILIES and template.language == "go" and marks


def _is_large(model: LocalModel) -> bool:
    """Return whether this is one of the larger models of Gemma 4, by its name or else its size."""
    name = model.name.short.lower()
    for sizes, is_large in ((("12b", "26b", "31b"), True), (("e2b", "e4b"), False)):
        if any(size in name for size in sizes):
            return is_large
    size = re.fullmatch(r"([\d.]+)([KMBT])", model.config.model_type)
    return size is not None and float(size[1]) * UNITS[size[2]] >= 12e9
