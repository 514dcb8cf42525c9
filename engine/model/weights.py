"""A decoder's weights under their GGUF names."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ...kernels import Tensor
from ..errors import BadGGUF, UnsupportedArchitecture
from ..gguf import GGUF
from .hparams import Hparams


@dataclass(frozen=True, eq=False)
class Layer:
    """One block, `blk.<il>`: matrices are Tensors, vectors f32 arrays.  What a file may leave out is None then."""

    attn_norm: np.ndarray
    attn_q: Tensor
    attn_k: Tensor
    attn_v: Tensor
    attn_output: Tensor
    ffn_norm: np.ndarray
    ffn_gate: Tensor
    ffn_up: Tensor
    ffn_down: Tensor
    attn_q_bias: np.ndarray | None = None
    attn_k_bias: np.ndarray | None = None
    attn_v_bias: np.ndarray | None = None
    attn_output_bias: np.ndarray | None = None
    ffn_gate_bias: np.ndarray | None = None
    ffn_up_bias: np.ndarray | None = None
    ffn_down_bias: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """A decoder's tensors.  `output` is `token_embd` again where the file ties them."""

    token_embd: Tensor
    output_norm: np.ndarray
    output: Tensor
    blk: tuple[Layer, ...]


def read_weights(gguf: GGUF, hp: Hparams) -> Weights:
    """The weights of `gguf`, their shapes checked against `hp`.

    Raises BadGGUF for a tensor that is missing or of another shape, UnsupportedArchitecture for a tensor that nothing
    here computes with: leaving one out in silence would give wrong numbers.
    """
    n_q, n_kv = hp.n_head * hp.n_head_dim, hp.n_head_kv * hp.n_head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hp.n_embd,),
        "attn_q": (n_q, hp.n_embd),
        "attn_k": (n_kv, hp.n_embd),
        "attn_v": (n_kv, hp.n_embd),
        "attn_output": (hp.n_embd, n_q),
        "ffn_norm": (hp.n_embd,),
        "ffn_gate": (hp.n_ff, hp.n_embd),
        "ffn_up": (hp.n_ff, hp.n_embd),
        "ffn_down": (hp.n_embd, hp.n_ff),
    }
    used = {"rope_freqs.weight"}

    def take(name: str, shape: tuple[int, ...], optional: bool = False) -> Tensor | np.ndarray | None:
        used.add(name)
        if name in gguf.unsupported:
            kind = gguf.unsupported[name].type.name
            raise UnsupportedArchitecture(
                str(gguf.kv.get("general.architecture")),
                f"tensor '{name}' has ggml type {kind}, which this build does not compute; "
                "docs/formats.md lists those it does",
            )
        tensor = gguf.tensors.get(name)
        if tensor is None:
            if optional:
                return None
            raise BadGGUF(gguf.path, 0, f"tensor '{name}' is missing, expected one of shape {list(shape)}")
        if tensor.shape != shape:
            raise BadGGUF(
                gguf.path,
                gguf.tensor_offsets[name],
                f"tensor '{name}' has shape {list(tensor.shape)}, expected {list(shape)}",
            )
        return tensor if len(shape) == 2 else tensor.dequantize()

    def layer(il: int) -> Layer:
        found: dict[str, Tensor | np.ndarray | None] = {}
        for field in fields(Layer):
            name, is_bias = field.name.removesuffix("_bias"), field.name.endswith("_bias")
            suffix, shape = ("bias", shapes[name][:1]) if is_bias else ("weight", shapes[name])
            found[field.name] = take(f"blk.{il}.{name}.{suffix}", shape, optional=is_bias)
        return Layer(**found)  # type: ignore[arg-type]

    token_embd = take("token_embd.weight", (hp.n_vocab, hp.n_embd))
    output = take("output.weight", (hp.n_vocab, hp.n_embd), optional=True)
    weights = Weights(
        token_embd=token_embd,  # type: ignore[arg-type]
        output_norm=take("output_norm.weight", (hp.n_embd,)),  # type: ignore[arg-type]
        output=token_embd if output is None else output,  # type: ignore[arg-type]
        blk=tuple(layer(il) for il in range(hp.n_layer)),
    )
    if unused := sorted((gguf.tensors.keys() | gguf.unsupported.keys()) - used):
        raise UnsupportedArchitecture(
            str(gguf.kv.get("general.architecture")),
            f"tensor '{unused[0]}' ({len(unused)} such) has no place in this family's computation",
        )
    return weights
