"""Mistakes in RoPE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Rope, yarn_ramp, yarn_stretch
from ....kernels.rope import rope_numpy, rotate
from ..setting import Setting
from .cause import Q_K, Cause, Change
from .change import bf16, f16, other_kernel, other_values


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


def decode_positions(change: Callable[[np.ndarray, int], np.ndarray]) -> Change:
    """Change the positions of decode steps, given theirs and the length of the prompt."""

    def changed(s: Setting) -> Setting | None:
        n = s.n_prompt
        return positions(lambda p: np.where(p >= n, change(p, n), p))(s) if n else None

    return changed


def turned_by(angle: Callable[[np.ndarray, Rope], np.ndarray]) -> Change:
    """Rotate by other angles.  angle: positions [n_tok, 1], the rule -> angles [n_tok, n_rot / 2]"""

    def turn(x: Any, positions: Any, rule: Rope) -> Any:
        angles = angle(np.asarray(positions, np.float64)[:, None], rule)
        cos, sin = rule.attn_factor * np.cos(angles), rule.attn_factor * np.sin(angles)
        return rotate(x, cos, sin, rule.pairs)

    return other_kernel("rope", lambda k: turn)


def _other_layers_rope(s: Setting) -> Setting | None:
    """Give the layer the RoPE of layers of the other kind: another base or scale, or any where it has none."""
    hp = s.model.hparams
    if s.whole is None or not hp.rope:
        return None
    own, rules = hp.rope[0], [rule for rule in s.whole.hparams.rope if rule is not None]
    key = own and (own.base, own.scale, own.ramp is None)
    other = next((rule for rule in rules if (rule.base, rule.scale, rule.ramp is None) != key), None)
    return None if other is None else Setting(s.kernels, replace(s.model, hparams=replace(hp, rope=(other,))))


def _yarn(change: Callable[[Rope, int], Rope | None]) -> Change:
    """Change the rule of a model with YaRN, given the original window."""

    def changed(s: Setting) -> Setting | None:
        n = s.model.hparams.n_ctx_orig
        return rope(lambda rule: None if rule.ramp is None else change(rule, n))(s)

    return changed


def _partial(change: Callable[[Any, Any, Rope], np.ndarray]) -> Change:
    """Replace the rotation where it turns a part of each head.  change: x, positions and the rule -> as x"""

    def changed(s: Setting) -> Setting | None:
        if not any(rule is not None and rule.n_rot < s.model.hparams.n_head_dim for rule in s.model.hparams.rope):
            return None
        return other_kernel("rope", lambda k: change)(s)

    return changed


def _last_components(x: Any, positions: Any, rule: Rope) -> np.ndarray:
    """Turn the last n_rot components of a head, not the first."""
    y = x.copy()
    y[..., -rule.n_rot :] = rope_numpy(np.ascontiguousarray(x[..., -rule.n_rot :]), positions, rule)
    return np.asarray(y)


def _pairs_over_head(x: Any, positions: Any, rule: Rope) -> np.ndarray:
    """Pair component i with i + n_head_dim / 2 where the rule pairs it with i + n_rot / 2."""
    n, d = rule.n_rot // 2, x.shape[-1] // 2
    angle = np.asarray(positions, np.float64)[:, None] * rule.freqs
    return np.asarray(rotate(x, np.cos(angle), np.sin(angle), (slice(0, n), slice(d, d + n))))


def _angles_of_components(order: Callable[[int], np.ndarray]) -> Change:
    """Turn each component by an angle of its own: those of a pair differ.  order: n_rot -> the angle's pair [n_rot]"""

    def turn(x: Any, positions: Any, rule: Rope) -> np.ndarray:
        angle = (np.asarray(positions, np.float64)[:, None] * rule.freqs)[:, order(rule.n_rot)]  # [n_tok, n_rot]
        cos, sin = rule.attn_factor * np.cos(angle)[:, None], rule.attn_factor * np.sin(angle)[:, None]
        first, second = rule.pairs
        turned, y = x[..., : rule.n_rot].copy(), x.copy()
        turned[..., first], turned[..., second] = -x[..., second], x[..., first]
        y[..., : rule.n_rot] = x[..., : rule.n_rot] * cos + turned * sin
        return np.asarray(y)

    return other_kernel("rope", lambda k: turn)


def _norm_after(s: Setting) -> Setting | None:
    """Norm queries and keys after their rotation, not before it."""
    blk = s.model.weights.blk[0] if s.model.weights.blk else None
    if blk is None or getattr(blk, "attn_q_norm", None) is None or not s.model.family.causal:
        return None
    k, weights = s.kernels, list[Any]()

    def rms_norm(x: Any, weight: Any, eps: float) -> Any:
        if x.ndim != 3:
            return k.rms_norm(x, weight, eps)
        weights.append(weight)
        return x

    def turn(x: Any, positions: Any, rule: Rope) -> Any:
        return k.rms_norm(k.rope(x, positions, rule), weights.pop(0), s.model.hparams.norm_eps)

    return Setting(replace(k, rms_norm=rms_norm, rope=turn), s.model)


def _rotated_values(s: Setting) -> Setting | None:
    rule = s.model.hparams.rope[0] if s.model.hparams.rope else None
    if rule is None:
        return None
    return other_values(Vcur=lambda x, before: s.kernels.rope(x, np.arange(len(x)), rule))(s)


ROPE: tuple[Cause, ...] = (
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
    Cause("RoPE were that of the other layers", Q_K, _other_layers_rope),
    Cause("the scaling of RoPE were ignored", Q_K, rope(lambda r: _only(r, scale=1.0, ramp=None, attn_factor=1.0))),
    Cause("the scale of RoPE were applied upside down", Q_K, rope(lambda r: _only(r, scale=1 / r.scale))),
    Cause("the scale of RoPE were applied twice", Q_K, rope(lambda r: _only(r, scale=r.scale**2))),
    Cause("YaRN scaled all frequencies alike", Q_K, rope(lambda r: _only(r, ramp=None))),
    Cause("linear scaling stood for YaRN", Q_K, _yarn(lambda r, n: replace(r, ramp=None, attn_factor=1.0))),
    Cause(
        "YaRN scaled high frequencies, not low ones", Q_K, _yarn(lambda r, n: replace(r, ramp=1 - np.asarray(r.ramp)))
    ),
    Cause(
        "YaRN had beta_fast 32 and beta_slow 1",
        Q_K,
        _yarn(lambda r, n: _only(r, ramp=yarn_ramp(r.n_rot, r.base, n, 32.0, 1.0))),
    ),
    Cause(
        "the magnitude factor of YaRN were 0.1 ln(factor) + 1",
        Q_K,
        _yarn(lambda r, n: _only(r, attn_factor=yarn_stretch(1 / r.scale))),
    ),
    Cause("the magnitude factor of RoPE were squared", Q_K, rope(lambda r: _only(r, attn_factor=r.attn_factor**2))),
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
    Cause("decode steps counted positions from 0", Q_K, decode_positions(lambda p, n: p - n)),
    Cause("positions of decode steps were one later", Q_K, decode_positions(lambda p, n: p + 1)),
    Cause("positions of decode steps were one earlier", Q_K, decode_positions(lambda p, n: p - 1)),
    Cause("all decode steps had the prompt's last position", Q_K, decode_positions(lambda p, n: 0 * p + n - 1)),
    Cause("all decode steps had the first one's position", Q_K, decode_positions(lambda p, n: 0 * p + n)),
    Cause("sine and cosine of RoPE were exchanged", Q_K, turned_by(lambda p, r: np.pi / 2 - p * r.freqs)),
    Cause("the frequencies of RoPE were rounded to bfloat16", Q_K, turned_by(lambda p, r: p * bf16(r.freqs))),
    Cause("the frequencies of RoPE were rounded to float16", Q_K, turned_by(lambda p, r: p * f16(r.freqs))),
    Cause("the angles of RoPE were rounded to float16", Q_K, turned_by(lambda p, r: f16(p * f16(r.freqs)))),
    Cause("the angles of RoPE were rounded to bfloat16", Q_K, turned_by(lambda p, r: bf16(p * bf16(r.freqs)))),
    Cause("positions counted from the end", Q_K, positions(lambda p: p[::-1])),
    Cause(
        "RoPE turned all components, not n_rot of them",
        Q_K,
        other_kernel(
            "rope", lambda k: lambda x, p, r: k.rope(x, p, replace(r, n_rot=x.shape[2], factors=None, ramp=None))
        ),
    ),
    Cause("RoPE turned the last n_rot components, not the first", Q_K, _partial(_last_components)),
    Cause("RoPE paired component i with i + n_head_dim / 2, not i + n_rot / 2", Q_K, _partial(_pairs_over_head)),
    Cause(
        "the frequencies of RoPE were spread over n_head_dim, not n_rot",
        Q_K,
        _partial(
            lambda x, p, r: rope_numpy(
                x, p, replace(r, base=r.base ** (r.n_rot / x.shape[-1]), factors=None, ramp=None)
            )
        ),
    ),
    Cause(
        "RoPE turned the two halves by the angles of neighbours",
        Q_K,
        _angles_of_components(lambda n: np.arange(n) // 2),
    ),
    Cause(
        "RoPE turned neighbours by the angles of the two halves",
        Q_K,
        _angles_of_components(lambda n: np.arange(n) % (n // 2)),
    ),
    Cause(
        "RoPE were applied twice", Q_K, other_kernel("rope", lambda k: lambda x, p, r: k.rope(k.rope(x, p, r), p, r))
    ),
    Cause("the norms of q and k came after RoPE", Q_K, _norm_after),
    Cause("values were rotated, too", frozenset({"Vcur"}), _rotated_values),
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
)
