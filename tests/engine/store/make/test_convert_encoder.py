"""Conversion of encoders from Hugging Face's layout: tensors, keys, pooling and WordPiece."""

import json

import numpy as np
import pytest
from hugging_face import safetensors
from tiny_encoder import tiny_encoder
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, normalizers, pre_tokenizers, processors

from numllama.engine.errors import ModelError, RequestError
from numllama.engine.gguf.read import GGUF
from numllama.engine.model.batch import Batch
from numllama.engine.model.load import load_model
from numllama.engine.run.embed import pooling_of
from numllama.engine.store import Store
from numllama.engine.store.make.convert import convert_model
from numllama.engine.store.make.create import create
from numllama.kernels import numpy_kernels
from tiny import bpe_vocabulary

PLACES = {  # GGUF's names: those in the published folders of each architecture
    "bert": {
        "token_embd": "embeddings.word_embeddings",
        "token_types": "embeddings.token_type_embeddings",
        "position_embd": "embeddings.position_embeddings",
        "token_embd_norm": "embeddings.LayerNorm",
        "attn_q": "encoder.layer.{}.attention.self.query",
        "attn_k": "encoder.layer.{}.attention.self.key",
        "attn_v": "encoder.layer.{}.attention.self.value",
        "attn_output": "encoder.layer.{}.attention.output.dense",
        "attn_output_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "ffn_up": "encoder.layer.{}.intermediate.dense",
        "ffn_down": "encoder.layer.{}.output.dense",
        "layer_output_norm": "encoder.layer.{}.output.LayerNorm",
    },
}
PLACES["nomic-bert"] = {
    **{name: theirs for name, theirs in PLACES["bert"].items() if name in ("token_embd", "token_types")},
    "token_embd_norm": "emb_ln",
    "attn_qkv": "encoder.layers.{}.attn.Wqkv",
    "attn_output": "encoder.layers.{}.attn.out_proj",
    "attn_output_norm": "encoder.layers.{}.norm1",
    "ffn_gate": "encoder.layers.{}.mlp.fc12",
    "ffn_up": "encoder.layers.{}.mlp.fc11",
    "ffn_down": "encoder.layers.{}.mlp.fc2",
    "layer_output_norm": "encoder.layers.{}.norm2",
}
PLACES["jina-bert-v2"] = {
    **PLACES["bert"],
    "ffn_up": "encoder.layer.{}.mlp.gated_layers",
    "ffn_down": "encoder.layer.{}.mlp.wo",
    "layer_output_norm": "encoder.layer.{}.mlp.layernorm",
}
KINDS = {  # arguments of tiny_encoder, architecture in config.json, keys in config.json besides the sizes
    "bert": ({"pooling": "cls"}, "BertModel", {"hidden_act": "gelu"}),
    "nomic-bert": (
        {"family": "nomic-bert", "gate": "apart", "fused": True, "bias": False},
        "NomicBertModel",
        {"activation_function": "swiglu", "rotary_emb_base": 1000, "n_inner": 128, "n_positions": 8192},
    ),
    "jina-bert-v2": (
        {"family": "jina-bert-v2", "gate": "within", "n_head": 6},
        "JinaBertForMaskedLM",
        {"position_embedding_type": "alibi", "feed_forward_type": "geglu"},
    ),
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def google_pieces(gguf):
    """Return the vocabulary of a GGUF as Google spells it."""
    kinds = gguf.kv["tokenizer.ggml.token_type"]
    return [
        text if kind == 3 else text[1:] if text[0] == "\u2581" else f"##{text}"
        for text, kind in zip(gguf.kv["tokenizer.ggml.tokens"], kinds, strict=True)
    ]


def wordpiece_json(pieces, **settings):
    """Return a tokenizer.json of Hugging Face's own library."""
    vocab = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = HuggingFace(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens([name for name in SPECIAL if name in vocab])
    return tokenizer.to_str()


def encoder_folder(path, gguf, architecture, more, pooling="mean_tokens", prefix="", pieces=(), **normalizer):
    """Write the encoder `gguf` as a folder of sentence-transformers; return the paths by name.

    pieces   another vocabulary, whose embeddings are zeros
    """
    family = gguf.kv["general.architecture"]
    tensors = {f"{prefix}embeddings.position_ids": np.zeros((1, 64), np.float32)}  # not a weight
    for name, tensor in gguf.tensors.items():
        *layer, part, kind = name.split(".")
        theirs = PLACES[family][part].format(layer[1] if layer else "")
        tensors[f"{prefix}{theirs}.{kind}"] = tensor.dequantize()
    if pieces:
        tensors["embeddings.word_embeddings.weight"] = np.zeros((len(pieces), 96), np.float32)
    pieces = pieces or google_pieces(gguf)
    kv = {key.removeprefix(f"{family}."): value for key, value in gguf.kv.items()}
    config = {
        "architectures": [architecture],
        "vocab_size": len(pieces),
        "hidden_size": kv["embedding_length"],
        "num_hidden_layers": kv["block_count"],
        "num_attention_heads": kv["attention.head_count"],
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        **more,
    }
    if "n_inner" not in more:
        config |= {"intermediate_size": kv["feed_forward_length"], "max_position_embeddings": kv["context_length"]}
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (path / "1_Pooling").mkdir(parents=True)
    for name, value in {
        "config.json": config,
        "modules.json": [{"type": f"sentence_transformers.models.{kind}", "path": where} for kind, where in modules],
        "1_Pooling/config.json": {"word_embedding_dimension": 96, f"pooling_mode_{pooling}": True},
        "tokenizer.json": json.loads(wordpiece_json(pieces, **normalizer)),
    }.items():
        (path / name).write_text(json.dumps(value))
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    return {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}


def converted(tmp_path, files):
    store = Store(tmp_path / "store")
    list(create(store, "a", files={name: store.put_blob([path.read_bytes()])[0] for name, path in files.items()}))
    return store.resolve("a").weights


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_converted_back_to_the_same_file(tmp_path, kind):
    """The folder has the GGUF's own tensors under the published names, so the way back leads to the same rows."""
    arguments, architecture, more = KINDS[kind]
    source = tiny_encoder(tmp_path / "source.gguf", quant="F16", **arguments)
    gguf = GGUF.open(source)
    files = encoder_folder(tmp_path / "hf", gguf, architecture, more, "cls_token" if kind == "bert" else "mean_tokens",
                           prefix="bert." if kind == "jina-bert-v2" else "")  # fmt: skip
    model = load_model(converted(tmp_path, files))
    assert pooling_of(model.hparams) == arguments.get("pooling", "mean")
    assert model.gguf.kv[f"{kind}.context_length"] == (2048 if kind == "nomic-bert" else 64)
    assert model.gguf.kv[f"{kind}.normalize_embeddings"] is True
    for name, tensor in model.gguf.tensors.items():
        expected = gguf.tensors[name].dequantize()
        if name == "position_embd.weight":
            expected = expected.astype(np.float16).astype(np.float32)  # F16 as in Ollama's conversion
        np.testing.assert_array_equal(tensor.dequantize(), expected, err_msg=name)
        is_vector = len(tensor.shape) == 1 or name == "token_types.weight"
        assert tensor.format.name == ("F32" if is_vector else "F16"), name
    assert model.gguf.tensors.keys() == gguf.tensors.keys()
    for key in ("tokens", "token_type"):
        assert list(model.gguf.kv[f"tokenizer.ggml.{key}"]) == list(gguf.kv[f"tokenizer.ggml.{key}"]), key
    text = "the little dog"
    assert model.tokenizer.encode(text) == load_model(source).tokenizer.encode(text)


TEXTS = ["The dog", "Ünits and ÀÉ", "a dog's house, big!", "tab\tnew\nline", "xyzzy 漢字", "[MASK] the [SEP] [CLS]"]


@pytest.mark.parametrize(
    "settings",
    [{}, {"lowercase": False}, {"lowercase": False, "strip_accents": True}, {"strip_accents": False}],
    ids=("uncased", "cased", "cased without accents", "uncased with accents"),
)
def test_texts_are_encoded_as_by_hugging_faces_tokenizer(tmp_path, settings):
    gguf = GGUF.open(tiny_encoder(tmp_path / "source.gguf"))
    letters = [*"ÜÀÉüàéUE漢字", "T", "##T", "##ü", "##É"]
    pieces = SPECIAL + [piece for piece in google_pieces(gguf) if piece not in SPECIAL] + letters
    files = encoder_folder(tmp_path / "hf", gguf, "BertModel", {}, pieces=pieces, **settings)
    tokenizer, theirs = (
        load_model(converted(tmp_path, files)).tokenizer,
        HuggingFace.from_file(str(files["tokenizer.json"])),
    )
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text).ids, text


@pytest.fixture
def bert(tmp_path):
    return encoder_folder(tmp_path / "hf", GGUF.open(tiny_encoder(tmp_path / "source.gguf")), "BertModel", {})


def test_a_folder_with_vocab_txt_alone_has_the_same_tokens(bert, tmp_path):
    expected, _ = convert_model(bert)
    pieces = google_pieces(GGUF.open(tmp_path / "source.gguf"))
    del bert["tokenizer.json"]
    bert["vocab.txt"] = tmp_path / "hf/vocab.txt"
    bert["vocab.txt"].write_text("\n".join(pieces) + "\n")
    got, _ = convert_model(bert)
    for key in expected:
        if key.startswith("tokenizer."):
            assert str(got[key]) == str(expected[key]), key


@pytest.mark.parametrize(
    ("file", "change", "kind", "message"),
    [
        ("config.json", {"position_embedding_type": "relative"}, RequestError, "type is 'relative', expected 'absol"),
        ("config.json", {"hidden_act": "relu"}, RequestError, "hidden_act is 'relu', expected 'gelu' or"),
        ("config.json", {"num_hidden_layers": 3}, ModelError, r"\d+ tensors are missing, the first is 'blk\.2\.attn_q"),
        ("config.json", {"num_hidden_layers": 1}, RequestError, "'encoder.layer.1.+' is unknown in architecture bert"),
        ("config.json", {"hidden_size": 48}, RequestError, r"has shape \[.+\], expected"),
        ("config.json", {"architectures": ["BertForSequenceClassification"]}, RequestError, "is not one of Llama"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, RequestError, "mean_tokens, pooling_mode_max"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, RequestError, "normalizer .*Lowercase"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, RequestError, "pre-tokenizer .*Whitespace"),
        ("tokenizer.json", {"post_processor": {"type": "Sequence"}}, RequestError, "post-processor .*Sequence"),
    ],
)  # fmt: skip
def test_what_gguf_has_no_key_for_is_refused_by_name(bert, file, change, kind, message):
    bert[file].write_text(json.dumps(json.loads(bert[file].read_text()) | change))
    with pytest.raises(kind, match=message):
        convert_model(bert)


def test_a_further_module_is_refused_by_name(bert):
    modules = json.loads(bert["modules.json"].read_text())
    modules.insert(2, {"idx": 9, "name": "9", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    bert["modules.json"].write_text(json.dumps(modules))
    with pytest.raises(RequestError, match=r"modules\.json: module 'Dense' is not one of Transformer"):
        convert_model(bert)
    del bert["1_Pooling/config.json"]
    with pytest.raises(ModelError, match=r"open 1_Pooling/config\.json: no such file"):
        convert_model(bert)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "NomicBert"])
def test_a_folder_that_transformers_wrote_computes_the_same_rows(tmp_path, kind):
    """transformers saves a random model, whose matrices float16 can hold, and computes in float64 beside us."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    more = {"hidden_act": "gelu_pytorch_tanh"}  # the form of GELU that llama.cpp computes
    tokenizer, n_ctx = json.loads(wordpiece_json(SPECIAL + [chr(97 + i) for i in range(26)])), 64
    if kind == "NomicBert":
        more = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    if kind == "Roberta":
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *bpe_vocabulary()["tokenizer.ggml.tokens"][:-3]]
        vocab, merges = {token: id for id, token in enumerate(tokens)}, bpe_vocabulary()["tokenizer.ggml.merges"]
        tokenizer = {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "pre_tokenizer": {"type": "ByteLevel"}}
        tokenizer["post_processor"] = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
        n_ctx += 2  # the first two rows belong to padding
        more |= {"pad_token_id": 1, "type_vocab_size": 1}
    n_vocab = len(tokenizer["model"]["vocab"])
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=n_vocab, max_position_embeddings=n_ctx, attn_implementation="eager", **sizes, **more
    )
    model = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.copy_((x + 0.1 * torch.randn_like(x)).half().float())
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text(json.dumps(tokenizer))
    files = {path.name: path for path in (tmp_path / "hf").iterdir()}
    ours = load_model(converted(tmp_path, files))
    ids = ours.tokenizer.encode("once a time")
    assert ids[0] == (0 if kind == "Roberta" else 2)
    batch = Batch.of(ids, outputs=range(len(ids)))
    got = ours.family.hidden(ours, batch, ours.new_cache(64), numpy_kernels(np.float64))
    with torch.no_grad():
        expected = model.double()(torch.tensor([ids])).last_hidden_state[0].numpy()
    tolerance = 1e-5 if kind == "NomicBert" else 1e-12  # transformers computes RoPE angles in float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
