"""Wrong engines of every family: what goes wrong when a new model arrives, written without the table of causes."""

from dataclasses import replace

import numpy as np

from numllama.engine.model.encoder import encoder_attend, encoder_feed_forward
from numllama.kernels import SETS

from .engines import (
    Engine,
    looped,
    plain_rms,
    with_blocks,
    with_hparams,
    with_kernel,
    with_ropes,
    with_rows,
    with_rule,
    with_tap,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def with_expert(change):
    """Multiply rows by another expert's matrix.  change: name of the stack, ids -> ids"""
    return with_kernel(experts=lambda k: lambda w, x, chosen: k.experts(w, x, change(w.name, chosen) % w.shape[0]))


def normed_after_rope(k, m):
    weights = []

    def rms_norm(x, weight, eps):
        if x.ndim == 2:
            return k.rms_norm(x, weight, eps)
        weights.append(weight)
        return x

    def rope(x, positions, rule):
        y = k.rope(x, positions, rule)
        return y / plain_rms(y) * weights.pop(0)

    return replace(k, rms_norm=rms_norm, rope=rope), m


def whole_row_norm(x, weight, eps):
    row = x.reshape(len(x), -1)
    return (row / np.sqrt((row * row).mean(-1, keepdims=True) + np.float32(eps))).reshape(x.shape) * weight


def in_gate_and_up(change):
    """gpt-oss's gated product, in place of the right one."""
    return with_tap(ffn_moe_swiglu_oai=lambda x, seen: change(seen["ffn_moe_gate"], seen["ffn_moe_up"]))


def plain_oai(gate, up, alpha=1.702, limit=7.0, one=1.0):
    gate, up = np.minimum(gate, np.float32(limit)), np.clip(up, -np.float32(limit), np.float32(limit))
    return gate * sigmoid(np.float32(alpha) * gate) * (up + np.float32(one))


def norm_of(x, weight):
    return (x / plain_rms(x) * weight).astype(x.dtype)


def norms_after_sums(k, m):
    """Gemma with norm(x + attn) for x + norm(attn)."""

    def layers(name):
        return [getattr(b, name) for b in m.weights.blk]

    post_attention, post_ffw, at = layers("post_attention_norm"), layers("post_ffw_norm"), [0, 0]

    def after_attention(x, seen):
        at[0] += 1
        before = seen["l_out"] if at[0] > 1 else seen.get("inp_scaled", seen["embd"])
        return norm_of(before + seen["attn_out"], post_attention[at[0] - 1])

    def after_feed_forward(x, seen):
        at[1] += 1
        return norm_of(seen["sa_out"] + seen["ffn_out"], post_ffw[at[1] - 1])

    return with_tap(sa_out=after_attention, l_out=after_feed_forward)(k, m)


def capped_then_scaled(s, rule, h):
    """s is already scaled."""
    return np.arctanh(np.clip(np.tanh(s / rule.scale / rule.softcap) * rule.scale, -1 + 1e-7, 1 - 1e-7)) * rule.softcap


def as_encoder(states):
    """Run the encoder's own pass with other layers.  states: (k, hp, blk, x, attend, feed_forward, tap, il) -> x"""

    def change(k, m):
        def hidden(model, batch, cache, kernels, tap):
            w, hp = model.weights, model.hparams
            x = kernels.rows(w.token_embd, batch.tokens) + (0 if w.token_types is None else w.token_types)
            x = x if w.position_embd is None else x + kernels.rows(w.position_embd, batch.positions)
            x = tap("inp_embd", -1, x.astype(np.float32))
            x = tap("inp_norm", -1, kernels.layer_norm(x, w.token_embd_norm, w.token_embd_norm_bias, hp.norm_eps))
            for il, blk in enumerate(w.blk):
                x = states(
                    lambda x, name, blk=blk: kernels.layer_norm(
                        x, getattr(blk, name), getattr(blk, f"{name}_bias"), hp.norm_eps
                    ),
                    x,
                    lambda x, il=il: encoder_attend(model, il, x, batch, kernels, tap),
                    lambda x, il=il: encoder_feed_forward(model, il, x, kernels, tap),
                    lambda name, x, il=il: tap(name, il, x),
                )
            return tap("result_embd", -1, x[batch.outputs])

        return k, replace(m, family=replace(m.family, hidden=hidden))

    return change


def norms_before(norm, x, attend, feed_forward, tap):
    x = tap("ffn_inp", x + attend(norm(x, "attn_output_norm")))
    return tap("l_out", x + feed_forward(norm(x, "layer_output_norm")))


def normed_alone(norm, x, attend, feed_forward, tap):
    x = tap("ffn_inp", x + norm(attend(x), "attn_output_norm"))
    return tap("l_out", x + norm(feed_forward(x), "layer_output_norm"))


def no_residual(norm, x, attend, feed_forward, tap):
    x = tap("ffn_inp", norm(attend(x), "attn_output_norm"))
    return tap("l_out", norm(feed_forward(x), "layer_output_norm"))


def with_slopes(slopes, distance=np.abs):
    """ALiBi by hand.  slopes: n_head -> slope of each head;  distance: i - j -> what a slope multiplies"""

    def attend(q, k, v, first, rule, tap=lambda name, value: value):
        n = np.arange(len(q))
        kq = tap("kq", np.stack([q[:, h] @ k[:, h].T for h in range(q.shape[1])]))
        far = np.asarray(distance((n[:, None] - n).astype(np.float32)))
        s = kq * np.float32(rule.scale) - np.array(slopes(q.shape[1]), np.float32)[:, None, None] * far
        e = np.exp(s - s.max(-1, keepdims=True))
        p = tap("kq_soft_max", e / e.sum(-1, keepdims=True))
        return np.stack([p[h] @ v[:, h] for h in range(q.shape[1])], 1).reshape(len(q), -1)

    return with_kernel(attention=lambda k: attend)


def right_slopes(n):
    return [2 ** (-2 * (h + 1)) for h in range(4)] + [2 ** (-(2 * h + 1)) for h in range(n - 4)]  # six heads


def interleaved(k, m):
    """Read fused rows of gate and up as taking turns."""

    def pair(b):
        gate, up = b.ffn_gate_exps or b.ffn_gate, b.ffn_up_exps or b.ffn_up
        return gate, up

    pairs = {id(w): (pair(b), i) for b in m.weights.blk for i, w in enumerate(pair(b))}

    def rows(w):
        (gate, up), i = pairs[id(w)]
        return np.concatenate([gate.dequantize(), up.dequantize()], axis=-2)[..., i::2, :]

    return replace(
        k,
        matmul=lambda w, x: x @ rows(w).T if id(w) in pairs else k.matmul(w, x),
        experts=lambda w, x, chosen: (
            np.stack([rows(w)[e] @ row for e, row in zip(chosen, x, strict=True)])
            if id(w) in pairs
            else k.experts(w, x, chosen)
        ),
    ), m


def shifted_layers(k, m):
    blk = (*m.weights.blk[1:], m.weights.blk[0])
    return k, replace(m, weights=replace(m.weights, blk=blk))


def permuted_by_query_heads(w, rows):
    """transformers' order, undone with the number of query heads where keys have fewer."""
    if "attn_k." not in w.name:
        return rows
    x = rows.reshape(2, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)  # the original, of two key heads
    return x.reshape(4, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def complex_pairs(x, positions, rule):
    """Rotate halves by cosines that were repeated for neighbours."""
    angle = np.repeat(np.asarray(positions)[:, None] * rule.freqs, 2, axis=1)[:, None]
    half = rule.n_rot // 2
    other = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return (x * np.cos(angle) + other * np.sin(angle)).astype(x.dtype)


def last_turned(x, positions, rule):
    y, n = x.copy(), rule.n_rot
    z = (x[..., -n::2] + 1j * x[..., -n + 1 :: 2]) * np.exp(1j * np.asarray(positions)[:, None] * rule.freqs)[:, None]
    y[..., -n::2], y[..., -n + 1 :: 2] = z.real, z.imag
    return y


def fused_by_groups(k, m):
    """Read attn_qkv as the rows of each group: its queries, its key, its value."""
    hp = m.hparams
    d, group = hp.n_head_dim, hp.n_head // hp.n_head_kv
    whole = {id(w): (b, i) for b in m.weights.blk for i, w in enumerate((b.attn_q, b.attn_k, b.attn_v))}

    def matmul(w, x):
        if id(w) not in whole:
            return k.matmul(w, x)
        b, i = whole[id(w)]
        rows = np.concatenate([part.dequantize() for part in (b.attn_q, b.attn_k, b.attn_v)])
        taken = []
        for g in range(hp.n_head_kv):
            first = g * (group + 2) * d
            begin, size = [(first, group * d), (first + group * d, d), (first + group * d + d, d)][i]
            taken.append(rows[begin : begin + size])
        return x @ np.concatenate(taken).T

    return replace(k, matmul=matmul), m


def half_norms(x, weight, eps):
    h = x.astype(np.float16)
    return (h / np.sqrt((h * h).mean(-1, keepdims=True, dtype=np.float16) + np.float16(eps))).astype(x.dtype) * weight


def saturating_cache(q, k, v, first, rule, tap=lambda name, value: value):
    k, v = (np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32) for x in (k, v))
    return SETS["numpy-float32"].attention(q, k, v, first, rule, tap)


def by_hand(x, w, b, eps, ddof):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).sum(-1, keepdims=True) / (x.shape[-1] - ddof)
    return (x - mean) / np.sqrt(variance + np.float32(eps)) * w + b


def weighted_inputs(k, m):
    held = {}

    def experts(w, x, chosen):
        return k.experts(w, x if "down" in w.name else x * held["weights"].reshape(-1, 1), chosen)

    def weights(x, seen):
        held["weights"] = x
        return x

    def outputs(x, seen):
        return seen["ffn_moe_down"].reshape(x.shape)

    return with_tap(ffn_moe_weights_norm=weights, ffn_moe_weighted=outputs)(replace(k, experts=experts), m)


def router_without_norm(k, m):
    """Let the router read the sum, not its norm."""
    at = [-1]

    def logits(x, seen):
        at[0] += 1
        return seen["ffn_inp"] @ m.weights.blk[at[0]].ffn_gate_inp.dequantize().T

    return with_tap(ffn_moe_logits=logits)(k, m)


def other_windows(k, m):
    """Give each layer the window of the next."""
    rules = m.hparams.attention
    turned = tuple(replace(a, window=b.window) for a, b in zip(rules, (*rules[1:], rules[0]), strict=True))
    return k, replace(m, hparams=replace(m.hparams, attention=turned))


def one_rope(k, m):
    """Give all layers the RoPE of layer 0."""
    ropes = m.hparams.rope
    return k, replace(m, hparams=replace(m.hparams, rope=(ropes[0],) * len(ropes), rope_long=()))


def later_positions(k, m):
    table = m.weights.position_embd
    return replace(k, rows=lambda w, ids: k.rows(w, (ids + 2) % w.shape[0] if w is table else ids)), m


FAMILY_BUGS = [
    Engine("mistral3 queries without temperature", "mistral3", "kq", with_hparams(attn_temp=lambda hp: 0.0)),
    Engine(
        "mistral3 positions divided by 32",
        "mistral3",
        "Qcur",
        with_ropes(lambda r: replace(r, ramp=None, attn_factor=1.0)),
    ),
    Engine(
        "mistral3 no stretch",
        "mistral3",
        "Qcur",
        with_ropes(lambda r: replace(r, scale=1.0, ramp=None, attn_factor=1.0)),
    ),
    Engine("mistral3 ramp upside down", "mistral3", "Qcur", with_ropes(lambda r: replace(r, ramp=1 - r.ramp))),
    Engine(
        "mistral3 magnitude without its weight",
        "mistral3",
        "Qcur",
        with_ropes(lambda r: replace(r, attn_factor=1 + 0.1 * np.log(32))),
    ),
    Engine("qwen3moe two experts", "qwen3moe", "ffn_moe_out", with_hparams(n_expert_used=lambda hp: 2)),
    Engine(
        "qwen3moe weights not of sum 1",
        "qwen3moe",
        "ffn_moe_weights_norm",
        with_tap(ffn_moe_weights_norm=lambda x, seen: seen["ffn_moe_weights"]),
    ),
    Engine("qwen3moe sigmoid", "qwen3moe", "ffn_moe_probs", with_kernel(softmax=lambda k: sigmoid)),
    Engine(
        "qwen3moe softmax over tokens",
        "qwen3moe",
        "ffn_moe_probs",
        with_kernel(softmax=lambda k: lambda x: np.exp(x) / np.exp(x).sum(0)),
    ),
    Engine(
        "qwen3moe down of the next expert",
        "qwen3moe",
        "ffn_moe_down",
        with_expert(lambda name, e: e + 1 if "down" in name else e),
    ),
    Engine("qwen3moe experts from 1", "qwen3moe", "ffn_moe_gate", with_expert(lambda name, e: e - 1)),
    Engine("qwen3moe norm over the row", "qwen3moe", "Qcur_normed", with_kernel(rms_norm=lambda k: whole_row_norm)),
    Engine("qwen3moe weighted inputs", "qwen3moe", "ffn_moe_gate", weighted_inputs),
    Engine("qwen3moe router without norm", "qwen3moe", "ffn_moe_logits", router_without_norm),
    Engine("gpt-oss without sinks", "gpt-oss", "kq_soft_max", with_rule(lambda r: replace(r, sinks=None))),
    Engine(
        "gpt-oss unbounded", "gpt-oss", "ffn_moe_swiglu_oai", in_gate_and_up(lambda g, u: plain_oai(g, u, limit=1e9))
    ),
    Engine("gpt-oss plain sigmoid", "gpt-oss", "ffn_moe_swiglu_oai", in_gate_and_up(lambda g, u: plain_oai(g, u, 1.0))),
    Engine(
        "gpt-oss up without 1", "gpt-oss", "ffn_moe_swiglu_oai", in_gate_and_up(lambda g, u: plain_oai(g, u, one=0.0))
    ),
    Engine("gpt-oss swiglu", "gpt-oss", "ffn_moe_swiglu_oai", in_gate_and_up(lambda g, u: g * sigmoid(g) * u)),
    Engine(
        "gpt-oss experts without biases",
        "gpt-oss",
        "ffn_moe_gate",
        with_blocks(**{f"ffn_{n}_exps_bias": lambda b: None for n in ("gate", "up", "down")}),
    ),
    Engine("gpt-oss router without bias", "gpt-oss", "ffn_moe_logits", with_blocks(ffn_gate_inp_bias=lambda b: None)),
    Engine("gpt-oss windows of the other layers", "gpt-oss", "kq_soft_max", other_windows),
    Engine("gpt-oss rows in turns", "gpt-oss", "ffn_moe_gate", interleaved),
    Engine("gpt-oss attn_output without bias", "gpt-oss", "attn_out", with_blocks(attn_output_bias=lambda b: None)),
    Engine("gemma2 norms after sums", "gemma2", "sa_out", norms_after_sums),
    Engine("gemma2 cap before scale", "gemma2", "kq_soft_max", looped(score_change=capped_then_scaled)),
    Engine("gemma2 scale by n_embd / n_head", "gemma2", "kq_soft_max", with_rule(lambda r: replace(r, scale=16**-0.5))),
    Engine(
        "gemma2 post norm before feed-forward",
        "gemma2",
        "attn_post_norm",
        with_blocks(post_attention_norm=lambda b: b.ffn_norm, ffn_norm=lambda b: b.post_attention_norm),
    ),
    Engine(
        "gemma2 window to both sides", "gemma2", "kq_soft_max", looped(mask=lambda i, j, seen: abs(i - j) < 8), False
    ),
    Engine("gemma3 one base for all layers", "gemma3", "Qcur", one_rope),
    Engine("gemma3 windows one layer early", "gemma3", "kq_soft_max", other_windows),
    Engine("gemma3 exact gelu", "gemma3", "ffn_geglu", with_kernel(gelu_mul=lambda k: lambda g, u: k.gelu_erf(g) * u)),
    Engine("qwen3 norms after RoPE", "qwen3", "Qcur", normed_after_rope, lacks=("Qcur_normed", "Kcur_normed")),
    Engine("gemma3 embedding scaled twice", "gemma3", "inp_scaled", with_hparams(embed_scale=lambda hp: hp.n_embd)),
    Engine(
        "gemma-embedding causal",
        "gemma-embedding",
        "kq_soft_max",
        with_rule(lambda r: replace(r, causal=True, ahead=0)),
    ),
    Engine("smollm3 turns every layer", "smollm3", "Qcur", one_rope),
    Engine("phi3 rows by groups", "phi3", "Qcur", fused_by_groups),
    Engine("phi3 rows of gate and up in turns", "phi3", "ffn_gate", interleaved),
    Engine("glm4 turns the last components", "glm4", "Qcur", with_kernel(rope=lambda k: last_turned)),
    Engine("granite logits multiplied", "granite", "result_output", with_hparams(logit_scale=lambda hp: 0.5)),
    Engine("granite embedding unscaled", "granite", "attn_norm", with_hparams(embed_scale=lambda hp: 1.0)),
    Engine("nomic-bert neighbours", "nomic-bert", "Qcur", with_ropes(lambda r: replace(r, style="norm"))),
    Engine("nomic-bert base 10000", "nomic-bert", "Qcur", with_ropes(lambda r: replace(r, base=1e4))),
    Engine("nomic-bert gelu", "nomic-bert", "ffn_swiglu", with_kernel(silu_mul=lambda k: k.gelu_mul)),
    Engine(
        "nomic-bert activates up",
        "nomic-bert",
        "ffn_swiglu",
        with_kernel(silu_mul=lambda k: lambda g, u: u * sigmoid(u) * g),
    ),
    Engine("nomic-bert norms before", "nomic-bert", "Qcur", as_encoder(norms_before)),
    Engine("jina norms of parts alone", "jina-bert-v2", "ffn_inp", as_encoder(normed_alone)),
    Engine("nomic-bert no residual", "nomic-bert", "ffn_inp", as_encoder(no_residual)),
    Engine(
        "jina slopes of a power of two",
        "jina-bert-v2",
        "kq_soft_max",
        with_slopes(lambda n: [2 ** (-8 * (h + 1) / n) for h in range(n)]),
    ),
    Engine("jina bias grows", "jina-bert-v2", "kq_soft_max", with_slopes(right_slopes, lambda far: -np.abs(far))),
    Engine("jina signed distance", "jina-bert-v2", "kq_soft_max", with_slopes(right_slopes, lambda far: far)),
    Engine("jina without bias", "jina-bert-v2", "kq_soft_max", with_slopes(lambda n: [0] * n)),
    Engine(
        "jina exact gelu", "jina-bert-v2", "ffn_geglu", with_kernel(gelu_mul=lambda k: lambda g, u: k.gelu_erf(g) * u)
    ),
    Engine("bert positions from 2", "bert", "inp_embd", later_positions),
    Engine(
        "bert variance by n - 1",
        "bert",
        "inp_norm",
        with_kernel(layer_norm=lambda k: lambda x, w, b, eps: by_hand(x, w, b, eps, 1)),
    ),
    Engine(
        "bert without token types",
        "bert",
        "inp_embd",
        lambda k, m: (k, replace(m, weights=replace(m.weights, token_types=None))),
    ),
    Engine("bert scores unscaled", "bert", "kq_soft_max", looped(score_change=lambda s, rule, h: s / rule.scale)),
    Engine(
        "bert without biases of norms",
        "bert",
        "inp_norm",
        with_kernel(layer_norm=lambda k: lambda x, w, b, eps: by_hand(x, w, 0, eps, 0)),
    ),
    Engine("layers one too early", "llama", "attn_norm", shifted_layers),
    Engine("k permuted by query heads", "llama", "Kcur", with_rows(permuted_by_query_heads)),
    Engine(
        "q turned twice", "llama", "Qcur", with_kernel(rope=lambda k: lambda x, p, r: k.rope(x, 2 * np.asarray(p), r))
    ),
    Engine("halves with the angles of neighbours", "qwen2", "Qcur", with_kernel(rope=lambda k: complex_pairs)),
    Engine(
        "heads merged without transposing",
        "llama",
        "kqv_out",
        with_tap(
            kqv_out=lambda x, seen: np.ascontiguousarray(x.reshape(len(x), 4, 16).transpose(1, 0, 2)).reshape(x.shape)
        ),
    ),
    Engine(
        "qwen2 biases twice",
        "qwen2",
        "Qcur",
        with_blocks(attn_q_bias=lambda b: 2 * b.attn_q_bias, attn_k_bias=lambda b: 2 * b.attn_k_bias),
    ),
    Engine(
        "weights of a softmax again",
        "llama",
        "kq_soft_max",
        looped(softmax=lambda s, e: np.exp(e / e.sum()) / np.exp(e / e.sum()).sum()),
    ),
    Engine("norms in float16", "llama", "attn_norm", with_kernel(rms_norm=lambda k: half_norms)),
    Engine(
        "the last layer's norm at the end",
        "llama",
        "result_norm",
        lambda k, m: (k, replace(m, weights=replace(m.weights, output_norm=m.weights.blk[-1].ffn_norm))),
    ),
    Engine("a cache that saturates", "llama-large", "kqv_out", with_kernel(attention=lambda k: saturating_cache)),
]
