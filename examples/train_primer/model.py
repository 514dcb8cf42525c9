"""A small Llama in torch, with GGUF's names, shapes and RoPE pairing, so that the export permutes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Hparams:
    """Model dimensions, in llama.cpp's names."""

    n_vocab: int
    n_ctx: int = 512
    n_embd: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 768
    norm_eps: float = 1e-5
    rope_base: float = 10000.0

    @property
    def n_head_dim(self) -> int:
        return self.n_embd // self.n_head


class Llama(nn.Module):
    """The model.  `weights` holds the parameters under their GGUF names, without ".weight"."""

    def __init__(self, hp: Hparams):
        super().__init__()
        self.hp = hp
        n_kv = hp.n_head_kv * hp.n_head_dim
        shapes = {"token_embd": (hp.n_vocab, hp.n_embd), "output_norm": (hp.n_embd,)}
        for il in range(hp.n_layer):
            shapes |= {
                f"blk.{il}.attn_norm": (hp.n_embd,),
                f"blk.{il}.attn_q": (hp.n_embd, hp.n_embd),
                f"blk.{il}.attn_k": (n_kv, hp.n_embd),
                f"blk.{il}.attn_v": (n_kv, hp.n_embd),
                f"blk.{il}.attn_output": (hp.n_embd, hp.n_embd),
                f"blk.{il}.ffn_norm": (hp.n_embd,),
                f"blk.{il}.ffn_gate": (hp.n_ff, hp.n_embd),
                f"blk.{il}.ffn_up": (hp.n_ff, hp.n_embd),
                f"blk.{il}.ffn_down": (hp.n_embd, hp.n_ff),
            }
        self.weights = {name: nn.Parameter(self._initial(name, shape)) for name, shape in shapes.items()}
        for name, weight in self.weights.items():
            self.register_parameter(name.replace(".", "-"), weight)  # torch allows no dots
        angle = torch.arange(hp.n_ctx)[:, None] * hp.rope_base ** (-torch.arange(0, hp.n_head_dim, 2) / hp.n_head_dim)
        self.turn = torch.polar(torch.ones_like(angle), angle)  # complex64 [n_ctx, n_head_dim / 2]

    def _initial(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape)
        std = 0.02
        if name.endswith(("attn_output", "ffn_down")):
            std /= (2 * self.hp.n_layer) ** 0.5  # so that the residual stream keeps its size, as in GPT-2
        return torch.randn(shape) * std

    def rotate(self, x: Tensor) -> Tensor:
        """Apply RoPE to neighbouring pairs ("norm").  f32 [batch, n_head, n_tok, n_head_dim] -> the same"""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turn[: x.shape[2]]).flatten(-2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute final hidden states, the input of `logits`.  i64 [batch, n_tok] -> f32 [batch, n_tok, n_embd]"""
        hp, w = self.hp, self.weights
        x = F.embedding(tokens, w["token_embd"])
        for il in range(hp.n_layer):
            blk = f"blk.{il}"
            h = F.rms_norm(x, (hp.n_embd,), w[f"{blk}.attn_norm"], hp.norm_eps)
            q, k, v = (
                F.linear(h, w[f"{blk}.{name}"]).unflatten(-1, (-1, hp.n_head_dim)).transpose(1, 2)
                for name in ("attn_q", "attn_k", "attn_v")
            )
            kqv = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
            x = x + F.linear(kqv.transpose(1, 2).flatten(-2), w[f"{blk}.attn_output"])
            h = F.rms_norm(x, (hp.n_embd,), w[f"{blk}.ffn_norm"], hp.norm_eps)
            gated = F.silu(F.linear(h, w[f"{blk}.ffn_gate"])) * F.linear(h, w[f"{blk}.ffn_up"])
            x = x + F.linear(gated, w[f"{blk}.ffn_down"])
        return F.rms_norm(x, (hp.n_embd,), w["output_norm"], hp.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Multiply by the embedding table, used as the output matrix too.  f32 [..., n_embd] -> f32 [..., n_vocab]"""
        return F.linear(hidden, self.weights["token_embd"])
