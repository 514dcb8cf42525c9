"""Items about operations: small and odd shapes, computed in extended precision and rounded to float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from ....kernels import Attention, Rope, Tensor, yarn_ramp, yarn_stretch
from ....kernels.activation import (
    gelu_erf_numpy,
    gelu_mul_numpy,
    gelu_numpy,
    quick_gelu_numpy,
    silu_mul_numpy,
    softmax_numpy,
)
from ....kernels.attention import attention_numpy
from ....kernels.experts import experts_numpy
from ....kernels.image import depthwise_numpy, resize_numpy
from ....kernels.norm import layer_norm_numpy, rms_norm_numpy
from ....kernels.quants import FORMATS_BY_NAME
from ....kernels.rope import rope_numpy
from ...model.moe import MIN_WEIGHT_SUM, top_experts
from .item import FLOAT32_BITS, ROUNDED_BITS, Arrays, Item, sensitivity
from .numbers import WIDE, Numbers

Compute = Callable[..., np.ndarray]


def operation_items() -> Iterator[Item]:
    """Yield all items."""
    for part in (
        norm_items,
        rope_items,
        softmax_items,
        attention_items,
        activation_items,
        product_items,
        choice_items,
        image_items,
    ):
        yield from part()


def _item(
    name: str,
    how: str,
    given: Arrays,
    compute: Callable[[Arrays], Arrays],
    bits: float = FLOAT32_BITS,
    **parameters: Any,
) -> Item:
    """Compute an item's expected arrays."""
    given = {key: x.astype(np.float32).astype(np.float64) if x.dtype.kind == "f" else x for key, x in given.items()}
    expected, moved = sensitivity(name, compute, given)
    return Item(name, how, given, parameters, expected, moved, bits)


def _rms_norm(a: Arrays, eps: float) -> Arrays:
    return {"y": rms_norm_numpy(a["x"], a["weight"], eps)}


def _layer_norm(a: Arrays, eps: float) -> Arrays:
    return {"y": layer_norm_numpy(a["x"], a["weight"], a["bias"], eps)}


def norm_items() -> Iterator[Item]:
    """Yield the items about norms."""
    eps_of = {"plain": (4, 64, 1e-5), "odd": (5, 7, 1e-6), "wide": (2, 300, 1e-5), "tiny": (3, 33, 1e-5)}
    for variant, (n_tok, n, eps) in eps_of.items():
        numbers = Numbers(f"norm {variant}")
        x = numbers.normal(n_tok, n) * (2.0**-9 if variant == "tiny" else 1) + 0.25
        given = {"x": x, "weight": 1 + numbers.uniform(n) / 2}
        yield _item(
            f"rms_norm/{variant}",
            "y = x / sqrt(mean(x^2) + eps) * weight over the last axis",
            given,
            partial(_rms_norm, eps=eps),
            eps=eps,
        )
        yield _item(
            f"layer_norm/{variant}",
            "y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis",
            {**given, "bias": numbers.uniform(n)},
            partial(_layer_norm, eps=eps),
            eps=eps,
        )


def _rope(a: Arrays, values: Mapping[str, Any]) -> Arrays:
    """Rotate x with angles in extended precision."""
    rule = Rope(**{**values, "base": WIDE(values["base"]), "scale": WIDE(values["scale"])})
    return {"y": rope_numpy(a["x"], a["positions"].astype(WIDE), rule)}


def rope_items() -> Iterator[Item]:
    """Yield the items about rotary embeddings."""
    factors = np.geomspace(1, 8, 8).astype(np.float32).astype(np.float64)
    variants: dict[str, dict[str, Any]] = {
        "neighbours": {"style": "norm"},
        "halves": {"style": "neox"},
        "partial-neighbours": {"style": "norm", "n_rot": 8},
        "partial-halves": {"style": "neox", "n_rot": 8},
        "base": {"style": "neox", "base": 500000.0},
        "linear": {"style": "norm", "scale": 0.25},
        "factors": {"style": "neox", "factors": factors},
        "yarn": {
            "style": "neox",
            "scale": 1 / 32,
            "ramp": yarn_ramp(16, 10000.0, 64, 4.0, 0.5).astype(np.float64),
            "attn_factor": float(np.float32(yarn_stretch(32))),
        },
    }
    for variant, changes in variants.items():
        numbers = Numbers(f"rope {variant}")
        values = {"n_rot": 16, "base": 10000.0, "scale": 1.0, "attn_factor": 1.0, **changes}
        arrays = {key: x for key, x in values.items() if isinstance(x, np.ndarray)}
        parameters = {key: x for key, x in values.items() if key not in arrays}
        yield _item(
            f"rope/{variant}",
            "pair i turns by position * freq: scale * base^(-2i/n_rot) / factors; ramp is YaRN's part without scale",
            {"x": numbers.normal(5, 3, 16), "positions": np.array([0, 1, 2, 77, 1000], np.int32), **arrays},
            partial(_rope, values=values),
            bits=14.0,  # float32 angles of 1000 radians have 14 bits after the point
            **parameters,
        )


def softmax_items() -> Iterator[Item]:
    """Yield the items about softmax."""

    def softmax(a: Arrays) -> Arrays:
        x = a["x"] if "mask" not in a else np.where(a["mask"] != 0, a["x"], -np.inf)
        if "sinks" not in a:
            return {"y": softmax_numpy(x)}
        with_sink = np.concatenate([x, np.broadcast_to(a["sinks"][:, None], (len(x), 1))], axis=1)
        return {"y": softmax_numpy(with_sink)[:, :-1]}

    numbers = Numbers("softmax")
    how = "exp(x) / sum of exp(x) over the last axis; mask 0 hides; a sink is one more key, whose weight is dropped"
    x = 4 * numbers.normal(5, 13)
    mask = (np.arange(13)[None] <= np.arange(5)[:, None] * 3).astype(np.uint8)
    yield _item("softmax/plain", how, {"x": x}, softmax)
    yield _item("softmax/large", how, {"x": x + 200}, softmax)  # exp(200) overflows
    yield _item("softmax/mask", how, {"x": x, "mask": mask}, softmax)
    yield _item("softmax/sinks", how, {"x": x, "mask": mask, "sinks": numbers.normal(5)}, softmax)


def _attend(a: Arrays, rule: Mapping[str, Any], first: int) -> Arrays:
    """Attend, and return the weights of keys too."""
    seen: dict[str, np.ndarray] = {}
    inside = Attention(**rule, slopes=a.get("slopes"))
    y = attention_numpy(a["q"], a["k"], a["v"], first, inside, lambda name, value: seen.setdefault(name, value))
    return {"y": y.reshape(a["q"].shape), "kq_soft_max": seen["kq_soft_max"]}


def attention_items() -> Iterator[Item]:
    """Yield the items about attention."""
    variants: dict[str, dict[str, Any]] = {
        "multi-head": {"n_head": 3, "n_head_kv": 3},
        "grouped": {"n_head": 6, "n_head_kv": 2},
        "one-key-head": {"n_head": 4, "n_head_kv": 1},
        "decode": {"n_head": 4, "n_head_kv": 2, "n_tok": 1, "first": 12},
        "chunk": {"n_head": 4, "n_head_kv": 2, "n_tok": 4, "first": 5},
        "window": {"n_head": 4, "n_head_kv": 2, "window": 4},
        "soft-cap": {"n_head": 4, "n_head_kv": 2, "softcap": 2.0},
        "bidirectional": {"n_head": 2, "n_head_kv": 2, "causal": False},
        "alibi": {"n_head": 4, "n_head_kv": 4, "slopes": 2.0 ** -np.arange(1, 5)},
        "first-token": {"n_head": 2, "n_head_kv": 1, "n_tok": 1},
    }
    for variant, values in variants.items():
        numbers = Numbers(f"attention {variant}")
        n_tok, first, d = values.get("n_tok", 9), values.get("first", 0), 8
        rule = {"scale": d**-0.5, "causal": True, "window": 0, "softcap": 0.0}
        rule |= {key: values[key] for key in rule if key in values}
        rule["scale"] = float(np.float32(rule["scale"]))
        slopes = {"slopes": values["slopes"]} if "slopes" in values else {}
        given = {
            "q": 2 * numbers.normal(n_tok, values["n_head"], d),
            "k": numbers.normal(first + n_tok, values["n_head_kv"], d),
            "v": numbers.normal(first + n_tok, values["n_head_kv"], d),
            **slopes,
        }

        yield _item(
            f"attention/{variant}",
            "y = softmax(mask(cap(q k^T scale))) v; query t is at position first + t; head h reads key head h / group",
            given,
            partial(_attend, rule=rule, first=first),
            bits=ROUNDED_BITS,
            first=first,
            **rule,
        )


def _gated_product(function: Compute, a: Arrays) -> Arrays:
    return {"y": function(a["gate"], a["up"])}


def _activated(function: Compute, a: Arrays) -> Arrays:
    return {"y": function(a["x"])}


def activation_items() -> Iterator[Item]:
    """Yield the items about activation functions."""
    numbers = Numbers("activation")
    given = {"gate": 3 * numbers.normal(4, 19), "up": numbers.normal(4, 19)}
    x = {"x": np.concatenate([3 * numbers.normal(3, 19), np.linspace(-12, 12, 19)[None]])}
    for name, gated in {"silu_mul": silu_mul_numpy, "gelu_mul": gelu_mul_numpy}.items():
        how = f"{name.removesuffix('_mul')}(gate) * up"
        yield _item(f"{name}/plain", how, given, partial(_gated_product, gated), bits=8.0)
    formulas: dict[str, tuple[str, Compute]] = {
        "gelu": ("tanh form", gelu_numpy),
        "gelu_erf": ("x (1 + erf(x / sqrt 2)) / 2", gelu_erf_numpy),
        "quick_gelu": ("x / (1 + exp(-1.702 x))", quick_gelu_numpy),
    }
    for name, (how, function) in formulas.items():
        yield _item(f"{name}/plain", how, x, partial(_activated, function), bits=8.0)
    cap = 30.0
    yield _item(
        "soft_cap/plain",
        "y = cap * tanh(x / cap)",
        {"x": 20 * numbers.normal(3, 17)},
        lambda a: {"y": cap * np.tanh(a["x"] / cap)},
        cap=cap,
    )


def product_items() -> Iterator[Item]:
    """Yield the items about products and lookups."""
    numbers = Numbers("products")
    for variant, (n_tok, n_out, n_in) in {"one-token": (1, 7, 33), "odd": (5, 3, 17), "wide": (2, 65, 130)}.items():
        yield _item(
            f"matmul/{variant}",
            "y = x w^T",
            {"w": numbers.normal(n_out, n_in), "x": numbers.normal(n_tok, n_in)},
            lambda a: {"y": np.einsum("tn,on->to", a["x"], a["w"])},
            bits=ROUNDED_BITS,
        )
    w = numbers.normal(4, 9, 12).astype(np.float32)
    tensor = Tensor("w", FORMATS_BY_NAME["F32"], w.shape, w)
    yield _item(
        "experts/plain",
        "y[i] = w[chosen[i]] x[i]",
        {"w": w, "x": numbers.normal(6, 12), "chosen": np.array([3, 0, 3, 1, 2, 0], np.int32)},
        lambda a: {"y": experts_numpy(tensor, a["x"], a["chosen"])},
        bits=ROUNDED_BITS,
    )
    ids = np.array([0, 10, 3, 3, 7], np.int32)
    yield _item(
        "rows/plain",
        "y[t] = w[ids[t]]: the lookup of embeddings",
        {"w": numbers.normal(11, 6), "ids": ids},
        lambda a: {"y": a["w"][a["ids"]]},
        bits=7.5,
    )


def _choose(a: Arrays, n: int) -> Arrays:
    """Choose the n most probable experts."""
    probs = softmax_numpy(a["logits"])
    chosen = top_experts(probs, n)
    weights = np.take_along_axis(probs, chosen, axis=1)
    return {
        "chosen": chosen,
        "weights": weights,
        "weights_norm": weights / np.maximum(weights.sum(axis=1, keepdims=True), MIN_WEIGHT_SUM),
    }


def choice_items() -> Iterator[Item]:
    """Yield the items about the choice of experts."""
    numbers = Numbers("expert choice")
    for n_expert, n in ((4, 1), (4, 2), (8, 3), (60, 4)):
        yield _item(
            f"expert_choice/{n}-of-{n_expert}",
            "chosen: the n largest of softmax(logits), largest first; weights: theirs; weights_norm: of sum 1",
            {"logits": 2 * numbers.normal(6, n_expert)},
            partial(_choose, n=n),
            n=n,
        )


def image_items() -> Iterator[Item]:
    """Yield the items about images."""
    numbers = Numbers("images")
    yield _item(
        "depthwise/stride-1",
        "3x3 convolution of each channel, with zeros around the image",
        {"x": numbers.normal(5, 6, 4), "weight": numbers.normal(4, 3, 3)},
        lambda a: {"y": depthwise_numpy(a["x"], a["weight"], 1)},
        bits=ROUNDED_BITS,
        stride=1,
    )
    image = numbers.bytes(9, 7, 3)
    for variant, (width, height) in {"larger": (11, 16), "smaller": (4, 5)}.items():
        y = resize_numpy(image, width, height)
        yield Item(
            f"resize/{variant}",
            "Pillow's bicubic filter: [height, width, 3] of bytes",
            {"image": image},
            {"width": width, "height": height},
            {"y": y},
            {},
        )
