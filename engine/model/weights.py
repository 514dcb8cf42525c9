"""A decoder's weights under their GGUF names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ...kernels import Tensor
from ..errors import BadGGUF, UnsupportedArchitecture
from ..gguf.read import GGUF, with_axes
from .hparams import Hparams

Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Block:
    """One block, `blk.<il>`: matrices are Tensors, vectors f32 arrays; optional ones are None if the file lacks them.

    A fused attn_qkv is split into attn_q, attn_k and attn_v, and an ffn_up of 2 n_ff rows into ffn_gate and ffn_up.
    """

    attn_norm: np.ndarray
    attn_q: Tensor
    attn_k: Tensor
    attn_v: Tensor
    attn_output: Tensor
    ffn_norm: np.ndarray
    ffn_gate: Tensor | None = None
    ffn_up: Tensor | None = None
    ffn_down: Tensor | None = None
    ffn_gate_inp: Tensor | None = None  # the router, then the experts, which replace the three above
    ffn_gate_exps: Tensor | None = None
    ffn_up_exps: Tensor | None = None
    ffn_down_exps: Tensor | None = None
    ffn_gate_inp_bias: np.ndarray | None = None  # [n_expert], then [n_expert, n_out]
    ffn_gate_exps_bias: np.ndarray | None = None
    ffn_up_exps_bias: np.ndarray | None = None
    ffn_down_exps_bias: np.ndarray | None = None
    attn_q_bias: np.ndarray | None = None
    attn_k_bias: np.ndarray | None = None
    attn_v_bias: np.ndarray | None = None
    attn_output_bias: np.ndarray | None = None
    ffn_gate_bias: np.ndarray | None = None
    ffn_up_bias: np.ndarray | None = None
    ffn_down_bias: np.ndarray | None = None
    attn_q_norm: np.ndarray | None = None  # applied to each head's query, before RoPE
    attn_k_norm: np.ndarray | None = None
    post_attention_norm: np.ndarray | None = None  # applied to what attention adds
    post_ffw_norm: np.ndarray | None = None


FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")}  # concatenated by rows


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """A decoder's tensors.  `output` is `token_embd` if the file has no output matrix.

    dense   an embedding model's matrices, which multiply the pooled vector one after the other
    """

    token_embd: Tensor
    output_norm: np.ndarray
    output: Tensor
    blk: tuple[Block, ...]
    dense: tuple[Tensor, ...] = ()


class Tensors:
    """The tensors of a file, read by name with a check of their shape."""

    def __init__(self, gguf: GGUF):
        self.gguf = gguf
        self.used: set[str] = set()

    def read(self, name: str, shape: Shape, optional: bool = False) -> Any:
        """Read a matrix or stack of matrices as a Tensor, a vector as f32; None if `optional` and missing.

        Raises: BadGGUF if it is missing or has another shape, UnsupportedArchitecture for an unsupported type
        """
        if optional and name not in self.gguf.tensor_offsets:
            return None
        tensor = self.tensor(name, shape)
        return tensor if len(shape) > 1 else tensor.dequantize()

    def tensor(self, name: str, shape: Shape) -> Tensor:
        """Return the tensor `name`.  None in `shape` matches any number.  Raises as `read`"""
        self.used.add(name)
        tensor = self.gguf.tensors.get(name)
        expected = str(list(shape)).replace("None", "any")
        if tensor is None:
            raise BadGGUF(self.gguf.path, 0, f"tensor '{name}' is missing, expected one of shape {expected}")
        tensor = with_axes(tensor, len(shape))
        if len(tensor.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, tensor.shape, strict=True)):
            raise BadGGUF(
                self.gguf.path,
                self.gguf.tensor_offsets[name],
                f"tensor '{name}' has shape {list(tensor.shape)}, expected {expected}",
            )
        return tensor

    def check_all_used(self, ignored: tuple[str, ...] = ()) -> None:
        """Check that every tensor was read: ignoring one would give wrong numbers.  Raises: UnsupportedArchitecture

        ignored   prefixes of names that may remain unread
        """
        left = self.gguf.tensors.keys() - self.used
        if unused := sorted(name for name in left if not name.startswith(ignored)):
            raise UnsupportedArchitecture(
                str(self.gguf.kv.get("general.architecture")),
                f"tensor '{unused[0]}' is not used by this architecture ({len(unused)} such tensors)",
            )


def split_rows(whole: Tensor | np.ndarray | None, sizes: Sequence[int]) -> list[Any]:
    """Split a fused matrix or vector into parts of `sizes` rows.  None gives a None for each part."""
    ends = np.cumsum(sizes).tolist()
    return [_rows(whole, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def _rows(whole: Any, part: slice) -> Any:
    if whole is None or isinstance(whole, np.ndarray):
        return None if whole is None else whole[part]
    name, shape = f"{whole.name}[{part.start}:{part.stop}]", (part.stop - part.start, *whole.shape[1:])
    low_rank = tuple(replace(term, b=_rows(term.b, part)) for term in whole.low_rank)
    return Tensor(name, whole.format, shape, whole.blocks[part], low_rank)


def read_weights(gguf: GGUF, hp: Hparams, family: Any) -> Weights:
    """Read the weights of `gguf`, with the norms that `family` has, and check their shapes against `hp`.

    Raises: BadGGUF for a tensor that is missing or has another shape, UnsupportedArchitecture for an unused one
    """
    n_q, n_kv = hp.n_head * hp.n_head_dim, hp.n_head_kv * hp.n_head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hp.n_embd,),
        "attn_q": (n_q, hp.n_embd),
        "attn_k": (n_kv, hp.n_embd),
        "attn_v": (n_kv, hp.n_embd),
        "attn_output": (hp.n_embd, n_q),
        "ffn_norm": (hp.n_embd,),
        **{name: (hp.n_head_dim if name.startswith("attn") else hp.n_embd,) for name in family.norms},
    }
    if hp.n_expert:
        shapes |= {
            "ffn_gate_inp": (hp.n_expert, hp.n_embd),
            "ffn_gate_exps": (hp.n_expert, hp.n_ff_exp, hp.n_embd),
            "ffn_up_exps": (hp.n_expert, hp.n_ff_exp, hp.n_embd),
            "ffn_down_exps": (hp.n_expert, hp.n_embd, hp.n_ff_exp),
        }
    else:
        shapes |= {
            "ffn_gate": (hp.n_ff, hp.n_embd),
            "ffn_up": (hp.n_ff, hp.n_embd),
            "ffn_down": (hp.n_embd, hp.n_ff),
        }
    file = Tensors(gguf)
    file.used |= {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}  # read with hparams
    file.used |= {f"blk.{il}.attn_sinks.weight" for il in range(hp.n_layer)}

    def layer(il: int) -> Block:
        found: dict[str, Any] = {}
        for whole, parts in FUSED.items():
            sizes = [shapes[part][0] for part in parts if part in shapes]
            tensor = gguf.tensors.get(f"blk.{il}.{whole}.weight")
            tensor = tensor and with_axes(tensor, 2)
            if tensor is not None and tensor.shape == (sum(sizes), hp.n_embd):
                file.used.add(tensor.name)
                bias = file.read(f"blk.{il}.{whole}.bias", (sum(sizes),), optional=True)
                found |= dict(zip(parts, split_rows(tensor, sizes), strict=True))
                found |= dict(zip([f"{part}_bias" for part in parts], split_rows(bias, sizes), strict=True))
        for field in fields(Block):
            name, is_bias = field.name.removesuffix("_bias"), field.name.endswith("_bias")
            if field.name in found or name not in shapes:
                continue
            suffix, shape = ("bias", shapes[name][:-1]) if is_bias else ("weight", shapes[name])
            if is_bias and not shape:
                continue  # a norm has none
            read = file.read(f"blk.{il}.{family.tensors.get(name, name)}.{suffix}", shape, optional=is_bias)
            found[field.name] = read.dequantize() if is_bias and isinstance(read, Tensor) else read
        return Block(**found)

    if hp.n_expert and "blk.0.ffn_gate.0.weight" in gguf.tensors:
        raise UnsupportedArchitecture(
            str(gguf.kv.get("general.architecture")),
            "each expert is a separate tensor ('blk.0.ffn_gate.0.weight'), as in files made before April 2024; "
            "expected 'blk.0.ffn_gate_exps.weight': convert the model again with a current llama.cpp",
        )
    dense: dict[str, Shape] = {"dense_2.weight": (None, hp.n_embd), "dense_3.weight": (hp.n_embd, None)}
    token_embd = file.read("token_embd.weight", (hp.n_vocab, hp.n_embd))
    output = file.read("output.weight", (hp.n_vocab, hp.n_embd), optional=True)
    weights = Weights(
        token_embd=token_embd,
        output_norm=file.read("output_norm.weight", (hp.n_embd,)),
        output=replace(token_embd, low_rank=()) if output is None else output,
        blk=tuple(layer(il) for il in range(hp.n_layer)),
        dense=tuple(file.tensor(name, shape) for name, shape in dense.items() if name in gguf.tensor_offsets),
    )
    file.check_all_used()
    return weights
