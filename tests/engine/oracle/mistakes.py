"""Wrong engines of the backend: what goes wrong in caches, heads, rotations, formats and experts."""

from dataclasses import dataclass, replace

import numpy as np

from .backend import changed, choose, f32, rope


@dataclass(frozen=True, eq=False)
class Mistake:
    """first: the value that shows it first; n_decode: the last tokens come one by one after the prompt."""

    name: str
    model: str
    first: str
    steps: object
    n_decode: int = 0
    explained: bool = True


def late(cache, i, k, v):
    cache["k"][max(i - 1, 0)], cache["v"][max(i - 1, 0)] = k, v


def stale_values(cache, i, k, v):
    cache["k"][i] = k
    cache["v"][i] = v if i < 15 else cache["v"][i - 1]


def overwritten(cache, i, k, v):
    cache["k"][i], cache["v"][i] = k, v
    if i >= 15:
        cache["k"][0], cache["v"][0] = k, v


def only_new_key(i, n, rule):
    return np.arange(n) if i < 15 else np.array([i])


def without_newest(i, n, rule):
    return np.arange(n) if i < 15 else np.arange(n - 1)


def half_angles(x, position, rule):
    angle = (f32(position) * rule.freqs.astype(np.float16).astype(f32)).astype(np.float16).astype(np.float64)
    return turned(x, angle, rule)


def bf16_frequencies(x, position, rule):
    freqs = (np.ascontiguousarray(rule.freqs, f32).view(np.uint32) + 0x8000 & 0xFFFF0000).view(f32)
    return turned(x, position * freqs.astype(np.float64), rule)


def sin_for_cos(x, position, rule):
    return turned(x, np.pi / 2 - position * rule.freqs, rule)


def turned(x, angle, rule):
    y, (a, b) = x.copy(), (x[:, rule.pairs[0]], x[:, rule.pairs[1]])
    cos, sin = np.cos(angle).astype(f32), np.sin(angle).astype(f32)
    y[:, rule.pairs[0]], y[:, rule.pairs[1]] = a * cos - b * sin, a * sin + b * cos
    return y


def masked_after_softmax(kq, visible, rule):
    s = kq * f32(rule.scale)
    e = np.exp(s - s.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    p[:, np.setdiff1d(np.arange(kq.shape[1]), visible)] = 0
    return p


def values_modulo(p, values, group):
    return np.concatenate([p[h] @ values[:, h % values.shape[1]] for h in range(len(p))])


def half_norm(x, weight, eps):
    h = x.astype(np.float16)
    return (h / np.sqrt((h * h).mean(-1, keepdims=True, dtype=np.float16) + np.float16(eps))).astype(f32) * weight


def scaled_query(q, k):
    return q * f32(q.shape[1] ** -0.5), k


def smallest_experts(logits, n):
    p, _, _, _ = choose(logits, n)
    chosen = np.argsort(p, kind="stable")[:n].astype(np.int32)
    return p, chosen, p[chosen], p[chosen] / p[chosen].sum()


def weights_in_another_order(logits, n):
    p, chosen, weights, normed = choose(logits, n)
    return p, chosen, weights, normed[::-1]


def not_renormalized(logits, n):
    p, chosen, weights, _ = choose(logits, n)
    return p, chosen, weights, weights


def softmax_of_probabilities(logits, n):
    p, chosen, weights, _ = choose(logits, n)
    e = np.exp(weights - weights.max())
    return p, chosen, weights, e / e.sum()


def with_blocks(format, **fields):
    """Dequantize blocks of a format after changes of their fields."""

    def weight(w):
        if w.format.name != format:
            return w.dequantize()
        blocks = w.blocks.copy()
        for name, change in fields.items():
            blocks[name] = change(blocks[name])
        return replace(w, blocks=blocks, _forms={}).dequantize()

    return changed(weight=weight)


MISTAKES = [
    Mistake("keys and values one slot early", "llama", "kqv_out", changed(store=late)),
    Mistake("values of the step before, while decoding", "llama", "kqv_out", changed(store=stale_values), 5),
    Mistake("decode steps overwrite slot 0", "llama", "kqv_out", changed(store=overwritten), 5),
    Mistake("decode steps see the newest key only", "llama", "kqv_out", changed(seen=only_new_key), 5),
    Mistake("decode steps do not see themselves", "llama", "kqv_out", changed(seen=without_newest), 5),
    Mistake(
        "positions restart while decoding",
        "llama",
        "Qcur",
        changed(position=lambda i, n: i if i < n else i - n),
        5,
    ),
    Mistake(
        "positions one later while decoding", "llama", "Qcur", changed(position=lambda i, n: i if i < n else i + 1), 5
    ),
    Mistake(
        "position of the prompt's end while decoding", "llama", "Qcur", changed(position=lambda i, n: min(i, n - 1)), 5
    ),
    Mistake("angles in float16", "llama", "Qcur", changed(rope=half_angles)),
    Mistake("frequencies in bfloat16", "llama", "Qcur", changed(rope=bf16_frequencies)),
    Mistake("sine and cosine exchanged", "llama", "Qcur", changed(rope=sin_for_cos)),
    Mistake("only queries rotated", "llama", "Kcur", changed(rope_k=lambda x, position, rule: x)),
    Mistake("only keys rotated", "llama", "Qcur", changed(rope=lambda x, position, rule: x, rope_k=rope)),
    Mistake(
        "mask after the softmax, over empty slots too",
        "llama",
        "kqv_out",
        changed(weigh=masked_after_softmax),
        explained=False,
    ),
    Mistake("values of head h % n_head_kv", "llama", "kqv_out", changed(mix=values_modulo)),
    Mistake("norms in float16", "llama", "attn_norm", changed(rms_norm=half_norm)),
    Mistake("query scaled, and scores too", "llama", "kqv_out", changed(qk=scaled_query)),
    Mistake("parallel feed-forward", "llama", "ffn_norm", changed(ffn_input=lambda x, attn_norm, ffn_inp: attn_norm)),
    Mistake(
        "no norm before feed-forward", "llama", "ffn_norm", changed(ffn_input=lambda x, attn_norm, ffn_inp: ffn_inp)
    ),
    Mistake(
        "the last layer's norm at the end",
        "llama",
        "result_norm",
        changed(final=lambda h, m: m.weights.blk[-1].ffn_norm),
    ),
    Mistake("token ids one higher", "llama", "embd", changed(token=lambda id: id + 1)),
    Mistake("the least probable experts", "mixtral", "ffn_moe_topk", changed(choose=smallest_experts)),
    Mistake("experts' weights in another order", "mixtral", "ffn_moe_out", changed(choose=weights_in_another_order)),
    Mistake("experts' weights not of sum 1", "mixtral", "ffn_moe_out", changed(choose=not_renormalized)),
    Mistake("softmax of the chosen probabilities", "mixtral", "ffn_moe_out", changed(choose=softmax_of_probabilities)),
    Mistake(
        "Q6_K scales of the next group", "llama:Q6_K", "embd", with_blocks("Q6_K", scales=lambda s: np.roll(s, -1, -1))
    ),
    Mistake("Q4_K without minima", "llama:Q4_K", "embd", with_blocks("Q4_K", dmin=lambda m: 0 * m)),
    Mistake("Q5_K high bits lost", "llama:Q5_K", "embd", with_blocks("Q5_K", qh=lambda q: 0 * q)),
    Mistake("Q4_0 scale twice as large", "llama:Q4_0", "embd", with_blocks("Q4_0", d=lambda d: 2 * d)),
    Mistake("Q3_K third bit inverted", "llama:Q3_K", "embd", with_blocks("Q3_K", hmask=lambda h: ~h)),
    Mistake(
        "MXFP4 exponent one higher", "llama:MXFP4", "embd", with_blocks("MXFP4", e=lambda e: np.minimum(e, 253) + 1)
    ),
]
