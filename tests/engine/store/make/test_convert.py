"""Conversion from Hugging Face's layout: the converted model computes Hugging Face's formulas."""

import json
import re
import struct

import numpy as np
import pytest
import sentencepiece
from hugging_face import safetensors
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HuggingFace

from numllama.engine.errors import EngineError, ModelError, RequestError
from numllama.engine.gguf.read import read_gguf
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.engine.store import Store
from numllama.engine.store.make.convert import convert_model
from numllama.engine.store.make.convert_tokenizer import LLAMA3, QWEN2
from numllama.engine.store.make.create import create
from numllama.engine.tokenizer import Attr, from_gguf
from numllama.engine.tokenizer.pre import PRE
from numllama.kernels import numpy_kernels
from tiny import bpe_vocabulary, spm_vocabulary

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_ROPE["original_max_position_embeddings"] = 64


def weights(config, n_vocab, bias=False):
    random = np.random.default_rng(0)
    d, n_ff, n_head_dim = config["hidden_size"], config["intermediate_size"], config.get("head_dim", 8)
    n_q, n_kv = config["num_attention_heads"] * n_head_dim, config["num_key_value_heads"] * n_head_dim
    shapes = {"model.embed_tokens": (n_vocab, d), "model.norm": (d,), "lm_head": (n_vocab, d)}
    for il in range(config["num_hidden_layers"]):
        layer = {"self_attn.q_proj": (n_q, d), "self_attn.k_proj": (n_kv, d), "self_attn.v_proj": (n_kv, d)}
        layer |= {"self_attn.o_proj": (d, n_q), "mlp.gate_proj": (n_ff, d), "mlp.up_proj": (n_ff, d)}
        layer |= {"mlp.down_proj": (d, n_ff), "input_layernorm": (d,), "post_attention_layernorm": (d,)}
        if config["architectures"] == ["Qwen3ForCausalLM"]:
            layer |= {"self_attn.q_norm": (n_head_dim,), "self_attn.k_norm": (n_head_dim,)}
        shapes |= {f"model.layers.{il}.{name}": shape for name, shape in layer.items()}
    tensors = {f"{name}.weight": random.standard_normal(shape, np.float32) * 0.3 for name, shape in shapes.items()}
    if bias:
        for name in list(tensors):
            if name.rpartition(".")[0].endswith(("q_proj", "k_proj", "v_proj")):
                tensors[name.replace("weight", "bias")] = random.standard_normal(len(tensors[name]), np.float32)
    return tensors


def tokenizer_json():
    vocabulary = bpe_vocabulary()
    tokens, n_special = vocabulary["tokenizer.ggml.tokens"], 3
    steps = [{"type": "Split", "pattern": {"Regex": LLAMA3}}, {"type": "ByteLevel", "use_regex": False}]
    return {
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens[:-n_special])},
            "merges": vocabulary["tokenizer.ggml.merges"],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "added_tokens": [
            {"id": len(tokens) - n_special + i, "content": token, "special": True}
            for i, token in enumerate(tokens[-n_special:])
        ],
    }


def tokenizer_model():
    """A sentencepiece model of the tiny vocabulary."""
    vocabulary = spm_vocabulary()
    data = b""
    keys = ("tokens", "scores", "token_type")
    for text, score, type in zip(*(vocabulary[f"tokenizer.ggml.{key}"] for key in keys), strict=True):
        raw = text.encode()
        piece = bytes([0x0A, len(raw)]) + raw + b"\x15" + struct.pack("<f", score) + bytes([0x18, type])
        data += bytes([0x0A, len(piece)]) + piece
    return data


def folder(path, config, tensors, tokenizer, dtype="F32", **more):
    """Write a model's folder, with its tensors in two files; return the paths by name."""
    path.mkdir()
    names = list(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for i, half in enumerate(halves, 1):
        file = path / f"model-0000{i}-of-00002.safetensors"
        file.write_bytes(safetensors({name: tensors[name] for name in half}, dtype))
    if isinstance(tokenizer, bytes):
        (path / "tokenizer.model").write_bytes(tokenizer)
    else:
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, value in {"config": config, **more}.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return {file.name: file for file in path.iterdir()}


def hugging_face_logits(config, weights, tokens, inv_freq):
    """Hugging Face's Llama, written out: RoPE rotates the two halves of a head.  -> f64 [n_tok, n_vocab]"""
    w = {name: x.astype(np.float64) for name, x in weights.items()}
    n_head, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    n_tok = len(tokens)
    angles = np.outer(np.arange(n_tok), inv_freq)
    cos, sin = (np.concatenate([f(angles)] * 2, axis=1)[:, None] for f in (np.cos, np.sin))

    def norm(x, name):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config["rms_norm_eps"]) * w[name]

    def rotated(x):
        a, b = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-b, a], axis=-1) * sin

    def heads(h, name, n):
        x, of_heads = (h @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)).reshape(n_tok, n, -1), name[:-4] + "norm"
        return norm(x, f"{of_heads}.weight") if f"{of_heads}.weight" in w else x

    x = w["model.embed_tokens.weight"][tokens]
    for il in range(config["num_hidden_layers"]):
        layer = f"model.layers.{il}"
        h = norm(x, f"{layer}.input_layernorm.weight")
        q = rotated(heads(h, f"{layer}.self_attn.q_proj", n_head))
        k = np.repeat(rotated(heads(h, f"{layer}.self_attn.k_proj", n_kv)), n_head // n_kv, axis=1)
        v = np.repeat(heads(h, f"{layer}.self_attn.v_proj", n_kv), n_head // n_kv, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1]) + np.triu(np.full((n_tok, n_tok), -np.inf), 1)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v).reshape(n_tok, -1)
        x = x + attended @ w[f"{layer}.self_attn.o_proj.weight"].T
        h = norm(x, f"{layer}.post_attention_layernorm.weight")
        gate = h @ w[f"{layer}.mlp.gate_proj.weight"].T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (h @ w[f"{layer}.mlp.up_proj.weight"].T))
            @ w[f"{layer}.mlp.down_proj.weight"].T
        )
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def llama3_inv_freq(inv_freq, rope):
    """The formula of transformers' _compute_llama3_parameters, with its variable names."""
    scaled = []
    low_wavelen = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high_wavelen = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    for f in inv_freq:
        wavelen = 2 * np.pi / f
        if wavelen < high_wavelen:
            scaled.append(f)
        elif wavelen > low_wavelen:
            scaled.append(f / rope["factor"])
        else:
            smooth = rope["original_max_position_embeddings"] / wavelen - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            scaled.append((1 - smooth) * f / rope["factor"] + smooth * f)
    return np.array(scaled)


MODELS = {
    "llama": {},
    "llama3": {"rope_scaling": LLAMA3_ROPE},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16, "architectures": ["MistralForCausalLM"]},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_converted_model_computes_the_same_as_hugging_faces(tmp_path, kind):
    tokenizer = tokenizer_json()
    n_vocab = len(bpe_vocabulary()["tokenizer.ggml.tokens"])
    config = CONFIG | MODELS[kind] | {"vocab_size": n_vocab}
    tensors = weights(config, n_vocab, bias=kind == "qwen2")
    if kind == "tied":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    store = Store(tmp_path / "store")
    files = folder(tmp_path / "hf", config, tensors, tokenizer)
    digests = {name: store.put_blob([path.read_bytes()])[0] for name, path in files.items()}
    statuses = [status["status"] for status in create(store, "a", files=digests)]
    assert (statuses[0], statuses[-1]) == ("converting model", "success")

    n_head_dim = config.get("head_dim", 8)
    inv_freq = config["rope_theta"] ** -(np.arange(0, n_head_dim, 2) / n_head_dim)
    if kind == "llama3":
        inv_freq = llama3_inv_freq(inv_freq, LLAMA3_ROPE)
    if kind == "linear":
        inv_freq = inv_freq / 4
    tokens = [5, 300, 7, 7, 290, 1, 44]
    expected = hugging_face_logits(config, tensors, tokens, inv_freq)
    model = load_model(store.resolve("a").weights)
    batch = Batch.of(tokens, outputs=range(len(tokens)))
    got = forward(model, batch, model.new_cache(16, type="f64"), numpy_kernels(np.float64))
    # float64 both; angles and factors are float32 in the file and the kernel
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype, name", [("BF16", "BF16"), ("F16", "F16")])
def test_matrices_keep_their_format(tmp_path, dtype, name):
    n_vocab = len(spm_vocabulary()["tokenizer.ggml.tokens"])
    config = CONFIG | {"vocab_size": n_vocab}
    kv, tensors = convert_model(folder(tmp_path / "hf", config, weights(config, n_vocab), tokenizer_model(), dtype))
    assert {tensor.format.name for tensor in tensors if len(tensor.shape) == 2} == {name}
    assert {tensor.format.name for tensor in tensors if len(tensor.shape) == 1} == {"F32"}
    assert kv["general.file_type"].value == {"F16": 1, "BF16": 32}[name]


def test_spm_vocabulary_is_converted_unchanged(tmp_path):
    vocabulary = spm_vocabulary()
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])
    config = CONFIG | {"vocab_size": n_vocab + 2}
    more = {
        "tokenizer_config": {"bos_token": {"content": "<s>"}, "chat_template": "{{ messages }}", "add_bos_token": True}
    }
    kv, _ = convert_model(folder(tmp_path / "hf", config, weights(config, n_vocab + 2), tokenizer_model(), **more))
    assert kv["tokenizer.ggml.tokens"].value == [
        *vocabulary["tokenizer.ggml.tokens"],
        f"[PAD{n_vocab}]",
        f"[PAD{n_vocab + 1}]",
    ]
    np.testing.assert_array_equal(kv["tokenizer.ggml.scores"][:n_vocab], vocabulary["tokenizer.ggml.scores"])
    assert kv["tokenizer.ggml.token_type"].value[:n_vocab] == vocabulary["tokenizer.ggml.token_type"]
    assert (kv["tokenizer.ggml.bos_token_id"].value, kv["tokenizer.ggml.eos_token_id"].value) == (1, 2)
    assert kv["tokenizer.chat_template"] == "{{ messages }}"


def test_a_converted_bpe_encodes_special_tokens(tmp_path):
    n_vocab = len(bpe_vocabulary()["tokenizer.ggml.tokens"])
    config = CONFIG | {"vocab_size": n_vocab, "bos_token_id": n_vocab - 3, "eos_token_id": [n_vocab - 1, n_vocab - 2]}
    store = Store(tmp_path / "store")
    files = folder(tmp_path / "hf", config, weights(config, n_vocab), tokenizer_json())
    list(create(store, "a", files={name: store.put_blob([file.read_bytes()])[0] for name, file in files.items()}))
    tokenizer = load_model(store.resolve("a").weights).tokenizer
    ids = tokenizer.encode("once upon<|eot_id|>")
    assert (ids[0], ids[-1], tokenizer.decode(ids[1:-1])) == (n_vocab - 3, n_vocab - 1, "once upon")
    assert tokenizer.eos == n_vocab - 1


def test_a_trained_model_is_converted_back_weight_by_weight(kept, tmp_path):
    """stories260K, permuted into Hugging Face's layout, is converted back to the same GGUF tensors."""
    gguf = read_gguf(kept.model("stories260K-F32"))
    kv = {key.removeprefix("llama."): value for key, value in gguf.kv.items()}
    n_head, n_head_kv = kv["attention.head_count"], kv["attention.head_count_kv"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": kv["embedding_length"],
        "intermediate_size": kv["feed_forward_length"],
        "num_hidden_layers": kv["block_count"],
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "max_position_embeddings": kv["context_length"],
        "vocab_size": 512,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {
        f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")
    }
    outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    tensors = {}
    for name, tensor in gguf.tensors.items():
        x, parts = tensor.dequantize(), name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                n = n_head if parts[2] == "attn_q" else n_head_kv
                x = x.reshape(n, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
            tensors[f"model.layers.{parts[1]}.{names[parts[2]]}.weight"] = x
        else:
            tensors[f"{outside[parts[0]]}.weight"] = x
    spm = kept.path("stories260K/tok512.model").read_bytes()
    new, streamed = convert_model(folder(tmp_path / "hf", config, tensors, spm))
    assert {tensor.name for tensor in streamed} == set(gguf.tensors)
    for tensor in streamed:
        got = np.concatenate([piece.reshape(-1) for piece in tensor.pieces])
        np.testing.assert_array_equal(got, gguf.tensors[tensor.name].dequantize().reshape(-1), err_msg=tensor.name)
    for key in ("tokens", "token_type"):
        assert new[f"tokenizer.ggml.{key}"].value == list(gguf.kv[f"tokenizer.ggml.{key}"])


@pytest.fixture
def files(tmp_path):
    n_vocab = len(spm_vocabulary()["tokenizer.ggml.tokens"])
    config = CONFIG | {"vocab_size": n_vocab}
    return folder(tmp_path / "hf", config, weights(config, n_vocab), tokenizer_model())


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"architectures": ["T5Model"]}, RequestError, "architecture 'T5Model' is not one of LlamaForCausalLM"),
        ({"architectures": None}, RequestError, "architecture 'None' is not one of"),
        ({"hidden_size": "x"}, RequestError, "hidden_size is 'x', expected a positive number"),
        ({"hidden_size": 64}, RequestError, r"has shape \[\d+(, \d+)?\], expected"),
        ({"num_hidden_layers": 3}, ModelError, "9 tensors are missing, the first is 'blk.2.attn_norm.weight'"),
        ({"num_hidden_layers": 1}, RequestError, "'model.layers.1.+' is unknown in architecture llama"),
        ({"vocab_size": 10}, RequestError, "expected"),
        ({"rope_scaling": {"type": "yarn"}}, RequestError, "rope scaling 'yarn' is not one of"),
        ({"rope_scaling": 3}, RequestError, "rope_scaling is '3', expected an object"),
        ({"rope_theta": -1}, RequestError, "rope_theta is '-1', expected a positive number"),
    ],
)
def test_an_invalid_config_is_an_error_that_names_the_place(files, change, kind, message):
    config = json.loads(files["config.json"].read_text()) | change
    files["config.json"].write_text(json.dumps(config))
    with pytest.raises(kind, match=message):
        convert_model(files)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_a_missing_file_is_named(files, name):
    del files[name]
    with pytest.raises(ModelError, match=f"open {name}: no such file or directory"):
        convert_model(files)


HEADERS = {
    "offset behind the file": {"x": {"dtype": "F32", "shape": [2], "data_offsets": [2**40, 2**40 + 8]}},
    "size and shape differ": {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
    "huge shape": {"x": {"dtype": "F32", "shape": [2**47, 2**47], "data_offsets": [0, 8]}},
    "negative": {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}},
    "no dtype": {"x": {"shape": [2], "data_offsets": [0, 8]}},
    "other dtype": {"x": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}},
    "no object": {"x": 3},
    "a list": [],
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_hostile_safetensors_are_a_one_line_error(files, header):
    text = json.dumps(header).encode()
    for raw in (struct.pack("<Q", len(text)) + text + bytes(8), struct.pack("<Q", 2**63) + text, b"", b"[" * 100_000):
        files["model-00001-of-00002.safetensors"].write_bytes(raw)
        with pytest.raises(RequestError, match=r"^model-00001-of-00002\.safetensors: [^\n]+$"):
            convert_model(files)


@pytest.mark.parametrize("raw", [b"", b"\xff" * 40, b"\x0a\xff\x01x", b"\x0b", b"\x0a\x02\x18\x80", b"hello"])
def test_a_hostile_tokenizer_model_is_a_one_line_error(files, raw):
    files["tokenizer.model"].write_bytes(raw)
    with pytest.raises(EngineError, match="tokenizer"):
        convert_model(files)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": NaN}', "[" * 100_000, '{"model": {"type": "BPE", "vocab": {"a": 5}}}']
)
def test_hostile_json_is_a_one_line_error(files, text):
    del files["tokenizer.model"]
    files["tokenizer.json"] = files["config.json"].with_name("tokenizer.json")
    files["tokenizer.json"].write_text(text)
    with pytest.raises(RequestError, match=r"^tokenizer.json: [^\n]+$"):
        convert_model(files)


def test_a_weight_that_is_not_finite_is_refused(files, tmp_path):
    config = json.loads(files["config.json"].read_text())
    tensors = weights(config, config["vocab_size"])
    tensors["model.layers.1.self_attn.q_proj.weight"][3, 4] = np.nan
    store = Store(tmp_path / "store")
    files = folder(tmp_path / "nan", config, tensors, tokenizer_model())
    digests = {name: store.put_blob([path.read_bytes()])[0] for name, path in files.items()}
    with pytest.raises(RequestError, match=r"'model.layers.1.self_attn.q_proj.weight' has a weight that is not finite"):
        list(create(store, "a", files=digests))
    assert store.list() == [] and store.digests() == set(digests.values())


# ---- tokenizers: those of Hugging Face's library and of sentencepiece are the references

TEXTS = [
    "a table:\n  1  22   333\n",
    "x =  1\n    22 + y1",
    "it's 2024-11-29, 12:30",
    "Hello world",
    "    for i in range(10):\n        pass",
    "<|im_end|>Hello<|endoftext|>",
]
CORPUS = [
    "hello Hello world, it's a table of 10 rows:  1   22    333 (2024-11-29)\n    for i in range(10): pass\n\n" * 50
]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split_by(expression, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


def in_order(*steps):
    return pre_tokenizers.Sequence(list(steps))


def trained_bpe(pre, normalizer=None, **model):
    hf = HuggingFace(models.BPE(**model))
    hf.pre_tokenizer, hf.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        hf.normalizer = normalizer
    special = ["<|endoftext|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    hf.train_from_iterator(CORPUS, trainer)
    return hf


def converted_tokenizer(path, tokenizer, n_vocab, **more):
    """Create a model with `tokenizer` in a store; return the engine's tokenizer."""
    config = CONFIG | {"vocab_size": n_vocab}
    files, store = folder(path / "hf", config, weights(config, n_vocab), tokenizer, **more), Store(path / "store")
    list(create(store, "a", files={name: store.put_blob([file.read_bytes()])[0] for name, file in files.items()}))
    return load_model(store.resolve("a").weights).tokenizer


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (BYTES, "gpt-2"),
        (in_order(pre_tokenizers.Digits(individual_digits=True), BYTES), "smollm"),  # SmolLM and SmolLM2
        (in_order(split_by(LLAMA3), BARE_BYTES), "smaug-bpe"),  # its ignore_merges is false
        (in_order(split_by(LLAMA3), BARE_BYTES), "llama-bpe"),
        (in_order(split_by(QWEN2), BARE_BYTES), "qwen2"),
    ],
)
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_a_converted_bpe_gives_hugging_faces_ids(tmp_path, pre, name, normalizer):
    hf = trained_bpe(pre, normalizer, ignore_merges=name == "llama-bpe")
    got = converted_tokenizer(tmp_path, json.loads(hf.to_str()), hf.get_vocab_size())
    assert got.vocab.pre == PRE[name]
    for text in TEXTS:
        assert got.encode(text, add_special=False) == hf.encode(text).ids, text


@pytest.mark.parametrize(
    ("pre", "normalizer", "message"),
    [
        (
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            None,
            "unknown pre-tokenizer ByteLevel(add_prefix_space=True), expected",
        ),
        (in_order(pre_tokenizers.Digits(), BYTES), None, "unknown pre-tokenizer Digits(individual_digits=False) then"),
        (
            in_order(pre_tokenizers.Punctuation(), BYTES),
            None,
            "unknown pre-tokenizer Punctuation(behavior=Isolated) then",
        ),
        (
            in_order(split_by(LLAMA3, "removed", True), BARE_BYTES),
            None,
            "unknown pre-tokenizer Split(Removed, invert=True) then",
        ),
        (in_order(split_by(LLAMA3), BYTES), None, "unknown pre-tokenizer Split (?i:"),
        (BARE_BYTES, None, "unknown pre-tokenizer ByteLevel, expected"),
        (BYTES, normalizers.Lowercase(), "normalizer 'Lowercase', which GGUF has no key for"),
        (BYTES, normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]), "normalizer 'Strip'"),
    ],
)
def test_a_step_that_would_be_lost_is_refused_by_name(tmp_path, pre, normalizer, message):
    hf = trained_bpe(pre, normalizer)
    with pytest.raises(RequestError, match=re.escape(message)):
        converted_tokenizer(tmp_path, json.loads(hf.to_str()), hf.get_vocab_size())


@pytest.mark.parametrize(
    ("model", "own", "message"),
    [
        ({"end_of_word_suffix": "</w>"}, {}, "end_of_word_suffix is '</w>', which GGUF has no key for"),
        ({"continuing_subword_prefix": "##"}, {}, "continuing_subword_prefix is '##'"),
        ({"ignore_merges": True}, {}, "unknown pre-tokenizer ByteLevel by regex, ignore_merges, expected"),
        ({}, {"add_prefix_space": True}, "add_prefix_space is true"),
    ],
)
def test_a_setting_of_bpe_that_would_be_lost_is_refused_by_name(tmp_path, model, own, message):
    tokenizer = json.loads(trained_bpe(BYTES).to_str())
    tokenizer["model"] |= model
    with pytest.raises(RequestError, match=message.replace('\\")', ".")):
        converted_tokenizer(tmp_path, tokenizer, 400, tokenizer_config=own)


def test_a_template_of_hugging_face_says_which_tokens_surround_a_text(tmp_path):
    hf = trained_bpe(BYTES)
    hf.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 1)]
    )
    own = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    got = converted_tokenizer(tmp_path, json.loads(hf.to_str()), hf.get_vocab_size(), tokenizer_config=own)
    assert got.encode("Hello world") == hf.encode("Hello world").ids


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("named", ["normalizer_spec", "tokenizer_config"])
def test_a_converted_spm_gives_sentencepieces_ids(tmp_path, prefix, named):
    own = prefix if named == "normalizer_spec" else not prefix
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS[0].split("\n")),
        model_prefix=str(tmp_path / "m"),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=own,
        minloglevel=2,
    )
    more = {} if named == "normalizer_spec" else {"tokenizer_config": {"add_prefix_space": prefix}}
    got = converted_tokenizer(tmp_path, (tmp_path / "m.model").read_bytes(), 360, **more)
    raw, flag = (
        (tmp_path / "m.model").read_bytes(),
        b"identity\x12\0\x18",
    )  # name, precompiled_charsmap, add_dummy_prefix
    assert raw.count(flag + bytes([own])) == 1
    expected = sentencepiece.SentencePieceProcessor(
        model_proto=raw.replace(flag + bytes([own]), flag + bytes([prefix]))
    )
    for text in TEXTS[:-1]:
        assert got.encode(text, add_special=False) == expected.EncodeAsIds(text), text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "the normalizer has precompiled_charsmap"),
        ({"model_type": "unigram"}, "not a BPE model"),
    ],
)
def test_an_spm_that_gguf_cannot_hold_is_refused_by_name(tmp_path, settings, message):
    settings = {"model_type": "bpe", "normalization_rule_name": "identity"} | settings
    lines = iter(CORPUS[0].split("\n"))
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=lines,
        model_prefix=str(tmp_path / "m"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    with pytest.raises(RequestError, match=message):
        converted_tokenizer(tmp_path, (tmp_path / "m.model").read_bytes(), 60)


def test_added_tokens_beside_a_tokenizer_model_end_an_answer(tmp_path):
    n = len(spm_vocabulary()["tokenizer.ggml.tokens"])
    added = {"<|im_end|>": n, "<|im_start|>": n + 1, "word": n + 2}
    got = converted_tokenizer(tmp_path, tokenizer_model(), n + 4, added_tokens=added)
    assert list(got.vocab.tokens[n:]) == [*added, f"[PAD{n + 3}]"]
    assert n in got.eog
    assert got.vocab.attr[n : n + 3].tolist() == [Attr.CONTROL, Attr.CONTROL, Attr.USER_DEFINED]
    assert got.encode("<|im_end|>", add_special=False) == [n]


def stops(n):
    return [{"id": 400 + i, "content": f"<stop{i}>", "special": True} for i in range(n)]


@pytest.mark.parametrize("source", ["generation_config", "config"])
def test_every_eos_id_ends_an_answer(tmp_path, source):
    """GGUF has three keys; <|im_end|>, the fourth, needs none."""
    tokenizer, ends = json.loads(trained_bpe(BYTES).to_str()), [400, 1, 401, 402]
    tokenizer["added_tokens"] += stops(3)
    config = CONFIG | {"vocab_size": 403} | ({"eos_token_id": ends} if source == "config" else {})
    more = {"generation_config": {"eos_token_id": ends}} if source == "generation_config" else {}
    kv, _ = convert_model(folder(tmp_path / "hf", config, weights(config, 403), tokenizer, **more))
    assert [kv[f"tokenizer.ggml.{key}_token_id"].value for key in ("eos", "eot", "eom")] == [400, 401, 402]
    got = from_gguf({key: getattr(value, "value", value) for key, value in kv.items()})
    assert got.eog >= set(ends) and got.eos == 400


def test_more_eos_ids_than_gguf_has_keys_for_are_refused(tmp_path):
    tokenizer = json.loads(trained_bpe(BYTES).to_str())
    tokenizer["added_tokens"] += stops(4)
    with pytest.raises(RequestError, match=r"eos_token_id has 3 more ids, \[401, 402, 403\], expected at most 2"):
        converted_tokenizer(tmp_path, tokenizer, 404, generation_config={"eos_token_id": [400, 401, 402, 403]})


ODD_JSON = [None, True, 0, -1, 0.5, "x", [], {}, [[1]], [{}], {"type": []}, {"type": "Sequence"}, {"type": "Split"}]


@pytest.mark.parametrize("odd", ODD_JSON, ids=str)
def test_odd_json_is_used_or_refused_in_one_line(tmp_path, odd):
    tokenizer = json.loads(trained_bpe(BYTES).to_str())
    config = CONFIG | {"vocab_size": 400}
    files = folder(tmp_path / "hf", config, weights(config, 400), tokenizer)
    names = ("tokenizer_config.json", "generation_config.json", "added_tokens.json")
    files |= {name: tmp_path / name for name in names}
    changes = [("tokenizer.json", key, tokenizer | {key: odd}) for key in tokenizer]
    changes += [
        ("tokenizer.json", key, tokenizer | {"model": tokenizer["model"] | {key: odd}}) for key in tokenizer["model"]
    ]
    changes += [
        ("config.json", key, config | {key: odd}) for key in (*config, "eos_token_id", "rope_scaling", "head_dim")
    ]
    for key in ("eos_token", "bos_token", "add_bos_token", "add_prefix_space", "added_tokens_decoder", "chat_template"):
        changes.append(("tokenizer_config.json", key, {key: odd}))
    changes += [
        ("generation_config.json", "eos_token_id", {"eos_token_id": odd}),
        ("added_tokens.json", "x", {"x": odd}),
    ]
    sound = {"tokenizer.json": tokenizer, "config.json": config} | {name: {} for name in names}
    for file, _, changed in changes:
        for name, content in (sound | {file: changed}).items():
            files[name].write_text(json.dumps(content))
        try:
            convert_model(files)
        except EngineError as error:
            assert "\n" not in str(error)
