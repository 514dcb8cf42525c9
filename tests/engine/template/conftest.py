"""Fixtures for tests of templates."""

from datetime import datetime

import pytest

from numllama.engine.go import functions as go_functions


@pytest.fixture
def freeze(monkeypatch):
    """Return a function that sets the clock to the day on which a case was recorded."""

    def freeze(case):
        class Recorded(datetime):
            @classmethod
            def now(cls):
                return cls.fromisoformat(case["now"][:10])

        monkeypatch.setattr(go_functions, "datetime", Recorded if "now" in case else datetime)

    return freeze
