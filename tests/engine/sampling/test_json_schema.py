"""JSON schemas rewritten for the grammar: every answer that it allows is valid, by jsonschema's judgement."""

import json
from pathlib import Path
from random import Random
from time import process_time

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import spm

from numllama.engine.errors import BadGrammar
from numllama.engine.parse.form import ARGUMENTS, NAME, CallForm
from numllama.engine.sampling.forced_call import ForcedCall
from numllama.engine.sampling.grammar import Grammars
from numllama.engine.sampling.json_schema import narrowed
from numllama.engine.tokenizer import from_gguf
from tiny import bpe_vocabulary

TOKENIZER = from_gguf(bpe_vocabulary())
GRAMMARS = Grammars(TOKENIZER)
PIECES = [TOKENIZER.piece(id) for id in range(TOKENIZER.n_vocab)]
IDS = {piece: id for id, piece in reversed([*enumerate(PIECES)])}
CLOSING = {id for id, piece in enumerate(PIECES) if piece and set(piece) <= set(b'",:]}')}
JUDGE = jsonschema.Draft202012Validator


def allows(schema, text, tags=None):
    """Return whether `text`, byte by byte, and then the end are allowed."""
    grammar = GRAMMARS.grammar(schema, tags)
    for byte in text.encode():
        id = IDS[bytes([byte])]
        if not grammar.mask()[id]:
            return False
        grammar.accept(id)
    return bool(grammar.mask()[[*TOKENIZER.eog]].all())


def generated(grammar, random, n_token=300):
    """Generate a random answer; return None if it takes more than `n_token`."""
    text = b""
    for _ in range(n_token):
        allowed = np.flatnonzero(grammar.mask()).tolist()
        assert allowed, f"nothing may follow {text!r}"
        closing = [id for id in allowed if id in CLOSING or id in TOKENIZER.eog]
        id = random.choice(closing if closing and random.random() < 0.5 else allowed)
        if id in TOKENIZER.eog:
            return text.decode()
        text += PIECES[id]
        grammar.accept(id)
    return None


def is_valid(schema, text, judge=JUDGE):
    return judge(schema, format_checker=judge.FORMAT_CHECKER).is_valid(json.loads(text))


# --- oneOf ---


CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog", 2]}}, "required": ["kind"]}
NAMED = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize(
    "alternatives",
    [
        [CAT, DOG],  # distinguished by a value
        [CAT, NAMED],  # neither allows a property that the other requires
        [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],  # as pydantic writes a tagged union
        [{"type": "integer"}, {"type": "string"}, {"type": ["null", "boolean"]}],
        [CAT, False, {"const": None}],
        [CAT | {"required": []}, DOG | {"required": []}],  # the tag becomes required
    ],
)
def test_one_of_is_any_of_if_alternatives_exclude_each_other(alternatives):
    schema = {"oneOf": alternatives, "$defs": {"cat": CAT, "dog": DOG}}
    assert "anyOf" in narrowed(schema)
    GRAMMARS.grammar(schema)


def test_one_of_constants_is_an_enum_of_those_listed_once():
    alternatives = [{"const": 1}, {"const": True}, {"enum": ["a", "b"]}, {"const": 1.0}, {"const": "b", "type": "null"}]
    assert narrowed({"oneOf": alternatives}) == {"enum": [True, "a", "b"]}


@pytest.mark.parametrize(
    "alternatives",
    [
        [CAT, CAT],
        [CAT, {"type": "object"}],
        [True, CAT],
        [{"type": "number"}, {"type": "integer"}],
        [{"type": "object", "properties": {"a": CAT}}, {"type": "object", "properties": {"a": DOG}}],
    ],
)
def test_one_of_is_refused_if_an_answer_may_fit_two_alternatives(alternatives):
    with pytest.raises(BadGrammar, match="oneOf"):
        narrowed({"oneOf": alternatives})


# --- keywords ---


OPEN = {"type": "object", "additionalProperties": True}
CLOSED = {"type": "object", "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        # a key has one spelling
        (OPEN | {"properties": {"a": {"const": 1}}}, ['{"a":1,"b":2}', '{"é":1}'], [r'{"\u0061":2}', r'{"\u00e9":1}']),
        (
            {"patternProperties": {"^a": {"const": 1}}, "additionalProperties": True},
            ['{"ab":1,"b":2}'],
            [r'{"\u0061":2}'],
        ),
        # a $ref leads anywhere
        (
            {
                "$ref": "#/components/schemas/A~1B",
                "components": {"schemas": {"A/B": {"properties": {"c": {"type": "string", "format": "no such"}}}}},
            },
            ['{"c":"x"}', "{}"],
            ['{"d":1}', '{"c":1}'],
        ),
        (
            {
                "$ref": "#/x/y/0",
                "x": {"y": [{"oneOf": [{"const": 1}, {"type": "array", "items": {"$ref": "#/x/y/0"}}]}]},
            },
            ["1", "[[1],1]"],
            ["2"],
        ),
        ({"$id": "T0", "properties": {"n": {"$ref": "T0"}}}, ['{"n":{"n":{}}}'], ['{"n":1}']),
        # dates
        (
            {"format": "date"},
            ['"2024-02-29"', '"2000-02-29"', '"2023-12-31"'],
            ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"'],
        ),
        ({"format": "date"}, [], ['"0000-01-01"', '"2023-00-01"', '"2023-01-32"', '"2023-13-01"']),
        ({"format": "time"}, ['"23:59:59Z"', '"00:00:00.5+01:30"'], ['"23:59:60Z"', '"24:00:00Z"', '"23:59:59"']),
        (
            {"format": "date-time", "pattern": "Z$"},
            ['"2024-02-29T12:00:00Z"'],
            ['"2024-02-30T12:00:00Z"', '"2024-02-29T12:00:00+01:00"'],
        ),
        # numbers
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, ["-0.5", "-0.25"], ["-0", "-0.0", "0"]),
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.5}, ["1.25"], ["1", "1.0", "1.5"]),
        ({"type": "number", "minimum": 2, "exclusiveMinimum": True}, ["2.5"], ["2"]),
        (
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            ["-1", str(2**53 + 1), "0"],
            [str(2**63), str(-(2**63) - 1)],
        ),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, ["0"], ["-1", str(2**64)]),
        (
            {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
            ["-1.5"],
            ["1" + "0" * 39],
        ),
        # that ask for nothing
        (
            {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
            ['{"a":1}'],
            ['{"a":"b"}'],
        ),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, ["[1,1]"], ["[0.5]"]),
        (
            {"properties": {"a": {"type": "string"}, "never": {"not": {}}}, "required": ["a"]},
            ['{"a":""}'],
            ['{"a":"","never":1}'],
        ),
        (CLOSED | {"properties": {"a": {}}, "unevaluatedProperties": False}, ['{"a":1}'], ['{"b":1}']),
        ({"properties": {"a": {}}, "unevaluatedProperties": False}, ['{"a":1}'], ['{"b":1}']),
        ({"type": "array", "contains": {}}, ["[1]"], ["[]"]),
        ({"type": "array", "contains": {"const": 1}, "minContains": 0}, ["[]", "[2]"], ["1"]),
        (
            {
                "type": "object",
                "dependentSchemas": {},
                "$dynamicAnchor": "x",
                "$schema": "http://json-schema.org/draft-07/schema#",
            },
            ["{}"],
            ["1"],
        ),
        # not
        ({"type": "string", "not": {"enum": ["", "ab", "é"]}}, ['"a"', '"abc"', '"b"', '"éé"'], ['""', '"ab"', '"é"']),
        ({"not": {"type": ["string", "null"]}}, ["1", "[]", "true"], ['"a"', "null"]),
        ({"type": "integer", "minimum": 0, "maximum": 9, "not": {"const": 5}}, ["4", "6"], ["5"]),
        ({"enum": [1, 2, "a"], "not": {"enum": [2.0]}}, ["1", '"a"'], ["2"]),
        (
            {"properties": {"a": {}, "b": {}}, "not": {"required": ["a", "b"]}},
            ["{}", '{"a":1}', '{"b":1}'],
            ['{"a":1,"b":1}', '{"c":1}'],
        ),
        # conditions
        (
            CLOSED | {"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
            ["{}", '{"b":1}', '{"a":1,"b":1}'],
            ['{"a":1}'],
        ),
        (
            OPEN | {"properties": {"a": {"type": "integer"}}, "dependentSchemas": {"a": {"required": ["b"]}}},
            ['{"c":1}', '{"a":1,"b":1}'],
            ['{"a":1}'],
        ),
        (
            CLOSED
            | {
                "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
                "if": {"properties": {"kind": {"const": "a"}}, "required": ["kind"]},
                "then": {"required": ["n"]},
                "else": {"properties": {"n": False}},
            },
            ['{"kind":"a","n":1}', '{"kind":"b"}', "{}"],
            ['{"kind":"a"}', '{"kind":"b","n":1}', '{"n":1}'],
        ),
        # alternatives that overlap
        ({"oneOf": [{}, {"type": "null"}]}, ["1", "[]"], ["null"]),
        ({"type": "integer", "oneOf": [{"minimum": 3}, {"maximum": 5}]}, ["2", "6"], ["3", "5"]),
        ({"oneOf": [{"type": "string"}, {"maxLength": 2}]}, ['"abc"', "1"], ['"ab"']),
        (  # {"b": 1} fits both, though the first would be closed by default
            {
                "oneOf": [
                    {"type": "object", "properties": {"a": {}}},
                    {"type": "object", "properties": {"b": {}}, "required": ["b"]},
                ]
            },
            ["{}", '{"a":1}'],
            ['{"b":1}', '{"a":1,"b":1}'],
        ),
        # names and counts
        (
            {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"const": 1}},
            ['{"a":1,"b":1}', "{}"],
            ['{"c":1}', '{"a":2}'],
        ),
        ({"propertyNames": {"pattern": "^k"}, "type": "object"}, ['{"k1":1}'], ['{"j":1}']),
        (
            {"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}},
            ['{"ab":1}'],
            ['{"a":1}', '{"abcd":1}'],
        ),
        (
            {"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2},
            ['{"a":1,"c":1}', '{"a":1,"b":1,"c":1}'],
            ["{}", '{"b":1}'],
        ),
        (
            {"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 1, "required": ["a"]},
            ['{"a":1}'],
            ['{"a":1,"b":1}', '{"b":1}'],
        ),
        (
            {"type": "object", "minProperties": 1, "maxProperties": 2},
            ['{"a":1}', '{"a":1,"b":2}'],
            ["{}", '{"a":1,"b":1,"c":1}'],
        ),
        (
            {"items": {"type": "integer"}, "contains": {"minimum": 5}, "type": "array"},
            ["[5]", "[7,1]"],
            ["[]", "[1]", "[1,2]"],
        ),
        # combinations
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {}}},
                    {"type": "object", "properties": {"b": {}}, "required": ["b"]},
                ],
                "unevaluatedProperties": False,
            },
            ['{"a":1,"b":1}', '{"b":1}'],
            ['{"a":1}', '{"b":1,"c":1}'],
        ),
    ],
)
def test_a_keyword_allows_what_it_allows_and_nothing_else(schema, yes, no):
    """`no` is invalid to jsonschema too, except where a key is listed, closed by default, or spelled in another way."""
    assert [text for text in yes if not allows(schema, text)] == []
    assert [text for text in no if allows(schema, text)] == []
    assert [text for text in yes if not is_valid(schema, text) and "$id" not in schema] == []


@given(st.integers(1, 9999), st.integers(1, 12), st.integers(28, 31))
@settings(max_examples=60)
def test_a_date_is_one_of_the_calendar(year, month, day):
    text = f'"{year:04}-{month:02}-{day:02}"'
    assert allows({"format": "date"}, text) == is_valid({"type": "string", "format": "date"}, text)


numbers = st.sampled_from(
    [-100, -5, -1.5, -1, -0.5, -1e-7, 0, 1e-7, 0.25, 0.5, 1, 1.5, 2, 10, 99.5, 1e17, 9e18, 2**63, 1e40]
)
bounds = st.dictionaries(st.sampled_from(["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"]), numbers)


@given(st.sampled_from(["number", "integer"]), bounds, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_a_number_is_within_its_bounds(type, said, random):
    schema = {"type": type, **said}
    try:
        grammar = GRAMMARS.grammar(schema)
    except BadGrammar:
        return
    text = generated(grammar, random)
    assert text is None or is_valid(schema, text)
    for near in said.values():  # the bound itself, in several spellings
        for text in {str(near), f"{near:f}", f"{near:.0f}", f"-{abs(near):.0f}"}:
            if not is_valid(schema, text):
                assert not allows(schema, text)


LARGE = [2**53 + 1, 1234567890123456789, -(2**63), 1 - 2**63, 2**65, 10**30 + 1]


@pytest.mark.parametrize("number", LARGE)
def test_a_large_integer_keeps_its_digits(number):
    near = [number + 1, number - 1, float(number), int(f"{number}0"), number // 10]
    for schema in ({"const": number}, {"enum": [1, number, "a"]}, {"anyOf": [{"const": number}, {"type": "string"}]}):
        assert allows(schema, str(number))
        assert not any(allows(schema, f"{other}") for other in near)
    for seed in range(9):
        assert json.loads(generated(GRAMMARS.grammar({"enum": [1, number, "a"]}), Random(seed))) in (1, number, "a")
    schema = {"const": {"id": number, "list": [number, 1]}}
    assert allows(schema, f'{{"id":{number},"list":[{number},1]}}')
    assert not allows(schema, f'{{"id":{number + 1},"list":[{number},1]}}')
    with pytest.raises(BadGrammar, match=r"2\^53"):
        GRAMMARS.grammar({"const": number, "dependentRequired": {"a": ["b"]}})


def test_a_number_is_finite():
    for schema in ({"type": "number"}, {}, {"properties": {"a": {"type": ["number", "null"]}}, "required": ["a"]}):
        frame = '{"a":%s}' if "properties" in schema else "%s"
        assert (
            allows(schema, frame % "1e308") and allows(schema, frame % "-1.5E+300") and allows(schema, frame % "0e-999")
        )
        assert not allows(schema, frame % "1e309") and not allows(schema, frame % "-1.8e308")
        assert not allows(schema, frame % ("9" * 310))


# --- any schema ---


def any_leaf(random):
    """Return a schema without schemas in it, whose answers are short."""
    values = [None, True, False, 0, 1, 2, -1, 1.5, "", "a", "b", "ab", 'q"', "é"]
    low = random.choice([-1, -0.5, 0, 0.5, 1])
    return random.choice(
        [
            {"const": random.choice(values)},
            {"enum": random.choices(values, k=3)},
            {"type": "string", "maxLength": random.randint(0, 4)},
            {"type": "string", "pattern": random.choice(["^ab?$", "^[ab]{1,2}$", "^(a|b|ab)$"])},
            {"type": "string", "format": random.choice(["date", "date-time", "no such"]), "maxLength": 30},
            {
                "type": random.choice(["number", "integer"]),
                "exclusiveMinimum": low,
                "maximum": low + random.choice([0.25, 1, 9]),
            },
            {"type": "integer", "multipleOf": random.choice([2, 3, 7]), "minimum": 0, "maximum": 30},
            {
                "type": random.sample(["null", "boolean", "integer", "string"], 2),
                "maxLength": 2,
                "maximum": 9,
                "minimum": 0,
            },
            {"$ref": "#/$defs/X"},
        ]
    )


def any_object(random, depth):
    """Return the schema of an object, with a few of the keywords for objects."""
    names = ["a", "b", "c", "é"]
    inner = lambda: any_schema(random, depth + 1)  # noqa: E731
    name, other = random.sample(names, 2)
    keywords = {
        "required": random.sample(names, 1),
        "additionalProperties": random.choice([False, {"type": "null"}, any_leaf(random)]),
        "minProperties": random.randint(0, 3),
        "maxProperties": random.randint(0, 3),
        "propertyNames": random.choice(
            [{"enum": [name, other]}, {"pattern": "^[ab]$"}, {"maxLength": 2}, {"const": "a"}]
        ),
        "dependentRequired": {name: [other]},
        "dependentSchemas": {name: {"required": [other]}},
        "patternProperties": {"^x": any_leaf(random)},
        "unevaluatedProperties": False,
        "if": {"properties": {name: any_leaf(random)}, "required": [name]},
        "then": {"required": [other]},
        "else": {"properties": {other: any_leaf(random)}},
    }
    chosen = random.sample([*keywords], random.choice([0, 1, 1, 2, 4]))
    properties = {name: inner() for name in random.sample(names, random.randint(0, 3))}
    return {"type": "object", "properties": properties} | {keyword: keywords[keyword] for keyword in chosen}


def any_array(random, depth):
    """Return the schema of an array, with a few of the keywords for arrays."""
    inner = lambda: any_schema(random, depth + 1)  # noqa: E731
    keywords = {
        "minItems": random.randint(0, 2),
        "contains": any_leaf(random),
        "uniqueItems": True,
        "prefixItems": [inner()],
        "unevaluatedItems": False,
    }
    chosen = random.sample([*keywords], random.choice([0, 1, 1, 2]))
    return {"type": "array", "items": inner(), "maxItems": 3} | {keyword: keywords[keyword] for keyword in chosen}


def any_schema(random, depth=0):
    """Return a schema of most keywords."""
    inner = lambda: any_schema(random, depth + 1)  # noqa: E731
    kind = random.choice(["leaf", "object", "object", "array", "anyOf", "oneOf", "allOf"]) if depth < 3 else "leaf"
    if kind == "leaf":
        schema = any_leaf(random)
    elif kind == "object":
        schema = any_object(random, depth)
    elif kind == "array":
        schema = any_array(random, depth)
    else:
        schema = {kind: [inner() for _ in range(random.randint(1, 3))]}
    return schema | ({"not": any_leaf(random)} if random.random() < 0.1 else {})


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_every_answer_is_valid(seed):
    """Whatever the grammar allows is valid by the original schema, and never ends in a dead end."""
    random = Random(seed)
    schema = any_schema(random) | {
        "$defs": {"X": random.choice([{"const": "x"}, {"properties": {"a": {"const": "a"}}}])}
    }
    try:
        grammars = [GRAMMARS.grammar(schema) for _ in range(3)]
    except BadGrammar:
        return
    for grammar in grammars:
        text = generated(grammar, random)
        assert text is None or is_valid(schema, text), text


def doubling(make, **keywords):
    """Return a schema with 40 definitions, each of which leads to the next one twice."""
    links = {f"d{i}": make({"$ref": f"#/$defs/d{i + 1}"}) for i in range(40)}
    return keywords | {"$defs": links | {"d40": {"const": 1}}}


FIRST = {"$ref": "#/$defs/d0"}


def nested(depth, make):
    schema = {"const": 1}
    for _ in range(depth):
        schema = make(schema)
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        doubling(lambda inner: {"properties": {"a": inner, "b": inner}}, **{"not": FIRST}),
        doubling(lambda inner: {"anyOf": [inner, inner]}, **{"not": FIRST}),
        doubling(
            lambda inner: {"type": "object", "properties": {"a": inner, "b": inner}, "required": ["a", "b"]},
            oneOf=[FIRST, FIRST | {"title": "again"}],
        ),
        {"not": {"$ref": "#/$defs/N"}, "$defs": {"N": {"properties": {"n": {"$ref": "#/$defs/N"}}}}},
        {"not": {"const": "a" * 5000}},
        nested(40, lambda inner: {"if": inner, "then": {}, "else": {"type": "null"}}),
        nested(10, lambda inner: {"type": "array", "items": inner, "contains": inner, "minContains": 100}),
        {"propertyNames": {"enum": [str(i) for i in range(15_000)]}, "properties": {str(i): {} for i in range(4_000)}},
    ],
)
def test_rewriting_takes_little_time(schema):
    """Each would take time or memory without end, were it written out."""
    began = process_time()
    try:
        narrowed(schema)
    except BadGrammar:
        pass
    assert process_time() - began < 3


# --- items that differ ---


SETS = [
    {"type": "string"},
    {"type": "integer"},
    {"type": "number"},
    {"type": "boolean"},
    {"enum": ["a", "ab", "abc", "b", 1, 12, None]},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "minimum": 98, "maximum": 102},
    {"$ref": "#/$defs/X"},
]


@given(st.sampled_from(SETS), st.integers(0, 2**32), st.booleans())
@settings(max_examples=120, deadline=None)
def test_items_differ_and_every_answer_finishes(items, seed, is_nested):
    array = {"type": "array", "items": items, "uniqueItems": True, "maxItems": 5}
    schema = {"type": "object", "properties": {"set": array}, "required": ["set"]} if is_nested else array
    schema = schema | {"$defs": {"X": {"enum": ["x", "y", "z"]}}}
    text = generated(GRAMMARS.grammar(schema), Random(seed), 400)
    assert text is None or is_valid(schema, text), text


@pytest.mark.parametrize(
    ("items", "yes", "no"),
    [
        (
            {"type": "string"},
            ['["a","b"]', '["a","ab"]', r'["a\n","a\r"]'],
            ['["a","a"]', '["","b",""]', r'["\n","\u000a"]'],
        ),
        ({"type": "integer"}, ["[1,12,2]", "[0,1]", "[-1,1]"], ["[1,1]", "[0,-0]", "[12,1,12]"]),
        ({"type": "number"}, ["[1,1.5]", "[0,0.5]"], ["[1,1.0]", "[100,1e2]", "[0,-0.0]"]),
        ({"enum": ["a", "ab"]}, ['["a","ab"]', '["ab","a"]', "[]"], ['["a","a"]', '["a","ab","a"]']),
        ({"type": "boolean"}, ["[true,false]", "[false]"], ["[true,true]", "[true,false,true]"]),
        ({"type": "integer", "minimum": 0, "maximum": 1}, ["[0,1]", "[1]"], ["[0,0]", "[0,1,0]"]),
    ],
)
def test_a_set_has_each_item_once(items, yes, no):
    schema = {"type": "array", "items": items, "uniqueItems": True}
    assert [text for text in yes if not allows(schema, text)] == []
    assert [text for text in no if allows(schema, text)] == []


@pytest.mark.parametrize(
    "items",
    [
        *({"type": "null"}, {"type": "boolean"}, {"enum": [1, 2]}, {"type": "integer", "minimum": 1, "maximum": 2}),
        {"oneOf": [{"const": "a"}, {"const": "b"}]},
    ],
)
def test_more_items_than_there_are_values_are_refused(items):
    with pytest.raises(BadGrammar, match="minItems"):
        GRAMMARS.grammar({"type": "array", "items": items, "uniqueItems": True, "minItems": 3})


def test_a_token_of_several_items_is_vetoed_too():
    vocabulary = spm("[", "]", '"', "a", '["a","a"', '["a","b"', ',"a"]', ',"c"]', '","')
    tokenizer = from_gguf(vocabulary)
    grammar = Grammars(tokenizer).grammar({"type": "array", "items": {"type": "string"}, "uniqueItems": True})
    ids = tokenizer.vocab.ids
    assert not grammar.mask()[ids['["a","a"']] and grammar.mask()[ids['["a","b"']]
    grammar.accept(ids['["a","b"'])
    assert not grammar.mask()[ids[',"a"]']] and grammar.mask()[ids[',"c"]']]


def test_a_set_after_thinking_has_each_item_once():
    schema = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}
    for text, expected in [('["a","b"]', True), ('["a","a"]', False)]:
        assert allows(schema, f'<think>["a","a"]</think>\n{text}', ("<think>", "</think>")) == expected


FORMS = [
    CallForm("object", head="<call>\n", body=f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}', tail="</call>"),
    CallForm("named", head=f"[TOOL]{NAME}"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tags", [None, ("<think>", "</think>")])
def test_a_set_in_a_tool_call_has_each_item_once(form, tags):
    """The schema of the tool that is called applies, after thinking and the call's own text."""
    listed = {"type": "array", "items": {"enum": ["a", "b"]}}
    lists = {"type": "object", "properties": {"s": listed}}
    sets = {"type": "object", "properties": {"s": listed | {"uniqueItems": True}}}
    tools = [{"function": {"name": "get", "parameters": lists}}, {"function": {"name": "get_set", "parameters": sets}}]
    thought = "<think>[]</think>" if tags else ""
    for name, items, expected in [
        ("get", '"a","a"', True),
        ("get_set", '"a","b"', True),
        ("get_set", '"a","a"', False),
    ]:
        call = (form.head + (form.body or ARGUMENTS)).replace(NAME, name).replace(ARGUMENTS, f'{{"s":[{items}]}}')
        assert allows(ForcedCall(form, tools), f"{thought}{call}{form.tail}", tags) == expected


@pytest.mark.parametrize(
    "items", [{"type": "string", "maxLength": 2}, {"type": "object"}, {}, {"type": "number", "minimum": 0}]
)
def test_items_that_might_run_out_are_refused(items):
    with pytest.raises(BadGrammar, match="uniqueItems"):
        GRAMMARS.grammar({"type": "array", "items": items, "uniqueItems": True})


SET = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}


@pytest.mark.parametrize(
    "schema",
    [
        SET | {"prefixItems": [{"const": "c"}]},  # which the set does not list
        SET | {"contains": {"const": "a"}, "minContains": 2},
        {"anyOf": [SET, {"type": "array", "items": {"enum": ["a", "c"]}}]},
        {"anyOf": [SET, SET | {"uniqueItems": False, "minItems": 3}]},
        {"anyOf": [SET, {"type": "array"}]},
        {"anyOf": [SET | {"minItems": 3, "type": "integer"}, SET | {"uniqueItems": False, "minItems": 3}]},
        {"allOf": [SET, {"type": "array", "items": {"enum": ["b", "c"]}}]},
        {"anyOf": [{"properties": {"s": SET}}, {"properties": {"s": {"type": "array", "items": {"enum": [1]}}}}]},
        {"type": "array", "items": {"enum": ["a", "bc"], "maxLength": 1}, "uniqueItems": True},
    ],
)
def test_a_set_beside_which_a_repeated_item_would_be_needed_is_refused(schema):
    with pytest.raises(BadGrammar, match="uniqueItems"):
        GRAMMARS.grammar(schema)


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"anyOf": [SET, {"type": "null"}]}, ['["a","b"]', "null"], ['["a","a"]']),
        ({"anyOf": [SET, {"type": "object", "additionalProperties": SET}]}, ['{"x":["a"]}'], ['{"x":["a","a"]}']),
        ({"allOf": [SET, {"type": "array", "maxItems": 1}]}, ['["b"]'], ['["a","b"]']),
        ({"type": "array", "items": {"enum": ["a", 1], "type": "string"}, "uniqueItems": True}, ['["a"]'], ["[1]"]),
    ],
)
def test_a_set_beside_other_values_has_each_item_once(schema, yes, no):
    assert [text for text in yes if not allows(schema, text)] == []
    assert [text for text in no if allows(schema, text)] == []
    assert generated(GRAMMARS.grammar(schema), Random(1)) is not None


def any_array_of_scalars(random):
    schema = {"type": "array", "maxItems": random.choice([2, 3, 4])}
    keywords = {
        "items": random.choice([*SETS, {"enum": ["a", "b"]}, {"const": "a"}, {"enum": [1, 2], "type": "string"}]),
        "uniqueItems": True,
        "minItems": random.choice([1, 2, 3]),
        "prefixItems": [random.choice(SETS)],
        "contains": random.choice(SETS),
    }
    likely = {"items": 0.95, "uniqueItems": 0.6, "minItems": 0.2, "prefixItems": 0.05, "contains": 0.05}
    return schema | {name: value for name, value in keywords.items() if random.random() < likely[name]}


def any_sets(random, depth=0):
    """Return arrays of scalars, most of whose items must differ, in objects and combinations."""
    inner = lambda: any_sets(random, depth + 1)  # noqa: E731
    kind = random.choice(["array", "array", "leaf", "object", "$ref", "anyOf", "anyOf", "oneOf", "allOf"])
    if depth > 2 or kind == "array":
        return any_array_of_scalars(random)
    if kind == "leaf":
        return random.choice(SETS)
    if kind == "object":
        return {"type": "object", "properties": {"a": inner(), "b": inner()}, "required": random.choice([[], ["a"]])}
    if kind == "$ref":
        return {"$ref": "#/$defs/S"} | random.choice([{}, {"maxItems": 2}])
    return {kind: [inner() for _ in range(random.randint(1, 3))]}


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_sets_in_combined_schemas_hold_and_every_answer_finishes(seed):
    random = Random(seed)
    schema = any_sets(random) | {"$defs": {"X": {"enum": ["x", "y", "z"]}, "S": any_array_of_scalars(random)}}
    try:
        grammars = [GRAMMARS.grammar(schema) for _ in range(3)]
    except BadGrammar:
        return
    for grammar in grammars:
        text = generated(grammar, random, 400)
        assert text is None or is_valid(schema, text), text


# --- keywords beside a $ref ---


CODES = {"$defs": {"X": {"enum": ["x", "xyz"]}}}
SHORT = {"$ref": "#/$defs/X", "maxLength": 2}


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"oneOf": [{"$ref": "#/$defs/X", "not": {"const": "x"}}, {"const": 1}]}, ['"xyz"', "1"], ['"x"']),
        ({"oneOf": [SHORT, {"const": "xyz"}]}, ['"x"', '"xyz"'], []),
        ({"not": SHORT, "type": "string", "maxLength": 3}, ['"xyz"', '"ab"'], ['"x"']),
        ({"type": "object", "properties": {"a": SHORT}}, ['{"a":"x"}'], ['{"a":"xyz"}']),
        ({"type": "array", "items": SHORT}, ['["x","x"]'], ['["xyz"]']),
    ],
)
def test_keywords_beside_a_reference_count(schema, yes, no):
    assert [text for text in yes if not allows(schema | CODES, text)] == []
    assert [text for text in no if allows(schema | CODES, text)] == []


@pytest.mark.parametrize("keyword", ["propertyNames", "uniqueItems"])
def test_keywords_beside_a_reference_that_cannot_be_enforced_are_refused(keyword):
    names = {"type": "object", "propertyNames": SHORT}
    schema = names if keyword == "propertyNames" else {"type": "array", "items": SHORT, "uniqueItems": True}
    with pytest.raises(BadGrammar, match=keyword):
        GRAMMARS.grammar(schema | CODES)


# --- schemas that libraries generate ---


DRAFTS = {"pydantic": JUDGE, "zod": JUDGE, "typebox": jsonschema.Draft7Validator}
GENERATED = json.loads((Path(__file__).parents[2] / "golden/schemas.json").read_text())


@pytest.mark.parametrize("library", GENERATED)
def test_schemas_of_a_library_are_enforced(library):
    """At least 97 in 100 are accepted, and answers to them are valid."""
    refused = []
    for n, schema in enumerate(GENERATED[library]):
        try:
            text = generated(GRAMMARS.grammar(schema), Random(n))
        except BadGrammar as refusal:
            refused.append(str(refusal))
            continue
        if schema.get("$id") is None:  # jsonschema resolves no reference to a relative $id
            assert text is None or is_valid(schema, text, DRAFTS[library]), (schema, text)
    known = ["look-around", "schema is false", "RegExp"]  # "RegExp" is a type of TypeBox alone; false has no answer
    assert all(any(word in text for word in known) for text in refused)
    assert len(refused) <= 0.04 * len(GENERATED[library])


# --- answers that could not be completed ---


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{i}": {"type": "integer"} for i in range(600)}},
        {"type": "string", "maxLength": 1000, "pattern": "^([a-z]{1,30} ?){1,40}$"},
        {"type": "string", "maxLength": 1000, "pattern": "^.{10,900}x.{5,80}$"},
        {
            "properties": {"ab": {"type": "integer", "multipleOf": 7}},
            "patternProperties": {"^[a-z]+$": {"type": "integer", "multipleOf": 3}},
        },
    ],
)
def test_a_large_schema_is_enforced_to_the_end(schema):
    for seed in range(5):
        text = generated(GRAMMARS.grammar(schema), Random(seed), 1200)
        assert text is None or is_valid(schema, text)


def test_a_schema_with_dead_ends_that_few_answers_reach_is_refused():
    """After "b" and "a" a comma may follow, but no other key matches the pattern."""
    schema = {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "dependentRequired": {"b": ["a"]}}
    with pytest.raises(BadGrammar, match="answers that cannot be completed"):
        GRAMMARS.grammar(schema)


def test_a_schema_that_has_dead_ends_is_refused():
    """After "a" a comma may follow, but no other key matches the pattern."""
    schema = {
        "type": "object",
        "required": ["a"],
        "patternProperties": {"^a$": {"const": 1}},
        "additionalProperties": False,
    }
    try:
        grammar = GRAMMARS.grammar(schema)
    except BadGrammar as refusal:
        assert "cannot be completed" in str(refusal)
    else:
        for seed in range(20):
            generated(grammar, Random(seed))


def test_a_vocabulary_that_cannot_spell_an_answer_is_an_error_before_the_answer():
    """The opening quote can be spelled, the letter after it cannot."""
    vocabulary = spm("{", "}", '"', "a", "1")
    tokens, types = (vocabulary[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    types[:] = [4 if token.startswith("<0x") else type for token, type in zip(tokens, types, strict=True)]
    grammars = Grammars(from_gguf(vocabulary))
    grammars.grammar({"const": "a"})
    with pytest.raises(BadGrammar, match="cannot be completed with this vocabulary"):
        grammars.grammar({"const": "z"})
