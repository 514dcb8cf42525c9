"""Values as Go prints them: what Ollama writes into its store and shows to people is read back by its own clients.

json     temperature 1e-07 -> 1e-7, "<b>" -> "\\u003cb\\u003e", keys in sorted order, no blanks
plain    %v:   1e-07, 4096, 1e+06, text as it is
literal  %#v:  the same numbers, text in quotes
"""

from __future__ import annotations

from typing import Any

from .fmt import json_text, sprint
from .lex import quote
from .values import Struct, go_value

__all__ = ["json_text", "literal_of_value", "ordered_json_text", "text_of_value"]


def ordered_json_text(value: Any) -> str:
    """Compact JSON like json_text's, but the keys of `value` itself stay in their order, as for a Go struct."""
    return json_text(Struct("", value) if isinstance(value, dict) else value)


def text_of_value(value: Any) -> str:
    """%v; every number is a float64, as in Go's values of a JSON text."""
    return json_text(value) if isinstance(value, dict | list) else sprint([go_value(value)])


def literal_of_value(value: Any) -> str:
    """%#v."""
    return quote(value) if isinstance(value, str) else text_of_value(value)
