"""The choice of the template for a prompt: the request's, the model's layer, the GGUF's own, or none.

Numbers in brackets are those of docs/compatibility.md.
"""

import re
from dataclasses import replace

import pytest

from numllama.engine.errors import BadTemplate, RequestError
from numllama.engine.options import RequestOptions
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings
from tiny import tiny_gguf

RENDERED = RequestOptions(render_only=True)
JINJA = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
ASKS = (
    JINJA
    + "{% if not messages | selectattr('role', 'eq', 'user') | list %}{{ raise_exception('who asks?') }}{% endif %}"
)
ALTERNATES = JINJA + "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
TURNS = "{{ if .System }}[{{ .System }}]{{ end }}{{ .Prompt }}|{{ .Response }}/"
INFILL = "{{ if .Suffix }}<pre>{{ .Prompt }}<suf>{{ .Suffix }}<mid>{{ else }}{{ .Prompt }}{{ end }}"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    engine = Engine(Settings(models=folder / "store", builtin=False))
    for name, jinja in (("jinja", JINJA), ("asks", ASKS), ("alternates", ALTERNATES), ("bare", None)):
        path = tiny_gguf(folder / f"{name}.gguf", **({"chat_template": jinja} if jinja else {}))
        list(engine.create(name, files={"m.gguf": engine.store.put_blob([path.read_bytes()])[0]}))
    list(engine.create("turns", from_="jinja", template=TURNS, system="S"))
    list(engine.create("infill", from_="bare", template=INFILL))
    yield engine
    engine.close()


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_the_model_s_layer_takes_precedence_over_the_gguf_s_template(engine):
    assert engine.generate("turns", "p", RENDERED).prompt == "[S]p|"
    assert engine.generate("jinja", "p", RENDERED).prompt == "<user>p"
    assert engine.generate("bare", "p", RENDERED).prompt == "p"


def test_without_go_templates_the_gguf_s_template_is_used(engine):
    without = Engine(replace(engine.settings, go_template=False), engine.store)
    assert without.generate("turns", "p", RENDERED).prompt == "<system>S<user>p"
    without.close()


def test_the_request_s_template_replaces_the_model_s(engine):
    """[43]"""
    assert engine.generate("turns", "p", RENDERED, template="<{{ .System }}{{ .Prompt }}>").prompt == "<Sp>"
    assert engine.generate("jinja", "p", RENDERED, template="{{ .Prompt }}{{ .Response }}tail").prompt == "p"
    with pytest.raises(BadTemplate, match=r"^template: :1: unclosed action$"):
        engine.generate("turns", "p", RENDERED, template="{{ .Prompt")


def test_a_suffix_requires_a_template_that_uses_it(engine):
    """[44], [45]"""
    assert engine.generate("infill", "a", RENDERED, suffix="b", system="S").prompt == "<pre>a<suf>b<mid>"
    assert engine.generate("infill", "a", RENDERED).prompt == "a"
    with pytest.raises(RequestError, match=r"^registry\.ollama\.ai/library/turns:latest does not support insert$"):
        engine.generate("turns", "a", RENDERED, suffix="b")


def test_a_last_message_of_the_assistant_stays_open(engine):
    """[87]"""
    turns = messages(("user", "q"), ("assistant", "and so"))
    assert engine.chat("turns", turns, RENDERED).prompt == "[S]q|and so"
    assert engine.chat("jinja", turns, RENDERED).prompt == "<user>q<assistant>and so"


def test_earlier_turns_are_rendered_whole(engine):
    turns = messages(("user", "q"), ("assistant", "a"), ("user", "r"))
    assert engine.chat("turns", turns, RENDERED).prompt == "[S]q|a/r|"


def test_a_long_tool_result_leaves_the_question_in_the_prompt(engine):
    """Templates such as Qwen 3's raise an exception without one."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    said = [*messages(("system", "S"), ("user", "what?")), call, *messages(("tool", "the cat and the dog " * 200))]
    answer = engine.chat("asks", said, replace(RENDERED, options={"num_ctx": 128}))
    before, note, after = re.split(r"\n(\[\.\.\. [0-9]+ characters left out \.\.\.\])\n", answer.prompt)
    assert before.startswith("<system>S<user>what?<assistant><tool>the cat and") and after.endswith("the dog ")
    counted = engine.chat("asks", said, RequestOptions(options={"num_ctx": 128, "num_predict": 1}))
    last = list(counted)[-1]
    assert 110 < last.timings.prompt_eval_count <= 128 and last.timings.n_whole > 1000 and note


def test_messages_are_dropped_until_the_template_accepts_the_rest(engine):
    """A template whose roles must alternate refuses what is left after an odd number of messages."""
    turns = [("user" if i % 2 == 0 else "assistant", f"the cat and the dog number {i} ") for i in range(21)]
    prompt = engine.chat("alternates", messages(*turns), replace(RENDERED, options={"num_ctx": 256})).prompt
    rendered = ["".join(f"<{role}>{text}" for role, text in turns[n:]) for n in range(0, 21, 2)]
    fitting = [text for text in rendered if len(engine.tokenize("alternates", text, add_special=True)) <= 256]
    assert prompt == fitting[0] and 2 < len(fitting) < len(rendered)
