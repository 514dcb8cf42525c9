"""`numllama template`: finding the template, rendering a conversation, error messages."""

from __future__ import annotations

import json

import pytest
from call_templates import TEMPLATES
from scripted import TEMPLATE, WEATHER

from numllama.api.cli import template as template_cli
from numllama.api.cli.backend import backend_for
from numllama.engine.options import RequestOptions
from numllama.engine.store import default_store
from numllama.engine.store.make.create import create
from tiny import tiny_gguf

GO = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}{{ if .Tools }}+{{ len .Tools }}{{ end }}{{ .Think }}"
JINJA = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ '[assistant]' if add_generation_prompt }}"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "USER", "content": "<hi>"}]


@pytest.fixture
def render(numllama, tmp_path, monkeypatch):
    """Write a template file and render it with a conversation or other JSON."""
    monkeypatch.chdir(tmp_path)

    def render(name, text=None, *flags, messages=CHAT, tools=None, data=None):
        if text is not None:
            (tmp_path / name).write_text(text)
        given = {"messages": messages if data is None else None, "tools": tools, "data": data}
        args = list(flags)
        for what, value in given.items():
            if value is not None:
                (tmp_path / f"{what}.json").write_text(value if isinstance(value, str) else json.dumps(value))
                args += [f"--{what}", f"{what}.json"]
        return numllama("template", name, *args)

    return render


def test_a_go_template_renders_a_conversation(render):
    assert render("a.gotmpl", GO) == (0, "<system>Be brief.<user><hi>false", "")


def test_a_jinja_template_ends_with_the_generation_prompt(render):
    assert render("a.jinja", JINJA).out == "[system]Be brief.[user]<hi>[assistant]"


def test_a_final_assistant_message_stays_open(render):
    begun = [*CHAT, {"role": "assistant", "content": "Well"}]
    assert render("a.jinja", JINJA, messages=begun).out == "[system]Be brief.[user]<hi>[assistant]Well"
    turns = "{{ if .Prompt }}<{{ .Prompt }}>{{ end }}{{ .Response }}</s>"
    assert render("a.tmpl", turns, messages=begun).out == "<<hi>>Well"


@pytest.mark.parametrize("name", ["plain", "plain.txt"])
def test_the_language_is_determined_by_the_extension_or_a_tag(render, name):
    assert render(name, GO).out.startswith("<system>") and render(name, JINJA).out.startswith("[system]")
    text = "{% if %}"  # plain text in Go, a syntax error in Jinja
    assert render("a.go", text + "{{ .Response }}").out == text and render("a.j2", text).status == 1


def test_tools_are_rendered(render):
    assert render("a.gotmpl", GO, tools=[WEATHER]).out.endswith("+1false")
    assert render("a.jinja", TEMPLATE, tools=[WEATHER]).out.startswith('<tools>[{"type": "function", "function"')


def test_thinking_is_enabled_unless_switched_off(render):
    for flags, end in [([], "()"), (["--think"], "()"), (["--think=high"], "(high)"), (["--think=false"], "")]:
        assert render("a.jinja", TEMPLATE, *flags).out.endswith(f"<|assistant|>{end}")
    assert render("a.gotmpl", GO, "--think").out.endswith("true")


def test_a_go_template_can_be_executed_on_any_data(render):
    text = "{{ range $k, $v := .m }}{{ $k }}{{ json $v }} {{ end }}{{ .x }}"
    assert render("a", text, data={"m": {"b": 1, "a": []}}).out == "a[] b1 <no value>"
    assert render("a", "{{ index . 1 }}", data=[1, "<b>"]).out == "<b>"


def test_a_modelfile_adds_its_system_message_and_messages(render):
    text = f'FROM m\nSYSTEM S\nMESSAGE assistant A\nTEMPLATE """{GO}"""\n'
    for name in ("Modelfile", "Modelfile.mario", "mario.modelfile"):
        assert render(name, text, messages=CHAT[1:]).out == "<system>S<assistant>A<user><hi>false"
    assert render("Modelfile", "FROM m\n").err == (
        "Error: Modelfile: no TEMPLATE instruction; render the model in FROM instead\n"
    )


def test_a_gguf_uses_its_own_template(render, tmp_path):
    tiny_gguf(tmp_path / "own.gguf", chat_template=JINJA)
    assert render("own.gguf").out == "[system]Be brief.[user]<hi>[assistant]"
    tiny_gguf(tmp_path / "bare.gguf")
    assert render("bare.gguf", messages=CHAT[1:]).out == "<|im_start|>user\n<hi><|im_end|>\n<|im_start|>assistant\n"


def test_a_model_is_prompted_as_in_a_chat(alone, render, tmp_path):
    assert render("m", messages=CHAT[1:]).out == chat_prompt("m", CHAT[1:])
    store = default_store()
    digest, _ = store.put_blob([tiny_gguf(tmp_path / "own.gguf").read_bytes()])
    list(create(store, "layered", files={"own.gguf": digest}, template=GO, system="S"))
    assert render("layered", messages=CHAT[1:]).out == chat_prompt("layered", CHAT[1:]) == "<system>S<user><hi>false"
    store.delete("layered")


def test_earlier_thinking_is_removed_as_in_a_chat(alone, render):
    store = default_store()
    list(create(store, "deepseek-r1", "bare"))
    said = [*CHAT[1:], {"role": "assistant", "content": "<think>hm</think>yes"}, *CHAT[1:]]
    assert "hm" in render("bare", messages=said).out
    assert render("deepseek-r1", messages=said).out == chat_prompt("deepseek-r1", said)
    assert "hm" not in chat_prompt("deepseek-r1", said)
    store.delete("deepseek-r1")


def chat_prompt(model, messages):
    """Return the prompt that the engine renders for a chat."""
    engine = backend_for(model)
    said = [message | {"role": message["role"].lower()} for message in messages]
    prompt = engine.chat(model, said, RequestOptions(render_only=True)).prompt
    engine.close()
    return prompt


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"text": "a\n{{ if .x }}"}, "t: template: :2: unexpected EOF"),
        ({"text": "{{ .System }}{{ .Messages.x }}"}, "t: template: :1:25: executing"),
        ({"text": "a\n{% for %}"}, "t: chat template, line 2: "),
        ({"text": "{% if 1 %}{{ raise_exception('No\nsystem') }}{% endif %}"}, "t: No system"),
        ({"messages": '[\n {"role": }]'}, "messages.json:2:11: invalid JSON: Expecting value"),
        ({"messages": {"role": "user"}}, 'messages.json: expected a list of messages, found {"role": "user"}'),
        ({"messages": [{"content": 3}]}, "messages.json: json: cannot unmarshal number into Go struct field "),
        ({"tools": [3]}, "tools.json: json: cannot unmarshal number"),
        ({"data": {}, "text": "{% if 1 %}{% endif %}"}, "t: --data requires a Go template, found jinja"),
        ({"data": {}, "tools": []}, "--tools and --think require --messages"),
        ({"messages": None}, "expected either --messages FILE or --data FILE"),
        ({"data": "[" * 100_000}, "data.json: nested too deeply"),
    ],
    ids=str,
)
def test_errors_are_one_line(render, given, error):
    status, out, err = render("t", given.pop("text", GO), **given)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"Error: {error}")


def test_an_unknown_source_is_an_error(alone, render, numllama):
    assert render("./nope.tmpl").err == "Error: './nope.tmpl' is neither a file nor an installed model\n"
    assert numllama("template", "a", "--messages", "no.json").status == 1


def test_a_dash_reads_standard_input(numllama, tmp_path):
    (tmp_path / "a.go").write_text("{{ .x }}")
    assert numllama("template", str(tmp_path / "a.go"), "--data", "-", stdin='{"x": "é"}').out == "é"


def test_calls_prints_the_form_that_was_found(tmp_path, capsys):
    path = tmp_path / "coder.jinja"
    path.write_text(TEMPLATES["qwen3.5"])
    template_cli.print_calls(str(path))
    assert capsys.readouterr().out.splitlines() == [
        r"call        <tool_call>\n<function=NAME>\nPARAMETERS\n</function>\n</tool_call>",
        r"parameter   <parameter=KEY>\nVALUE\n</parameter>\n",
        "values      strings as they are, all else JSON or Python literals",
        "found by    a call that the template renders",
        "thoughts    <think> ... </think>",
    ]
