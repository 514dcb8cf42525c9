"""Options as people type them, `temperature=0.2`, under Ollama's names and with its words for what is wrong.

The values are typed here and not yet checked: the engine knows their ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ...engine.errors import BadOptions
from ...engine.options import Options

KINDS = {option.name: str(option.type).removesuffix(" | None") for option in fields(Options)}
TRUE, FALSE = "1 t T TRUE true True".split(), "0 f F FALSE false False".split()


def parameter(name: str, texts: Sequence[str]) -> Any:
    """The value of option `name`; of several texts the last one counts, but for `stop`.  Raises: BadOptions"""
    kind = KINDS.get(name)
    if kind is None:
        raise BadOptions(name, f"unknown parameter '{name}'")
    if kind.startswith("tuple"):
        return list(texts)
    text = texts[-1]
    try:
        if kind == "bool":
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text]
        return int(text) if kind == "int" else float(text)
    except (ValueError, KeyError):
        raise BadOptions(name, f"invalid {kind} value [{text}]") from None


def parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """`["seed=1", "stop=a", "stop=b"]` -> {"seed": 1, "stop": ["a", "b"]}.  Raises: BadOptions"""
    texts: dict[str, list[str]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadOptions(name, f"option '{assignment}' has no value, expected NAME=VALUE")
        texts.setdefault(name.strip(), []).append(text)
    return {name: parameter(name, values) for name, values in texts.items()}
