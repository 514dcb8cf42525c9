"""The form of calls and thoughts that a template shows, and answers read by it."""

import json
from itertools import pairwise

import pytest
from call_templates import TEMPLATES
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.parse import AnswerParser
from numllama.engine.template import Template

SCHEMAS = {
    "get_weather": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "hourly": {"type": "boolean"},
        "limit": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "when": {"type": "object", "properties": {}},
    },
    "get": {"x": {"type": "string"}},
    "now": {},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {"type": "object", "properties": properties, "required": []},
        },
    }
    for name, properties in SCHEMAS.items()
]
PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
CALLS = [
    [("get_weather", {"city": 'Köln "Hbf"', "days": 3})],
    [
        (
            "get_weather",
            {"city": "a\nb {x} [y] 'z' 日本", "hourly": True, "limit": 1.5, "tags": ["u", "v"], "when": {"t": 2}},
        ),
        ("get", {"x": "12"}),
    ],
    [("now", {})],
    [("get", {"x": "true"}), ("now", {}), ("get_weather", {"city": "Paris"})],
]
USER = {"role": "user", "content": "u"}
CONTENT, THINKING = "I look.", "I need it."


def message(calls, content="", thinking="", as_text=False):
    """Write the assistant's message."""
    made = [
        {
            "id": f"abcdefgh{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments) if as_text else arguments},
        }
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made} | ({"thinking": thinking} if thinking else {})


def answered(template, **said):
    """Render a conversation; return the prompt of its question, and the answer as the template writes it."""
    asked = template.render([USER], TOOLS)
    shown = template.render([USER, message(as_text=template.probed.as_text, **said)], TOOLS, False)
    if shown.startswith(asked):
        return asked, shown[len(asked) :]
    n = next(i for i, (a, b) in enumerate(zip(asked, shown, strict=False)) if a != b)
    return asked, shown[max(shown.rfind(end, 0, n) for end in "\n>]") + 1 :]  # not within a tag


def read(template, asked, text, pieces=None):
    """Read an answer; return thinking, text, and calls in their order."""
    parser = AnswerParser(template.answer_shape(asked, True, True, False), PARAMETERS)
    parts = [part for piece in pieces or [text] for part in parser.push(piece)] + parser.flush()
    calls = [(part.call.name, part.call.arguments) for part in parts if part.call]
    return "".join(part.thinking for part in parts), "".join(part.text for part in parts), calls


def alike(calls):
    """Return calls for comparison; some templates sort the arguments."""
    return [(name, dict(sorted(arguments.items()))) for name, arguments in calls]


SHOWN_ALONE = {"toolace", "xlam", "command-r7b"}  # templates that drop the text beside a call


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("calls", CALLS, ids=["one", "every-type", "no-arguments", "three"])
def test_calls_are_read_as_the_template_writes_them(name, calls):
    template = Template(TEMPLATES[name])
    for content in ("", CONTENT):
        asked, answer = answered(template, calls=calls, content=content)
        thinking, text, got = read(template, asked, answer)
        assert (thinking, alike(got)) == ("", alike(calls)), answer
        assert text.replace("<|end|>", "").strip() == ("" if name in SHOWN_ALONE else content), answer
        assert read(template, asked, answer, answer) == (thinking, text, got)  # a piece a character


@pytest.mark.parametrize("name", ["qwen3.5", "glm-4.5", "magistral"])
def test_a_thought_before_a_call_is_found(name):
    template = Template(TEMPLATES[name])
    assert "thinking" in template.capabilities
    for content in ("", CONTENT):
        asked, answer = answered(template, calls=CALLS[3], content=content, thinking=THINKING)
        thinking, text, got = read(template, asked, answer)
        assert (thinking.strip(), text.replace("<|end|>", "").strip(), got) == (THINKING, content, CALLS[3])


@pytest.mark.parametrize("name", ["qwen3-coder", "mistral-7", "deepseek-r1", "lfm2", "gemma-4", "kimi-k2", "xlam"])
def test_text_before_between_and_after_calls_is_text(name):
    template = Template(TEMPLATES[name])
    asked, answer = answered(template, calls=CALLS[0])
    call = answer.replace("<|end|>", "").strip()
    before = "" if name == "xlam" else "First."  # whose calls begin with a bracket, at the beginning of a line
    said = f"{before}{call}\nThen this:\n{call} Done."
    thinking, text, got = read(template, asked, said)
    assert (thinking, text, got) == ("", f"{before}\nThen this:\n Done.", CALLS[0] * 2)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_of_an_unknown_tool_is_text(name):
    template = Template(TEMPLATES[name])
    asked, answer = answered(template, calls=[("rm", {"x": "/"})])
    assert read(template, asked, answer) == ("", answer, [])


@pytest.mark.parametrize("name", ["one-tag", "jamba", "qwen3-coder", "deepseek-r1", "olmo-3"])
def test_a_broken_call_is_text_and_the_next_one_is_read(name):
    template = Template(TEMPLATES[name])
    asked, answer = answered(template, calls=[("get", {"x": "a"})])
    call = answer.replace("<|end|>", "").strip()
    broken = call.replace('"x"', '"x', 1).replace("<parameter=x>", "<parameter=x", 1).replace('x="a"', 'x="a', 1)
    assert broken != call
    assert read(template, asked, f"{broken}\n{call}") == ("", f"{broken}\n", [("get", {"x": "a"})])
    unfinished = call[: call.index("a", call.rindex("x")) + 1]
    assert read(template, asked, unfinished) == ("", unfinished, [])


@pytest.mark.parametrize("name", ["one-tag", "jamba", "qwen3-coder", "deepseek-r1", "gemma-4"])
def test_a_call_may_lack_its_end_when_the_answer_ends(name):
    template = Template(TEMPLATES[name])
    asked, answer = answered(template, calls=[("get", {"x": "a"})])
    call = answer.replace("<|end|>", "").rstrip()
    last = call.rindex("<" if not call.endswith("]") else "]")
    assert read(template, asked, call[: last + 1]) == ("", "", [("get", {"x": "a"})])


def test_a_closing_tag_in_a_string_ends_no_call():
    template = Template(TEMPLATES["one-tag"])
    asked, _ = answered(template, calls=CALLS[2])
    said = '<call>{"name": "get", "arguments": {"x": "a </call> b"}}</call>'
    assert read(template, asked, said, said) == ("", "", [("get", {"x": "a </call> b"})])


WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<function=get>", "<parameter=x>", "</parameter>", "a"]
WORDS += [
    "</function>",
    "\n",
    "<",
    " ",
    '{"name": "get", "arguments": {"x": "1"}}',
    '"',
    "{",
    "}",
    "[",
    "]",
    "[TOOL_CALLS]",
]
texts = st.lists(st.sampled_from(WORDS), max_size=20).map("".join)


@given(st.sampled_from(["qwen3.5", "mistral-7", "one-tag", "xlam"]), texts, st.lists(st.integers(0, 80)))
def test_cuts_change_nothing(name, text, cuts):
    template = Template(TEMPLATES[name])
    asked = template.render([USER], TOOLS)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    whole = read(template, asked, text)
    assert read(template, asked, text, [text[a:b] for a, b in pairwise(edges)]) == whole
    assert read(template, asked, text, text) == whole


NOT_SHOWN = {  # published templates that write no call, or fail on one
    "HuggingFaceTB-SmolLM3-3B",
    "Kimi-K2-Instruct",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "fireworks-ai-llama-3-firefunction-v2",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-deepseek-r1",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}
ONE_CALL = {"meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.3-70B-Instruct"}  # which refuse several
WITH_HEADERS = {"openai-gpt-oss-120b", "muse-glimmer"}  # read by the parser of that name
OPEN_THOUGHT = {"Apriel-1.6-15b-Thinker-fixed", "Cohere2MoE", "Kimi-K3", "poolside-Laguna-S-2.1"}


def test_published_templates_write_calls_that_are_read(recordings):
    for name, text in recordings.jinja()["templates"].items():
        template = Template(text, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
        if name in NOT_SHOWN | WITH_HEADERS:
            assert template.probed.form is None or name in WITH_HEADERS, name
            continue
        for calls in [CALLS[0], CALLS[2]] if name in ONE_CALL else CALLS:
            asked, answer = answered(template, calls=calls)
            assert alike(read(template, asked, answer)[2]) == alike(calls), (name, answer)
            assert read(template, asked, answer, answer) == read(template, asked, answer), name
            if template.probed.thoughts and name not in OPEN_THOUGHT:
                asked, answer = answered(template, calls=calls, content="", thinking=THINKING)
                assert read(template, asked, answer)[0].strip() in (THINKING, ""), (name, answer)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get:0<|tool_call_argument_begin|>"
            '{"x": "a"}<|tool_call_end|><|tool_calls_section_end|>',
        ),
        (
            "<｜tool▁calls▁begin｜> ```json",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n"
            '```json\n{"x": "a"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ),
        ("<|tool_list_start|>", '<|tool_call_start|>[get(x="a")]<|tool_call_end|>'),
        ("<|tool_call|>", '<|tool_call|>[{"name": "get", "arguments": {"x": "a"}}]'),
        ("functools[", ' functools[{"name": "get", "arguments": {"x": "a"}}]'),
        ("<tool_call>", '<tool_call>\n{"name": "get", "arguments": {"x": "a"}}\n</tool_call>'),
        ("nothing", '{"name": "get", "parameters": {"x": "a"}}'),
    ],
)
def test_a_template_that_shows_no_call_is_known_by_its_words(words, said):
    template = Template(f"{{# {words} #}}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}")
    assert template.probed.form is None
    thinking, text, calls = read(template, "", said)
    assert (thinking, text.strip(), calls) == ("", "", [("get", {"x": "a"})])


def test_a_thought_that_the_prompt_opens_is_thinking_from_the_start():
    frame = TEMPLATES["qwen3.5"].removesuffix("{% endif -%}") + "<think>\n{% endif -%}"
    template = Template(frame)
    asked = template.render([USER], TOOLS)
    assert template.thoughts.open == "<think>"
    assert read(template, asked, "so\n</think>\n\nyes") == ("so\n", "yes", [])
    assert read(template, asked, "<think>so</think>yes") == ("so", "yes", [])
    call = "\n<tool_call>\n<function=now>\n</function>\n</tool_call>"
    assert read(template, asked, f"I think.{call}") == ("I think.\n", "", [("now", {})])
    assert read(template, asked, "I say <tool_call> here</think>yes") == ("I say <tool_call> here", "yes", [])


def test_a_go_template_whose_calls_are_not_json_is_read_by_its_form():
    text = (
        "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}{{ range .ToolCalls }}<call><function={{ .Function.Name }}>"
        "{{ range $k, $v := .Function.Arguments }}<parameter={{ $k }}>{{ $v }}</parameter>{{ end }}</function></call>"
        "{{ end }}<|end|>{{ end }}{{ .Tools }}"
    )
    template = Template(text, "go")
    assert template.tool_tag is None
    said = "So: <call><function=get><parameter=x>12</parameter></function></call>"
    assert read(template, "", said) == ("", "So: ", [("get", {"x": "12"})])
