"""The tags that tool calls begin with, found from Jinja templates."""

import pytest

from numllama.engine.template import Template


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
