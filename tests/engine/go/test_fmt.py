import pytest

from numllama.engine.go.fmt import json_text, literal_of_value, ordered_json_text, text_of_value


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (1e-7, "1e-7"),
        (1e-5, "0.00001"),
        (1e6, "1000000"),
        (1e21, "1e+21"),
        (12.25e30, "1.225e+31"),
        (128, "128"),
        (-0.25, "-0.25"),
        (True, "true"),
        (None, "null"),
        (["X", 1.0], '["X",1]'),
        ("<b>&é\u2028\n", '"\\u003cb\\u003e\\u0026é\\u2028\\n"'),
        ({"z": 1, "a": {"k": []}}, '{"a":{"k":[]},"z":1}'),
    ],
)
def test_json_is_written_as_go_writes_it(value, expected):
    assert json_text(value) == expected


def test_json_of_a_struct_keeps_its_order():
    assert ordered_json_text({"role": "user", "content": "hi"}) == '{"role":"user","content":"hi"}'


@pytest.mark.parametrize(
    "value, expected",
    [
        (4096, "4096"),
        (131072, "131072"),
        (1000000, "1e+06"),
        (12345678, "1.2345678e+07"),
        (1e-7, "1e-07"),
        (0.0001, "0.0001"),
        (0.7, "0.7"),
        (False, "false"),
        ("a b", "a b"),
    ],
)
def test_plain_text_is_percent_v(value, expected):
    assert text_of_value(value) == expected


def test_literal_quotes_text_only():
    assert literal_of_value('<|im_end|>\n"é\x01') == '"<|im_end|>\\n\\"é\\x01"'
    assert literal_of_value(0.7) == "0.7"
