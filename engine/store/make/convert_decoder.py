"""Conversion of a decoder in Hugging Face's layout: the keys of config.json and the tensors under GGUF's names.

    model.layers.0.self_attn.q_proj.weight   ->   blk.0.attn_q.weight
    rms_norm_eps                             ->   llama.attention.layer_norm_rms_epsilon

Matrices keep their format; vectors become F32.  The rows of a Llama's query and key matrices are permuted, because
Hugging Face's RoPE rotates component i of a head with i + n / 2, and GGUF's "norm" RoPE rotates neighbours:

    a0 a1 a2 b0 b1 b2   ->   a0 b0 a1 b1 a2 b2
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ....kernels.quants import FORMATS_BY_NAME
from ....kernels.tensor import Tensor
from ...errors import ModelError, RequestError
from ...gguf.read import F32 as F32_VALUE
from ...gguf.read import U32
from ...gguf.write import Streamed
from .config_json import ConfigJson
from .quantize import check_blocks, slices

F32 = FORMATS_BY_NAME["F32"]
DECODERS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
GLOBAL_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}  # of qwen3
BIASED = ("attn_q", "attn_k", "attn_v")


class HuggingFaceDecoder(ConfigJson):
    """A decoder in Hugging Face's layout."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.architecture = DECODERS[config["architectures"][0]]
        self.in_layer = LAYER_TENSORS | (HEAD_NORMS if self.architecture == "qwen3" else {})
        self.n_layer, self.n_embd = self.count("num_hidden_layers"), self.count("hidden_size")
        self.n_head = self.count("num_attention_heads")
        self.n_head_kv = self.count("num_key_value_heads", self.n_head)
        self.n_head_dim = self.count("head_dim", self.n_embd // self.n_head)
        self.n_ff, self.n_vocab = self.count("intermediate_size"), self.count("vocab_size")
        self.rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(self.rope, dict):
            raise RequestError(f"config.json: rope_scaling is {str(self.rope)[:100]!r}, expected an object")
        self.rope_type = self.rope.get("rope_type") or self.rope.get("type") or "default"
        if self.rope_type not in ("default", "linear", "llama3"):
            raise RequestError(
                f"config.json: rope scaling {str(self.rope_type)!r} is not one of default, linear, llama3"
            )

    @property
    def rope_theta(self) -> float:
        return self.number(
            {**self.rope, **self.config} if "rope_theta" in self.config else self.rope, "rope_theta", 1e4
        )

    def kv(self) -> dict[str, Any]:
        """Return the key-values."""
        values = {
            "block_count": self.n_layer,
            "context_length": self.count("max_position_embeddings"),
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv,
            "attention.key_length": self.n_head_dim,
            "attention.value_length": self.n_head_dim,
            "rope.dimension_count": self.n_head_dim,
            "vocab_size": self.n_vocab,
        }
        floats = {
            "attention.layer_norm_rms_epsilon": self.number(self.config, "rms_norm_eps", 1e-6),
            "rope.freq_base": self.rope_theta,
        }
        if self.rope_type == "linear":
            floats["rope.scaling.factor"] = self.number(self.rope, "factor")
        kv: dict[str, Any] = {"general.architecture": self.architecture, "general.type": "model"}
        kv |= {f"{self.architecture}.{key}": U32(value) for key, value in values.items()}
        kv |= {f"{self.architecture}.{key}": F32_VALUE(value) for key, value in floats.items()}
        return kv | ({f"{self.architecture}.rope.scaling.type": "linear"} if self.rope_type == "linear" else {})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the expected shapes of tensors, by the end of their GGUF name."""
        n_q, n_kv = self.n_head * self.n_head_dim, self.n_head_kv * self.n_head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (n_q, self.n_embd),
            "attn_output.weight": (self.n_embd, n_q),
            "ffn_down.weight": (self.n_embd, self.n_ff),
            "attn_q.bias": (n_q,),
        }
        shapes |= dict.fromkeys(("token_embd.weight", "output.weight"), (self.n_vocab, self.n_embd))
        shapes |= dict.fromkeys(("output_norm.weight", "attn_norm.weight", "ffn_norm.weight"), (self.n_embd,))
        shapes |= dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (self.n_head_dim,))
        shapes |= dict.fromkeys(("attn_k.weight", "attn_v.weight"), (n_kv, self.n_embd))
        shapes |= dict.fromkeys(("attn_k.bias", "attn_v.bias"), (n_kv,))
        return shapes | dict.fromkeys(("ffn_gate.weight", "ffn_up.weight"), (self.n_ff, self.n_embd))

    def is_unused(self, name: str) -> bool:
        """Return whether the tensor `name` is left out: frequencies that config.json has as well."""
        return name.endswith("rotary_emb.inv_freq")

    def streamed(self, tensors: Mapping[str, Tensor]) -> list[Streamed]:
        """Return the tensors with their GGUF names, after checking that none is missing and all shapes are right."""
        by_name: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if new := self.gguf_name(name):
                by_name[new] = tensor
            else:
                raise RequestError(f"tensor {name[:100]!r} is unknown in architecture {self.architecture}")
        if self.config.get("tie_word_embeddings"):
            by_name.pop("output.weight", None)
        shapes = self.shapes()
        needed = ["token_embd.weight", "output_norm.weight"]
        needed += [f"blk.{il}.{part}.weight" for il in range(self.n_layer) for part in self.in_layer.values()]
        if missing := [name for name in needed if name not in by_name]:
            raise ModelError(f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
        streamed = []
        if self.rope_type == "llama3":
            factors = self.rope_factors()
            streamed.append(Streamed("rope_freqs.weight", F32, factors.shape, [factors]))
        for name, tensor in by_name.items():
            expected = shapes[re.sub(r"^blk\.\d+\.", "", name)]
            if tensor.shape != expected:
                raise RequestError(f"tensor {tensor.name!r} has shape {list(tensor.shape)}, expected {list(expected)}")
            format = F32 if len(expected) == 1 else tensor.format
            streamed.append(Streamed(name, format, expected, self.pieces(name, tensor)))
        return streamed

    def gguf_name(self, name: str) -> str | None:
        """Return the GGUF name of a tensor, or None if this architecture has no such tensor."""
        if name in GLOBAL_TENSORS:
            return GLOBAL_TENSORS[name]
        found = re.fullmatch(r"model\.layers\.(0|[1-9]\d{0,5})\.(.+)\.(weight|bias)", name)
        part = self.in_layer.get(found[2]) if found else None
        if not found or part is None or int(found[1]) >= self.n_layer or (found[3] == "bias" and part not in BIASED):
            return None
        return f"blk.{found[1]}.{part}.{found[3]}"

    def pieces(self, name: str, tensor: Tensor) -> Iterator[np.ndarray]:
        """Yield the blocks of the tensor with that GGUF name, after checking every weight."""
        for start, blocks in slices(tensor):
            check_blocks(tensor, start, blocks)
        is_query, is_key = ".attn_q." in name, ".attn_k." in name
        if self.architecture == "llama" and (is_query or is_key):
            rows = tensor.blocks.reshape(self.n_head if is_query else self.n_head_kv, 2, self.n_head_dim // 2, -1)
            tensor = Tensor(tensor.name, tensor.format, tensor.shape, rows.swapaxes(1, 2).reshape(tensor.shape))
        if len(tensor.shape) == 1:
            yield tensor.dequantize()
        else:
            yield from (blocks for _, blocks in slices(tensor))

    def rope_factors(self) -> np.ndarray:
        """Return the divisor of each RoPE frequency in Llama 3: `factor` for long waves, 1 for short ones.

        -> f32 [n_head_dim / 2]
        """
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        factor, low, high, n_ctx = (self.number(self.rope, name) for name in names)
        if high <= low:
            raise RequestError(f"config.json: high_freq_factor is {high}, expected more than low_freq_factor, {low}")
        frequencies = self.rope_theta ** -(np.arange(0, self.n_head_dim, 2) / self.n_head_dim)
        turns = n_ctx * frequencies / (2 * np.pi)  # number of turns of each wave in the original context window
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return (1 / ((1 - smooth) / factor + smooth)).astype("<f4")
