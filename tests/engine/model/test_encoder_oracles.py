"""Rows of tiny encoders against transformers with the same weights, in float64.

transformers has no JinaBert: here its Bert gets the ALiBi penalty as an attention mask, and a gated feed-forward block.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest
from oracles import state

from numllama.engine.gguf.read import GGUF
from numllama.engine.model.batch import Batch
from numllama.engine.model.load import load_model
from numllama.kernels import numpy_kernels

pytestmark = pytest.mark.oracle
GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_embeddings.py"))
TOKENS = GOLDEN["TOKENS"]

BERT = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "attn_q": "encoder.layer.{il}.attention.self.query",
    "attn_k": "encoder.layer.{il}.attention.self.key",
    "attn_v": "encoder.layer.{il}.attention.self.value",
    "attn_output": "encoder.layer.{il}.attention.output.dense",
    "attn_output_norm": "encoder.layer.{il}.attention.output.LayerNorm",
    "ffn_up": "encoder.layer.{il}.intermediate.dense",
    "ffn_down": "encoder.layer.{il}.output.dense",
    "layer_output_norm": "encoder.layer.{il}.output.LayerNorm",
}
NOMIC_BERT = {
    **{name: theirs for name, theirs in BERT.items() if name.startswith("token")},
    "attn_q": "layers.{il}.self_attn.q_proj",
    "attn_k": "layers.{il}.self_attn.k_proj",
    "attn_v": "layers.{il}.self_attn.v_proj",
    "attn_output": "layers.{il}.self_attn.o_proj",
    "attn_output_norm": "layers.{il}.post_attention_layernorm",
    "ffn_gate": "layers.{il}.mlp.gate_proj",
    "ffn_up": "layers.{il}.mlp.up_proj",
    "ffn_down": "layers.{il}.mlp.down_proj",
    "layer_output_norm": "layers.{il}.post_mlp_layernorm",
}


def weights(gguf, names):
    """Return the tensors of `gguf` under transformers' `names`, as f64."""
    found = {}
    for name, tensor in gguf.tensors.items():
        *layer, part, kind = name.split(".")
        x, il = tensor.dequantize().astype(np.float64), layer[1] if layer else ""
        parts = {part: x}
        if part == "attn_qkv":
            parts = dict(zip(("attn_q", "attn_k", "attn_v"), np.split(x, 3), strict=True))
        for part, x in parts.items():
            found[f"{names[part].format(il=il)}.{kind}"] = x
    return found


def transformers_rows(path, name):
    """Compute the rows of TOKENS with transformers.  -> f64 [n_tok, n_embd]"""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.set_num_threads(1)
    gguf = GGUF.open(path)
    arch = gguf.kv["general.architecture"]
    n_head, n_ff, n_ctx = (
        gguf.kv[f"{arch}.{key}"] for key in ("attention.head_count", "feed_forward_length", "context_length")
    )
    n_vocab, n_embd = gguf.tensors["token_embd.weight"].shape
    sizes = {
        "vocab_size": n_vocab,
        "hidden_size": n_embd,
        "num_hidden_layers": gguf.kv[f"{arch}.block_count"],
        "num_attention_heads": n_head,
        "intermediate_size": n_ff,
        "max_position_embeddings": n_ctx,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "attn_implementation": "eager",
    }
    if name == "nomic-bert":
        rope = {"rope_type": "default", "rope_theta": gguf.kv["nomic-bert.rope.freq_base"]}
        config = transformers.NomicBertConfig(**sizes, rope_parameters=rope)
        model, names = transformers.NomicBertModel(config, add_pooling_layer=False), NOMIC_BERT
    else:
        config = transformers.BertConfig(**sizes, hidden_act="gelu_pytorch_tanh")  # the form that llama.cpp uses
        model, names = transformers.BertModel(config, add_pooling_layer=False), BERT
    mask, state = None, weights(gguf, names)
    if name == "jina-bert-v2":
        positions, n = torch.arange(len(TOKENS)), 1 << int(np.log2(n_head))
        slopes = [2 ** (-8 * (h + 1) / n) if h < n else 2 ** (-4 * (2 * (h - n) + 1) / n) for h in range(n_head)]
        mask = -torch.tensor(slopes).double()[None, :, None, None] * (positions[:, None] - positions).abs()
        state["embeddings.position_embeddings.weight"] = np.zeros((n_ctx, n_embd))

        class Gated(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.dense = torch.nn.Linear(n_embd, 2 * n_ff)

            def forward(self, x):
                gate, up = self.dense(x).chunk(2, dim=-1)
                return torch.nn.functional.gelu(gate, approximate="tanh") * up

        for layer in model.encoder.layer:
            layer.intermediate = Gated()
    model = model.double().eval()
    model.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()})
    with torch.no_grad():
        return model(torch.tensor([TOKENS]), attention_mask=mask).last_hidden_state[0].numpy()


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "jina-bert-v2"])
def test_rows_equal_those_of_transformers(tmp_path, name):
    path = GOLDEN["make"](tmp_path, name, "F32")
    model, batch = load_model(path), Batch.of(TOKENS, outputs=range(len(TOKENS)))
    got = model.family.hidden(model, batch, model.new_cache(64), numpy_kernels(np.float64))
    tolerance = (
        1e-5 if name == "nomic-bert" else 1e-12
    )  # transformers computes RoPE angles in float32; measured 1e-6 and 1e-14
    np.testing.assert_allclose(got, transformers_rows(path, name), rtol=0, atol=tolerance)


def test_embeddinggemma_s_rows_equal_those_of_transformers(tmp_path):
    """Both ways, with windows that reach half to each side, which transformers computes from the whole window too."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.set_num_threads(1)
    path = GOLDEN["make"](tmp_path, "gemma-embedding", "F32")
    gguf, arch = GGUF.open(path), "gemma-embedding"
    n_head, n_head_kv, n_layer, window = (
        int(gguf.kv[f"{arch}.{key}"])
        for key in ("attention.head_count", "attention.head_count_kv", "block_count", "attention.sliding_window")
    )
    n_vocab, n_embd = gguf.tensors["token_embd.weight"].shape
    config = transformers.Gemma3TextConfig(
        vocab_size=n_vocab,
        hidden_size=n_embd,
        intermediate_size=int(gguf.kv[f"{arch}.feed_forward_length"]),
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        num_key_value_heads=n_head_kv,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=window,
        rms_norm_eps=1e-5,
        use_bidirectional_attention=True,
        attn_implementation="eager",
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    model = transformers.Gemma3TextModel(config).double().eval()
    weights = state(gguf, "gemma3", n_head, n_head_kv)
    model.load_state_dict({name.removeprefix("model."): torch.from_numpy(x) for name, x in weights.items()})
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).last_hidden_state[0].numpy()
    ours, batch = load_model(path), Batch.of(TOKENS, outputs=range(len(TOKENS)))
    got = ours.family.hidden(ours, batch, ours.new_cache(64, type="f64"), numpy_kernels(np.float64))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)  # transformers' angles and norms are float32
