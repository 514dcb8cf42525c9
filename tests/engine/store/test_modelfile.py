import json

import pytest

from numllama.engine.store.modelfile import quoted, render

OURS = {  # what Ollama prints comes back without its quotes, tabs or line; ours does not
    "ms-p0005": 'PARAMETER stop """"q""""\n',
    "ms-p0014": 'SYSTEM "\ttab\t"\n',
    "ms-p0015": 'SYSTEM """"quoted""""\n',
    "ms-p0016": 'SYSTEM "a\rb"\n',
}


def test_modelfile_has_ollamas_instructions_in_ollamas_order(shared):
    for case in json.loads((shared / "golden/go/modelfile_show.json").read_text()):
        shown = case["show"]
        given = {
            key: shown.get(key)
            for key in ("template", "system", "renderer", "parser", "adapters", "projectors", "messages")
        }
        got = render(
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
def test_value_is_quoted_where_a_parser_would_change_it(value, expected):
    assert quoted(value) == expected


def test_stops_keep_their_order_and_parameters_are_sorted():
    got = render("/w", params={"top_p": 0.5, "stop": ["z", "a "], "num_ctx": 4096, "seed": 12345678})
    assert got == (
        'FROM /w\nPARAMETER num_ctx 4096\nPARAMETER seed 1.2345678e+07\nPARAMETER stop z\nPARAMETER stop "a "\n'
        "PARAMETER top_p 0.5\n"
    )
