import hashlib
import json

import numpy as np
import pytest

from numllama.engine.errors import BadDigest, BadManifest, BadName, EngineError, ModelError, ModelNotFound, RequestError
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.load import check_loads
from numllama.engine.store import Store
from numllama.engine.store.make.create import create
from numllama.engine.store.show import show
from tiny import tiny_gguf

HEAD = {"general.architecture": "llama", "general.file_type": 0}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def digest(store, tmp_path):
    tiny_gguf(tmp_path / "m.gguf", general__file_type=0)
    return store.put_blob([(tmp_path / "m.gguf").read_bytes()])[0]


def statuses(*args, **kwargs):
    return [status["status"] for status in create(*args, **kwargs)]


def test_uploaded_file_is_the_layer_itself(store, digest):
    assert statuses(store, "a", files={"m.gguf": digest}) == [
        "parsing GGUF",
        f"using existing layer {digest}",
        "writing manifest",
        "success",
    ]
    model = store.resolve("a")
    assert model.weights_digest == digest
    config = json.loads(store.blob_path(model.manifest.config.digest).read_bytes())
    assert list(config)[:5] == ["model_format", "model_family", "model_families", "model_type", "file_type"]
    assert (config["model_family"], config["model_families"], config["file_type"]) == ("llama", ["llama"], "F32")
    assert (config["architecture"], config["os"]) == ("amd64", "linux")


def test_text_layers_equal_ollamas_byte_for_byte(store, digest):
    """The digests were recorded from Ollama, for the same requests in the same order."""
    list(create(store, "a", files={"m.gguf": digest}))
    got = statuses(
        store,
        "b",
        "a",
        system="You are B.",
        template="{{ .System }} {{ .Prompt }}",
        parameters={"temperature": 0, "stop": ["X", "Y"], "num_ctx": 128},
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        license="MIT",
    )
    template, system, license, params, messages = (
        "sha256:fe7ac77b725cda2ccad03f88a880ecdfd7a33192d6cae08fce2c0ee1455991ed",
        "sha256:f447dc1e3193f8704ae0a913af931e2bc0c3e53c25d349600c77a511e6951a79",
        "sha256:e5dcffe836b6ec8a58e492419b550e65fb8cbdc308503979e5dacb33ac7ea3b7",
        "sha256:ffce55c3a80f4b2af36041bed297a3fd1d5f16ef4fb758991993791f3363ca78",
        "sha256:ac29223db42ab62ec4df0a39c5ba6054f3bd78f945c536548dcf2f7431f39af4",
    )
    new = [f"creating new layer {layer}" for layer in (template, system, license, params, messages)]
    assert got == [f"using existing layer {digest}", *new, "writing manifest", "success"]
    more = {"license": ["Apache", "BSD"], "parameters": {"temperature": 0.5, "top_p": 0.25}}
    got = statuses(store, "c", "b", messages=[{"role": "system", "content": "n"}], **more)
    assert got == [
        *(f"using existing layer {layer}" for layer in (digest, template, system, license)),
        "creating new layer sha256:87ec4027e1c873944291bdd61ee07ed30d74d45cbb418c85ae256e0a18e9e2cc",
        "creating new layer sha256:49d9777da612e1f4e9269fa9f93ea324a66f9dcc7722ad812de124ef3f266d93",
        "creating new layer sha256:a2989a8ea0157405e7469d8c66da9859d4c14dc09054eaba02ec2ee5edc94318",
        "creating new layer sha256:4ff4aefd12900146019379a7cf395cacdad970a42add2070059859354e3449b5",
        "writing manifest",
        "success",
    ]
    assert statuses(store, "b", "b", system="")[:-2] == [
        f"using existing layer {layer}" for layer in (digest, template, system, license, messages, params)
    ]
    model = store.resolve("c")
    assert (model.parent, model.licenses, model.system) == ("b:latest", ["MIT", "Apache", "BSD"], "You are B.")
    assert model.params == {"temperature": 0.5, "top_p": 0.25, "stop": ["X", "Y"], "num_ctx": 128}


def test_none_removes_an_inherited_parameter(store, digest):
    list(create(store, "a", files={"m.gguf": digest}, parameters={"stop": ["X"], "top_k": 3}))
    list(create(store, "b", "a", parameters={"stop": None, "seed": None}))
    assert store.resolve("b").params == {"top_k": 3}
    assert "nil" not in show(store.resolve("b"))["modelfile"]


def test_replaced_layers_are_deleted_with_the_last_model_that_names_them(store, digest):
    list(create(store, "a", files={"m.gguf": digest}, system="first"))
    list(create(store, "A", "a", system="second"))
    assert not store.has_blob("sha256:" + hashlib.sha256(b"first").hexdigest())
    assert [model.name.short for model in store.list()] == ["a:latest"]
    assert store.resolve("a").system == "second"


def test_a_model_made_from_the_builtin_has_its_own_blobs(tmp_path, store, digest):
    list(create(store, "primer", files={"m.gguf": digest}, system="plain"))
    mine = Store(tmp_path / "mine", builtin=store.root)
    list(create(mine, "p2", "primer", system="other"))
    assert Store(tmp_path / "mine").resolve("p2").weights.stat().st_size > 0


def test_messages_keep_calls_and_images(store, digest):
    call = {"function": {"name": "f", "arguments": {"z": 1, "a": "<"}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call], "images": [b"\x00\xff"], "tool_name": ""}
    list(create(store, "a", files={"m.gguf": digest}, messages=[message]))
    got = store.resolve("a").messages
    assert got == [{"role": "assistant", "content": "", "images": ["AP8="], "tool_calls": [call]}]


def test_info_and_names_are_kept_in_the_config(store, digest):
    info = {"model_family": "fam", "parameter_size": "1B", "quantization_level": "Q9", "context_length": 8.0}
    list(create(store, "a", files={"m.gguf": digest}, info={**info, "other": 1}, requires="0.14.0", parser="qwen3"))
    config = store.resolve("a").config
    assert (config.model_family, config.model_type, config.file_type) == ("fam", "1B", "Q9")
    assert config.more == {"context_length": 8, "requires": "0.14.0", "parser": "qwen3"}
    list(create(store, "b", "a"))
    assert store.resolve("b").config.more["requires"] == "0.14.0"


def test_projector_is_a_layer_of_its_own(store, digest, tmp_path):
    write_gguf(tmp_path / "p.gguf", {"general.architecture": "clip"})
    projector = store.put_blob([(tmp_path / "p.gguf").read_bytes()])[0]
    list(create(store, "v", files={"p.gguf": projector, "m.gguf": digest}))
    model = store.resolve("v")
    assert (model.weights_digest, len(model.projectors)) == (digest, 1)
    assert model.config.model_families == ("llama",)


@pytest.mark.parametrize("path", ["../x.gguf", "/x.gguf", "a/./x.gguf", "a//x.gguf", "", "a/"])
def test_file_name_must_stay_in_its_folder(store, digest, path):
    with pytest.raises(RequestError, match=r"^file path must be relative$"):
        create(store, "z", files={path: digest})


def test_request_is_checked_before_the_first_status(store, digest):
    with pytest.raises(BadDigest, match="invalid digest format"):
        create(store, "z", files={"x.gguf": ""})
    with pytest.raises(BadName):
        create(store, "a b", "a")
    with pytest.raises(RequestError, match='info field "model_family" must be a string'):
        create(store, "z", "a", info={"model_family": 3})
    with pytest.raises(RequestError, match='info field "context_length" must be a non-negative integer'):
        create(store, "z", "a", info={"context_length": -1})
    with pytest.raises(RequestError, match='info field "context_length" must be a number'):
        create(store, "z", "a", info={"context_length": "8"})


FAILURES = [
    (RequestError, "neither 'from' or 'files' was specified", {}),
    (RequestError, "neither 'from' or 'files' was specified", {"adapters": {"a.gguf": "sha256:" + "0" * 64}}),
    (RequestError, "unknown type", {"files": {}}),
    (ModelError, "invalid digest format", {"files": {"x.gguf": "sha256:12"}}),
    (ModelError, f"open sha256-{'0' * 64}: no such file", {"files": {"x.gguf": "sha256:" + "0" * 64}}),
    (BadName, "invalid model name", {"from_": "a b"}),
    (ModelNotFound, "model 'nope:latest' not found", {"from_": "nope"}),
    (ModelError, "open config.json: no such file", {"files": {"model.safetensors": "sha256:" + "0" * 64}}),
    (EngineError, "unsupported quantization type Q9 - supported types are F32", {"from_": "a", "quantize": "q9"}),
    (ModelError, f"open sha256-{'0' * 64}", {"from_": "a", "adapters": {"a.gguf": "sha256:" + "0" * 64}}),
    (
        RequestError,
        "only one adapter is currently supported",
        {"from_": "a", "adapters": {"a.gguf": "1", "b.gguf": "2"}},
    ),
    (EngineError, "json: cannot unmarshal number into Go value of type []string", {"from_": "a", "license": 3}),
    (EngineError, "json: cannot unmarshal number into Go value of type string", {"from_": "a", "license": ["x", 3]}),
]


@pytest.mark.parametrize("kind, message, request_", FAILURES, ids=[message for _, message, _ in FAILURES])
def test_a_failed_create_leaves_no_model(store, digest, kind, message, request_):
    list(create(store, "a", files={"m.gguf": digest}))
    with pytest.raises(kind) as caught:
        list(create(store, "z", **request_))
    assert str(caught.value).startswith(message)
    assert [model.name.short for model in store.list()] == ["a:latest"]


@pytest.mark.parametrize(
    "content, path, message",
    [
        (b"hello", "m.gguf", "supplied file was not in GGUF format"),
        (b"hello", "m.bin", "unknown type"),
        (b"GGUF\xff\xff\xff\xff", "m.gguf", "m.gguf: at byte 4"),
    ],
)
def test_an_invalid_file_is_named_as_the_client_named_it(store, content, path, message):
    uploaded, _ = store.put_blob([content])
    with pytest.raises(RequestError) as caught:
        list(create(store, "z", files={path: uploaded}))
    assert str(caught.value).startswith(message)
    assert str(store.root) not in str(caught.value)


@pytest.mark.parametrize(
    "kv, message",
    [
        ({}, "m.gguf: general.architecture is None"),
        (HEAD | {"general.type": "adapter"}, "m.gguf: an adapter, expected a model"),
        ({"general.architecture": "clip"}, "m.gguf: a projector without its text model"),
    ],
)
def test_a_gguf_that_is_not_a_model_is_an_error_that_says_why(store, tmp_path, kv, message):
    write_gguf(tmp_path / "m.gguf", kv)
    uploaded, _ = store.put_blob([(tmp_path / "m.gguf").read_bytes()])
    with pytest.raises(RequestError) as caught:
        list(create(store, "z", files={"m.gguf": uploaded}))
    assert str(caught.value).startswith(message)


def test_a_parent_with_a_missing_layer_is_an_error(store, digest):
    list(create(store, "a", files={"m.gguf": digest}, system="gone"))
    store.blobs.remove("sha256:" + hashlib.sha256(b"gone").hexdigest())
    with pytest.raises(BadManifest, match="missing blob of model a:latest"):
        list(create(store, "b", "a"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ .Prompt", "unclosed action"),
        ("{{ foo }}", 'function "foo" not defined'),
        ("{{ if }}", "missing value for if"),
    ],
)
def test_template_that_does_not_parse_is_refused(store, digest, template, message):
    with pytest.raises(RequestError, match=rf"^template error: template: :1: {message}$"):
        statuses(store, "a", files={"m.gguf": digest}, template=template)
    with pytest.raises(ModelNotFound):
        store.resolve("a")


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a model of 135 million weights<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("jinja", "is_known", "because"),
    [
        (SMOLLM, True, "its length is that of a known text: without the default system text, as with Ollama"),
        (CHATML + "{% unknown %}", True, "it does not run here"),
        (CHATML, False, "it is shorter than any known text by 100 characters"),
        (SMOLLM + "{# tools #}" * 200, False, "it is longer by 100 characters"),
        ("{{ messages }}", False, "it has no known words"),
    ],
    ids=("known", "unsupported", "short", "long", "unknown"),
)
def test_a_template_like_a_known_one_is_stored_as_its_format(store, tmp_path, jinja, is_known, because):
    """docs/compatibility.md [181], transcript real-smollm2"""
    path = tiny_gguf(tmp_path / "m.gguf", chat_template=jinja)
    made = statuses(store, "a", files={"m.gguf": store.put_blob([path.read_bytes()])[0]})
    assert ("using autodetected template chatml" in made) == is_known, because
    model = store.resolve("a")
    if is_known:
        assert model.template == (
            "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
        )
        assert model.params == {"stop": ["<|im_start|>", "<|im_end|>"]}
    else:
        assert (model.template, model.params) == (None, {})


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        ({"general__architecture": "mamba"}, "dir/m.gguf: unsupported architecture 'mamba'; this build supports"),
        ({"llama__block_count": 3}, "dir/m.gguf: at byte 0: tensor 'blk.2.attn_norm.weight' is missing"),
        ({"tokenizer__ggml__model": "rwkv"}, "dir/m.gguf: 'tokenizer.ggml.model' is 'rwkv', expected one of"),
        ({"tokenizer__ggml__token_type": np.ones(3, np.int32)}, "dir/m.gguf: 'tokenizer.ggml.token_type' has 3 elem"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(store, tmp_path, kv, message):
    path = tiny_gguf(tmp_path / "m.gguf", **kv)
    uploaded, _ = store.put_blob([path.read_bytes()])
    with pytest.raises(RequestError) as caught:
        list(create(store, "z", files={"dir/m.gguf": uploaded}, check_loads=check_loads))
    assert str(caught.value).startswith(message)
    assert not list(store.root.glob("manifests/**/z/*"))
