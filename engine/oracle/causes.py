"""The causes: usual mistakes, each one thing done otherwise in our own computation.

A cause is a change of kernels, hyperparameters or weights.  If a value of another engine has the bits of a right one
under a changed computation, that change is its cause.  `explains` lists the values whose operation it changes; a value
that a dump lacks passes on to the next.  Some causes are arithmetics: they explain rounding, and nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...kernels import Attention, Kernels, Rope, Tensor
from ...kernels.attention import attention_numpy
from ...kernels.kv import CACHE_TYPES, new_cache, numbers, write
from ...kernels.rounding import round_activations
from ..model.weights import Weights
from .formats import FORMAT_MISTAKES, FormatMistake
from .injection import Setting
from .values import LAYER_INPUT

Change = Callable[[Setting], Setting | None]


@dataclass(frozen=True, eq=False)
class Cause:
    """A hypothesis.

    sentence     completes "as if ..."
    explains     names of the values whose operation it changes
    change       a setting -> the setting under the hypothesis; None where it does not apply
    arithmetic   whether it only rounds otherwise, which is right
    """

    sentence: str
    explains: frozenset[str]
    change: Change
    arithmetic: bool = False

    def may_explain(self, names: Collection[str]) -> bool:
        """Return whether it changes the operation of one of these values."""
        return not self.explains.isdisjoint(names)


Q_K = frozenset({"Qcur", "Kcur"})
PROJECTED = frozenset({"Qcur", "Kcur", "Qcur_pre_rope", "Kcur_pre_rope", "Qcur_normed", "Kcur_normed"})
PRODUCTS = PROJECTED | {
    "Vcur",
    "attn_out",
    "ffn_gate",
    "ffn_up",
    "ffn_out",
    "ffn_moe_logits",
    "ffn_moe_gate",
    "ffn_moe_up",
    "ffn_moe_down",
    "result_output",
}
HEAD_NORMS = frozenset({"Qcur_normed", "Kcur_normed", "Qcur", "Kcur", "Qcur_pre_rope", "Kcur_pre_rope"})
NORMS = HEAD_NORMS | {
    "attn_norm",
    "ffn_norm",
    "attn_post_norm",
    "ffn_post_norm",
    "result_norm",
    "inp_norm",
    "ffn_inp",
    "l_out",
}
SUMS = frozenset({"ffn_inp", "sa_out", "l_out"})
ACTIVATED = frozenset({"ffn_swiglu", "ffn_geglu", "ffn_gelu", "ffn_moe_swiglu"})
SCORES = frozenset({"kq", "kq_soft_max", "kqv_out"})
SOFTMAX = frozenset({"kq_soft_max", "kqv_out"})
MIXTURE = frozenset({"ffn_moe_topk", "ffn_moe_weights", "ffn_moe_weights_norm", "ffn_moe_probs", "ffn_moe_weighted"})
INPUT = frozenset({"embd", "inp_scaled", "inp_embd"})
LOGITS = frozenset({"result_output"})


# --- changes ---


def other_kernel(name: str, change: Callable[[Kernels], Callable[..., np.ndarray]]) -> Change:
    """Replace the kernel `name`."""
    return lambda s: Setting(replace(s.kernels, **{name: change(s.kernels)}), s.model)  # type: ignore[arg-type]


def rope(change: Callable[[Rope], Rope | None]) -> Change:
    """Change the rule of RoPE; a change that returns None does not apply."""

    def changed(s: Setting) -> Setting | None:
        rules = [rule for rule in s.model.hparams.rope if rule is not None]
        if not rules or change(rules[0]) is None:
            return None
        return other_kernel("rope", lambda k: lambda x, positions, rule: k.rope(x, positions, change(rule)))(s)

    return changed


def positions(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change the positions that RoPE turns by."""
    return other_kernel("rope", lambda k: lambda x, positions, rule: k.rope(x, change(np.asarray(positions)), rule))


def attention(change: Callable[[Attention, int], Attention | None]) -> Change:
    """Change the rule of attention, given the head size; a change that returns None does not apply."""

    def changed(s: Setting) -> Setting | None:
        hp = s.model.hparams
        rule = hp.attention[0] if hp.attention else Attention(hp.n_head_dim**-0.5)
        rule = replace(rule, causal=s.model.family.causal)
        if change(rule, hp.n_head_dim) is None:
            return None

        def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> np.ndarray:
            return np.asarray(attention_numpy(q, k, v, first, change(rule, q.shape[2]) or rule, tap))

        return other_kernel("attention", lambda k: attend)(s)

    return changed


def attend_by(attend: Callable[..., np.ndarray]) -> Change:
    """Replace attention by a function of attention_numpy's arguments."""
    return other_kernel("attention", lambda k: attend)


def hparams(**changes: Callable[[Any], Any]) -> Change:
    """Change hyperparameters; a change that leaves all equal does not apply."""

    def changed(s: Setting) -> Setting | None:
        hp = s.model.hparams
        new = {name: change(hp) for name, change in changes.items()}
        if all(getattr(hp, name) == value for name, value in new.items()):
            return None
        return Setting(s.kernels, replace(s.model, hparams=replace(hp, **new)))

    return changed


def block(**changes: Callable[[Any], Any]) -> Change:
    """Change fields of the block, out of the block; it does not apply if one of them is missing."""

    def changed(s: Setting) -> Setting | None:
        blk = s.model.weights.blk[0] if s.model.weights.blk else None
        if blk is None or any(getattr(blk, name, None) is None for name in changes):
            return None
        return with_fields(s, {name: change(blk) for name, change in changes.items()})

    return changed


def other_values(**changes: Callable[[Any, Mapping[str, Any]], Any]) -> Change:
    """Change values themselves, given ours and those before it by name."""
    return lambda s: replace(s, values=changes)


def sums(residual: Callable[[Mapping[str, Any], str], Any]) -> Change:
    """Replace the residual of both sums by a function of the earlier values and the norm's name of that sum."""

    def after_attention(value: Any, before: Mapping[str, Any]) -> Any:
        return value - before[LAYER_INPUT] + residual(before, "attn_norm")

    def after_feed_forward(value: Any, before: Mapping[str, Any]) -> Any:
        return value - before["ffn_inp" if "ffn_inp" in before else "sa_out"] + residual(before, "ffn_norm")

    return other_values(ffn_inp=after_attention, sa_out=after_attention, l_out=after_feed_forward)


def missing(*names: str) -> Change:
    """Drop fields of the block; it does not apply if the block has none of them."""

    def changed(s: Setting) -> Setting | None:
        blk = s.model.weights.blk[0] if s.model.weights.blk else None
        present = [name for name in names if getattr(blk, name, None) is not None]
        return with_fields(s, dict.fromkeys(present)) if present else None

    return changed


def with_fields(s: Setting, fields: Mapping[str, Any]) -> Setting:
    """Return the setting with other fields in its only block."""
    weights = replace(s.model.weights, blk=(replace(s.model.weights.blk[0], **fields),))  # type: ignore[arg-type]
    return Setting(s.kernels, replace(s.model, weights=weights))


def norms(change: Callable[[Kernels, Any, Any, float], np.ndarray]) -> Change:
    """Replace the RMS norm by a function of the kernels, x, weight and eps."""
    return other_kernel("rms_norm", lambda k: lambda x, weight, eps: change(k, x, weight, eps))


def norm_eps(factor: float) -> Change:
    """Multiply the eps of both norms."""
    return lambda s: Setting(
        replace(
            s.kernels,
            rms_norm=lambda x, w, eps: s.kernels.rms_norm(x, w, factor * eps),
            layer_norm=lambda x, w, b, eps: s.kernels.layer_norm(x, w, b, factor * eps),
        ),
        s.model,
    )


def activation(change: Callable[[Kernels, Any, Any], np.ndarray]) -> Change:
    """Replace the gated products of the feed-forward block by a function of the kernels, gate and up."""
    return lambda s: Setting(
        replace(
            s.kernels,
            silu_mul=lambda gate, up: change(s.kernels, gate, up),
            gelu_mul=lambda gate, up: change(s.kernels, gate, up),
        ),
        s.model,
    )


def gelu(change: Callable[[Kernels, Any], np.ndarray]) -> Change:
    """Replace the activation function of an encoder without gate, and GELU within gated products."""
    return lambda s: Setting(
        replace(
            s.kernels,
            gelu=lambda x: change(s.kernels, x),
            gelu_mul=lambda gate, up: change(s.kernels, gate) * up,
        ),
        s.model,
    )


def weights(change: Callable[[Tensor, np.ndarray], np.ndarray]) -> Change:
    """Change the dequantized weights of all products and lookups.  A stack of experts keeps its first axis."""

    def changed(s: Setting) -> Setting:
        def whole(w: Tensor) -> np.ndarray:
            return change(w, w.dequantize())

        def experts(w: Tensor, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            y = np.empty((len(x), w.shape[1]), x.dtype)
            for e in np.unique(chosen):
                y[chosen == e] = x[chosen == e] @ whole(w.matrices[e]).astype(x.dtype).T
            return y

        return Setting(
            replace(
                s.kernels,
                matmul=lambda w, x: x @ whole(w).astype(x.dtype).T,
                experts=experts,
                rows=lambda w, ids: whole(w)[ids].astype(np.float64),
            ),
            s.model,
        )

    return changed


def mistaken_format(mistake: FormatMistake) -> Change:
    """Dequantize weights of the mistake's formats as it does."""

    def changed(w: Tensor) -> Tensor:
        if w.format.name not in mistake.formats:
            return w
        dequantize = w.format.dequantize
        format = replace(w.format, dequantize=lambda blocks: mistake.dequantize(blocks, dequantize))
        return Tensor(w.name, format, w.shape, w.blocks)

    def change(s: Setting) -> Setting | None:
        model = s.model
        tensors = [x for blk in model.weights.blk for x in vars(blk).values() if isinstance(x, Tensor)]
        tensors += [x for x in vars(model.weights).values() if isinstance(x, Tensor)]
        if all(w.format.name not in mistake.formats for w in tensors):
            return None
        k = s.kernels
        return Setting(
            replace(
                k,
                matmul=lambda w, x: k.matmul(changed(w), x),
                experts=lambda w, x, chosen: k.experts(changed(w), x, chosen),
                rows=lambda w, ids: k.rows(changed(w), ids),
            ),
            model,
        )

    return change


# --- computations done otherwise ---


def eps_outside(k: Kernels, x: Any, weight: Any, eps: float) -> Any:
    return x / (np.sqrt(np.mean(x * x, -1, keepdims=True)) + eps) * weight


def heads_modulo(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    """Let query head h read key head h % n_head_kv."""
    n_head, n_head_kv = q.shape[1], k.shape[1]
    order = np.arange(n_head) % n_head_kv
    return attention_numpy(q, k[:, order], v[:, order], first, rule, tap)


def first_key_head(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    return attention_numpy(q, k[:, :1].repeat(k.shape[1], 1), v[:, :1].repeat(v.shape[1], 1), first, rule, tap)


def masked(visible: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Change:
    """Let a query at position i see the keys j where visible(i, j); a query that sees none sees itself."""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        i, j = first + np.arange(len(q))[:, None], np.arange(len(k))[None]
        seen = visible(i, j)
        seen = seen | (~seen.any(axis=1, keepdims=True) & (i == j))
        return _softmax_attention(q, k, v, first, rule, tap, lambda score: np.where(seen, score, -np.inf), _softmax)

    return attend_by(attend)


def _softmax(score: Any) -> Any:
    e = np.exp(score - np.max(score, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _softmax_attention(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any, mask: Any, softmax: Any) -> Any:
    """Compute attention with a mask and a softmax of its own."""
    n_tok, n_head, d = q.shape
    group = n_head // k.shape[1]
    keys, values = (numbers(x, q.dtype).repeat(group, axis=1) for x in (k, v))
    kq = tap("kq", np.einsum("thd,jhd->htj", q, keys))
    score = kq * rule.scale
    if rule.softcap:
        score = rule.softcap * np.tanh(score / rule.softcap)
    p = tap("kq_soft_max", softmax(mask(score)))
    return np.ascontiguousarray(np.einsum("htj,jhd->thd", p, values)).reshape(n_tok, n_head * d)


def special_softmax(softmax: Callable[[Any], Any]) -> Change:
    """Replace the softmax over visible scores."""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        seen = np.zeros((len(q), len(k)), bool)
        for t in range(len(q)):
            begin, end = rule.seen(first + t, len(k))
            seen[t, begin:end] = True
        return _softmax_attention(q, k, v, first, rule, tap, lambda s: np.where(seen, s, -np.inf), softmax)

    return attend_by(attend)


def _sink(score: Any) -> Any:
    top = np.maximum(np.max(score, axis=-1, keepdims=True), 0)
    e = np.exp(score - top)
    return e / (e.sum(axis=-1, keepdims=True) + np.exp(-top))


def _over_queries(score: Any) -> Any:
    e = np.exp(score - np.max(score))
    return e / np.maximum(e.sum(axis=1, keepdims=True), 1e-300)


def cached_as(kind: str) -> Change:
    """Read keys and values as a cache of this type has them."""

    def stored(x: np.ndarray) -> np.ndarray:
        cache = new_cache(1, len(x), x.shape[1], x.shape[2], CACHE_TYPES[kind])[0]
        write(cache, x.astype(np.float32))
        return np.asarray(numbers(cache, x.dtype))

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        return attention_numpy(q, stored(k), stored(v), first, rule, tap)

    return attend_by(attend)


def rounded_norms(rounded: Callable[[Any], Any]) -> Change:
    return lambda s: Setting(
        replace(
            s.kernels,
            rms_norm=lambda x, w, eps: s.kernels.rms_norm(x, rounded(w), eps),
            layer_norm=lambda x, w, b, eps: s.kernels.layer_norm(x, rounded(w), rounded(b), eps),
        ),
        s.model,
    )


def bf16(x: Any) -> Any:
    """Round to the nearest bfloat16, ties to even.  -> f32"""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def f16(x: Any) -> Any:
    return np.asarray(x).astype(np.float16).astype(np.float32)


def eight_bit(block_type: str) -> Change:
    return lambda s: Setting(
        replace(s.kernels, matmul=lambda w, x: s.kernels.matmul(w, _eight_bits(x, block_type))), s.model
    )


def _eight_bits(x: np.ndarray, block_type: str) -> np.ndarray:
    return np.asarray(round_activations(x.astype(np.float32), block_type)).astype(x.dtype)


def top_only(s: Setting) -> Setting | None:
    """Use one expert less."""
    n = s.model.hparams.n_expert_used
    return hparams(n_expert_used=lambda hp: hp.n_expert_used - 1)(s) if n > 1 else None


def head_rows(reorder: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Reorder the rows of each head in all matrices of heads."""

    def changed(s: Setting) -> Setting:
        d = s.model.hparams.n_head_dim

        def order(w: Tensor, rows: np.ndarray) -> np.ndarray:
            return rows if len(rows) % d else reorder(rows.reshape(-1, d, rows.shape[1])).reshape(rows.shape)

        made = weights(order)(s)
        assert made is not None
        return made

    return changed


def _to_halves(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1, 2, x.shape[2]).swapaxes(1, 2)


def _to_neighbours(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), 2, -1, x.shape[2]).swapaxes(1, 2)


def _transposed(w: Tensor, rows: np.ndarray) -> np.ndarray:
    return rows.T if rows.shape[0] == rows.shape[1] else rows.reshape(rows.shape[::-1]).T


def _heads_exchanged(s: Setting) -> Setting | None:
    hp = s.model.hparams
    if hp.n_head == hp.n_head_kv:
        return None

    def order(w: Tensor, rows: np.ndarray) -> np.ndarray:
        if len(rows) != hp.n_head * hp.n_head_dim:
            return rows
        return rows.reshape(hp.n_head_kv, -1, hp.n_head_dim, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)

    return weights(order)(s)


def tied(s: Setting) -> Setting | None:
    w = s.model.weights
    if not isinstance(w, Weights) or w.output is w.token_embd or w.output.shape != w.token_embd.shape:
        return None
    return Setting(s.kernels, replace(s.model, weights=replace(w, output=w.token_embd)))


def no_learned_positions(s: Setting) -> Setting | None:
    if getattr(s.model.weights, "position_embd", None) is None:
        return None
    weights = replace(s.model.encoder, position_embd=None)
    return Setting(s.kernels, replace(s.model, weights=weights))


def no_token_types(s: Setting) -> Setting | None:
    if getattr(s.model.weights, "token_types", None) is None:
        return None
    weights = replace(s.model.encoder, token_types=None)
    return Setting(s.kernels, replace(s.model, weights=weights))


def long_rope(s: Setting) -> Setting | None:
    hp = s.model.hparams
    if not hp.rope_long:
        return None
    return Setting(s.kernels, replace(s.model, hparams=replace(hp, rope=hp.rope_long)))


def _only(s: Rope, **changes: Any) -> Rope | None:
    """Return the rule with these changes, None if they change nothing."""
    same = all(getattr(s, name) is value or np.array_equal(getattr(s, name), value) for name, value in changes.items())
    return None if same else replace(s, **changes)


def rope_base(base: float) -> Change:
    return rope(lambda rule: _only(rule, base=float(base)))


def window_of(n: int) -> Change:
    return attention(lambda rule, d: replace(rule, window=n) if rule.window != n else None)


def softcap_of(cap: float) -> Change:
    return attention(lambda rule, d: replace(rule, softcap=float(cap)) if rule.softcap != cap else None)


def constant(value: float) -> Callable[[Any], Any]:
    return lambda hp: value


def _row_norm(k: Kernels, x: Any, weight: Any, eps: float) -> Any:
    """Norm over all heads of a row where the model norms each head."""
    if x.ndim != 3:
        return k.rms_norm(x, weight, eps)
    return x / np.sqrt(np.mean(x * x, axis=(1, 2), keepdims=True) + eps) * weight


def _clamped(k: Kernels, gate: Any, up: Any) -> Any:
    return k.silu_mul(np.minimum(gate, 7), np.clip(up, -7, 7))


CAUSES: tuple[Cause, ...] = (
    # RoPE
    Cause(
        "RoPE paired other components (neighbours instead of halves, or the reverse)",
        Q_K,
        rope(lambda r: replace(r, style="neox" if r.style == "norm" else "norm")),
    ),
    Cause("RoPE were missing", Q_K, other_kernel("rope", lambda k: lambda x, positions, rule: x)),
    Cause("RoPE turned the other way", Q_K, positions(lambda p: -p)),
    *(
        Cause(f"the base of RoPE were {base:g}", Q_K, rope_base(base))
        for base in (10000, 500000, 1000000, 100000, 1000)
    ),
    Cause("the base of RoPE were doubled", Q_K, rope(lambda r: replace(r, base=2 * r.base))),
    Cause("the base of RoPE were halved", Q_K, rope(lambda r: replace(r, base=r.base / 2))),
    Cause("the scaling of RoPE were ignored", Q_K, rope(lambda r: _only(r, scale=1.0, ramp=None, attn_factor=1.0))),
    Cause("the scale of RoPE were applied upside down", Q_K, rope(lambda r: _only(r, scale=1 / r.scale))),
    Cause("YaRN scaled all frequencies alike", Q_K, rope(lambda r: _only(r, ramp=None))),
    Cause("the magnitude factor of RoPE were missing", Q_K, rope(lambda r: _only(r, attn_factor=1.0))),
    Cause("the frequency factors of RoPE were ignored", Q_K, rope(lambda r: _only(r, factors=None))),
    Cause(
        "the frequency factors of RoPE multiplied instead of dividing",
        Q_K,
        rope(lambda r: None if r.factors is None else replace(r, factors=1 / r.factors)),
    ),
    Cause("the factors for long windows were used in a short one", Q_K, long_rope),
    Cause("positions were one later", Q_K, positions(lambda p: p + 1)),
    Cause("positions were one earlier", Q_K, positions(lambda p: p - 1)),
    Cause("all positions were 0", Q_K, positions(lambda p: 0 * p)),
    Cause("positions counted from the end", Q_K, positions(lambda p: p[::-1])),
    Cause(
        "RoPE turned all components, not n_rot of them",
        Q_K,
        other_kernel(
            "rope", lambda k: lambda x, p, r: k.rope(x, p, replace(r, n_rot=x.shape[2], factors=None, ramp=None))
        ),
    ),
    Cause(
        "RoPE turned half of the components",
        Q_K,
        rope(lambda r: None if r.n_rot % 4 or r.factors is not None else replace(r, n_rot=r.n_rot // 2, ramp=None)),
    ),
    Cause(
        "the frequencies of RoPE were spread over another width (half of n_rot)",
        Q_K,
        rope(lambda r: replace(r, base=r.base**2)),
    ),
    Cause(
        "RoPE's frequencies used exponent i / n_rot instead of 2 i / n_rot",
        Q_K,
        rope(lambda r: replace(r, base=r.base**0.5)),
    ),
    # norms
    Cause("eps were 10 times as large", NORMS, norm_eps(10)),
    Cause("eps were a tenth", NORMS, norm_eps(0.1)),
    Cause("eps were 100 times as large", NORMS, norm_eps(100)),
    Cause("eps were 1000 times as large", NORMS, norm_eps(1000)),
    Cause("eps were missing", NORMS, norm_eps(0)),
    *(
        Cause(f"eps were {eps:g}", NORMS, hparams(norm_eps=constant(eps)))
        for eps in (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12)
    ),
    Cause("eps were added outside the root", NORMS, norms(eps_outside)),
    Cause(
        "eps were added outside the root (layer norm)",
        NORMS,
        other_kernel(
            "layer_norm",
            lambda k: lambda x, w, b, eps: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps) * w + b,
        ),
    ),
    Cause(
        "a layer norm stood for the RMS norm",
        NORMS,
        norms(lambda k, x, w, eps: k.layer_norm(x, w, np.zeros_like(w), eps)),
    ),
    Cause(
        "an RMS norm stood for the layer norm",
        NORMS,
        other_kernel("layer_norm", lambda k: lambda x, w, b, eps: k.rms_norm(x, w, eps) + b),
    ),
    Cause(
        "the bias of the layer norm were missing",
        NORMS,
        other_kernel("layer_norm", lambda k: lambda x, w, b, eps: k.layer_norm(x, w, 0 * b, eps)),
    ),
    Cause(
        "the weight of the norm were missing", NORMS, norms(lambda k, x, w, eps: k.rms_norm(x, np.ones_like(w), eps))
    ),
    Cause("1 were added to the weight of the norm", NORMS, norms(lambda k, x, w, eps: k.rms_norm(x, w + 1, eps))),
    Cause(
        "1 were subtracted from the weight of the norm", NORMS, norms(lambda k, x, w, eps: k.rms_norm(x, w - 1, eps))
    ),
    Cause(
        "the norm divided by the root of the sum, not of the mean",
        NORMS,
        norms(lambda k, x, w, eps: k.rms_norm(x, w, eps) / x.shape[-1] ** 0.5),
    ),
    Cause(
        "the norm divided by the mean square, without root",
        NORMS,
        norms(lambda k, x, w, eps: x / (np.mean(x * x, -1, keepdims=True) + eps) * w),
    ),
    Cause("the norm were missing", NORMS, norms(lambda k, x, w, eps: x)),
    Cause("the layer norm were missing", NORMS, other_kernel("layer_norm", lambda k: lambda x, w, b, eps: x)),
    Cause(
        "the norm of feed-forward had attention's weight",
        frozenset({"ffn_norm"}),
        block(ffn_norm=lambda blk: blk.attn_norm),
    ),
    Cause(
        "the norm of attention had feed-forward's weight",
        frozenset({"attn_norm"}),
        block(attn_norm=lambda blk: blk.ffn_norm),
    ),
    Cause("the norm after attention were missing", SUMS | {"attn_post_norm"}, missing("post_attention_norm")),
    Cause("the norm after feed-forward were missing", SUMS | {"ffn_post_norm"}, missing("post_ffw_norm")),
    Cause("the norms of q and k were missing", HEAD_NORMS, missing("attn_q_norm", "attn_k_norm")),
    Cause(
        "the norms of q and k were exchanged",
        HEAD_NORMS,
        block(attn_q_norm=lambda blk: blk.attn_k_norm, attn_k_norm=lambda blk: blk.attn_q_norm),
    ),
    Cause("the norm of q and k went over the whole row, not over each head", HEAD_NORMS, norms(_row_norm)),
    # attention
    Cause(
        "scores were divided by n_head_dim, not by its root", SCORES, attention(lambda a, d: replace(a, scale=1 / d))
    ),
    Cause("scores were not scaled", SCORES, attention(lambda a, d: replace(a, scale=1.0))),
    Cause(
        "scores were scaled by 1 / sqrt(n_head_dim)",
        SCORES,
        attention(lambda a, d: None if abs(a.scale - d**-0.5) < 1e-9 else replace(a, scale=d**-0.5)),
    ),
    Cause("scores were scaled twice", SCORES, attention(lambda a, d: replace(a, scale=a.scale**2))),
    Cause(
        "scores were scaled by 1 / sqrt(n_embd)",
        SCORES,
        lambda s: attention(lambda a, d: replace(a, scale=s.model.hparams.n_embd**-0.5))(s),
    ),
    Cause(
        "the causal mask were missing", SOFTMAX, attention(lambda a, d: replace(a, causal=False) if a.causal else None)
    ),
    Cause(
        "an encoder had a causal mask", SOFTMAX, attention(lambda a, d: None if a.causal else replace(a, causal=True))
    ),
    Cause("a query did not see itself", SOFTMAX, masked(lambda i, j: j < i)),
    Cause("a query saw one key too many", SOFTMAX, masked(lambda i, j: j <= i + 1)),
    Cause("the mask hid earlier keys, not later ones", SOFTMAX, masked(lambda i, j: j >= i)),
    Cause("the first key were hidden", SOFTMAX, masked(lambda i, j: (j <= i) & ((j > 0) | (i == 0)))),
    Cause("the window were ignored", SOFTMAX, attention(lambda a, d: replace(a, window=0) if a.window else None)),
    Cause(
        "the window were one longer",
        SOFTMAX,
        attention(lambda a, d: replace(a, window=a.window + 1) if a.window else None),
    ),
    Cause(
        "the window were one shorter",
        SOFTMAX,
        attention(lambda a, d: replace(a, window=a.window - 1) if a.window > 1 else None),
    ),
    *(
        Cause(
            f"there were a window of {n}",
            SOFTMAX,
            window_of(n),
        )
        for n in (2, 3, 4, 5, 6, 8, 16)
    ),
    Cause(
        "the soft-cap of scores were missing",
        SOFTMAX,
        attention(lambda a, d: replace(a, softcap=0.0) if a.softcap else None),
    ),
    *(
        Cause(
            f"scores had a soft-cap of {n}",
            SOFTMAX,
            softcap_of(n),
        )
        for n in (50, 30, 20, 10)
    ),
    Cause("query head h read key head h % n_head_kv", SCORES, attend_by(heads_modulo)),
    Cause("all query heads read key head 0", SCORES, attend_by(first_key_head)),
    Cause("the softmax went over queries, not keys", SOFTMAX, special_softmax(_over_queries)),
    Cause("the softmax had one more key with score 0 (a sink)", SOFTMAX, special_softmax(_sink)),
    Cause(
        "the softmax were missing its sum",
        SOFTMAX,
        special_softmax(lambda s: np.exp(s - np.max(s, axis=-1, keepdims=True))),
    ),
    Cause("the softmax were in base 2", SOFTMAX, special_softmax(lambda s: _softmax(s * np.log(2)))),
    Cause(
        "the components of heads were woven when they were merged",
        frozenset({"kqv_out"}),
        lambda s: other_values(
            kqv_out=lambda x, before: x.reshape(len(x), s.model.hparams.n_head, -1).swapaxes(1, 2).reshape(x.shape)
        )(s),
    ),
    Cause(
        "keys were read as values",
        frozenset({"kqv_out"}),
        attend_by(lambda q, k, v, first, rule, tap: attention_numpy(q, k, k, first, rule, tap)),
    ),
    Cause(
        "the slopes of ALiBi were missing",
        SOFTMAX,
        attention(lambda a, d: None if a.slopes is None else replace(a, slopes=None)),
    ),
    # feed-forward
    Cause("gate and up were exchanged", ACTIVATED, activation(lambda k, gate, up: k.silu_mul(up, gate))),
    Cause("gate and up were exchanged (GELU)", ACTIVATED, activation(lambda k, gate, up: k.gelu_mul(up, gate))),
    Cause("the activation function were GELU", ACTIVATED, activation(lambda k, gate, up: k.gelu_mul(gate, up))),
    Cause("the activation function were SiLU", ACTIVATED, activation(lambda k, gate, up: k.silu_mul(gate, up))),
    Cause("the activation function were ReLU", ACTIVATED, activation(lambda k, gate, up: np.maximum(gate, 0) * up)),
    Cause("the activation function were the exact GELU", ACTIVATED, gelu(lambda k, x: k.gelu_erf(x))),
    Cause("the activation function were the quick GELU", ACTIVATED, gelu(lambda k, x: k.quick_gelu(x))),
    Cause("the activation function were ReLU, without gate", ACTIVATED, gelu(lambda k, x: np.maximum(x, 0))),
    Cause("the activation function were SiLU, without gate", ACTIVATED, gelu(lambda k, x: x / (1 + np.exp(-x)))),
    Cause(
        "the activation function were a sigmoid", ACTIVATED, activation(lambda k, gate, up: up / (1 + np.exp(-gate)))
    ),
    Cause("the activation function were missing", ACTIVATED, activation(lambda k, gate, up: gate * up)),
    Cause("up were missing", ACTIVATED, activation(lambda k, gate, up: k.silu_mul(gate, np.ones_like(up)))),
    Cause("the inputs of the activation function were clamped to 7", ACTIVATED, activation(_clamped)),
    Cause(
        "the matrices of gate and up were exchanged",
        frozenset({"ffn_gate", "ffn_up", "ffn_swiglu", "ffn_geglu"}),
        block(ffn_gate=lambda blk: blk.ffn_up, ffn_up=lambda blk: blk.ffn_gate),
    ),
    Cause(
        "the matrices of gate and up of experts were exchanged",
        frozenset({"ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu"}),
        block(ffn_gate_exps=lambda blk: blk.ffn_up_exps, ffn_up_exps=lambda blk: blk.ffn_gate_exps),
    ),
    # sums
    Cause("the residual were missing from the sum", SUMS, sums(lambda before, norm: 0)),
    Cause("the residual were the normed input", SUMS, sums(lambda before, norm: before[norm])),
    Cause("the residual of feed-forward were the layer's input", SUMS, sums(lambda before, norm: before[LAYER_INPUT])),
    Cause(
        "the residual were added twice",
        SUMS,
        other_values(
            ffn_inp=lambda x, before: x + before[LAYER_INPUT],
            sa_out=lambda x, before: x + before[LAYER_INPUT],
            l_out=lambda x, before: x + before["ffn_inp" if "ffn_inp" in before else "sa_out"],
        ),
    ),
    Cause("the residual scale were missing", SUMS, hparams(residual_scale=lambda hp: 1.0)),
    Cause("the residual scale were squared", SUMS, hparams(residual_scale=lambda hp: hp.residual_scale**2)),
    # experts
    Cause("one expert less were used", MIXTURE | {"ffn_moe_out"}, top_only),
    Cause(
        "the weights of chosen experts were not normalized to sum 1",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weights_norm=lambda x, before: before["ffn_moe_weights"]),
    ),
    Cause(
        "chosen experts had equal weights",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weights_norm=lambda x, before: np.full_like(x, 1 / x.shape[1])),
    ),
    Cause(
        "experts were not weighted",
        MIXTURE | {"ffn_moe_out"},
        other_values(ffn_moe_weighted=lambda x, before: before["ffn_moe_down"].reshape(x.shape)),
    ),
    Cause(
        "the router's probabilities were sigmoids",
        MIXTURE,
        other_kernel("softmax", lambda k: lambda x: 1 / (1 + np.exp(-x))),
    ),
    Cause("the router's probabilities were its logits", MIXTURE, other_kernel("softmax", lambda k: lambda x: x)),
    # embeddings and logits
    Cause("the scale of embeddings were missing", INPUT | {"inp_scaled"}, hparams(embed_scale=lambda hp: 1.0)),
    Cause("embeddings were scaled by sqrt(n_embd)", INPUT, hparams(embed_scale=lambda hp: hp.n_embd**0.5)),
    Cause("the scale of embeddings were squared", INPUT, hparams(embed_scale=lambda hp: hp.embed_scale**2)),
    Cause(
        "the scale of embeddings were rounded to bfloat16",
        INPUT,
        hparams(embed_scale=lambda hp: float(bf16(np.array([hp.embed_scale], np.float32))[0])),
        arithmetic=True,
    ),
    Cause("embeddings of positions were missing", INPUT, no_learned_positions),
    Cause("embeddings of token types were missing", INPUT, no_token_types),
    Cause("the output matrix were the embedding", LOGITS, tied),
    Cause("the soft-cap of logits were missing", LOGITS, hparams(logit_softcap=lambda hp: 0.0)),
    Cause("logits had a soft-cap of 30", LOGITS, hparams(logit_softcap=lambda hp: 30.0)),
    Cause("the scale of logits were missing", LOGITS, hparams(logit_scale=lambda hp: 1.0)),
    Cause(
        "logits were multiplied by their scale, not divided", LOGITS, hparams(logit_scale=lambda hp: 1 / hp.logit_scale)
    ),
    Cause("the final norm were missing", LOGITS | {"result_norm"}, norms(lambda k, x, w, eps: x)),
    # biases
    Cause(
        "the biases of q, k and v were missing",
        PROJECTED | {"Vcur"},
        missing("attn_q_bias", "attn_k_bias", "attn_v_bias"),
    ),
    Cause("the bias of attn_output were missing", frozenset({"attn_out"}), missing("attn_output_bias")),
    Cause(
        "the biases of feed-forward were missing",
        frozenset({"ffn_gate", "ffn_up", "ffn_out"}),
        missing("ffn_gate_bias", "ffn_up_bias", "ffn_down_bias"),
    ),
    # matrices
    Cause("the rows of each head were in Hugging Face's order", PROJECTED, head_rows(_to_halves)),
    Cause("the rows of each head were permuted once too often", PROJECTED, head_rows(_to_neighbours)),
    Cause("the rows of the matrix were reversed", PRODUCTS, weights(lambda w, rows: rows[::-1])),
    Cause("the columns of the matrix were reversed", PRODUCTS, weights(lambda w, rows: rows[:, ::-1])),
    Cause("the matrix were transposed", PRODUCTS, weights(_transposed)),
    Cause("query heads were ordered by their place in a group", PRODUCTS, _heads_exchanged),
    Cause(
        "the matrices of k and v were exchanged",
        PROJECTED | {"Vcur"},
        block(attn_k=lambda blk: blk.attn_v, attn_v=lambda blk: blk.attn_k),
    ),
    # formats
    *(Cause(mistake.sentence, PRODUCTS | INPUT, mistaken_format(mistake)) for mistake in FORMAT_MISTAKES),
    # arithmetics
    Cause("the weights of norms were rounded to bfloat16", NORMS, rounded_norms(bf16), arithmetic=True),
    Cause("the weights of norms were rounded to float16", NORMS, rounded_norms(f16), arithmetic=True),
    Cause(
        "the weights of matrices were rounded to bfloat16",
        PRODUCTS | INPUT,
        weights(lambda w, x: bf16(x)),
        arithmetic=True,
    ),
    Cause(
        "the weights of matrices were rounded to float16",
        PRODUCTS | INPUT,
        weights(lambda w, x: f16(x)),
        arithmetic=True,
    ),
    Cause("activations were rounded to 8 bits in blocks of 32", PRODUCTS, eight_bit("Q8_0"), arithmetic=True),
    Cause("activations were rounded to 8 bits in blocks of 256", PRODUCTS, eight_bit("Q8_K"), arithmetic=True),
    Cause("the cache were f16", SCORES, cached_as("f16"), arithmetic=True),
    Cause("the cache were q8_0", SCORES, cached_as("q8_0"), arithmetic=True),
    Cause("the cache were q4_0", SCORES, cached_as("q4_0"), arithmetic=True),
    Cause(
        "GELU were read from ggml's table in float16",
        ACTIVATED,
        gelu(lambda k, x: np.where(np.abs(x) > 10, k.gelu(x), f16(k.gelu(f16(np.clip(x, -10, 10)).astype(x.dtype))))),
        arithmetic=True,
    ),
)
