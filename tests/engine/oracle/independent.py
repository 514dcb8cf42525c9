"""The operations of a pack in plain float32 NumPy, written from the formulas in docs/packs.md alone."""

import json
import math

import numpy as np
from safetensors.numpy import load_file, save_file


def answer(given, out, change=lambda operation, arrays: arrays):
    """Answer one item of a pack.  -> exit status"""
    if given.endswith(".json"):
        return 77
    with open(given, "rb") as file:
        about = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    compute = OPERATIONS.get(about["operation"])
    if compute is None:
        return 77
    p = {key: value if key in ("operation", "item", "style") else json.loads(value) for key, value in about.items()}
    a = {key: x.astype(np.float32) if x.dtype == np.float64 else x for key, x in load_file(given).items()}
    y = change(p["operation"], compute(a, p))
    save_file({name: np.ascontiguousarray(x) for name, x in y.items()}, out)
    return 0


def rms_norm(a, p):
    return {"y": np.array([row / math.sqrt(np.dot(row, row) / len(row) + p["eps"]) for row in a["x"]]) * a["weight"]}


def layer_norm(a, p):
    rows = [(row - row.mean()) / math.sqrt(row.var() + p["eps"]) for row in a["x"]]
    return {"y": np.array(rows) * a["weight"] + a["bias"]}


def rope(a, p):
    y, half = a["x"].copy(), p["n_rot"] // 2
    for t, position in enumerate(a["positions"]):
        for i in range(half):
            scale = p["scale"]
            if "ramp" in a:
                scale = scale * (1 - a["ramp"][i]) + a["ramp"][i]
            angle = position * scale * p["base"] ** (-2 * i / p["n_rot"])
            if "factors" in a:
                angle /= a["factors"][i]
            j, k = (2 * i, 2 * i + 1) if p["style"] == "norm" else (i, i + half)
            z = (a["x"][t, :, j] + 1j * a["x"][t, :, k]) * np.exp(1j * angle) * p["attn_factor"]
            y[t, :, j], y[t, :, k] = z.real, z.imag
    return {"y": y}


def softmax(a, p):
    y = np.zeros_like(a["x"])
    for t, row in enumerate(a["x"]):
        seen = np.flatnonzero(a["mask"][t]) if "mask" in a else np.arange(len(row))
        top = max(row[seen].max(), a["sinks"][t] if "sinks" in a else -np.inf)
        e = np.exp(row[seen] - top)
        y[t, seen] = e / (e.sum() + (np.exp(a["sinks"][t] - top) if "sinks" in a else 0))
    return {"y": y}


def attention(a, p):
    q, k, v = a["q"], a["k"], a["v"]
    n_tok, n_head, _ = q.shape
    weights = np.zeros((n_head, n_tok, len(k)), np.float32)
    y = np.zeros_like(q)
    for h in range(n_head):
        g = h * k.shape[1] // n_head
        for t in range(n_tok):
            i = p["first"] + t
            seen = [
                j for j in range(len(k)) if (j <= i or not p["causal"]) and (not p["window"] or j > i - p["window"])
            ]
            score = np.array([np.dot(q[t, h], k[j, g]) * p["scale"] for j in seen])
            if p["softcap"]:
                score = p["softcap"] * np.tanh(score / p["softcap"])
            if "slopes" in a:
                score = score - a["slopes"][h] * np.abs(i - np.array(seen))
            e = np.exp(score - score.max())
            weights[h, t, seen] = e / e.sum()
            y[t, h] = weights[h, t] @ v[:, g]
    return {"y": y, "kq_soft_max": weights}


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def expert_choice(a, p):
    e = np.exp(a["logits"] - a["logits"].max(axis=1, keepdims=True))
    probs = e / e.sum(axis=1, keepdims=True)
    chosen = np.array([sorted(range(len(row)), key=lambda j: -row[j])[: p["n"]] for row in probs], np.int32)
    weights = np.take_along_axis(probs, chosen, axis=1)
    return {"chosen": chosen, "weights": weights, "weights_norm": weights / weights.sum(axis=1, keepdims=True)}


def depthwise(a, p):
    h, w, n = a["x"].shape
    y = np.zeros((h, w, n), np.float32)
    for i, j in np.ndindex(3, 3):
        for row, column in np.ndindex(h, w):
            r, c = row + i - 1, column + j - 1
            if 0 <= r < h and 0 <= c < w:
                y[row, column] += a["x"][r, c] * a["weight"][:, i, j]
    return {"y": y}


def resize(a, p):
    from PIL import Image

    return {"y": np.asarray(Image.fromarray(a["image"]).resize((p["width"], p["height"]), Image.Resampling.BICUBIC))}


OPERATIONS = {
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "rope": rope,
    "softmax": softmax,
    "attention": attention,
    "silu_mul": lambda a, p: {"y": a["gate"] / (1 + np.exp(-a["gate"])) * a["up"]},
    "gelu_mul": lambda a, p: {"y": tanh_gelu(a["gate"]) * a["up"]},
    "gelu": lambda a, p: {"y": tanh_gelu(a["x"].astype(np.float64))},
    "gelu_erf": lambda a, p: {
        "y": np.array([[x * 0.5 * math.erfc(-x / math.sqrt(2)) for x in row] for row in a["x"].tolist()])
    },
    "quick_gelu": lambda a, p: {"y": a["x"] / (1 + np.exp(-1.702 * a["x"]))},
    "soft_cap": lambda a, p: {"y": p["cap"] * np.tanh(a["x"] / p["cap"])},
    "matmul": lambda a, p: {"y": a["x"] @ a["w"].T},
    "experts": lambda a, p: {"y": np.array([a["w"][e] @ x for e, x in zip(a["chosen"], a["x"], strict=True)])},
    "rows": lambda a, p: {"y": a["w"][a["ids"]]},
    "expert_choice": expert_choice,
    "depthwise": depthwise,
    "resize": resize,
}
