"""The tags that tool calls begin with, found from Jinja templates."""

import pytest

from numllama.engine.errors import BadTemplate
from numllama.engine.parse import ToolParser
from numllama.engine.template import Template
from numllama.engine.template.go import load_template
from numllama.engine.template.tags import ARGUMENTS, ID, NAME


def tag_of(text, **tokens):
    return Template(text, special_tokens=tokens).tool_tag


JINJA = (
    "{% for m in messages %}"
    "<|{{ m.role }}|>{% if m.tool_calls %}CALL{% else %}{{ m.content }}{% endif %}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


@pytest.mark.parametrize(
    "call, tag",
    [
        ("<tool_call>\n{{ m.tool_calls[0].function | tojson }}\n</tool_call>", "<tool_call>"),
        ("{{ m.tool_calls | map(attribute='function') | list | tojson }}", "["),
        ('{"f": "{{ m.tool_calls[0].function.name }}", "x": {{ m.tool_calls[0].function.arguments | tojson }}}', None),
        ("{{ m.tool_calls[0].function | tojson }}", "{"),
        (
            "<function={{ m.tool_calls[0].function.name }}>{{ m.tool_calls[0].function.arguments | tojson }}",
            "<function=",
        ),
        ("<f>{{ m.tool_calls[0].function.name }}<arg>{{ m.tool_calls[0].function.arguments.probed_key }}", None),
        ("nothing", "{"),
        ("{{ raise_exception('no calls') }}", "{"),
    ],
)
def test_the_tag_is_found_by_rendering_a_call(call, tag):
    assert tag_of(JINJA.replace("CALL", call)) == tag


@pytest.mark.parametrize(
    "name, tag",
    [
        ("Qwen-Qwen3-0.6B", "<tool_call>"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "[TOOL_CALLS]["),
        ("GLM-4.6", None),  # arguments in XML
        pytest.param("meta-llama-Llama-3.1-8B-Instruct", "{", marks=pytest.mark.slow),
        pytest.param("ibm-granite-granite-4.1", "<tool_call>", marks=pytest.mark.slow),
        pytest.param("NVIDIA-Nemotron-Nano-v2", "<TOOLCALL>[", marks=pytest.mark.slow),
    ],
)
def test_tags_of_published_jinja_templates(request, kept, name, tag):
    templates = kept.jinja()["templates"]
    text = templates[name] if name in templates else request.getfixturevalue("whole").jinja()["templates"][name]
    assert tag_of(text, bos_token="<s>", eos_token="</s>") == tag


@pytest.mark.parametrize(
    "call, form",
    [
        (
            "<tool_call>\n{{ m.tool_calls[0].function | tojson }}\n</tool_call>",
            ("<tool_call>", f'\n{{"name": "{NAME}", "arguments": {ARGUMENTS}}}', "\n</tool_call>"),
        ),
        (
            '[TOOL_CALLS][{"id": "{{ m.tool_calls[0].id }}", {{ (m.tool_calls[0].function | tojson)[1:] }}]',
            ("[TOOL_CALLS][", f'{{"id": "{ID}", "name": "{NAME}", "arguments": {ARGUMENTS}}}]', ""),
        ),
        (
            "<f>{{ m.tool_calls[0].function.arguments | tojson }} to {{ m.tool_calls[0].function.name }}</f>",
            ("<f>", f"{ARGUMENTS} to {NAME}", "</f>"),
        ),
        (
            "<f>{{ m.tool_calls[0].function.arguments.probed_key }}",
            ("{", f'"name": "{NAME}", "arguments": {ARGUMENTS}}}', ""),
        ),
        ("{{ raise_exception('no calls') }}", ("{", f'"name": "{NAME}", "arguments": {ARGUMENTS}}}', "")),
    ],
)
def test_the_form_of_a_call_is_read_off_a_rendered_one(call, form):
    got = Template(JINJA.replace("CALL", call)).call_form
    assert (got.tag, got.text, got.rest) == form


def test_a_template_that_shows_half_a_call_gets_a_whole_one_after_its_tag():
    """phi4-mini's shows no closing brace, with which no call can be read."""
    text = (
        '{{ range .Messages }}{{ if .ToolCalls }}<|tool_call|>[{{ range .ToolCalls }}{"name":"{{ .Function.Name }}",'
        '"arguments":{{ .Function.Arguments }}{{ end }}]{{ end }}{{ end }}{{ .Tools }}'
    )
    got = Template(text, "go").call_form
    assert (got.tag, got.text) == ("<|tool_call|>[", f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}]')


def test_every_recorded_template_has_a_form_that_its_parser_reads(recordings):
    texts = [Template(text) for text in recordings.jinja()["templates"].values()]
    for case in recordings.json("go/ollama_templates"):
        try:
            load_template(case["t"])
        except BadTemplate:
            continue
        texts.append(Template(case["t"], "go"))
    for template in texts:
        form = template.call_form
        said = form.tag + form.text.replace(NAME, "get_weather").replace(ARGUMENTS, '{"city": "Paris"}') + form.rest
        parser = ToolParser(form.tag, ["get_weather"])
        calls = parser.push(said)[1] + parser.flush()[1]
        assert [(call.name, call.arguments) for call in calls] == [("get_weather", {"city": "Paris"})], template.text
