from datetime import datetime

import pytest

from numllama.engine.errors import BadTemplate
from numllama.engine.template import jinja

NOW = datetime(2025, 3, 14, 9, 26, 53)


def test_renderings_equal_those_of_hugging_face(recordings):
    """18 or 42 templates x 26 conversations: texts, refusals of the template's own, and the fact of any other error."""
    data = recordings.jinja()
    assert len(data["cases"]) == 26 * (42 if recordings.whole else 18)
    for case in data["cases"]:
        text = data["templates"][case["template"]]
        conversation = data["conversations"][case["conversation"]]
        special = conversation.get("special_tokens", data["special_tokens"][case["template"]])
        asked = {key: conversation[key] for key in conversation if key not in ("kwargs", "special_tokens")}
        more = {**special, **conversation.get("kwargs", {}), "strftime_now": NOW.strftime}
        expected = case.get("text", case.get("error"))
        try:
            got = jinja.render_jinja(text, **asked, **more)
        except BadTemplate as error:
            got = str(error)
            assert "error" in case, (case["template"], case["conversation"], got)
            expected = " ".join(expected["message"].split()) if expected["kind"] == "raised" else got
        assert got == expected, (case["template"], case["conversation"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\n{{ messages[0].nope.deeper }}", "chat template, line 2: 'dict object' has no attribute 'nope'"),
        ("{% for m in messages %}", "chat template, line 1: Unexpected end of template. "),
        ("a\n\n{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "chat template, line 1: access to attribute 'append' of 'list' object is unsafe."),
        (
            "{{ ''.__class__.mro() }}",
            "chat template, line 1: access to attribute '__class__' of 'str' object is unsafe",
        ),
        ("{% include 'x' %}", "chat template, line 1: no loader"),
        ("{{ messages | nofilter }}", "chat template, line 1: No filter named 'nofilter'."),
    ],
)
def test_an_error_is_one_line_with_a_line_number(text, message):
    with pytest.raises(BadTemplate) as caught:
        jinja.render_jinja(text, [{"role": "user", "content": "hi"}])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_template_gets_a_copy_of_the_messages():
    messages = [{"role": "user", "content": "hi", "tags": {"a": 1}}]
    jinja.render_jinja("{% set x = dict.update(messages[0], {'role': 'x'}) if dict.update is defined %}", messages)
    jinja.render_jinja("{% set x = messages[0].tags.__class__ %}", messages)
    assert messages == [{"role": "user", "content": "hi", "tags": {"a": 1}}]


def test_the_last_message_is_continued_where_its_text_ends():
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    trimmed = turns.replace("m.content", "m.content | trim")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
    assert jinja.render_jinja(turns, messages, continue_final_message=True) == "<user>Hi</><assistant>Well, "
    assert jinja.render_jinja(trimmed, messages, continue_final_message=True) == "<user>Hi</><assistant>Well,"
    with pytest.raises(BadTemplate, match="does not render it"):
        jinja.render_jinja("x", messages, continue_final_message=True)
    with pytest.raises(BadTemplate, match="no text to continue"):
        jinja.render_jinja(turns, [], continue_final_message=True)
