"""Efforts of thinking, by OpenAI's and Anthropic's words, as Ollama's `think`."""

from __future__ import annotations

from typing import Any

from ...engine.errors import RequestError

THINK_OF_EFFORT = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}
THINK_OF_EFFORT |= {"xhigh": "max", "ultra": "max", "max": "max"}


def think_from_effort(effort: str | None) -> Any:
    """Convert a reasoning effort to Ollama's `think`.  Raises: RequestError"""
    if not effort:
        return None
    if effort != "none" and effort not in THINK_OF_EFFORT:
        words = ", ".join(f'"{word}"' for word in THINK_OF_EFFORT)
        raise RequestError(f'invalid reasoning value: "{effort}" (must be {words}, or "none")')
    return THINK_OF_EFFORT.get(effort, False)
