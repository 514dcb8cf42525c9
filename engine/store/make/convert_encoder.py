"""Conversion of an encoder in Hugging Face's layout: BERT, RoBERTa, Nomic's and Jina's.

    encoder.layer.0.attention.self.query.weight   ->   blk.0.attn_q.weight
    layer_norm_eps                                ->   bert.attention.layer_norm_epsilon
    1_Pooling/config.json, pooling_mode_mean_tokens    bert.pooling_type 1

Pooling and normalization are modules of sentence-transformers, listed in modules.json.  Matrices in F32 become F16, as
in Ollama; token_types, which is added to every token, stays F32.  Heads for training are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ....kernels.quants import FORMATS_BY_NAME
from ....kernels.tensor import Tensor
from ...errors import ModelError, RequestError
from ...gguf.read import F32 as F32_VALUE
from ...gguf.read import U32
from ...gguf.write import Streamed
from .config_json import ConfigJson
from .quantize import quantized_slices

F16, F32 = FORMATS_BY_NAME["F16"], FORMATS_BY_NAME["F32"]
ENCODERS = {
    "BertModel": "bert",
    "BertForMaskedLM": "bert",
    "RobertaModel": "bert",
    "NomicBertModel": "nomic-bert",
    "JinaBertModel": "jina-bert-v2",
    "JinaBertForMaskedLM": "jina-bert-v2",
}
LEFT_OUT = re.compile(r"(pooler|cls|lm_head)\..*|(.*\.)?(position_ids|token_type_ids)")  # after the model's prefix
NAMES = {  # by the beginning of a name: GGUF's; a layer's number is at {}
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
    "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
    "encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
    "encoder.layer.{}.attention.self.layer_norm_q": "blk.{}.attn_q_norm",
    "encoder.layer.{}.attention.self.layer_norm_k": "blk.{}.attn_k_norm",
    "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
    "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
    "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
    "encoder.layer.{}.output.dense": "blk.{}.ffn_down",
    "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
    # nomic-bert
    "emb_ln": "token_embd_norm",
    "encoder.layers.{}.attn.Wqkv": "blk.{}.attn_qkv",
    "encoder.layers.{}.attn.out_proj": "blk.{}.attn_output",
    "encoder.layers.{}.norm1": "blk.{}.attn_output_norm",
    "encoder.layers.{}.mlp.fc11": "blk.{}.ffn_up",
    "encoder.layers.{}.mlp.fc12": "blk.{}.ffn_gate",
    "encoder.layers.{}.mlp.fc2": "blk.{}.ffn_down",
    "encoder.layers.{}.norm2": "blk.{}.layer_output_norm",
    # jina-bert-v2, and the one for code
    "encoder.layer.{}.layer_norm_1": "blk.{}.attn_norm_2",
    "encoder.layer.{}.mlp.gated_layers": "blk.{}.ffn_up",
    "encoder.layer.{}.mlp.up_gated_layer": "blk.{}.ffn_up",
    "encoder.layer.{}.mlp.wo": "blk.{}.ffn_down",
    "encoder.layer.{}.mlp.down_layer": "blk.{}.ffn_down",
    "encoder.layer.{}.mlp.layernorm": "blk.{}.layer_output_norm",
    "encoder.layer.{}.layer_norm_2": "blk.{}.layer_output_norm",
}
POOLINGS = {  # by the flag, or the word, in 1_Pooling/config.json: pooling_type
    "pooling_mode_mean_tokens": 1,
    "pooling_mode_cls_token": 2,
    "pooling_mode_lasttoken": 3,
    "mean": 1,
    "cls": 2,
    "lasttoken": 3,
}
GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh")  # one function here, as in llama.cpp
SPELLINGS = {  # keys of BERT's config: those of Nomic's
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}


class HuggingFaceEncoder(ConfigJson):
    """An encoder in Hugging Face's layout.

    modules   the module names of modules.json, without their package, and the pooling module's config.json
    """

    def __init__(self, config: Mapping[str, Any], modules: list[str], pooling: Mapping[str, Any]):
        super().__init__({**{old: config[new] for old, new in SPELLINGS.items() if new in config}, **config})
        self.name, self.modules, self.pooling = config["architectures"][0], modules, pooling
        self.architecture = ENCODERS[self.name]
        self.n_layer, self.n_embd = self.count("num_hidden_layers"), self.count("hidden_size")
        self.n_ff, self.n_vocab = self.count("intermediate_size"), self.count("vocab_size")
        self.n_head = self.count("num_attention_heads")
        self.n_type = self.count("type_vocab_size", 1)
        self.n_unused = (
            self.count("pad_token_id") + 1 if self.name == "RobertaModel" else 0
        )  # positions before the first
        self.n_row = self.count("max_position_embeddings")
        self._check()

    def _check(self) -> None:
        """Check that the model computes what its family computes here.  Raises: RequestError"""
        act: tuple[str, ...] = GELUS
        positions = "alibi" if self.architecture == "jina-bert-v2" else "absolute"
        wanted: dict[str, tuple[Any, ...]] = {"position_embedding_type": (positions,)}
        if self.architecture == "nomic-bert":
            wanted = {"prenorm": (False,), "rotary_emb_fraction": (1, 1.0), "rotary_emb_interleaved": (False,)}
            wanted |= {"rotary_emb_scale_base": (None,), "moe_every_n_layers": (0, None), "causal": (False,)}
            act = ("swiglu", "silu")
        elif self.architecture == "jina-bert-v2":
            wanted |= {"feed_forward_type": ("geglu",)}
        for key, values in (wanted | {"hidden_act": act}).items():
            if (found := self.config.get(key, values[0])) not in values:
                expected = " or ".join(map(repr, values))
                raise RequestError(f"config.json: {key} is {str(found)[:100]!r}, expected {expected}")
        known = ("Transformer", "Pooling", "Normalize")
        if unknown := [name for name in self.modules if name not in known]:
            raise RequestError(
                f"modules.json: module {unknown[0][:100]!r} is not one of {', '.join(known)}, the ones that GGUF has"
            )

    @property
    def n_ctx(self) -> int:
        """The longest text in tokens; Nomic's models were trained on less than they have room for."""
        trained = self.count("max_trained_positions", 2048) if "n_positions" in self.config else self.n_row
        return min(self.n_row, trained) - self.n_unused

    def kv(self) -> dict[str, Any]:
        """Return the key-values, with those of sentence-transformers' modules.  Raises: RequestError"""
        values = {
            "block_count": U32(self.n_layer),
            "context_length": U32(self.n_ctx),
            "embedding_length": U32(self.n_embd),
            "feed_forward_length": U32(self.n_ff),
            "attention.head_count": U32(self.n_head),
            "attention.layer_norm_epsilon": F32_VALUE(self.number(self.config, "layer_norm_eps", 1e-12)),
            "attention.causal": False,
        }
        if self.architecture == "nomic-bert":
            rope = self.config.get("rope_parameters")
            rope = {"rotary_emb_base": rope.get("rope_theta")} if isinstance(rope, dict) else self.config
            values["rope.freq_base"] = F32_VALUE(self.number(rope, "rotary_emb_base", 1e4))
        if self.modules:
            values["normalize_embeddings"] = "Normalize" in self.modules
        if "Pooling" in self.modules:
            chosen = [
                name for name, value in self.pooling.items() if name.startswith("pooling_mode_") and value is True
            ]
            chosen = chosen or [str(self.pooling.get("pooling_mode"))]
            if len(chosen) != 1 or chosen[0] not in POOLINGS:
                raise RequestError(f"pooling {', '.join(chosen)[:200]!r} is not one of {', '.join(POOLINGS)}")
            values["pooling_type"] = U32(POOLINGS[chosen[0]])
        kv = {f"{self.architecture}.{key}": value for key, value in values.items()}
        return {"general.architecture": self.architecture, **kv, "tokenizer.ggml.token_type_count": U32(self.n_type)}

    def is_unused(self, name: str) -> bool:
        """Return whether the tensor `name` is left out: heads for training, and numbers 0, 1, 2, ..."""
        return LEFT_OUT.fullmatch(self._plain(name)) is not None

    def _plain(self, name: str) -> str:
        """Return a tensor's name without the model's prefix, with PyTorch's words for a norm's two vectors."""
        name = re.sub(r"^(bert|roberta|model)\.", "", name)
        return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))

    def streamed(self, tensors: Mapping[str, Tensor]) -> list[Streamed]:
        """Return the tensors with their GGUF names, after checking that none is missing and all shapes are right."""
        by_name: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not (new := self.gguf_name(name)):
                raise RequestError(f"tensor {name[:100]!r} is unknown in architecture {self.architecture}")
            by_name[new] = tensor
        if missing := [name for name in self._needed(by_name) if name not in by_name]:
            raise ModelError(f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
        shapes, streamed = self.shapes(), []
        for name, tensor in by_name.items():
            short = re.sub(r"^blk\.\d+\.", "", name)
            if tensor.shape != (expected := shapes[short]):
                raise RequestError(f"tensor {tensor.name!r} has shape {list(tensor.shape)}, expected {list(expected)}")
            if short == "position_embd.weight" and (self.n_unused or self.n_row != self.n_ctx):
                rows = tensor.blocks.reshape(tensor.shape)[self.n_unused : self.n_unused + self.n_ctx]
                tensor = Tensor(tensor.name, tensor.format, rows.shape, rows)
            is_plain = len(tensor.shape) == 1 or short == "token_types.weight"
            format = F32 if is_plain else F16 if tensor.format is F32 else tensor.format
            streamed.append(Streamed(name, format, tensor.shape, quantized_slices(tensor, format)))
        return streamed

    def _needed(self, found: Mapping[str, Tensor]) -> list[str]:
        """List the tensors that a file of this family has; `found` shows which form its matrices have."""
        needed = ["token_embd.weight", "token_embd_norm.weight", "token_embd_norm.bias"]
        needed += ["position_embd.weight"] if self.architecture == "bert" else []
        queries = ("attn_qkv",) if "blk.0.attn_qkv.weight" in found else ("attn_q", "attn_k", "attn_v")
        gate = ("ffn_gate",) if self.architecture == "nomic-bert" else ()
        for il in range(self.n_layer):
            needed += [f"blk.{il}.{part}.weight" for part in (*queries, "attn_output", *gate, "ffn_up", "ffn_down")]
            needed += [
                f"blk.{il}.{norm}.{kind}"
                for norm in ("attn_output_norm", "layer_output_norm")
                for kind in ("weight", "bias")
            ]
        return needed

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the expected shapes of tensors, by the end of their GGUF name."""
        d, n_ff = self.n_embd, self.n_ff
        n_up = 2 * n_ff if self.architecture == "jina-bert-v2" else n_ff  # a gate's rows come first
        matrices = {f"attn_{x}": (d, d) for x in ("q", "k", "v", "output")}
        matrices |= {"attn_qkv": (3 * d, d), "ffn_gate": (n_ff, d), "ffn_up": (n_up, d), "ffn_down": (d, n_ff)}
        norms = (
            "token_embd_norm",
            "attn_output_norm",
            "layer_output_norm",
            "attn_q_norm",
            "attn_k_norm",
            "attn_norm_2",
        )
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {f"{name}.bias": (shape[0],) for name, shape in matrices.items()}
        shapes |= {f"{name}.{kind}": (d,) for name in norms for kind in ("weight", "bias")}
        rows = {"token_embd": self.n_vocab, "token_types": self.n_type, "position_embd": self.n_row}
        return shapes | {f"{name}.weight": (n, d) for name, n in rows.items()}

    def gguf_name(self, name: str) -> str | None:
        """Return the GGUF name of a tensor, or None if this architecture has no such tensor."""
        found = re.fullmatch(r"(.+?)\.(weight|bias)", self._plain(name))
        if not found:
            return None
        layer = re.search(r"(?<=\.)(0|[1-9]\d{0,5})(?=\.)", found[1])
        if layer and int(layer[0]) >= self.n_layer:
            return None
        general = f"{found[1][: layer.start()]}{{}}{found[1][layer.end() :]}" if layer else found[1]
        new = NAMES.get(general)
        return f"{new.format(layer[0] if layer else '')}.{found[2]}" if new else None
