"""Options on the command line, `temperature=0.2`, with Ollama's names and error texts.

Values are converted to their types here; the engine checks their ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.errors import BadOptions
from ...engine.options import option_from_text


def parse_parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse assignments: `["seed=1", "stop=a", "stop=b"]` -> {"seed": 1, "stop": ["a", "b"]}.  Raises: BadOptions"""
    texts: dict[str, list[str]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadOptions(name, f"option '{assignment}' has no value; expected NAME=VALUE")
        texts.setdefault(name.strip(), []).append(text)
    return {name: option_from_text(name, values) for name, values in texts.items()}
