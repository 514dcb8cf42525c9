"""Prompts of the renderers that have a name, as Ollama v0.33.0-rc2 renders them."""

from datetime import date

import pytest

from numllama.engine.errors import BadTemplate
from numllama.engine.template import renderer
from numllama.engine.template.renderer import RENDERERS, render_named


class Today(date):
    """The day of the recording, which Glimmer's prompts name."""

    @classmethod
    def today(cls):
        return cls(2026, 11, 29)


def test_leading_bos_is_the_recorded_one(kept):
    names = kept.json("parsers/names")
    assert {name: r.leading_bos for name, r in RENDERERS.items()} == {
        name: names[name]["leading_bos"] for name in RENDERERS
    }


@pytest.mark.parametrize("name", RENDERERS)
def test_recorded_prompts_are_rendered_to_the_letter(kept, monkeypatch, name):
    monkeypatch.setattr(renderer, "date", Today)
    recorded = kept.json("renderers/conversations")
    cases = kept.json(f"renderers/{name}")
    assert len(cases) >= 20
    for case in cases:
        tools = recorded["tools"][case["tools"]] or ()
        messages = recorded["conversations"][case["conversation"]]
        if "error" in case:
            with pytest.raises(BadTemplate) as refusal:
                render_named(name, messages, tools, case["think"])
            assert str(refusal.value) == case["error"]
        else:
            assert render_named(name, messages, tools, case["think"]) == case["text"], case
