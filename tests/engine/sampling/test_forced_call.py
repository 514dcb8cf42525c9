"""A required call is enforced in the form that the template shows, and read as it is written."""

import numpy as np
import pytest
from call_templates import TEMPLATES

from numllama.engine.errors import BadGrammar
from numllama.engine.parse import AnswerParser
from numllama.engine.parse.found import shape_of
from numllama.engine.sampling.forced_call import ForcedCall
from numllama.engine.sampling.grammar import Grammars
from numllama.engine.template import Template
from numllama.engine.tokenizer import from_gguf
from tiny import bpe_vocabulary

TOKENIZER = from_gguf(bpe_vocabulary())
GRAMMARS = Grammars(TOKENIZER)
IDS = {TOKENIZER.piece(id): id for id in reversed(range(TOKENIZER.n_vocab))}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"], "type": "string"},
    },
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": PARAMETERS}},
    {
        "type": "function",
        "function": {"name": "now", "description": "d", "parameters": {"type": "object", "properties": {}}},
    },
]
OFFERED = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
USER = {"role": "user", "content": "u"}


def allowed(call, text):
    """Return how many bytes of `text` are allowed, and whether the answer may end after it."""
    grammar = GRAMMARS.grammar(call)
    for n, byte in enumerate(text.encode()):
        if not grammar.mask()[IDS[bytes([byte])]]:
            return n, False
        grammar.accept(IDS[bytes([byte])])
    return len(text.encode()), bool(grammar.mask()[[*TOKENIZER.eog]].all())


def written(template, name, arguments):
    """Write a call as the template does."""
    function = {"name": name, "arguments": arguments}
    call = {"id": "abcdefgh1", "type": "function", "function": function}
    asked = template.render([USER], TOOLS)
    shown = template.render([USER, {"role": "assistant", "content": "", "tool_calls": [call]}], TOOLS, False)
    assert shown.startswith(asked)
    return shown[len(asked) :].removesuffix("\n").removesuffix("<|end|>").strip()


AS_TEXT = {"arguments-in-a-string", "arguments-as-text", "solar"}  # which have strings or ids of other lengths


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in AS_TEXT])
def test_the_call_that_a_template_writes_is_allowed_and_read(name):
    template = Template(TEMPLATES[name])
    call = ForcedCall(template.call_form, TOOLS)
    for tool, arguments in [("get_weather", {"city": "Köln", "days": 3, "unit": "C"}), ("now", {})]:
        text = written(template, tool, arguments)
        n, may_end = allowed(call, text)
        assert (text.encode()[n:].decode(), may_end) == ("", True), text
        parser = AnswerParser(shape_of(call.form), OFFERED)
        calls = [part.call for part in parser.push(text) + parser.flush() if part.call]
        assert [(found.name, found.arguments) for found in calls] == [(tool, arguments)]


@pytest.mark.parametrize("name", ["one-tag", "qwen3-coder", "lfm2", "glm-4.5", "deepseek-r1", "gemma-4"])
def test_another_tool_or_a_wrong_value_is_not_allowed(name):
    template = Template(TEMPLATES[name])
    call = ForcedCall(template.call_form, TOOLS)
    for tool, arguments in [
        ("rm", {}),
        ("get_weather", {"city": "a", "days": "soon"}),
        ("get_weather", {"city": "a", "unit": "K"}),
        ("get_weather", {"days": 3}),
    ]:
        assert not allowed(call, written(template, tool, arguments))[1]


@pytest.mark.parametrize("name", ["qwen3-coder", "minimax-m2", "lfm2", "gemma-4", "command-r7b", "kimi-k2"])
def test_random_answers_are_calls_that_are_read(name):
    call, random = ForcedCall(Template(TEMPLATES[name]).call_form, TOOLS), np.random.default_rng(5)
    n_read = 0
    for _ in range(8):
        grammar, text = GRAMMARS.grammar(call), b""
        for _ in range(400):
            ids = np.flatnonzero(grammar.mask())
            if ids.size == 0 or {*ids} & {*TOKENIZER.eog}:
                break
            plain = [
                id
                for id in ids
                if len(TOKENIZER.piece(id)) == 1 and TOKENIZER.piece(id) in b'<>"|/=,:{}[]()\n_abcdeghinoprtuwy'
            ]
            id = int(random.choice(plain if plain and random.random() < 0.9 else ids))
            text += TOKENIZER.piece(id)
            grammar.accept(id)
        else:
            continue
        parser = AnswerParser(shape_of(call.form), OFFERED)
        said = text.decode("utf-8", "replace")
        calls = [part.call for part in parser.push(said) + parser.flush() if part.call]
        assert [found.name in OFFERED for found in calls] == [True], said
        n_read += 1
    assert n_read


def test_parameters_that_are_no_object_are_refused():
    with pytest.raises(BadGrammar, match="not an object"):
        GRAMMARS.grammar(
            ForcedCall(Template(TEMPLATES["lfm2"]).call_form, [{"function": {"parameters": {"type": "array"}}}])
        )
