"""Other engines, right and wrong, made of our kernels: each wrong one has one bug, written without the table of causes.

An engine is a change of (kernels, model); `first` is the value in which its bug shows first, `explained` whether the
table of causes has the bug, `lacks` names that its dump does not have.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import logits
from numllama.engine.model.trace import Trace, label
from numllama.engine.oracle.dumps import Dump, StoredArray
from numllama.kernels import SETS
from numllama.kernels.attention import attention_numpy
from numllama.kernels.kv import numbers

F32 = SETS["numpy-float32"]
IDS = [1, 259, 17, 300, 45, 262, 280, 310, 5, 90, 271, 266, 301, 77, 264, 290, 33, 275, 268, 320]


@dataclass(frozen=True, eq=False)
class Engine:
    name: str
    model: str
    first: str
    change: Callable
    explained: bool = True
    lacks: tuple = ()


def values_of(model, kernels, ids=IDS, cache="f32", keep=lambda name: True):
    """Return all values of a pass by label.  Arrays that were tapped span by span occur once."""
    seen = Trace("*")
    hidden = model.family.hidden(model, Batch.of(ids), model.new_cache(len(ids), type=cache), kernels, seen)
    if model.family.causal:
        logits(model, hidden, kernels, seen)
    return {label(*key): value for key, value in seen.values.items() if keep(key[0])}


def dump_of(values, ids=IDS):
    """Return a dump of arrays in memory."""
    return Dump(Path("dump"), {name: StoredArray(x.shape, lambda x=x: x) for name, x in values.items()}, list(ids))


def with_kernel(**changes):
    return lambda k, m: (replace(k, **{name: change(k) for name, change in changes.items()}), m)


def with_hparams(**changes):
    return lambda k, m: (k, replace(m, hparams=replace(m.hparams, **{n: f(m.hparams) for n, f in changes.items()})))


def with_rule(change):
    return with_hparams(attention=lambda hp: tuple(change(rule) for rule in hp.attention))


def with_ropes(change):
    return with_hparams(rope=lambda hp: tuple(r and change(r) for r in hp.rope), rope_long=lambda hp: ())


def with_blocks(**changes):
    def change(k, m):
        blk = tuple(replace(b, **{n: f(b) for n, f in changes.items()}) for b in m.weights.blk)
        return k, replace(m, weights=replace(m.weights, blk=blk))

    return change


def with_rows(change, only=""):
    """Change the dequantized rows of matrices whose name contains `only`."""

    def matmul(w, x):
        rows = w.dequantize()
        return x @ np.ascontiguousarray(change(w, rows) if only in w.name else rows).astype(x.dtype).T

    return with_kernel(matmul=lambda k: matmul)


def plain_rms(x):
    return np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True)).astype(x.dtype)


def looped(score_change=None, mask=None, softmax=None, key_head=None, mix=None):
    """Attention as nested loops over tokens and heads."""

    def attend(q, k, v, first, rule, tap=lambda name, value: value):
        n, n_head, d = q.shape
        group = n_head // k.shape[1]
        k, v = numbers(k, q.dtype), numbers(v, q.dtype)
        kq = np.zeros((n_head, n, len(k)), q.dtype)
        p = np.zeros_like(kq)
        out = np.zeros((n, n_head, d), q.dtype)
        for h in range(n_head):
            g = key_head(h, group, k.shape[1]) if key_head else h // group
            kq[h] = q[:, h] @ k[:, g].T
            for t in range(n):
                s = kq[h, t] * q.dtype.type(rule.scale)
                s = score_change(s, rule, h) if score_change else s
                if rule.softcap:
                    s = rule.softcap * np.tanh(s / rule.softcap)
                begin, end = rule.seen(first + t, len(k))
                seen = np.zeros(len(k), bool)
                seen[begin:end] = True
                seen = mask(first + t, np.arange(len(k)), seen) if mask else seen
                s = np.where(seen, s, -np.inf)
                e = np.exp(s - s.max())
                p[h, t] = softmax(s, e) if softmax else e / e.sum()
        kq, p = tap("kq", kq), tap("kq_soft_max", p)
        for h in range(n_head):
            g = key_head(h, group, k.shape[1]) if key_head else h // group
            out[:, h] = p[h] @ (mix(k, v) if mix else v)[:, g]
        return out.reshape(n, -1)

    return with_kernel(attention=lambda k: attend)


def rope_by(turn):
    """RoPE by complex numbers over neighbours or halves.  turn: (angle [n_tok, n_pair], rule) -> angles"""

    def rope(x, positions, rule):
        half = rule.n_rot // 2
        angle = turn(np.asarray(positions, float)[:, None] * rule.freqs[None], rule, np.asarray(positions, float))
        a, b = x[..., rule.pairs[0]], x[..., rule.pairs[1]]
        z = (a + 1j * b) * np.exp(1j * angle)[:, None, :half] * rule.attn_factor
        y = x.copy()
        y[..., rule.pairs[0]], y[..., rule.pairs[1]] = z.real, z.imag
        return y

    return with_kernel(rope=lambda k: rope)


def with_tap(**changes):
    """Change named values on their way to the next operation, in the engine's own pass."""
    return lambda k, m: (
        k,
        replace(
            m,
            family=replace(
                m.family,
                hidden=lambda model, batch, cache, kernels, tap: m.family.hidden(
                    model, batch, cache, kernels, tapped_by(tap, changes)
                ),
            ),
        ),
    )


def tapped_by(tap, changes):
    seen = {}

    def changed(name, il, value):
        seen[name] = tap(name, il, changes[name](value, seen) if name in changes else value)
        return seen[name]

    return changed


def at_layer(n, change):
    """Apply a change of blocks in layer n alone."""

    def changed(k, m):
        blk = list(m.weights.blk)
        blk[n] = replace(blk[n], **change(blk[n]))
        return k, replace(m, weights=replace(m.weights, blk=tuple(blk)))

    return changed


def blocks32(rows):
    return rows.reshape(len(rows), -1, 32)


WRONG = [
    # llama
    Engine("angles with the other sign", "llama", "Qcur", rope_by(lambda a, r, p: -a)),
    Engine("positions from 1", "llama", "Qcur", rope_by(lambda a, r, p: (p + 1)[:, None] * r.freqs)),
    Engine("base 500000", "llama", "Qcur", with_ropes(lambda r: replace(r, base=5e5))),
    Engine("halves for neighbours", "llama", "Qcur", with_ropes(lambda r: replace(r, style="neox"))),
    Engine("half of the pairs", "llama", "Qcur", with_ropes(lambda r: replace(r, n_rot=r.n_rot // 2))),
    Engine("no rotation", "llama", "Qcur", with_kernel(rope=lambda k: lambda x, p, r: x)),
    Engine("eps 1e-3", "llama", "attn_norm", with_hparams(norm_eps=lambda hp: 1e-3)),
    Engine("eps 1e-2", "llama", "attn_norm", with_hparams(norm_eps=lambda hp: 1e-2)),
    Engine(
        "eps beside the root",
        "llama-small",
        "attn_norm",
        with_kernel(rms_norm=lambda k: lambda x, w, eps: x / (plain_rms(x) + np.float32(eps)) * w),
    ),
    Engine(
        "mean subtracted",
        "llama",
        "attn_norm",
        with_kernel(rms_norm=lambda k: lambda x, w, eps: k.rms_norm(x - x.mean(-1, keepdims=True), w, eps)),
    ),
    Engine(
        "weight of norm left out",
        "llama",
        "attn_norm",
        with_kernel(rms_norm=lambda k: lambda x, w, eps: x / plain_rms(x)),
    ),
    Engine(
        "one plus weight",
        "llama",
        "attn_norm",
        with_kernel(rms_norm=lambda k: lambda x, w, eps: x / plain_rms(x) * (1 + w)),
    ),
    Engine(
        "sum for mean",
        "llama",
        "attn_norm",
        with_kernel(rms_norm=lambda k: lambda x, w, eps: x / np.sqrt((x * x).sum(-1, keepdims=True)) * w),
    ),
    Engine("interleaved query heads", "llama", "kq", looped(key_head=lambda h, group, n: h % n)),
    Engine("one key head for all", "llama", "kq", looped(key_head=lambda h, group, n: 0)),
    Engine("scale 1 / d", "llama", "kq_soft_max", with_rule(lambda r: replace(r, scale=r.scale**2))),
    Engine("no scale", "llama", "kq_soft_max", with_rule(lambda r: replace(r, scale=1.0))),
    Engine("bidirectional", "llama", "kq_soft_max", looped(mask=lambda i, j, seen: seen | True)),
    Engine("mask one too far", "llama", "kq_soft_max", looped(mask=lambda i, j, seen: j <= i + 1)),
    Engine("blind to itself", "llama", "kq_soft_max", looped(mask=lambda i, j, seen: (j < i) if i else (j == 0))),
    Engine("a window of 4", "llama", "kq_soft_max", looped(mask=lambda i, j, seen: seen & (j > i - 4))),
    Engine("first token masked", "llama", "kq_soft_max", looped(mask=lambda i, j, seen: seen & ((j > 0) | (i == 0)))),
    Engine(
        "soft-cap 50 of scores",
        "llama",
        "kq_soft_max",
        looped(score_change=lambda s, rule, h: 50 * np.tanh(s / 50)),
        explained=True,
    ),
    Engine("sum of softmax left out", "llama", "kq_soft_max", looped(softmax=lambda s, e: e)),
    Engine(
        "an attention sink", "llama", "kq_soft_max", looped(softmax=lambda s, e: e / (e.sum() + np.exp(-np.max(s))))
    ),
    Engine(
        "exp2", "llama", "kq_soft_max", looped(softmax=lambda s, e: np.exp2(s - s.max()) / np.exp2(s - s.max()).sum())
    ),
    Engine("keys for values", "llama", "kqv_out", looped(mix=lambda k, v: k)),
    Engine("values one position late", "llama", "kqv_out", looped(mix=lambda k, v: np.roll(v, 1, axis=0))),
    Engine("silu on up", "llama", "ffn_swiglu", with_kernel(silu_mul=lambda k: lambda g, u: u / (1 + np.exp(-u)) * g)),
    Engine(
        "tanh gelu",
        "llama",
        "ffn_swiglu",
        with_kernel(
            silu_mul=lambda k: (
                lambda g, u: (
                    np.float32(0.5)
                    * g
                    * (1 + np.tanh(np.float32(0.7978845608) * (g + np.float32(0.044715) * g**3)))
                    * u
                )
            )
        ),
    ),
    Engine("relu", "llama", "ffn_swiglu", with_kernel(silu_mul=lambda k: lambda g, u: g * (g > 0) * u)),
    Engine("sigmoid", "llama", "ffn_swiglu", with_kernel(silu_mul=lambda k: lambda g, u: u / (1 + np.exp(-g)))),
    Engine("linear gate", "llama", "ffn_swiglu", with_kernel(silu_mul=lambda k: lambda g, u: g * u)),
    Engine("up left out", "llama", "ffn_swiglu", with_kernel(silu_mul=lambda k: lambda g, u: g / (1 + np.exp(-g)))),
    Engine(
        "exchanged names of gate and up",
        "llama",
        "ffn_gate",
        with_blocks(ffn_gate=lambda b: b.ffn_up, ffn_up=lambda b: b.ffn_gate),
    ),
    Engine("norms exchanged in layer 1", "llama", "attn_norm", at_layer(1, lambda b: {"attn_norm": b.ffn_norm})),
    Engine(
        "q rows of Hugging Face alone",
        "llama",
        "Qcur",
        with_rows(lambda w, r: r.reshape(-1, 8, 2, r.shape[1]).swapaxes(1, 2).reshape(r.shape), "attn_q."),
    ),
    Engine("attn_output transposed", "llama", "attn_out", with_rows(lambda w, r: r.T, "attn_output")),
    Engine("down columns reversed", "llama", "ffn_out", with_rows(lambda w, r: r[:, ::-1], "ffn_down")),
    Engine(
        "logits by the embedding",
        "llama",
        "result_output",
        lambda k, m: (k, replace(m, weights=replace(m.weights, output=m.weights.token_embd))),
    ),
    # formats
    Engine(
        "q4_0 halves",
        "llama:Q4_0",
        "Qcur",
        with_rows(
            lambda w, r: np.concatenate([blocks32(r)[..., 16:], blocks32(r)[..., :16]], -1).reshape(r.shape), "blk"
        ),
    ),
    Engine(
        "q4_0 neighbours",
        "llama:Q4_0",
        "Qcur",
        with_rows(lambda w, r: np.stack([blocks32(r)[..., :16], blocks32(r)[..., 16:]], -1).reshape(r.shape), "blk"),
    ),
    Engine(
        "q4_0 unsigned",
        "llama:Q4_0",
        "Qcur",
        with_rows(lambda w, r: (blocks32(r) + 8 * w.blocks["d"].astype(np.float32)[..., None]).reshape(r.shape), "blk"),
    ),
    Engine(
        "q8_0 unsigned",
        "llama:Q8_0",
        "Qcur",
        with_rows(
            lambda w, r: (
                w.blocks["d"].astype(np.float32)[..., None] * w.blocks["qs"].view(np.uint8).reshape(*w.blocks.shape, 32)
            ).reshape(r.shape),
            "blk",
        ),
    ),
    Engine(
        "q5_0 fifth bit lost",
        "llama:Q5_0",
        "Qcur",
        with_rows(
            lambda w, r: (
                ((blocks32(r) / w.blocks["d"].astype(np.float32)[..., None] + 16).round() % 16 - 16)
                * w.blocks["d"].astype(np.float32)[..., None]
            ).reshape(r.shape),
            "blk",
        ),
    ),
    Engine("q4_K minima added", "llama:Q4_K", "Qcur", with_rows(lambda w, r: negated(w, "dmin").dequantize(), "blk")),
    Engine("q6_K scale sign", "llama:Q6_K", "Qcur", with_rows(lambda w, r: -r, "blk")),
    # gemma, qwen, phi, granite
    Engine("gemma2 without window", "gemma2", "kq_soft_max", with_rule(lambda r: replace(r, window=0))),
    Engine(
        "gemma2 window off by one",
        "gemma2",
        "kq_soft_max",
        with_rule(lambda r: replace(r, window=r.window and r.window + 1)),
    ),
    Engine("gemma2 without soft-cap", "gemma2", "kq_soft_max", with_rule(lambda r: replace(r, softcap=0.0))),
    Engine("gemma2 logits without soft-cap", "gemma2", "result_output", with_hparams(logit_softcap=lambda hp: 0.0)),
    Engine("gemma2 silu", "gemma2", "ffn_geglu", with_kernel(gelu_mul=lambda k: lambda g, u: g / (1 + np.exp(-g)) * u)),
    Engine("gemma2 without post norm", "gemma2", "sa_out", with_blocks(post_attention_norm=lambda b: None)),
    Engine("gemma3 embedding unscaled", "gemma3", "attn_norm", with_hparams(embed_scale=lambda hp: 1.0)),
    Engine("gemma3 scale of RoPE ignored", "gemma3", "Qcur", with_ropes(lambda r: replace(r, scale=1.0))),
    Engine(
        "gemma3 q and k norms exchanged",
        "gemma3",
        "Qcur_normed",
        with_blocks(attn_q_norm=lambda b: b.attn_k_norm, attn_k_norm=lambda b: b.attn_q_norm),
    ),
    Engine(
        "qwen3 without head norms", "qwen3", "Qcur", with_blocks(attn_q_norm=lambda b: None, attn_k_norm=lambda b: None)
    ),
    Engine(
        "qwen2 without biases",
        "qwen2",
        "Qcur",
        with_blocks(attn_q_bias=lambda b: None, attn_k_bias=lambda b: None, attn_v_bias=lambda b: None),
    ),
    Engine("phi3 neighbours for halves", "phi3", "Qcur", with_ropes(lambda r: replace(r, style="norm"))),
    Engine("glm4 turns whole heads", "glm4", "Qcur", with_ropes(lambda r: replace(r, n_rot=16))),
    Engine("granite residual unscaled", "granite", "ffn_inp", with_hparams(residual_scale=lambda hp: 1.0)),
    Engine("granite logits unscaled", "granite", "result_output", with_hparams(logit_scale=lambda hp: 1.0)),
    Engine("granite scale by head size", "granite", "kq_soft_max", with_rule(lambda r: replace(r, scale=0.25))),
    Engine(
        "residual after the norm",
        "llama",
        "ffn_inp",
        with_tap(ffn_inp=lambda x, seen: seen["attn_out"] + seen["attn_norm"]),
    ),
    Engine("no residual around feed-forward", "llama", "l_out", with_tap(l_out=lambda x, seen: seen["ffn_out"])),
    Engine(
        "heads merged by components",
        "llama",
        "kqv_out",
        with_tap(
            kqv_out=lambda x, seen: np.ascontiguousarray(x.reshape(len(x), 4, -1).transpose(0, 2, 1)).reshape(x.shape)
        ),
    ),
    Engine(
        "a head copied",
        "llama",
        "kqv_out",
        with_tap(kqv_out=lambda x, seen: np.concatenate([x[:, :48], x[:, :16]], axis=1)),
        explained=False,
    ),
    # experts
    Engine(
        "experts' weights not normalized",
        "mixtral",
        "ffn_moe_weights_norm",
        with_tap(ffn_moe_weights_norm=lambda x, seen: seen["ffn_moe_weights"]),
    ),
    Engine("one expert", "mixtral", "ffn_moe_out", with_hparams(n_expert_used=lambda hp: 1)),
    Engine("sigmoid router", "mixtral", "ffn_moe_probs", with_kernel(softmax=lambda k: lambda x: 1 / (1 + np.exp(-x)))),
    Engine(
        "experts' gate and up",
        "mixtral",
        "ffn_moe_gate",
        with_blocks(ffn_gate_exps=lambda b: b.ffn_up_exps, ffn_up_exps=lambda b: b.ffn_gate_exps),
    ),
    Engine(
        "experts with gelu",
        "mixtral",
        "ffn_moe_swiglu",
        with_kernel(silu_mul=lambda k: k.gelu_mul and (lambda g, u: SETS["numpy-float32"].gelu_mul(g, u))),
    ),
    # bert
    Engine("bert exact gelu", "bert", "ffn_gelu", with_kernel(gelu=lambda k: k.gelu_erf)),
    Engine("bert relu", "bert", "ffn_gelu", with_kernel(gelu=lambda k: lambda x: np.maximum(x, 0))),
    Engine("bert causal", "bert", "kq_soft_max", looped(mask=lambda i, j, seen: j <= i)),
    Engine(
        "bert without positions",
        "bert",
        "inp_embd",
        lambda k, m: (k, replace(m, weights=replace(m.weights, position_embd=None))),
    ),
    Engine(
        "bert rms norm",
        "bert",
        "inp_norm",
        with_kernel(layer_norm=lambda k: lambda x, w, b, eps: x / plain_rms(x) * w + b),
    ),
    Engine("bert eps 1e-3", "bert", "inp_norm", with_hparams(norm_eps=lambda hp: 1e-3)),
]


def negated(w, name):
    blocks = w.blocks.copy()
    blocks[name] = -blocks[name]
    return replace(w, blocks=blocks, _forms={})


def bf16(x):
    return ((np.ascontiguousarray(x, np.float32).view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


def f16(x):
    return np.asarray(x).astype(np.float16).astype(np.float32)


def tf32(x):
    return ((np.ascontiguousarray(x, np.float32).view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


def products(rounded, result=lambda y: y):
    return replace(
        F32,
        matmul=lambda w, x: result(rounded(x) @ rounded(w.dequantize()).T),
        experts=lambda w, x, chosen: result(
            np.stack([rounded(x[i]) @ rounded(w.matrices[e].dequantize()).T for i, e in enumerate(chosen)])
        ),
    )


def rounded_attention(rounded):
    return replace(
        F32,
        attention=lambda q, k, v, first, rule, tap=None: attention_numpy(
            rounded(q),
            rounded(numbers(k, np.float32)),
            rounded(numbers(v, np.float32)),
            first,
            rule,
            *([tap] if tap else []),
        ),
    )


def reversed_sums(w, x):
    return np.cumsum((x[:, None, :] * w.dequantize()[None])[..., ::-1], axis=-1, dtype=np.float32)[..., -1]


RIGHT = {  # kernels, type of the cache
    "float32": (F32, "f32"),
    "sums in another order": (replace(F32, matmul=reversed_sums), "f32"),
    "sums in float64": (SETS["exact"], "f32"),
    "float16 products": (products(f16), "f32"),
    "bfloat16 products": (products(bf16), "f32"),
    "bfloat16 products and results": (products(bf16, bf16), "f32"),
    "tf32 products": (products(tf32), "f32"),
    "float16 attention": (rounded_attention(f16), "f16"),
    "bfloat16 attention": (rounded_attention(bf16), "f32"),
    "f16 cache": (F32, "f16"),
    "q8_0 cache": (F32, "q8_0"),
    "8-bit activations (ggml), q8_0 cache": (SETS["ggml"], "q8_0"),
    "llama.cpp's default": (SETS["llamacpp"], "f16"),
    "8-bit activations (ggml)": (SETS["ggml"], "f32"),
    "8-bit activations (ggml), f16 cache": (SETS["ggml"], "f16"),
}
if "numba" in SETS:
    RIGHT["8-bit activations (numba)"] = SETS["numba"], "f32"
    RIGHT["numba, f16 cache"] = SETS["numba"], "f16"
