"""Conversations rendered as by Ollama's own template code: modes, values, capabilities and tags.

Numbers in brackets are those of docs/compatibility.md.
"""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import BadTemplate
from numllama.engine.template.go import load_template

KEYWORDS = [
    *("name", "description", "parameters", "type", "properties", "items", "required", "enum", "anyOf", "$defs", "x"),
]


def say(role, content, **more):
    return {"role": role, "content": content, **more}


C = [say("system", "S"), say("user", "U1"), say("assistant", "A1"), say("user", "U2")]
P = [*C, say("assistant", "PART")]
D = [
    *(say("system", "S1"), say("user", "U1"), say("user", "U2")),
    *(say("system", "S2"), say("assistant", "A1"), say("user", "U3")),
]
L = "{{ if .System }}<s>{{ .System }}</s>{{ end }}<u>{{ .Prompt }}</u><a>{{ .Response }}</a>"
L_END = "{{ if .Prompt }}<u>{{ .Prompt }}</u>{{ end }}<a>{{ if .Response }}{{ .Response }}</a>{{ end }}END"
EACH = "{{ .System }}|{{ range .Messages }}[{{ .Role }}:{{ .Content }}]{{ end }}"


@pytest.mark.parametrize(
    "text, messages, expected",
    [
        (L, C, "<s>S</s><u>U1</u><a>A1</a><u>U2</u><a>"),
        (L, P, "<s>S</s><u>U1</u><a>A1</a><u>U2</u><a>PART"),
        (L, D, "<s>S1</s><u>U1\n\nU2</u><a></a><s>S2</s><u></u><a>A1</a><u>U3</u><a>"),
        (L_END, C, "<u>U1</u><a>A1</a>END<u>U2</u><a>"),
        ("<u>{{ .Prompt }}</u>", C, "<u>U1</u>A1<u>U2</u>"),
        ("{{ .Prompt }}", C, "U1A1U2"),
        ("{{ .Prompt }}|{{ .Suffix }}", C, "U1|<no value>A1U2|<no value>"),
        (EACH, D, "S1\n\nS2|[system:S1][user:U1\n\nU2][system:S2][assistant:A1][user:U3]"),
        (L, [say("user", "q"), say("tool", "T"), say("user", "z")], "<u>z</u><a>"),
        ("{{ .Prompt }}:{{ .Response | printf `%s!` }}tail", C, "U1:A1!tailU2:"),
        ("{{ if .Response }}{{ .Response }}{{ else }}none{{ end }}{{ .Prompt }}", C, "A1U1"),
        ("{{ .Nope.Foo }}", C[1:2], "<no value>"),  # in the last turn fields of a missing value are no error
        ("{{ with .System }}a{{ else with .ThinkLevel }}{{ . }}{{ end }}{{ .Response }}", C[1:2], "medium"),
    ],
)
def test_turns_are_rendered_as_in_ollama(text, messages, expected):
    """[172], [180]"""
    assert load_template(text).render(messages, think=True) == expected


def test_fill_uses_prompt_and_suffix_only():
    """[45], [172]"""
    assert load_template("{{ .Prompt }}|{{ .Suffix }}|{{ .Messages }}").fill("p", "s") == "p|s|<no value>"


def test_a_field_that_no_message_has_is_an_error():
    """[179]"""
    with pytest.raises(BadTemplate, match=r"can't evaluate field Nope in type \*template\.templateMessage$"):
        load_template("{{ range .Messages }}{{ .Nope }}{{ end }}").render(C)


def test_calls_and_tools_print_as_json_with_gos_escapes():
    """[172], [178]"""
    call = {"id": "1", "function": {"name": "f", "arguments": {"z": 1, "a": "<b>"}}}
    text = "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}{{ end }}"
    assert load_template(text).render([say("assistant", "", tool_calls=[call])]) == '{"a":"\\u003cb\\u003e","z":1}'
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "title": "dropped"}}}
    text = "{{ range .Messages }}{{ end }}{{ .Tools }}"
    expected = '{"name":"f","description":"","parameters":{"type":"object","properties":null}}'
    assert load_template(text).render([], [tool]) == f'[{{"type":"function","function":{expected}}}]'


@pytest.mark.parametrize(
    "text, printed",
    [
        ("{{ index .Messages 0 }}", "{user U  [] []  }"),  # an action prints what a pointer refers to
        ("{{ index .Messages 0 | print }}", "&{user U  [] []  }"),  # fmt.Sprint shows that it is one
        ('{{ range .Messages }}{{ printf "%v" . }}{{ end }}', "&{user U  [] []  }"),
        ("{{ index .Messages 0 | html }}", "{user U  [] []  }"),
    ],
)
def test_a_message_is_a_pointer_for_fmt(text, printed):
    assert load_template(text).render([say("user", "U")]) == printed


@pytest.mark.parametrize(
    "function, properties",
    [
        ({}, "null"),
        ({"parameters": None}, "null"),
        ({"parameters": {}}, "null"),
        ({"parameters": {"properties": None}}, "null"),
        ({"parameters": {"properties": {}}}, "{}"),
    ],
)
def test_properties_that_were_not_sent_print_as_null(function, properties):
    """In Ollama they are a nil map then: encoding/json writes null, and %v nothing between the brackets."""
    tools = [{"type": "function", "function": function}]
    text = "{{ range .Messages }}{{ end }}{{ range .Tools }}{{ json .Function.Parameters.Properties }}{{ end }}"
    assert load_template(text).render([], tools) == properties
    shown = text.replace("json .Function.Parameters.Properties", ".Function.Parameters")
    assert f'"properties":{properties}' in load_template(shown.replace(".Parameters", "")).render([], tools)
    empty = text.replace("json .Function.Parameters.Properties", "len .Function.Parameters.Properties")
    assert load_template(empty).render([], tools) == "0"


def test_empty_properties_within_a_property_stay():
    """A pointer to an empty map is not empty for encoding/json's omitempty."""
    inner = {"a": {"type": "object", "properties": {}}, "b": {"type": "object"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": inner}}}
    text = "{{ range .Messages }}{{ end }}{{ range .Tools }}{{ json .Function.Parameters.Properties }}{{ end }}"
    expected = '{"a":{"type":"object","properties":{}},"b":{"type":"object"}}'
    assert load_template(text).render([], [tool]) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, json_values)
def test_any_json_prints_as_a_tool(function, arguments):
    text = "{{ range .Messages }}{{ .ToolCalls }}{{ end }}{{ range .Tools }}{{ json . }}{{ end }}"
    said = [say("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])]
    written = load_template(text).render(said, [{"type": "function", "function": function}])
    assert '"parameters":{"type":' in written


# Where we differ from ollama_renders.json, by template id: docs/compatibility.md, "Templates in legacy mode".
OURS = {
    "own/json-legacy": "our functions exist in the last turn of legacy mode too",
    "own/response-else": "upstream crashes where an `else` follows the first .Response; it is cut",
}


def test_conversations_are_rendered_as_by_ollama(recordings, freeze):
    texts = {case["id"]: case["t"] for case in recordings.json("go/ollama_templates")}
    asked = {case["id"]: case for case in recordings.json("go/ollama_conversations")}
    for case in recordings.json("go/ollama_renders"):
        freeze(case)
        got = written(texts[case["template"]], asked[case["conversation"]])
        expected = case.get("out_function_json", case.get("out", case.get("err")))
        if case["template"] in OURS:
            assert "panic" in case or "is not a defined function" in expected or got == expected
            assert not got.startswith("template:")
        else:
            assert got == expected, (case["id"], case["template"], case["conversation"])


def written(text, asked):
    """Render a recorded conversation with the template `text`; roles are in lower case, images are bytes."""
    try:
        template = load_template(text)
        if "prompt" in asked:
            return template.fill(asked["prompt"], asked["suffix"])
        messages = [
            message
            | {"role": message["role"].lower()}
            | ({"images": [base64.b64decode(image) for image in message["images"]]} if "images" in message else {})
            for message in asked["messages"]
        ]
        return template.render(messages, asked.get("tools"), asked.get("think"))
    except BadTemplate as error:
        return str(error)


def test_capabilities_and_tags_are_those_that_ollama_finds(recordings):
    for case in recordings.json("go/ollama_templates"):
        if "err" in case:
            with pytest.raises(BadTemplate) as caught:
                load_template(case["t"])
            assert str(caught.value) == case["err"], case["id"]
            continue
        template = load_template(case["t"])
        got = {
            "vars": sorted(template.names),
            "caps": template.capabilities,
            "think_open": template.thinking_tags[0],
            "think_close": template.thinking_tags[1],
            "tool_tag": template.tool_tag,
            "round_trip": template.takes_results,
        }
        assert got == {key: case[key] for key in got}, case["id"]


@pytest.mark.parametrize(
    "text, tag",
    [
        ('{{ if .ToolCalls }}<tool_call>\n{{ range .ToolCalls }}{"name": {{ .Function.Name }}{{ end }}{{ end }}', None),
        ("{{ if .A }}{{ else if .ToolCalls }}[TOOL_CALLS] [{{ range .ToolCalls }}{{ . }}{{ end }}]{{ end }}", None),
        ("{{ range .ToolCalls }}<x>{{ end }}", "{"),
        ("{{ if (len .ToolCalls) }}<x>{{ end }}", "{"),
        ("{{ if .ToolCalls }}{{ .Content }}<x>{{ end }}", "{"),
    ],
)
def test_the_tool_tag_is_the_first_text_in_the_first_if_toolcalls(text, tag):
    """[172]"""
    expected = tag or ("<tool_call>" if "<tool_call>" in text else "[TOOL_CALLS] [")
    assert load_template(text).tool_tag == expected


def test_thinking_tags_are_the_first_and_last_text_beside_the_thought():
    shown = "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}"
    assert load_template(shown).thinking_tags == ("<think>", "</think>")
    assert load_template(shown.replace("range .Messages", "range .Others")).thinking_tags == ("", "")
    assert load_template(shown).capabilities == ["thinking"]
