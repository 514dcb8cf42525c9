import json
from dataclasses import replace

import numpy as np
import pytest
from dialects import file_of, gemma3_twins, mistral3_twins

from numllama.engine.gguf.file_type import file_type_name, parameter_size
from numllama.engine.gguf.read import F64, GGUF, I32, ArrayType
from numllama.engine.gguf.write import write_gguf
from numllama.engine.store import Store
from numllama.engine.store.make.create import create, create_from_modelfile
from numllama.engine.store.manifest import MODEL, Manifest, ManifestLayer
from numllama.engine.store.show import capabilities, show, show_file, tags_entries, tags_entry
from tiny import tiny_gguf


@pytest.mark.parametrize(
    "n, expected",
    [
        (8_030_261_248, "8.0B"),
        (7_000_000_000, "7B"),
        (134_515_008, "134.52M"),
        (22_000_000, "22M"),
        (2_620_000, "2.62M"),
        (656_896, "657K"),
        (260_032, "260K"),
        (999, "999"),
    ],
)
def test_parameter_size_as_ollama_rounds_it(n, expected):
    assert parameter_size(n) == expected


def test_file_types_have_llama_cpps_names():
    assert [file_type_name(n) for n in (0, 1, 2, 15, 1024, None, "2")] == ["F32", "F16", "Q4_0", "Q4_K_M"] + [
        "unknown"
    ] * 3


def stored(tmp_path, gguf, **more):
    store = Store(tmp_path / "models")
    digest, _ = store.put_blob([gguf.read_bytes()])
    list(create(store, "m", files={"m.gguf": digest}, **more))
    return store.resolve("m")


def test_show_has_the_files_metadata(tmp_path):
    tiny_gguf(
        tmp_path / "m.gguf", general__name="hidden", general__file_type=0, chat_template="{{ tools }}<think></think>"
    )
    model = stored(tmp_path, tmp_path / "m.gguf", parameters={"stop": ["<|im_end|>"], "top_p": 0.7, "num_ctx": 4096})
    shown = show(model)
    info = shown["model_info"]
    assert shown["parameters"].splitlines() == [
        "num_ctx                        4096",
        'stop                           "<|im_end|>"',
        "top_p                          0.7",
    ]
    assert (shown["template"], shown["capabilities"]) == ("{{ .Prompt }}", ["completion", "tools", "thinking"])
    assert not {"general.name", "tokenizer.chat_template", "license", "system", "messages"} & {*info, *shown}
    assert info["tokenizer.ggml.tokens"] is None
    assert info["general.parameter_count"] == sum(np.prod(tensor["shape"]) for tensor in shown["tensors"])
    assert list(info) == sorted(info)
    tokens = show(model, verbose=True)["model_info"]["tokenizer.ggml.tokens"]
    assert [tensor["shape"] for tensor in shown["tensors"] if tensor["name"] == "token_embd.weight"] == [
        [64, len(tokens)]
    ]
    assert shown["details"]["quantization_level"] == "F32"
    json.dumps(show(model, verbose=True), allow_nan=False).encode()


def test_show_with_another_system_text_changes_only_that(tmp_path):
    tiny_gguf(tmp_path / "m.gguf")
    model = stored(tmp_path, tmp_path / "m.gguf", system="mine", parameters={"top_k": 1})
    shown = show(model, system="other", options={"top_k": 3})
    assert "SYSTEM other\nPARAMETER top_k 3\n" in shown["modelfile"]
    assert (shown["system"], shown["parameters"]) == ("other", "top_k                          1")
    assert show(model)["system"] == "mine"


@pytest.mark.parametrize("kv, expected", [({}, "{{ .Prompt }}"), ({"chat_template": "{{ messages }}"}, None)])
def test_a_model_made_from_the_shown_modelfile_keeps_the_template_of_its_weights(tmp_path, kv, expected):
    tiny_gguf(tmp_path / "m.gguf", **kv)
    model = stored(tmp_path, tmp_path / "m.gguf")
    store = Store(tmp_path / "models")
    text = show(model)["modelfile"]
    list(create_from_modelfile(store, "n", text, may_read=True))
    assert store.resolve("n").template == expected


def test_values_become_json_with_the_fewest_digits(tmp_path):
    kv = {"general.architecture": "x", "a.eps": 1e-5, "a.base": 10000.0, "a.nan": float("nan"), "a.f64": F64(0.1)}
    kv |= {"a.ids": ArrayType(I32)([1, 2]), "a.scores": np.float32([0.1, -2]), "a.words": ["w", "é"], "a.on": [True]}
    kv |= {"a.broken": b"\xff\xe2\x80".decode("utf-8", "surrogateescape")}
    write_gguf(tmp_path / "x.gguf", kv)
    shown = show_file(tmp_path / "x.gguf", verbose=True)
    assert {key: value for key, value in shown["model_info"].items() if key.startswith("a.")} == {
        "a.base": 10000,
        "a.broken": "\ufffd\ufffd\ufffd",  # one for each byte, as Go's encoding/json does
        "a.eps": 1e-05,
        "a.f64": 0.1,
        "a.ids": [1, 2],
        "a.nan": None,
        "a.on": [True],
        "a.scores": [0.1, -2],
        "a.words": ["w", "é"],
    }
    assert isinstance(shown["model_info"]["a.base"], int)
    assert set(show_file(tmp_path / "x.gguf")["model_info"].values()) >= {None}


def test_pooling_makes_an_embedding_model(tmp_path):
    tiny_gguf(tmp_path / "m.gguf", llama__pooling_type=1)
    assert capabilities(stored(tmp_path, tmp_path / "m.gguf")) == ["embedding"]


def test_a_model_with_broken_weights_is_listed_with_the_facts_in_its_config(tmp_path, caplog):
    tiny_gguf(tmp_path / "m.gguf")
    model = stored(tmp_path, tmp_path / "m.gguf")
    whole = tags_entry(model)
    assert whole["details"]["context_length"] == 256
    model.weights.write_bytes(b"GGUF")
    broken = tags_entry(Store(tmp_path / "models").resolve("m"))
    assert (broken["name"], broken["details"]["parameter_size"]) == ("m:latest", whole["details"]["parameter_size"])
    assert "cannot be run" in caplog.text


ARRAYS = [np.float32([1, 2]), ["a", "b"], []]


@pytest.mark.parametrize("array", ARRAYS, ids=["numbers", "texts", "empty"])
@pytest.mark.parametrize("key", [f"general.{name}" for name in ("type", "architecture", "file_type", "name")])
def test_an_array_where_a_single_value_stands_hides_no_model(tmp_path, key, array):
    path = tiny_gguf(tmp_path / "m.gguf")
    model = stored(tmp_path, path)
    write_gguf(path, GGUF.open(path).typed | {key: array if len(array) else ArrayType(I32)([])})
    store = Store(tmp_path / "models")
    pulled = ManifestLayer(MODEL, *store.put_blob([path.read_bytes()]))  # a pull does not read the file
    store.write_manifest(model.name, Manifest(model.manifest.config, (pulled,)))
    model = store.resolve("m")
    assert [entry["name"] for entry in tags_entries([model])] == ["m:latest"]
    assert show(model)["details"]["family"] == "llama"  # from the config


def test_a_model_whose_entry_cannot_be_made_hides_no_other(tmp_path, caplog):
    good = stored(tmp_path, tiny_gguf(tmp_path / "m.gguf"))
    beyond_all_dates = replace(good, modified_ns=2**100)
    assert tags_entries([beyond_all_dates, good]) == [tags_entry(good)]
    assert "m:latest is left out" in caplog.text


def test_a_store_written_by_ollama_is_shown_as_ollama_shows_it(tmp_path, kept):
    kept.store(tmp_path)
    store = Store(tmp_path / "models")
    expected = kept.json("store/expected")
    entries = {model.name.short: tags_entry(model) for model in store.list()}
    assert comparable({"tags": list(entries.values())}) == comparable({"tags": expected["tags"]["models"]})
    for key in (key for key in expected if key.startswith("show ")):
        shown = show(store.resolve(key.removeprefix("show ")))
        assert list(shown) == list(expected[key])
        assert comparable(shown) == comparable(expected[key])


def comparable(shown):
    """Drop paths and times, sort the tensors, and use our name for F32."""
    shown = json.loads(json.dumps(shown).replace('"quantization_level": "unknown"', '"quantization_level": "F32"'))
    if "tags" in shown:
        entries = [{key: entry[key] for key in entry if key != "modified_at"} for entry in shown["tags"]]
        return sorted(entries, key=lambda entry: entry["name"])
    for key in ("modelfile", "parameters"):
        lines = shown.get(key, "").splitlines()
        shown[key] = sorted(line.split("/blobs/")[-1] for line in lines)
    shown["tensors"].sort(key=lambda tensor: tensor["name"])
    return {key: shown[key] for key in shown if key != "modified_at"}


def test_a_projector_is_shown_with_its_name(tmp_path):
    store = Store(tmp_path / "store")
    write_gguf(tmp_path / "p.gguf", {"general.architecture": "clip", "general.name": "eye"})
    files = {"m.gguf": tiny_gguf(tmp_path / "m.gguf"), "p.gguf": tmp_path / "p.gguf"}
    list(create(store, "v", files={name: store.put_blob([path.read_bytes()])[0] for name, path in files.items()}))
    assert show(store.resolve("v"))["projector_info"]["general.name"] == "eye"


@pytest.mark.parametrize(
    ("kv", "expected"),
    [
        ({"general.architecture": "llama"}, ["completion"]),
        ({"general.architecture": "clip", "clip.vision.block_count": 3}, ["vision"]),
        ({"general.architecture": "llama", "general.type": "adapter"}, None),
    ],
)
def test_only_a_model_has_the_completion_capability(tmp_path, kv, expected):
    write_gguf(tmp_path / "x.gguf", kv)
    assert show_file(tmp_path / "x.gguf").get("capabilities") == expected


def test_a_tower_inside_the_file_is_listed_first_by_tags_alone(tmp_path):
    """As Ollama recorded for files of its own dialect."""
    path, _ = mistral3_twins(tmp_path, tower=True)
    model = stored(tmp_path, path)
    assert show(model)["capabilities"] == ["completion", "vision"]
    assert tags_entry(model)["capabilities"] == ["vision", "completion"]


def test_a_verbose_answer_alone_says_how_a_file_in_ollama_s_dialect_is_read(tmp_path):
    model = stored(tmp_path, gemma3_twins(tmp_path)[0])
    assert "read_as" not in show(model) and show(model, verbose=True)["read_as"] == "gemma3"
    assert "gemma3.rope.global.freq_base" in show(model)["model_info"]


def test_gpt_oss_thinks_whatever_its_template_shows(tmp_path):
    file_of(tmp_path / "m.gguf", "gptoss", {"block_count": I32(1)})
    model = stored(tmp_path, tmp_path / "m.gguf")
    assert show(model)["capabilities"] == ["completion", "thinking"]
    assert show(model)["details"]["family"] == "gptoss"
