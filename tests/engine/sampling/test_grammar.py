"""Constrained decoding: exactly JSON is allowed, both by llguidance and by the plain Python automaton."""

import json
from time import process_time

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import bpe, spm

from numllama.engine.errors import BadGrammar, ModelError
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.engine.run.sequence import Sequence, SequenceState
from numllama.engine.sampling.grammar import Grammars
from numllama.engine.sampling.json_mode import JsonMode, follow
from numllama.engine.sampling.json_schema import narrowed
from numllama.engine.sampling.sampler import Sampler
from numllama.engine.tokenizer import from_gguf
from tiny import bpe_vocabulary, spm_vocabulary, tiny_gguf

TOKENIZERS = {"spm": from_gguf(spm_vocabulary()), "bpe": from_gguf(bpe_vocabulary())}
GRAMMARS = {name: Grammars(tokenizer) for name, tokenizer in TOKENIZERS.items()}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)

seeds = st.integers(0, 2**32 - 2)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), values, max_size=4)
# the styles of json.dumps within the limit on blanks: one between symbols, lines indented by up to 20
styles = st.sampled_from([{}, {"indent": 1}, {"indent": "\t"}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def answer(kind, format, seed=0, temperature=1.0, num_predict=2000, grammar=None, **more):
    """Generate from uniform logits, constrained to `format`; return the text and done_reason."""
    tokenizer = TOKENIZERS[kind]
    options = Options(seed=seed, temperature=temperature, top_k=0, top_p=1.0, num_predict=num_predict)
    seq = Sequence(tokenizer, [1], options, grammar=grammar or GRAMMARS[kind].grammar(format), **more)
    logits, text = np.random.default_rng(seed), ""
    while seq.state is not SequenceState.DONE:
        text += seq.sample(logits.standard_normal(tokenizer.n_vocab, np.float32) * 3).text
    return text + seq.rest(), seq.done_reason


def is_allowed(kind, format, text, *thinking):
    """Return whether `text`, byte by byte, and then the end are allowed; else the number of accepted bytes."""
    tokenizer, grammar = TOKENIZERS[kind], GRAMMARS[kind].grammar(format, *thinking)
    id_of = {tokenizer.piece(id): id for id in reversed(range(tokenizer.n_vocab))}
    for n, byte in enumerate(text.encode("utf-8", "surrogatepass")):
        id = id_of[bytes([byte])]
        if not grammar.mask()[id]:
            return n
        grammar.accept(id)
    return bool(grammar.mask()[[*tokenizer.eog]].all())


# --- JSON ---


@kinds
@given(seed=seeds)
def test_llguidance_and_the_plain_automaton_allow_the_same_tokens(kind, seed):
    tokenizer, random = TOKENIZERS[kind], np.random.default_rng(seed)
    fast, plain = GRAMMARS[kind].grammar("json"), JsonMode(tokenizer)
    for _ in range(30):
        mask = fast.mask()
        np.testing.assert_array_equal(mask, plain.mask())
        token = int(random.choice(np.flatnonzero(mask)))
        if token in tokenizer.eog:
            break
        fast.accept(token)
        plain.accept(token)


@given(objects, styles, st.sampled_from([*TOKENIZERS]))
def test_both_allow_every_prefix_of_an_object(value, style, kind):
    text = json.dumps(value, **style)
    assert follow(text.encode()) == ()
    assert is_allowed(kind, "json", text) is True


@given(objects, styles, st.data())
def test_text_that_the_automaton_accepts_is_json(value, style, data):
    """Change a byte: text that the automaton still accepts is an object for Python's parser too."""
    text = bytearray(json.dumps(value, **style).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    if follow(bytes(text)) == ():
        assert isinstance(json.loads(bytes(text)), dict)


def test_nothing_is_allowed_after_an_object():
    assert follow(b'{"a": [1, {}]}') == () and follow(b"{} ") is None and follow(b"[]") is None and follow(b"1") is None


def test_a_number_has_no_leading_zero_and_blanks_have_limits():
    assert follow(b'{"a":-0.5e+3}') == () and follow(b'{"a":01') is None and follow(b'{"a":1.}') is None
    assert follow(b"{\n\n" + b"\t" * 20 + b"}") == () and follow(b"{\n" + b" " * 21) is None
    assert follow(b"{  ") is None and follow(b"{\r") is None and follow(b" {") is None


def test_blanks_follow_brackets_colons_and_commas_and_precede_closing_brackets():
    """The places of llama.cpp's common/json-schema-to-grammar.cpp, so that seeds give Ollama's answers."""
    assert follow(b'{ "a": [ 1, 2\n ], "b": 3\n}') == () and follow(b"{ }") == ()
    for wrong in (b'{"a" ', b'{"a":1 ,', b'{"a":[1 ,', b'{"a":1 "'):
        assert follow(wrong[:-1]) is not None and follow(wrong) is None


def test_a_string_is_utf_8_without_lone_surrogates():
    assert follow('{"é\u20ac😀": "\\ud83d\\ude00\\/"}'.encode()) == ()
    for wrong in (rb"\ud83d", rb"\ude00", rb"\x", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\n"):
        assert follow(b'{"' + wrong + b'"') is None


@kinds
@given(seeds, st.sampled_from([0.0, 0.5, 1.0, 5.0]))
@settings(max_examples=15)
def test_the_same_seed_gives_the_same_answer_with_either_grammar(kind, seed, temperature):
    how = {"seed": seed, "temperature": temperature, "num_predict": 60}
    assert answer(kind, "json", **how) == answer(kind, "json", **how, grammar=JsonMode(TOKENIZERS[kind]))


@kinds
@given(seeds, st.integers(1, 60))
def test_a_finished_answer_is_an_object_and_a_truncated_one_its_prefix(kind, seed, num_predict):
    text, reason = answer(kind, "json", seed, num_predict=num_predict)
    if reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert reason == "length" and follow(text.encode()) is not None


@kinds
def test_control_tokens_are_never_allowed_and_the_end_only_at_the_end(kind):
    tokenizer, grammar = TOKENIZERS[kind], GRAMMARS[kind].grammar("json")
    nothing = [id for id in range(tokenizer.n_vocab) if not tokenizer.piece(id, special=False)]
    for id in tokenizer.encode('{"a": "once upon', add_special=False):
        assert not grammar.mask()[nothing].any()
        grammar.accept(id) if tokenizer.piece(id) != b" " else None  # the blank that SPM prepends
    assert is_allowed(kind, "json", "{}") is True


def test_a_token_may_be_part_of_a_character():
    tokenizer = from_gguf(spm("\u2581", "\U0001f600", '{"', '":', "1}"))
    grammar = Grammars(tokenizer).grammar("json")
    whole, first = tokenizer.vocab.ids["\U0001f600"], tokenizer.vocab.ids["<0xF0>"]
    grammar.accept(tokenizer.vocab.ids['{"'])
    assert grammar.mask()[[whole, first]].all() and not grammar.mask()[tokenizer.vocab.ids["<0x9F>"]]
    grammar.accept(first)
    assert grammar.mask()[tokenizer.vocab.ids["<0x9F>"]] and not grammar.mask()[whole]


def test_a_model_whose_answers_have_no_format_prepares_no_pieces(monkeypatch):
    """They take 0.2 s and 6 MiB for 262k tokens."""
    tokenizer = from_gguf(bpe("<end>", types=(3,), eos_token_id=257))
    monkeypatch.setattr(tokenizer, "piece", None)
    grammars = Grammars(tokenizer)
    with pytest.raises(TypeError):
        grammars.grammar("json")


def test_a_vocabulary_that_cannot_spell_an_answer_gives_an_error():
    kv = bpe("<end>", types=(3,), eos_token_id=258)
    kv["tokenizer.ggml.tokens"][kv["tokenizer.ggml.tokens"].index("{")] = "{x"
    with pytest.raises(BadGrammar, match="vocabulary cannot spell"):
        Grammars(from_gguf(kv)).grammar("json")


# --- schemas ---


names = st.sampled_from(["z", "a", "name", "é", 'q"', "once upon"])
scalars = st.sampled_from([None, True, False, 0, 7, -1.5, "", "the", 'é"\\\n', 1e-7, 1e15])


def bounds(low, high):
    """Draw values for two keywords, the first not larger than the second; either may be missing."""
    pairs = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(sorted)
    return pairs.flatmap(
        lambda pair: st.fixed_dictionaries({}, optional={low: st.just(pair[0]), high: st.just(pair[1])})
    )


def limited(low, high):
    return bounds(low, high).map(lambda said: {high: 4} | said)


@st.composite
def objects_of(draw, inner):
    properties = draw(st.dictionaries(names, inner, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    more = draw(st.sampled_from([{}, {"additionalProperties": False}]))
    return {"type": "object", "properties": properties, "required": required, **more}


leaves = st.one_of(
    st.builds(lambda value: {"const": value}, scalars),
    st.builds(lambda listed: {"enum": listed}, st.lists(scalars, min_size=1, max_size=3)),
    st.builds(lambda said: {"type": "string", **said}, limited("minLength", "maxLength")),
    st.builds(lambda said: {"type": "integer", "maximum": 99, "minimum": -3} | said, bounds("minimum", "maximum")),
    st.sampled_from(["date", "time", "date-time", "uuid", "no such format"]).map(
        lambda format: {"type": "string", "format": format, "maxLength": 4} if " " in format else {"format": format}
    ),
    st.sampled_from(["^ab{3}$", "^[a-z]{1,3}-[0-9]{2}$", "^(yes|no)$", "^é?$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["boolean", "null"]}, {"$ref": "#/$defs/D"}]),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        objects_of(inner),
        st.builds(lambda item, said: {"type": "array", "items": item, **said}, inner, limited("minItems", "maxItems")),
        st.builds(
            lambda items: {"type": "array", "prefixItems": items, "items": False},
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.builds(lambda choice: {"anyOf": choice}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one: {"allOf": [one]}, inner),
    ),
    max_leaves=6,
).map(lambda schema: {**schema, "$defs": {"D": {"const": "defined"}}})


@kinds
@given(schemas, seeds, st.sampled_from([0.0, 0.5, 1.0, 5.0]))
@settings(max_examples=60)
def test_every_finished_answer_validates_and_every_answer_finishes(kind, schema, seed, temperature):
    """Use schemas whose answers have a maximum length, so that every answer ends."""
    jsonschema.Draft202012Validator.check_schema(schema)
    text, reason = answer(kind, schema, seed, temperature)
    assert reason == "stop"
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@given(seeds)
@settings(max_examples=20)
def test_keys_come_in_the_schema_s_order(seed):
    order = ["z", "a", "m", "b"]
    schema = {"properties": {name: {"type": "integer", "maximum": 9, "minimum": 0} for name in order}}
    keys = list(json.loads(answer("bpe", schema | {"required": order}, seed)[0]))
    some = list(json.loads(answer("bpe", schema | {"required": ["a", "b"]}, seed)[0]))
    assert keys == order and some == [name for name in order if name in some]


REFUSED = [
    ("not", {"type": "object", "properties": {"a": {"not": {"type": "integer"}}}}),
    ("not", {"not": {"pattern": "a"}}),
    ("if", {"if": {"format": "uri"}, "then": {}}),
    ("uniqueItems", {"type": "array", "items": {"type": "object"}, "uniqueItems": True}),
    ("propertyNames", {"properties": {"b": {}}, "propertyNames": {"pattern": "a"}}),
    ("unevaluatedProperties", {"anyOf": [{}, {"properties": {"a": {}}}], "unevaluatedProperties": False}),
    ("maxContains", {"contains": {"const": 1}, "maxContains": 1}),
    ("minProperties", {"type": "object", "minProperties": 2}),
    ("dependentRequired", {"dependentRequired": {"a": "b"}}),
    ("$dynamicRef", {"$dynamicRef": "#a"}),
    ("properties", {"properties": {"a\x01": {}}}),
    ("multipleOf", {"multipleOf": 0.12345}),
    ("patternProperties", {"type": "object", "patternProperties": {"^a": {}, "b$": {}}}),
    ("enum", {"enum": []}),
    ("minimum", {"type": "integer", "minimum": 2**64}),
    ("$ref", {"$ref": "#/nope"}),
    ("$ref", {"$ref": "http://example.com/schema"}),
    ("$ref", {"$ref": "#"}),
    ("pattern", {"pattern": "("}),
    ("pattern", {"type": "string", "pattern": "(?=a)"}),
    ("pattern", {"type": "string", "pattern": r"\bx"}),
    ("properties", {"type": "object", "properties": 3}),
    ("items", {"items": 3}),
    ("anyOf", {"anyOf": []}),
    ("anyOf", {"anyOf": 3}),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    ("type", {"type": "text"}),
    ("required", {"type": "object", "properties": {}, "required": [["a"]]}),
    ("minItems", {"type": "array", "minItems": 3, "maxItems": 2}),
    ("minLength", {"type": "string", "minLength": "3"}),
]


@pytest.mark.parametrize(("keyword", "schema"), REFUSED)
def test_an_unsupported_schema_gives_an_error_with_its_keyword(keyword, schema):
    with pytest.raises(BadGrammar) as refusal:
        GRAMMARS["bpe"].grammar(schema)
    text = str(refusal.value)
    assert text.startswith("format: ") and keyword in text and "\n" not in text


def nested(depth, step):
    schema = {}
    for _ in range(depth):
        schema = step(schema)
    return schema


def chain(length, step):
    """Return a schema whose $refs form a chain, each within a schema that `step` makes."""
    links = {f"a{i}": step({"$ref": f"#/$defs/a{i + 1}"}) for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": {"type": "integer"}}}


STEPS = {
    "$ref": lambda inner: inner,
    "properties": lambda inner: {"properties": {"x": inner}, "required": ["x"]},
    "items": lambda inner: {"items": inner},
    "anyOf": lambda inner: {"anyOf": [inner, {"type": "null"}]},
    "allOf": lambda inner: {"allOf": [inner]},
    "prefixItems": lambda inner: {"prefixItems": [inner]},
    "additionalProperties": lambda inner: {"additionalProperties": inner},
    "patternProperties": lambda inner: {"patternProperties": {"^x": inner}},
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_schema_nested_too_deeply_is_refused(step):
    """1,000 levels overflow llguidance's stack, which ends the process."""
    for schema in (nested(200, step), nested(20_000, step), chain(1000, step), chain(3000, step)):
        if schema:
            with pytest.raises(BadGrammar, match="nested too deeply"):
                GRAMMARS["bpe"].grammar(schema)
    GRAMMARS["bpe"].grammar(chain(20, step))


def test_a_large_schema_is_refused_at_once():
    with pytest.raises(BadGrammar, match="parts and values"):
        GRAMMARS["bpe"].grammar({"enum": list(range(100_000))})
    with pytest.raises(BadGrammar, match="characters"):
        GRAMMARS["bpe"].grammar({"pattern": "a" * 100_000})


@pytest.mark.parametrize("number", [2**31, 999_983, 1e300])
def test_a_large_multiple_is_refused_at_once(number):
    """An automaton of 2,147,483,648 states never ends."""
    with pytest.raises(BadGrammar, match=r"multipleOf: \S+ is above the limit of 10000"):
        GRAMMARS["bpe"].grammar({"type": "integer", "multipleOf": number})


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"const": -(2**63)}]},
        {"enum": [1, 1 - 2**63], "allOf": [{}]},
        {"type": "integer", "minimum": -1e19, "maximum": -1e19},
    ],
)
def test_a_schema_that_crashes_llguidance_is_refused(schema):
    with pytest.raises(BadGrammar):
        GRAMMARS["bpe"].grammar(schema)
    assert is_allowed("bpe", {"const": 1}, "1") is True


def test_one_of_3000_constants_takes_no_time():
    """Compare in pairs and it takes half a minute."""
    began = process_time()
    for constants in (range(3000), map(str, range(3000))):
        GRAMMARS["bpe"].grammar({"oneOf": [{"const": constant} for constant in constants]})
    assert process_time() - began < 5


def test_the_schema_cannot_change_the_grammars_settings():
    with pytest.raises(BadGrammar, match="not"):
        GRAMMARS["bpe"].grammar({"x-guidance": {"lenient": True}, "not": {"pattern": "a"}})


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"properties": {"a": {}}}, '{"a":{"b":[1]}}', '{"b"'),  # only listed properties are allowed
        ({"properties": {"a": {}}, "additionalProperties": True}, '{"a":1,"b":2}', "1"),
        ({"properties": {"a": {}}, "required": ["b"]}, '{"b":2}', "{}"),
        ({"properties": {}, "additionalProperties": {"type": "null"}}, '{"b":null}', '{"b":1'),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, '{"a":1,"b":2}', "[1"),
        ({"pattern": "^a+$"}, '"aaa"', "1"),  # a keyword for strings implies the type
        ({"format": "date"}, '"2024-02-29"', '"2024-02-30'),
        ({"type": "integer", "format": "int32"}, "12", "1.5"),
        ({"type": "string", "pattern": "b"}, '"abc"', '"ac"'),
        ({"type": "array", "items": [{"const": 1}]}, "[1]", "[2"),
        ({}, '[{"a":"x"},null]', "]"),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, "2", "3"),
        ({"$defs": {"N": {"properties": {"n": {"$ref": "#/$defs/N"}}}}, "$ref": "#/$defs/N"}, '{"n":{"n":{}}}', '{"m'),
    ],
)
@kinds
def test_implied_keywords_of_a_schema_are_added(kind, schema, yes, no):
    assert is_allowed(kind, schema, yes) is True
    assert is_allowed(kind, schema, no) is not True


def test_the_callers_schema_is_not_modified():
    schema = {"properties": {"a": {"format": "x"}}}
    narrowed(schema)
    assert schema == {"properties": {"a": {"format": "x"}}}


# --- thinking ---


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("tags", [("<think>", "</think>"), ("<思 \n", '\\">')])
@kinds
def test_the_grammar_applies_after_the_thinking(kind, tags, is_open):
    before, after = ("" if is_open else f"\n{tags[0]}"), tags[1]
    thought = f'{before}\n{{"a" Ich dénke <th'
    assert is_allowed(kind, "json", f'{thought}{after}\n\n{{"a": 1}}', tags, is_open) is True
    assert is_allowed(kind, "json", f"{before}{after}{{}}", tags, is_open) is True
    assert is_allowed(kind, {"const": 1}, f"{thought}{after}1", tags, is_open) is True
    assert is_allowed(kind, "json", f"{thought}{after}", tags, is_open) is False  # no end before the answer
    wrong = f"{before}so{after}so"
    assert is_allowed(kind, "json", wrong, tags, is_open) == len(wrong.encode()) - 2
    assert is_allowed(kind, "json", "{}", tags, is_open) is (not is_open)  # thinking is optional


def test_a_tag_may_be_a_control_token():
    kv = spm("<think>", "</think>", "{", "}", types=(3, 3))
    tokenizer = from_gguf(kv)
    before, after = (tokenizer.vocab.ids[tag] for tag in ("<think>", "</think>"))
    tags = ("<think>", "</think>")
    grammar = Grammars(tokenizer).grammar("json", tags, shown=tokenizer.controls(tags))
    assert grammar.mask()[before] and not grammar.mask()[after]
    grammar.accept(before)
    grammar.accept(after)
    assert not grammar.mask()[[before, after]].any() and grammar.mask()[tokenizer.vocab.ids["{"]]


# --- within a generation ---


@pytest.fixture(scope="module", params=["spm", "bpe"])
def model(request, tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("grammar") / "m.gguf", tokenizer=request.param))


SCHEMA = {"properties": {"a": {"type": "string", "maxLength": 3}, "b": {"enum": [True, None]}}, "required": ["a", "b"]}


def told(model, options=None, **more):
    return list(complete(model, "once", Options(**{"num_predict": 500} | (options or {})), **more))


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_model_s_answer_validates_and_ends_with_stop(model, temperature):
    pieces = told(model, {"temperature": temperature, "seed": 3}, grammar=Grammars(model.tokenizer).grammar(SCHEMA))
    jsonschema.validate(json.loads("".join(piece.text for piece in pieces)), SCHEMA)
    assert pieces[-1].done_reason == "stop" and pieces[-2].token in model.tokenizer.eog


def test_the_window_may_shift_during_a_constrained_answer(model):
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 20, "maxItems": 20}
    options = {"num_ctx": 16, "num_keep": 1, "seed": 1, "temperature": 1.0}
    pieces = told(model, options, grammar=Grammars(model.tokenizer).grammar(schema))
    assert len(json.loads("".join(piece.text for piece in pieces))) == 20 and len(pieces) > 40
    stopped = told(model, options, grammar=Grammars(model.tokenizer).grammar(schema), shift=False)
    assert stopped[-1].done_reason == "length"


def test_a_stop_string_ends_a_constrained_answer(model):
    schema = {"const": {"name": "Ada", "age": 36}}
    pieces = told(model, {"stop": ("Ada",), "seed": 1}, grammar=Grammars(model.tokenizer).grammar(schema))
    text = "".join(piece.text for piece in pieces)
    assert json.loads(text + 'Ada", "age": 36}') == schema["const"] and pieces[-1].done_reason == "stop"


def test_a_grammar_does_not_change_the_random_numbers(model):
    """Draw once per token: if the grammar masks only unlikely tokens, the same tokens are sampled."""
    free = told(model, {"temperature": 0.0, "num_predict": 20})

    class Everything(JsonMode):
        def mask(self):
            return np.ones(len(self._pieces), bool)

    held = told(model, {"temperature": 0.0, "num_predict": 20}, grammar=Everything(model.tokenizer))
    assert [piece.token for piece in held] == [piece.token for piece in free]


def test_a_refused_token_is_drawn_again_among_the_allowed_ones(model):
    """As in llama.cpp: the chain runs without the grammar first, and its draw counts, whether it is used or not."""
    random = np.random.default_rng(4)
    rows = random.normal(0, 2, (40, model.hparams.n_vocab)).astype(np.float32)
    masks = random.random(rows.shape) < 0.5

    class Half:
        def __init__(self):
            self.masks = iter(masks)

        def mask(self):
            return next(self.masks)

        def accept(self, token):
            pass

    options = Options(seed=3, temperature=1.0)
    held, free = Sequence(model.tokenizer, [1], options, grammar=Half()), Sampler(options, rows.shape[1])
    tokens, n_refused = [1], 0
    for row, mask in zip(rows, masks, strict=True):
        token = free.sample(row, tokens)
        n_refused += not mask[token]
        tokens.append(token if mask[token] else free.sample(row, tokens, mask))
    assert [held.sample(row).token for row in rows] == tokens[1:] and 10 < n_refused < 30


def test_a_vocabulary_without_an_end_of_generation_token_is_refused():
    tokenizer = from_gguf(spm())
    tokenizer.eog = frozenset()
    with pytest.raises(ModelError, match="end-of-generation"):
        Grammars(tokenizer).grammar("json")
