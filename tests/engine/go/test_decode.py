"""Decoding of request bodies as by Go's encoding/json; the error texts were recorded from Ollama v0.33.0-rc2."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from numllama.api.openai.schema import ChatCompletionRequest, OpenAIEmbedRequest
from numllama.api.wire.schema import ChatRequest, CopyRequest, CreateRequest, GenerateRequest
from numllama.engine.go.decode import decode_json
from numllama.engine.go.json import MAX_VALUES, BodyTooLarge, DecodeError, dumps, loads, syntax_error

FIELD = "json: cannot unmarshal {} into Go struct field GenerateRequest.{} of type {}"
REFUSED = {
    b"": "missing request body",
    b" \n ": "missing request body",
    b"{": "unexpected EOF",
    b'{"model":': "unexpected EOF",
    b'{"model":"a': "unexpected EOF",
    b"{model:1}": "invalid character 'm' looking for beginning of object key string",
    b'{"model":"a",}': "invalid character '}' looking for beginning of object key string",
    b'{"context":[1,]}': "invalid character ']' looking for beginning of value",
    b'{"context":[1 2]}': "invalid character '2' after array element",
    b'{"model" 1}': "invalid character '1' after object key",
    b'{"a":01}': "invalid character '1' after object key:value pair",
    b'{"a":-}': "invalid character '}' in numeric literal",
    b'{"a":1.}': "invalid character '}' after decimal point in numeric literal",
    b'{"a":1e}': "invalid character '}' in exponent of numeric literal",
    b'{"a":+1}': "invalid character '+' looking for beginning of value",
    b'{"a":NaN}': "invalid character 'N' looking for beginning of value",
    b"{'a':1}": r"invalid character '\'' looking for beginning of object key string",
    b'{"a":tru}': "invalid character '}' in literal true (expecting 'e')",
    rb'{"a":"\q"}': "invalid character 'q' in string escape code",
    rb'{"a":"\u00g0"}': r"invalid character 'g' in \u hexadecimal character escape",
    b'{"model":"x\x01"}': r"invalid character '\x01' in string literal",
    b"\xef\xbb\xbf{}": "invalid character 'ï' looking for beginning of value",
    b"[" * 20_000: "exceeded max depth",
    b"[]": "json: cannot unmarshal array into Go value of type api.GenerateRequest",
    b"3": "json: cannot unmarshal number into Go value of type api.GenerateRequest",
    b'{"model":1}': FIELD.format("number", "model", "string"),
    b'{"stream":"x"}': FIELD.format("string", "stream", "bool"),
    b'{"options":[]}': FIELD.format("array", "options", "map[string]interface {}"),
    b'{"context":[1.5]}': FIELD.format("number 1.5", "context", "int"),
    b'{"context":"x"}': FIELD.format("string", "context", "[]int"),
    b'{"images":"x"}': FIELD.format("string", "images", "[]api.ImageData"),
    b'{"images":["@@@"]}': "illegal base64 data at input byte 0",
    b'{"images":["AAAA="]}': "illegal base64 data at input byte 4",
    b'{"keep_alive":"10"}': 'time: missing unit in duration "10"',
    b'{"keep_alive":true}': "Unsupported type: 'bool'",
    b'{"think":1}': 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)',
    b'{"model":1,"keep_alive":"x"}': 'time: invalid duration "x"',  # a type's own error ends decoding
    b'{"model":1,"stream":"x"}': FIELD.format("number", "model", "string"),  # else the first one counts
}


def test_the_texts_of_a_tool_are_strings_or_absent():
    """Go's struct has strings there; everything else of the function is kept, in its order."""
    tool = b'{"tools":[{"type":"function","function":%s}]}'
    sent = b'{"parameters":{"z":null},"Name":null,"description":"d","strict":true}'
    [got] = decode_json(ChatRequest, tool % sent).tools
    assert got.function == {"parameters": {"z": None}, "description": "d", "strict": True}
    [got] = decode_json(ChatRequest, tool % b'{"Name":"f"}').tools
    assert got.function == {"name": "f"}
    for key, value, found in [("name", b"5", "number"), ("description", b"[]", "array")]:
        with pytest.raises(DecodeError) as refusal:
            decode_json(ChatRequest, tool % (b'{"%s":%s}' % (key.encode(), value)))
        field = f"ChatRequest.tools.function.{key}"
        assert str(refusal.value) == f"json: cannot unmarshal {found} into Go struct field {field} of type string"


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: repr(body[:24]))
def test_an_invalid_body_gives_gos_error(body):
    with pytest.raises(DecodeError) as refusal:
        decode_json(GenerateRequest, body)
    assert str(refusal.value) == REFUSED[body]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages":[{"role":1}]}', "number into Go struct field ChatRequest.messages.role of type string"),
        (b'{"messages":{}}', "object into Go struct field ChatRequest.messages of type []api.Message"),
        (b'{"messages":[1]}', "number into Go struct field ChatRequest.messages of type api.Alias"),
        (b'{"tools":{}}', "object into Go struct field ChatRequest.tools of type api.Tools"),
        (b'{"tools":[1]}', "number into Go struct field ChatRequest.tools of type api.Tool"),
    ],
)
def test_a_nested_field_is_named_by_its_path(body, expected):
    with pytest.raises(DecodeError, match=expected.replace("[", r"\[")):
        decode_json(ChatRequest, body)


@pytest.mark.parametrize(
    "body", [b"null", b"{}", b'{"prompt":null,"stream":null,"options":null}', b'{"unknown":{"x":[]}} junk']
)
def test_absent_null_and_unknown_fields_leave_the_default(body):
    assert decode_json(GenerateRequest, body) == GenerateRequest()


def test_names_match_in_any_case_and_the_last_one_wins():
    assert decode_json(GenerateRequest, b'{"MODEL":"a","Model":"b"}').model == "b"
    assert decode_json(CopyRequest, b'{"SOURCE":"a"}') == CopyRequest("a", "")
    assert decode_json(CreateRequest, b'{"from":"a","name":"n"}').from_ == "a"


def test_either_name_is_accepted_and_model_wins():
    assert decode_json(CreateRequest, b'{"name":"n"}').model == "n"
    assert decode_json(CreateRequest, b'{"name":"n","model":"m"}').model == "m"


def test_an_empty_context_differs_from_an_absent_one():
    assert decode_json(GenerateRequest, b"{}").context is None
    assert decode_json(GenerateRequest, b'{"context":[]}').context == []


def test_keep_alive_is_nanoseconds():
    assert decode_json(GenerateRequest, b'{"keep_alive":1.5}').keep_alive == 1_500_000_000
    assert decode_json(GenerateRequest, b'{"keep_alive":"2m"}').keep_alive == 120_000_000_000
    assert decode_json(GenerateRequest, b'{"keep_alive":-1}').keep_alive == 2**63 - 1


def test_roles_are_lowered_and_images_decoded():
    request = decode_json(ChatRequest, b'{"messages":[{"role":"USER","content":"a","images":["AAEC"]},null]}')
    assert [m.role for m in request.messages] == ["user", ""]
    assert request.messages[0].images == [b"\0\1\2"]


def test_each_byte_that_is_not_utf8_becomes_one_replacement():
    assert decode_json(GenerateRequest, b'{"prompt":"\xce\xaa\xb2\xe2\x80"}').prompt == "Ϊ" + "\ufffd" * 3
    assert decode_json(GenerateRequest, rb'{"prompt":"\ud800x\ud83d\ude00"}').prompt == "\ufffdx😀"


@given(st.binary(max_size=30) | st.text(alphabet='{}[]",:\\u0tf1e-. nal', max_size=30).map(str.encode))
@example(b'[{"b":[]}, 1.5e-3]}')
def test_the_scanner_refuses_exactly_what_the_parser_refuses(rest):
    body = b'{"a":' + rest
    try:
        loads(body)
        taken = True
    except DecodeError:
        taken = False
    assert taken == (syntax_error(body) is None)


JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists, max_leaves=5)


@given(JSON)
def test_written_json_is_read_back(value):
    assert json.loads(dumps(value)) == value


def test_html_is_escaped_and_other_text_is_raw():
    assert dumps({"a": "<b>&é\u2028🙂"}) == rb'{"a":"\u003cb\u003e\u0026' + "é".encode() + rb"\u2028" + '🙂"}'.encode()


def test_a_struct_is_named_as_in_go_and_not_as_here():
    with pytest.raises(DecodeError, match=r"into Go struct field EmbedRequest\.model of type string"):
        decode_json(OpenAIEmbedRequest, b'{"model":1}')


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(monkeypatch):
    """64 MiB of `[]` would take 1.8 GB."""
    decode_json(GenerateRequest, b'{"options":{"x":[' + b"1," * (MAX_VALUES - 9) + b"1]}}")
    with monkeypatch.context() as patch:
        patch.setattr("numllama.engine.go.json._decoder", None)
        for value in (b"[]", b"{}", b"1"):
            with pytest.raises(BodyTooLarge, match="limit of 2097152 JSON values"):
                loads(b'{"context":[' + (value + b",") * (MAX_VALUES + 1) + b"1]}")
    text = "a, [b] {" * (MAX_VALUES // 2) + '"'
    assert loads(json.dumps({"prompt": text}).encode()) == {"prompt": text}  # signs within a text do not count


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (b"", "unexpected EOF"),
        (b'"a', "unexpected EOF"),
        (b'"a"]x', "invalid character 'x' at position 1200013"),
        (b"NaN]}", "invalid value NaN"),
        (b'"\\q"]}', r"invalid character '\\' at position 1200010"),
    ],
)
def test_an_error_far_inside_a_long_body_is_told_without_a_second_scan(monkeypatch, end, message):
    monkeypatch.setattr("numllama.engine.go.json.syntax_error", None)
    with pytest.raises(DecodeError) as refused:
        loads(b'{"stop":[' + b'"a",' * 300_000 + end)
    assert str(refused.value) == message


@pytest.mark.parametrize("field", ["temperature", "options"])
def test_an_integer_beyond_a_float64_is_a_mismatch(field):
    body = json.dumps({field: 10**400 if field == "temperature" else {"temperature": 10**400}}).encode()
    with pytest.raises(DecodeError, match=r"json: cannot unmarshal number into Go struct field .* of type float64"):
        decode_json(ChatCompletionRequest, body)
