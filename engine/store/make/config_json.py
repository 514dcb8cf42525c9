"""The checked content of a config.json in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import RequestError


class ConfigJson:
    """A config.json, of which each value is checked as it is read."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive integer.  Raises: RequestError"""
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 2**31:
            raise RequestError(f"config.json: {key} is {str(value)[:100]!r}, expected a positive number")
        return value

    def number(self, values: Mapping[str, Any], key: str, default: float | None = None) -> float:
        """Return a positive number of `values`, a part of the file.  Raises: RequestError"""
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise RequestError(f"config.json: {key} is {str(value)[:100]!r}, expected a positive number")
        return float(value)
