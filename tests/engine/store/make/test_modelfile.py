import base64

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from numllama.engine.errors import BadModelfile, RequestError
from numllama.engine.store.make.modelfile import (
    Instruction,
    create_arguments,
    parse_modelfile,
    quote_argument,
    render_modelfile,
)

OURS = {  # texts that Ollama renders so that parsing drops quotes, tabs or a line; ours survive
    "ms-p0005": 'PARAMETER stop """"q""""\n',
    "ms-p0014": 'SYSTEM "\ttab\t"\n',
    "ms-p0015": 'SYSTEM """"quoted""""\n',
    "ms-p0016": 'SYSTEM "a\rb"\n',
}


def test_the_modelfile_has_ollamas_instructions_in_ollamas_order(kept):
    for case in kept.json("go/modelfile_show"):
        shown = case["show"]
        given = {
            key: shown.get(key)
            for key in ("template", "system", "renderer", "parser", "adapters", "projectors", "messages")
        }
        got = render_modelfile(
            shown["model_path"],
            drafts=[shown["draft"]] if "draft" in shown else [],
            params=shown.get("options"),
            licenses=shown.get("license", []),
            **{key: value for key, value in given.items() if value is not None},
        )
        if case["id"] in OURS:
            assert OURS[case["id"]] in got
        else:
            assert got == case["out"]


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a b", "a b"),
        ("", ""),
        (" a", '" a"'),
        ("a\nb", '"a\nb"'),
        ('a\n"b"', '"""a\n"b""""'),
        ('say "hi"', 'say "hi"'),
        ('"hi" he said', '""""hi" he said"""'),
        ("tab\t", '"tab\t"'),
    ],
)
def test_a_value_is_quoted_if_a_parser_would_change_it(value, expected):
    assert quote_argument(value) == expected


def test_stops_keep_their_order_and_parameters_are_sorted():
    got = render_modelfile("/w", params={"top_p": 0.5, "stop": ["z", "a "], "num_ctx": 4096, "seed": 12345678})
    assert got == (
        'FROM /w\nPARAMETER num_ctx 4096\nPARAMETER seed 1.2345678e+07\nPARAMETER stop z\nPARAMETER stop "a "\n'
        "PARAMETER top_p 0.5\n"
    )


NOT_QUOTABLE = ("mf-p0086",)  # an inner line ends with three quotes


def test_modelfiles_are_parsed_as_ollama_parses_them(kept):
    n = 0
    for case in kept.json("go/modelfile"):
        text = base64.b64decode(case["b64"]) if "b64" in case else case["text"]
        if "err" in case:
            with pytest.raises(BadModelfile) as caught:
                parse_modelfile(text)
            assert str(caught.value) == case["err"], case["id"]
        else:
            assert parse_modelfile(text) == [tuple(command) for command in case["commands"]], case["id"]
        n += 1
    assert n == 194


def test_instructions_are_rendered_as_ollama_renders_them_and_parsed_back(kept):
    for case in kept.json("go/modelfile"):
        if "commands" not in case:
            continue
        commands = [Instruction(*command) for command in case["commands"]]
        written = "".join(f"{command}\n" for command in commands)
        if case.get("again_same"):
            assert written == case["string"], case["id"]
        if case["id"] not in NOT_QUOTABLE:
            assert parse_modelfile(written) == commands, case["id"]


def test_instructions_become_the_request_that_ollamas_client_sends(kept):
    n = 0
    for case in kept.json("go/modelfile"):
        if "create_err" in case:
            with pytest.raises(RequestError) as caught:
                create_arguments(parse_modelfile(case["text"]))
            assert str(caught.value) == case["create_err"], case["id"]
        elif "create" in case:
            text = base64.b64decode(case["b64"]) if "b64" in case else case["text"]
            expected = {key: value for key, value in case["create"].items() if key != "from"}
            got = {key: value for key, value in create_arguments(parse_modelfile(text)).items() if value != ""}
            assert got == expected, case["id"]
        n += "create" in case or "create_err" in case
    assert n == 140


PRINTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=' \t\n\r"'), max_size=30
)
NAMES = st.sampled_from(
    ["license", "template", "system", "adapter", "renderer", "parser", "requires", "stop", "num_ctx"]
)
COMMANDS = st.builds(Instruction, NAMES, PRINTS) | st.builds(
    Instruction,
    st.just("message"),
    st.builds("{}: {}".format, st.sampled_from(["system", "user", "assistant"]), PRINTS),
)


def can_be_quoted(text):
    lines = text.replace("\r", "\n").split("\n")[:-1]
    return not any(
        (line if i else '"""' + line).rstrip(" \t").endswith('"""') and (i or line.rstrip(" \t"))
        for i, line in enumerate(lines)
    )


@given(st.lists(COMMANDS, max_size=5), PRINTS)
def test_rendered_instructions_are_parsed_back(commands, model):
    commands = [Instruction("model", model), *commands]
    assume(all(can_be_quoted(command.value) for command in commands))
    assert parse_modelfile("".join(f"{command}\n" for command in commands)) == commands


@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_text_is_parsed_or_refused(text):
    try:
        commands = parse_modelfile(text)
    except BadModelfile:
        return
    assert any(command.name == "model" for command in commands)


def test_a_long_modelfile_is_parsed():
    """A license of a megabyte, with one word per line."""
    text = "word\n" * 200_000
    assert parse_modelfile(f'FROM x\nLICENSE """{text}"""')[1].value == text


def test_characters_newer_than_pythons_tables_are_kept():
    """U+1FA75 is of Unicode 15, which Python 3.11 does not know; Go drops what is unprintable, such as U+200B."""
    text = "hi \U0001fa75 \u0897\U0001cc00 b"
    assert parse_modelfile(f"FROM m\nSYSTEM {text}\u200b\u202e\uffff")[1] == Instruction("system", text)
