"""Mistakes in RoPE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Rope
from ....kernels.rope import rotate
from ..setting import Setting
from .cause import Q_K, Cause, Change
from .change import bf16, f16, other_kernel


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
