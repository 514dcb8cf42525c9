"""Named formats, compared with Ollama's templates of the same names."""

import pytest

from numllama.engine.template.go import load_template
from numllama.engine.template.named import NAMED, match

# Cases of named_templates.json that match here but not in Ollama, which requires an edit distance below 100.
OURS = {"nt-p0080": "chatml"}
# Conversations of ollama_renders.json that are rendered differently on purpose.
DIFFERENT = {
    ("command-r", None): "Ollama's closes a turn that is closed, and asks for tools in Python",
    ("gemma3-instruct", "late-system"): "Ollama's drops a system text that comes late",
}
FILE_ENDS = {"gemma3-instruct": "\n"}  # the newline at the end of Ollama's file, which the model was not trained on


def test_formats_are_matched_as_by_ollama(kept):
    for case in kept.json("go/named_templates"):
        found = match(case["jinja"])
        assert (found and found.name) == (OURS.get(case["id"]) or case.get("name")), case["id"]
        if "stop" in case:
            assert list(found.stop) == case["stop"], case["id"]


@pytest.mark.parametrize("named", [one for one in NAMED if (one.name, None) not in DIFFERENT], ids=lambda one: one.name)
def test_named_templates_render_as_those_of_ollama(named, kept):
    """Compare all conversations of system, user and assistant messages only."""
    asked = {case["id"]: case for case in kept.json("go/ollama_conversations")}
    compared = 0
    for case in kept.json("go/ollama_renders"):
        messages = asked[case["conversation"]].get("messages", [])
        others = {message["role"] for message in messages} - {"system", "user", "assistant"}
        if case["template"] != f"builtin/{named.name}" or not messages or others:
            continue
        if (named.name, case["conversation"]) not in DIFFERENT:
            expected = case["out"].removesuffix(FILE_ENDS.get(named.name, ""))
            assert load_template(named.template).render(messages) == expected, case["id"]
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("named", NAMED, ids=lambda named: named.name)
def test_named_templates_keep_system_user_and_assistant_in_order(named):
    said = [{"role": role, "content": role[0].upper() * 9} for role in ("system", "user", "assistant", "user")]
    text = load_template(named.template).render(said)
    places = [text.index("S" * 9), text.index("U" * 9), text.index("A" * 9), text.rindex("U" * 9)]
    assert places == sorted(set(places))
    assert text.endswith(named.opens)
