"""A model's hyperparameters, read from the GGUF's key-values, under llama.cpp's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...kernels import Attention, Rope, yarn_ramp, yarn_stretch
from ..errors import BadGGUF, UnsupportedArchitecture
from ..gguf.read import GGUF, described, with_axes
from ..gguf.strings import Strings
from .architecture import FEW_READ, Family

MAX_COUNT = 2**31  # llama.cpp keeps counts in 32 bits
PREFILL_CELLS, CELLS = 512, 256  # llama.cpp keeps a layer's window and one batch, rounded up to a multiple of 256
POOLINGS = ("none", "mean", "cls", "last", "rank")  # by <arch>.pooling_type, as in llama.h


@dataclass(frozen=True, eq=False)
class Hparams:
    """A model's dimensions and scale factors.

    n_head, n_head_kv   query heads, and the key heads that they share; each has n_head_dim components
    n_ff, n_ff_exp      width of the feed-forward block, and of one expert
    n_expert            experts, of which each token uses n_expert_used; 0 without a mixture of experts
    attention           scale, window and soft-cap of each layer, and whether it is causal
    causal              a token attends to earlier ones alone; False: to the whole text, as in many embedding models
    rope                RoPE of each layer, None for layers without
    rope_long           RoPE in windows of more than n_ctx_orig positions; empty if `rope` applies there too
    attn_temp           queries are multiplied by 1 + attn_temp * ln(1 + position // n_ctx_orig)
    embed_scale         factor on embeddings
    residual_scale      factor on what attention and the feed-forward block add
    logit_scale         divisor of logits
    logit_softcap       bound on the size of logits; 0 for none
    pooling             an embedding model's way from rows to one vector, one of POOLINGS; "" for a generating model
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    norm_eps: float
    attention: tuple[Attention, ...]
    rope: tuple[Rope | None, ...]
    rope_long: tuple[Rope | None, ...] = ()
    n_ctx_orig: int = 0
    attn_temp: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    pooling: str = ""
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_exp: int = 0
    causal: bool = True

    @property
    def windows(self) -> list[int]:
        """How far back each layer sees, in positions; 0: to the beginning."""
        return [rule.window if self.causal else 0 for rule in self.attention]

    def ropes(self, n_ctx: int) -> tuple[Rope | None, ...]:
        """Return each layer's RoPE for a window of `n_ctx` positions."""
        return self.rope_long if self.rope_long and n_ctx > self.n_ctx_orig else self.rope

    def query_factors(self, positions: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return the factor on each query, which grows beyond position n_ctx_orig.  i32 [n_tok] -> dtype [n_tok]"""
        factors: np.ndarray = 1 + self.attn_temp * np.log(1 + positions // self.n_ctx_orig)
        return factors.astype(dtype)

    def can_shift(self, n_ctx: int) -> bool:
        """Return whether an answer goes on in a full window of `n_ctx` positions, whose older half is then discarded.

        Not if layers keep only a part of it, as in llama.cpp (llama_kv_cache_iswa::get_can_shift): a model that was
        not taught to end would otherwise never do so.
        """
        kept = max(rule.window for rule in self.attention)
        return not kept or n_ctx <= -(-(kept + PREFILL_CELLS) // CELLS) * CELLS


Ropes = tuple[Rope | None, ...]


class Keys:
    """The key-values of a file that begin with its architecture's name, with the family's defaults for missing ones.

    Keys of FEW_READ count as missing unless the family has them.
    """

    def __init__(self, gguf: GGUF, family: Family):
        self.gguf, self.arch, self.defaults = gguf, family.name, family.defaults
        self.ignored = FEW_READ.difference(family.keys)

    def bad(self, name: str, found: object, expected: str) -> BadGGUF:
        key = f"{self.arch}.{name}"
        return BadGGUF(self.gguf.path, self.gguf.kv_offsets.get(key, 0), f"key '{key}' is {found}, expected {expected}")

    def get(self, name: str, default: object = None) -> object:
        """Return the value unchecked."""
        if name in self.ignored:
            return default
        return self.gguf.kv.get(f"{self.arch}.{name}", self.defaults.get(name, default))

    def number(self, name: str, default: float | None = None, minimum: float = 1) -> float:
        """Return a key's value as a number.

        Raises: BadGGUF if it is not a number or too small, UnsupportedArchitecture if it differs between layers
        """
        value = self.get(name, default)
        if value is None:
            raise self.bad(name, "missing", "a number")
        if isinstance(value, np.ndarray) and len(value):
            if (value != value[0]).any():
                raise UnsupportedArchitecture(
                    self.arch,
                    f"key '{self.arch}.{name}' differs from layer to layer, which this build does not support",
                )
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, described(value), "a number")
        if not minimum <= value < math.inf:
            raise self.bad(name, value, f"a number from {minimum}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a key's value as a bool.  Raises: BadGGUF if it is not one"""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, described(value), "a bool")
        return value

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """Return a key's value as an integer below 2**31, its fraction dropped.  Raises as number()"""
        value = self.number(name, default, minimum)
        if value >= MAX_COUNT:
            raise self.bad(name, f"{value:g}", f"a number from {minimum} to {MAX_COUNT - 1}")
        return int(value)


def read_hparams(gguf: GGUF, family: Family) -> Hparams:
    """Read the hyperparameters of a GGUF of `family`.

    Raises: BadGGUF for a missing or impossible value, UnsupportedArchitecture for an unsupported one
    """
    keys = Keys(gguf, family)
    n_layer, n_embd, n_head = (
        keys.integer(name) for name in ("block_count", "embedding_length", "attention.head_count")
    )
    if n_layer > (n_tensors := len(gguf.tensor_offsets)):
        raise keys.bad("block_count", n_layer, f"no more than the file has tensors, {n_tensors}")
    n_head_kv = keys.integer("attention.head_count_kv", n_head)
    if n_head % n_head_kv:
        raise keys.bad("attention.head_count_kv", n_head_kv, f"a divisor of the head count, {n_head}")
    n_head_dim = keys.integer("attention.key_length", n_embd // n_head)
    if keys.integer("attention.value_length", n_head_dim) != n_head_dim:
        raise UnsupportedArchitecture(
            family.name, f"key '{family.name}.attention.value_length' differs from the key length, {n_head_dim}"
        )
    n_ff, n_expert = keys.integer("feed_forward_length"), keys.integer("expert_count", 0, minimum=0)
    n_expert_used = keys.integer("expert_used_count", 0, minimum=min(n_expert, 1))
    if n_expert_used > n_expert:
        raise keys.bad("expert_used_count", n_expert_used, f"a number up to the expert count, {n_expert}")

    norm = "layer_norm_rms" if family.causal else "layer_norm"  # a file may have both keys
    causal = keys.flag("attention.causal", True) and family.causal  # llama.cpp's encoders are not, whatever it says
    tokens = gguf.kv.get("tokenizer.ggml.tokens")
    if tokens is not None and not isinstance(tokens, list | Strings):
        found = f"key 'tokenizer.ggml.tokens' is {described(tokens)}"
        raise gguf.bad("tokenizer.ggml.tokens", f"{found}, expected an array of strings")
    embedding = gguf.tensors.get("token_embd.weight")
    n_rows = embedding.shape[-2] if embedding is not None and len(embedding.shape) > 1 else 0
    n_vocab = n_rows if tokens is None else len(tokens)
    if not n_vocab:
        raise BadGGUF(gguf.path, 0, "key 'tokenizer.ggml.tokens' is missing or empty, expected a vocabulary")

    windows = _windows(keys, family, n_layer)
    scale = keys.number("attention.scale", 0, minimum=0) or family.attn_scale(n_layer, n_embd, n_head, n_head_dim)
    softcap = keys.number("attn_logit_softcapping", 0, minimum=0)
    n_ctx_train = keys.integer("context_length")
    rope, rope_long = _ropes(keys, family, windows, n_head_dim, n_ctx_train)
    return Hparams(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_head_dim=n_head_dim,
        n_ff=n_ff,
        n_vocab=n_vocab,
        n_ctx_train=n_ctx_train,
        norm_eps=keys.number(f"attention.{norm}_epsilon", minimum=0),
        attention=tuple(
            Attention(
                scale,
                window // 2 + 1 if window and family.symmetric else window,
                softcap,
                causal,
                ahead=window // 2 if family.symmetric else 0,
                sinks=_vector(gguf, f"blk.{il}.attn_sinks.weight", n_head),
            )
            for il, window in enumerate(windows)
        ),
        rope=rope,
        rope_long=rope_long,
        n_ctx_orig=keys.integer("rope.scaling.original_context_length", n_ctx_train),
        attn_temp=keys.number("attention.temperature_scale", 0, minimum=0),
        embed_scale=keys.number("embedding_scale", 0, minimum=0) or family.embed_scale(n_embd),
        residual_scale=keys.number("residual_scale", 0, minimum=0) or 1.0,
        logit_scale=keys.number("logit_scale", 0, minimum=0) or 1.0,
        logit_softcap=keys.number("final_logit_softcapping", 0, minimum=0),
        pooling=_pooling(keys),
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_ff_exp=keys.integer("expert_feed_forward_length", n_ff),
        causal=causal,
    )


def _pooling(keys: Keys) -> str:
    if keys.get("pooling_type") is None:
        return ""
    kind = keys.integer("pooling_type", minimum=0)
    if kind not in range(len(POOLINGS)):
        raise keys.bad("pooling_type", kind, f"one of {', '.join(f'{i} {name}' for i, name in enumerate(POOLINGS))}")
    return POOLINGS[kind]


def _windows(keys: Keys, family: Family, n_layer: int) -> list[int]:
    """Return each layer's window in positions, 0 for all.  Pattern n: the last of every n layers sees all."""
    window = keys.integer("attention.sliding_window", 0, minimum=0) if family.window_pattern else 0
    pattern = keys.get("attention.sliding_window_pattern", family.window_pattern)
    if isinstance(pattern, list | np.ndarray):
        if len(pattern) < n_layer or not all(isinstance(item, int | np.number) for item in pattern):
            expected = f"one bool or number for each of {n_layer} layers"
            raise keys.bad("attention.sliding_window_pattern", described(pattern), expected)
        return [window if windowed else 0 for windowed in pattern[:n_layer]]
    pattern = keys.integer("attention.sliding_window_pattern", family.window_pattern, minimum=0)
    return [window if pattern == 0 or il % pattern < pattern - 1 else 0 for il in range(n_layer)]


def _ropes(keys: Keys, family: Family, windows: list[int], n_head_dim: int, n_ctx_train: int) -> tuple[Ropes, Ropes]:
    """Return Hparams.rope and Hparams.rope_long."""
    n_rot = keys.integer("rope.dimension_count", n_head_dim)
    if n_rot % 2 or n_rot > n_head_dim:
        raise keys.bad("rope.dimension_count", n_rot, f"an even number up to the head size, {n_head_dim}")
    sections = keys.get("rope.dimension_sections")
    if sections is not None and not (isinstance(sections, np.ndarray) and not sections.any()):
        raise UnsupportedArchitecture(
            keys.arch,
            f"key '{keys.arch}.rope.dimension_sections' requires RoPE by sections, which this build does not support",
        )
    kind = keys.get("rope.scaling.type", "linear")
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn", "longrope"):
        name = kind if isinstance(kind, str) else described(kind)
        raise UnsupportedArchitecture(
            keys.arch, f"unsupported rope scaling '{name}'; this build supports none, linear, yarn and longrope"
        )
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0, minimum=0), minimum=0) or 1.0
    rope = Rope(
        family.rope_style,
        n_rot,
        keys.number("rope.freq_base", 10000.0),
        1.0 if kind == "none" else 1 / factor,
        attn_factor=keys.number("rope.scaling.attn_factor", 1.0, minimum=0),
    )
    if kind == "yarn":
        n_ctx_orig = keys.integer("rope.scaling.original_context_length", n_ctx_train)
        if rope.base == 1:
            raise keys.bad("rope.freq_base", 1, "more than 1 where YaRN stretches the window")
        fast, slow = (keys.number(f"rope.scaling.yarn_beta_{name}", n, 1e-3) for name, n in (("fast", 32), ("slow", 1)))
        ramp = yarn_ramp(n_rot, rope.base, n_ctx_orig, fast, slow)
        weight = keys.number("rope.scaling.yarn_log_multiplier", 0, minimum=0)
        stretch = yarn_stretch(factor) / yarn_stretch(factor, weight)
        rope = replace(rope, ramp=ramp, attn_factor=rope.attn_factor * stretch)

    has_rope = keys.flag("rope.scaling.finetuned", True)  # Granite's switch for RoPE

    def layers(factors: np.ndarray | None) -> tuple[Rope | None, ...]:
        full = replace(rope, factors=factors)
        # for type "none", llama.cpp leaves the factor of layers with a window in place
        local = family.window_rope(replace(full, scale=1 / factor) if kind == "none" else full)
        local = replace(local, base=keys.number("rope.freq_base_swa", local.base))
        ropes = (local if window else full for window in windows)
        return tuple(rope if has_rope and family.uses_rope(il) else None for il, rope in enumerate(ropes))

    names = ("rope_freqs", "rope_factors_short", "rope_factors_long")
    freqs, short, long = (_vector(keys.gguf, f"{name}.weight", n_rot // 2) for name in names)
    return layers(short if freqs is None else freqs), () if long is None or freqs is not None else layers(long)


def _vector(gguf: GGUF, name: str, n: int) -> np.ndarray | None:
    """Read a vector of `n` numbers; None if the file lacks it.  Raises: BadGGUF for another shape"""
    tensor = gguf.tensors.get(name)
    if tensor is None:
        return None
    tensor = with_axes(tensor, 1)
    if tensor.shape != (n,):
        raise BadGGUF(gguf.path, 0, f"tensor '{name}' has shape {tensor.shape}, expected ({n},)")
    return tensor.dequantize()
