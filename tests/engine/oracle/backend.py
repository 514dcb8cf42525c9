"""A backend of its own: plain float32 NumPy, token by token through a cache of keys and values, with bugs to put in.

It takes weights and sizes from a model, and no kernel.  Each step is a function in `Steps`, which a bug replaces.
"""

from dataclasses import dataclass, replace

import numpy as np

f32 = np.float32


def rms_norm(x, weight, eps):
    return (x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps)).astype(f32) * weight


def rope(x, position, rule):
    """x [n_head, d]"""
    angle = position * rule.freqs
    cos, sin = (np.cos(angle) * rule.attn_factor).astype(f32), (np.sin(angle) * rule.attn_factor).astype(f32)
    y, (a, b) = x.copy(), (x[:, rule.pairs[0]], x[:, rule.pairs[1]])
    y[:, rule.pairs[0]], y[:, rule.pairs[1]] = a * cos - b * sin, a * sin + b * cos
    return y


def store(cache, i, k, v):
    cache["k"][i], cache["v"][i] = k, v


def seen(i, n, rule):
    first, end = rule.seen(i, n)
    return np.arange(first, end)


def scores(q, keys, group, rule):
    """-> [n_head, n_pos], before the scale"""
    return np.stack([keys[:, h // group] @ q[h] for h in range(len(q))])


def weigh(kq, visible, rule):
    s = kq * f32(rule.scale)
    s = rule.softcap * np.tanh(s / rule.softcap) if rule.softcap else s
    p = np.zeros_like(kq)
    e = np.exp(s[:, visible] - s[:, visible].max(-1, keepdims=True))
    p[:, visible] = e / e.sum(-1, keepdims=True)
    return p


def mix(p, values, group):
    return np.concatenate([p[h] @ values[:, h // group] for h in range(len(p))])


def activate(gate, up):
    return gate / (1 + np.exp(-gate)) * up


def choose(logits, n):
    """-> chosen, their probabilities, the weights that sum to 1"""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    chosen = np.argsort(-p, kind="stable")[:n].astype(np.int32)
    return p, chosen, p[chosen], p[chosen] / p[chosen].sum()


@dataclass(frozen=True)
class Steps:
    """The steps of the backend."""

    rms_norm: object = rms_norm
    rope: object = rope
    rope_k: object = None
    position: object = lambda i, n_prompt: i
    store: object = store
    seen: object = seen
    scores: object = scores
    weigh: object = weigh
    mix: object = mix
    activate: object = activate
    choose: object = choose
    weight: object = lambda w: w.dequantize()
    token: object = lambda id: id
    ffn_input: object = lambda x, attn_norm, ffn_inp: x
    final: object = lambda h, model: model.weights.output_norm
    qk: object = lambda q, k: (q, k)


def run(model, ids, steps=None, n_decode=0):
    """Compute all tokens, one by one, the last as decode steps.  -> {label: array}"""
    s = steps or Steps()
    hp, w = model.hparams, model.weights
    matrices = {}

    def times(tensor, x, bias=None):
        if id(tensor) not in matrices:
            matrices[id(tensor)] = s.weight(tensor).astype(f32)
        y = matrices[id(tensor)] @ x
        return y if bias is None else y + bias

    n, n_prompt, rows = len(ids), len(ids) - n_decode, {}
    empty = np.zeros((n, hp.n_head_kv, hp.n_head_dim), f32)
    caches = [{"k": empty.copy(), "v": empty.copy()} for _ in w.blk]
    group = hp.n_head // hp.n_head_kv
    table = s.weight(w.token_embd).astype(f32)

    def keep(name, il, x):
        rows.setdefault(f"{name}-{il}" if il >= 0 else name, []).append(x)
        return x

    for i, id_ in enumerate(ids):
        x = keep("embd", -1, table[s.token(id_) % len(table)])
        for il, (b, cache) in enumerate(zip(w.blk, caches, strict=True)):
            rule, turn, before = hp.attention[il], hp.rope[il], x
            h = keep("attn_norm", il, s.rms_norm(x, b.attn_norm, hp.norm_eps))
            q = times(b.attn_q, h, b.attn_q_bias).reshape(hp.n_head, -1)
            k = times(b.attn_k, h, b.attn_k_bias).reshape(hp.n_head_kv, -1)
            v = keep("Vcur", il, times(b.attn_v, h, b.attn_v_bias).reshape(hp.n_head_kv, -1))
            if b.attn_q_norm is not None:
                q, k = s.rms_norm(q, b.attn_q_norm, hp.norm_eps), s.rms_norm(k, b.attn_k_norm, hp.norm_eps)
                q, k = keep("Qcur_normed", il, q), keep("Kcur_normed", il, k)
            p = s.position(i, n_prompt)
            q, k = s.qk(s.rope(q, p, turn), (s.rope_k or s.rope)(k, p, turn))
            q, k = keep("Qcur", il, q), keep("Kcur", il, k)
            s.store(cache, i, k, v)
            kq = s.scores(q, cache["k"], group, rule)
            probs = s.weigh(kq, s.seen(i, i + 1, rule), rule)
            attended = keep("kqv_out", il, s.mix(probs, cache["v"], group))
            x = keep("ffn_inp", il, before + keep("attn_out", il, times(b.attn_output, attended)))
            h = keep("ffn_norm", il, s.ffn_input(s.rms_norm(x, b.ffn_norm, hp.norm_eps), h, x))
            if b.ffn_gate_inp is None:
                gate, up = keep("ffn_gate", il, times(b.ffn_gate, h)), keep("ffn_up", il, times(b.ffn_up, h))
                y = keep("ffn_out", il, times(b.ffn_down, keep("ffn_swiglu", il, s.activate(gate, up))))
            else:
                logits = keep("ffn_moe_logits", il, times(b.ffn_gate_inp, h))
                probs, chosen, weights, normed = s.choose(logits, hp.n_expert_used)
                keep("ffn_moe_probs", il, probs)
                keep("ffn_moe_topk", il, chosen)
                keep("ffn_moe_weights", il, weights)
                parts = []
                for e in chosen:
                    gate, up = (t.matrices[e].dequantize() @ h for t in (b.ffn_gate_exps, b.ffn_up_exps))
                    parts.append(b.ffn_down_exps.matrices[e].dequantize() @ s.activate(gate, up))
                y = keep("ffn_moe_out", il, normed.astype(f32) @ np.stack(parts))
            x = keep("l_out", il, x + y)
        x = keep("result_norm", -1, s.rms_norm(x, s.final(x, model), hp.norm_eps))
        keep("result_output", -1, times(w.output, x))
    return {label: np.stack(part) for label, part in rows.items()}


def changed(**steps):
    return replace(Steps(), **steps)
