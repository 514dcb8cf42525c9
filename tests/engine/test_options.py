"""Ollama's options: merging of layers, refused values and their error texts."""

import logging
import math
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.engine.errors import BadOptions
from numllama.engine.options import IGNORED_OPTIONS, LOAD_OPTIONS, Options, option_from_text


def refusal(*layers):
    with pytest.raises(BadOptions) as refused:
        Options.parse(*layers)
    return str(refused.value)


def test_defaults_are_ollamas():
    o = Options.parse()
    assert o == Options()
    assert (o.num_ctx, o.num_batch, o.num_gpu, o.num_keep, o.num_predict) == (4096, 512, -1, 4, -1)
    assert (o.seed, o.temperature, o.top_k, o.top_p, o.min_p, o.typical_p) == (-1, 0.8, 40, 0.9, 0.0, 1.0)
    assert (o.repeat_last_n, o.repeat_penalty, o.presence_penalty, o.frequency_penalty) == (64, 1.0, 0.0, 0.0)
    assert (o.main_gpu, o.use_mmap, o.num_thread, o.draft_num_predict, o.stop) == (None, None, 0, 0, ())


def test_a_later_layer_wins_option_by_option():
    o = Options.parse({"num_ctx": 8192}, {"num_ctx": 2048, "top_k": 3, "stop": ["a", "b"]}, {"top_k": 7, "stop": ["c"]})
    assert (o.num_ctx, o.top_k, o.stop) == (2048, 7, ("c",))


def test_null_and_a_missing_layer_change_nothing():
    assert Options.parse({"top_k": 3}, {"top_k": None, "temperature": None}) == Options(top_k=3)
    assert Options.parse(None, {"top_k": 3}, None) == Options(top_k=3)


@pytest.mark.parametrize(("given", "kept"), [(2.9, 2), (-2.9, -2), (0.5, 0), (1e12, 10**12), (7, 7)])
def test_a_float_for_an_integer_is_truncated_toward_zero(given, kept):
    assert Options.parse({"num_predict": given}).num_predict == kept


@pytest.mark.parametrize("name", ["logit_bias", "ignore_eos", "min_tokens"])
def test_a_modelfile_sets_no_option_that_ollama_lacks(name):
    with pytest.raises(BadOptions, match=f"unknown parameter '{name}'"):
        option_from_text(name, ["1"])


def test_an_integer_for_a_float_is_a_float():
    assert isinstance(Options.parse({"temperature": 1}).temperature, float)


def test_one_stop_string_is_a_list_of_one_and_empty_ones_are_dropped():
    assert Options.parse({"stop": "x"}).stop == ("x",)
    assert Options.parse({"stop": ["", "x"]}).stop == ("x",)
    assert Options.parse({"stop": "x"}, {"stop": ""}).stop == ()


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("num_ctx", "x", "integer"),
        ("num_ctx", True, "integer"),
        ("seed", "1", "integer"),
        ("seed", float("inf"), "integer"),
        ("main_gpu", [], "integer"),
        ("temperature", "x", "float32"),
        ("temperature", True, "float32"),
        ("top_p", float("nan"), "float32"),
        ("top_p", 10**400, "float32"),
        ("mirostat_tau", {}, "float32"),
        ("use_mmap", 1, "boolean"),
        ("use_mmap", "x", "boolean"),
        ("stop", {}, "array"),
        ("stop", 1, "array"),
    ],
)
def test_a_wrong_type_is_refused_with_ollamas_text(name, value, kind):
    assert refusal({name: value}) == f'option "{name}" must be of type {kind}'


@pytest.mark.parametrize("value", [[1], ["a", None]])
def test_stop_must_be_strings_with_ollamas_text(value):
    assert refusal({"stop": value}) == 'option "stop" must be of an array of strings'


def test_the_error_names_its_option():
    with pytest.raises(BadOptions) as refused:
        Options.parse({"num_ctx": "x"})
    assert refused.value.option == "num_ctx"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("repeat_penalty", 0, 'option "repeat_penalty" must be greater than 0, got 0.0'),
        ("repeat_penalty", -1, 'option "repeat_penalty" must be greater than 0, got -1.0'),
        ("repeat_penalty", 1e-50, 'option "repeat_penalty" must be greater than 0, got 1e-50'),  # 0 as a float32
        ("repeat_last_n", -2, 'option "repeat_last_n" must be between -1 and 2147483647, got -2'),
        ("repeat_last_n", 2**31, 'option "repeat_last_n" must be between -1 and 2147483647, got 2147483648'),
        ("num_batch", 0, 'option "num_batch" must be between 1 and 2147483647, got 0'),
        ("mirostat", 3, 'option "mirostat" must be between 0 and 2, got 3'),
        ("presence_penalty", 1e39, 'option "presence_penalty" must fit into float32, got 1e+39'),
    ],
)
def test_an_impossible_value_is_refused(name, value, text):
    assert refusal({name: value}) == text


@pytest.mark.parametrize(
    "options",
    [
        {"num_ctx": -1},
        {"num_ctx": 0},
        {"num_thread": -1},
        {"top_p": 2},
        {"top_k": -1},
        {"repeat_last_n": -1},
        {"min_p": 1.5},
        {"temperature": -1},
        {"presence_penalty": 5.5},
        {"num_predict": -2},
        {"num_keep": -1},
    ],
)
def test_a_value_that_ollama_accepts_is_accepted(options):
    (name, value), *_ = options.items()
    assert getattr(Options.parse(options), name) == value


def test_a_logit_bias_is_a_number_or_false_for_each_token():
    given = {"5": 1, "7": -2.5, "9": False, "11": None}
    assert Options.parse({"logit_bias": given}).logit_bias == ((5, 1.0), (7, -2.5), (9, -math.inf))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], 'option "logit_bias" must be of type object'),
        ({"x": 1}, 'option "logit_bias" must have token ids for keys, got "x"'),
        ({"-1": 1}, 'option "logit_bias" must have token ids for keys, got "-1"'),
        ({"1": True}, 'option "logit_bias" must have numbers up to 1e+30 or false for values, got True'),
        ({"1": "2"}, "option \"logit_bias\" must have numbers up to 1e+30 or false for values, got '2'"),
        ({"1": 1e31}, 'option "logit_bias" must have numbers up to 1e+30 or false for values, got 1e+31'),
    ],
)
def test_an_invalid_logit_bias_is_refused(value, text):
    assert refusal({"logit_bias": value}) == text


def test_mirostat_and_tfs_z_count_only_in_the_request():
    old_model = {"mirostat": 2, "mirostat_tau": 3.0, "tfs_z": 0.5}
    assert Options.parse(old_model, {}) == Options()
    assert Options.parse(old_model, {"mirostat": 1, "tfs_z": 0.9}) == Options(mirostat=1, tfs_z=0.9)


@pytest.mark.parametrize("name", sorted(IGNORED_OPTIONS))
def test_obsolete_options_are_ignored_without_a_warning(name, caplog):
    assert Options.parse({name: "anything"}) == Options()
    assert caplog.records == []


def test_an_unknown_option_is_ignored_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        assert Options.parse({"num_cxt": 3}) == Options()
    assert [record.getMessage() for record in caplog.records] == ["invalid option provided: option=num_cxt"]


@pytest.mark.parametrize(
    ("asked", "n_ctx_train", "got"), [(4096, 2048, 2048), (0, 2048, 4), (-1, 2048, 4), (64, 512, 64)]
)
def test_num_ctx_is_clamped_to_the_models_range(asked, n_ctx_train, got):
    assert Options(num_ctx=asked).clamped(n_ctx_train).num_ctx == got


@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_only_load_options_reload_the_model(name):
    changed = {"use_mmap": True, "stop": ("x",)}.get(name, 3)
    assert Options().needs_reload(Options(**{name: changed})) == (name in LOAD_OPTIONS)


def test_a_request_without_num_ctx_asks_for_the_default():
    assert Options(num_ctx=64).needs_reload(Options.parse({"temperature": 0}))


def test_a_negative_num_gpu_matches_any_value():
    assert not Options(num_gpu=5).needs_reload(Options(num_gpu=-1))
    assert Options(num_gpu=5).needs_reload(Options(num_gpu=-1, num_ctx=64))
    assert Options(num_gpu=-1).needs_reload(Options(num_gpu=5))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(st.dictionaries(st.sampled_from([field.name for field in fields(Options)]), json_values))
def test_any_json_value_is_accepted_or_refused(layer):
    try:
        Options.parse(layer)
    except BadOptions as refused:
        assert refused.option in layer


def test_recorded_requests_are_accepted_and_refused_as_by_ollama(kept):
    compared = 0
    for step in kept.json("transcripts/options")["steps"]:
        body = step["send"].get("body")
        layer = body.get("options") if isinstance(body, dict) else None
        if layer is None:
            continue
        recorded, ours = step["got"], step.get("ours", {})
        try:
            Options.parse(layer)
            assert ours.get("status", recorded["status"]) == 200, layer
        except BadOptions as refused:
            assert ours["status"] == 400, layer
            assert str(refused) == recorded["json"]["error"] or "own words" in step["why"], layer
        compared += 1
    assert compared > 30


@pytest.mark.parametrize(
    "name, texts, expected",
    [
        ("temperature", ["0.7"], 0.7),
        ("temperature", ["0x1p-2"], 0.25),
        ("top_p", ["0.123456789123"], 0.12345679),
        ("num_ctx", ["1", "+5"], 5),
        ("use_mmap", ["T"], True),
        ("stop", ["a", " b "], ["a", " b "]),
    ],
)
def test_text_is_parsed_as_go_parses_it(name, texts, expected):
    assert option_from_text(name, texts) == expected


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("num_ctx", "1_000", "invalid int value [1_000]"),
        ("num_ctx", "99999999999999999999", "invalid int value [99999999999999999999]"),
        ("temperature", "inf", "invalid float value [inf]"),
        ("temperature", "NaN", "invalid float value [NaN]"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("numa", "true", "unknown parameter 'numa'"),
    ],
)
def test_an_invalid_text_is_refused_with_ollamas_text(name, text, message):
    with pytest.raises(BadOptions, match=f"^{re.escape(message)}$"):
        option_from_text(name, [text])
