"""A decoder's layers in one call, for one token each of some sequences: what decoding would else spend in Python.

    layers_numba(layers, x, places)     each of them:  x += attend(norm(x));  x += feed_forward(norm(x))

engine/model/decoder.py says what is computed; here it is said again for machine code, by the same kernels in the same
order, so that the results are the same to the bit (tests/engine/test_whole.py).  They are called by their addresses:
this page compiles in a fraction of a second, whatever formats the weights have.

A model of 260 thousand weights spends five sixths of a token's time between kernels, one of a billion a ninth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numba import from_dtype, typeof, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from . import packed
from .activation import GELU, SILU, activate_gate
from .attention import Attention, RuleRecord, attend_rows, slopes_of
from .jit import Entry, inner, kernel
from .kv import KINDS, VECTOR, Rows, strided, write_rows
from .norm import norm_rows
from .packed.tiles import LANES
from .rope import Rope, cos_and_sin_table, turn_tokens
from .tensor import Tensor
from .threads import ALONE, WORTH, run

ACTS = {"silu": SILU, "gelu": GELU}
MATRICES = "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
NORMS = "attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"


def record_fields(*names: str, kind: Any = np.int64) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


# What machine code knows of a layer.  Arrays are here as addresses, 0 for one that the file has not.
MATRIX = np.dtype(
    record_fields("matmul", "codes", "n_code", "scales", "n_scale", "n_block", "n_row", "n_out", "work", "bias")
)
LAYER = np.dtype(
    [
        *record_fields(*MATRICES, kind=MATRIX),
        *record_fields(*NORMS),
        *record_fields("n_embd", "n_head", "n_head_kv", "n_head_dim", "act", "window", "slopes"),
        *record_fields(
            "n_slot", "n_ctx", "k", "v", "slot_size", "step", "head", "kind"
        ),  # bytes of a slot; see cached.Rows
        *record_fields(
            "n_turn", "n_pair", "neighbours", "cos", "sin"
        ),  # n_turn positions; 0 where the layer has no RoPE
        *record_fields("rms_norm", "rope", "write", "attend", "gated"),  # kernels
        *record_fields("eps", "scale", "softcap", "residual_scale", kind=np.float64),
    ]
)

# --- kernels that are called by address

BYTES, U16, I32, WORDS = (types.Array(kind, 1, "C") for kind in (types.uint8, types.uint16, types.int32, types.int64))
RECORDS = types.Array(from_dtype(LAYER), 1, "C")
F32, WEIGHT = types.Array(types.float32, 1, "C"), types.Array(types.float32, 1, "C", readonly=True)
INT = types.int64
ROWS = types.NamedTuple((U16, INT, INT, INT), Rows)
RULE = typeof(RuleRecord(np.float32(1), 0, np.float32(0), True, np.zeros(1, np.float32)))

MATMULS = {
    type: Entry(product.matmul, WORDS, F32, BYTES, BYTES, INT, INT, F32) for type, product in packed.PRODUCTS.items()
}
CALLS = {
    "rms_norm": Entry(norm_rows, WORDS, F32, WEIGHT, types.float32, INT, F32),
    "rope": Entry(turn_tokens, WORDS, F32, INT, INT, I32, F32, F32, INT, types.boolean, F32, result=types.boolean),
    "write": Entry(write_rows, F32, INT, INT, INT, ROWS),
    "attend": Entry(attend_rows, WORDS, F32, ROWS, ROWS, INT, INT, INT, INT, INT, INT, RULE, F32),
    "gated": Entry(activate_gate, WORDS, INT, F32, F32, F32),
}
call_matmul = next(iter(MATMULS.values())).call
call_rms_norm, call_rope, call_write, call_attend, call_gated = (entry.call for entry in CALLS.values())

# --- in Python


class LayerCall:
    """A layer of weights, the cache that it has, and what machine code knows of both.

    weights        those of MATRICES and NORMS by name, a matrix's bias as "<name>_bias"; None for what is not there
    k, v           [n_slot, n_ctx, n_head_kv, n_head_dim] as new_cache makes them
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        k: np.ndarray,
        v: np.ndarray,
        n_head: int,
        rule: Attention,
        rope: Rope | None,
        act: str,
        eps: float,
        residual_scale: float = 1.0,
    ):
        self.words, self.rope = np.zeros(1, LAYER), rope
        self.address: int = self.words.ctypes.data
        self.kept: list[Any] = [k, v]  # what other addresses point to
        self.n_weight = sum(weights[name].n_elements for name in MATRICES)
        n_q, n_embd = weights["attn_q"].shape
        one = strided(k[0])
        self.set(**{name: self.matrix(weights[name], weights.get(f"{name}_bias")) for name in MATRICES})
        self.set(**{name: self.vector(weights.get(name)) for name in NORMS})
        self.set(n_embd=n_embd, n_head=n_head, n_head_kv=k.shape[2], n_head_dim=n_q // n_head, act=ACTS[act])
        self.set(
            scale=rule.scale, softcap=rule.softcap, window=rule.window, slopes=self.vector(slopes_of(rule, n_head))
        )
        self.set(n_slot=k.shape[0], n_ctx=k.shape[1])
        self.set(k=k.ctypes.data, v=v.ctypes.data, slot_size=k.strides[0], step=one.step, head=one.head, kind=one.kind)
        self.set(eps=eps, residual_scale=residual_scale)
        self.set(**{name: entry.address for name, entry in CALLS.items()})
        self.turn_to(1)

    def set(self, **words: object) -> None:
        """Fields of LAYER."""
        for name, value in words.items():
            self.words[name] = value

    @staticmethod
    def fits(weights: Mapping[str, Any], k: np.ndarray, act: str) -> bool:
        """Whether a layer of these, all that the file has, can be one call."""
        there = {name for name, w in weights.items() if w is not None}
        known = {*MATRICES, *NORMS, *(f"{name}_bias" for name in MATRICES)}
        if act not in ACTS or k.dtype not in KINDS or not set(MATRICES) <= there <= known:
            return False
        return all(weights[name].format.type in MATMULS and not weights[name].low_rank for name in MATRICES)

    def matrix(self, w: Tensor, bias: np.ndarray | None) -> tuple[int, ...]:
        form = w.form(packed.pack)
        self.kept.append(form)
        codes, scales = (a.ctypes.data for a in (form.codes, form.scales))
        sizes = form.n_block, 16 * form.n_group, w.shape[0], w.n_elements
        call = MATMULS[w.format.type].address
        return call, codes, form.codes.size, scales, form.scales.size, *sizes, self.vector(bias)

    def vector(self, a: np.ndarray | None) -> int:
        """Its address as f32."""
        if a is None:
            return 0
        self.kept.append(a := np.ascontiguousarray(a, np.float32))
        return a.ctypes.data

    def turn_to(self, n: int) -> None:
        """Positions 0 .. n - 1 at least have their angles."""
        if self.rope is not None:
            cos, sin = cos_and_sin_table(self.rope, n)
            self.kept.append((cos, sin))
            self.set(n_turn=len(cos), n_pair=cos.shape[1], neighbours=self.rope.style == "norm")
            self.set(cos=cos.ctypes.data, sin=sin.ctypes.data)


def layers_numba(layers: Sequence[LayerCall], x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What `layers` make of one token of each of some sequences, whose keys and values the cache has then.

    x f32 [n_tok, n_embd], places i64 [n_tok, 2]: slot and position -> x, changed

    Raises: IndexError for a place that the cache does not have
    """
    addresses, work = np.array([layer.address for layer in layers]), len(x) * layers[0].n_weight
    while len(addresses):
        done = run(_layers, work, ALONE, addresses, x.reshape(-1), places.reshape(-1))
        if done < 0:
            n_slot, n_ctx = (int(layers[0].words[name][0]) for name in ("n_slot", "n_ctx"))
            raise IndexError(
                f"slots and positions {places.tolist()}, the cache has {n_slot} slots of {n_ctx} positions"
            )
        addresses, layers = addresses[done:], layers[done:]
        for layer in layers[:1]:
            layer.turn_to(int(places[:, 1].max()) + 1)
    return x


def compile_layers() -> None:
    _layers.compile((WORDS, WORDS, WORDS, F32, WORDS))


# --- in machine code


@intrinsic
def array_at(typing, kind, address, n):
    """The array of type `kind` and n elements at `address`."""
    kind = kind.instance_type

    def generate(context, builder, sig, args):
        array = context.make_array(kind)(context, builder)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        data = builder.inttoptr(args[1], array.data.type)
        populate_array(array, data=data, shape=(args[2],), strides=(itemsize,), itemsize=itemsize, meminfo=None)
        return array._getvalue()

    return kind(types.TypeRef(kind), types.int64, types.int64), generate


@kernel
def _layers(team, alone, addresses, x, places):
    """x f32 [n_tok * n_embd]; places i64 [n_tok * 2].  -> how many layers, until RoPE's tables are too short for one

    -1, and nothing done, where there is no such place.
    """
    first = array_at(RECORDS, addresses[0], 1)[0]
    for i in range(0, places.size, 2):
        if not (0 <= places[i] < first.n_slot and 0 <= places[i + 1] < first.n_ctx):
            return -1
    for il in range(addresses.size):
        if not _layer(team, alone, addresses[il], x, places):
            return il
    return addresses.size


@inner(makes_arrays=True)
def _layer(team, alone, address, x, places):
    """False, and nothing done, where RoPE's tables are too short."""
    w = array_at(RECORDS, address, 1)[0]
    n_tok = places.size // 2

    h = _normed(alone, w, x, w.attn_norm, w.n_embd)
    q, k = _product(team, alone, w.attn_q, h, n_tok), _product(team, alone, w.attn_k, h, n_tok)
    v = _product(team, alone, w.attn_v, h, n_tok)
    q = _normed(alone, w, q, w.attn_q_norm, w.n_head_dim)
    k = _normed(alone, w, k, w.attn_k_norm, w.n_head_dim)
    if w.n_turn > 0:
        q, k = _turned(alone, w, q, w.n_head, places), _turned(alone, w, k, w.n_head_kv, places)
        if q.size == 0:
            return False
    out = _attended(team, alone, w, q, k, v, places)
    _add(alone, w, x, _product(team, alone, w.attn_output, out, n_tok), w.post_attention_norm)

    h = _normed(alone, w, x, w.ffn_norm, w.n_embd)
    gate, up = _product(team, alone, w.ffn_gate, h, n_tok), _product(team, alone, w.ffn_up, h, n_tok)
    call_gated(w.gated, (team if 10 * gate.size >= WORTH else alone, w.act, gate, up, gate))
    _add(alone, w, x, _product(team, alone, w.ffn_down, gate, n_tok), w.post_ffw_norm)
    return True


@inner(makes_arrays=True)
def _product(team, alone, w, x, n_tok):
    """x w^T, and the bias.  -> f32 [n_tok * n_out]"""
    y = np.empty((1 if n_tok == 1 else -(-n_tok // LANES) * LANES) * w.n_row, np.float32)
    codes, scales = array_at(BYTES, w.codes, w.n_code), array_at(BYTES, w.scales, w.n_scale)
    call_matmul(w.matmul, (team if n_tok * w.work >= WORTH else alone, x, codes, scales, n_tok, w.n_block, y))
    if w.n_row != w.n_out:
        for t in range(1, n_tok):
            for i in range(w.n_out):
                y[t * w.n_out + i] = y[t * w.n_row + i]
    if w.bias != 0:
        bias = array_at(F32, w.bias, w.n_out)
        for t in range(n_tok):
            for i in range(w.n_out):
                y[t * w.n_out + i] += bias[i]
    return y[: n_tok * w.n_out]


@inner(makes_arrays=True)
def _normed(alone, w, x, weight, n):
    """Rows of n numbers normed; `x` itself where there is no weight."""
    if weight == 0:
        return x
    y = np.empty(x.size, np.float32)
    call_rms_norm(w.rms_norm, (alone, x, array_at(F32, weight, n), np.float32(w.eps), x.size // n, y))
    return y


@inner(makes_arrays=True)
def _add(alone, w, x, y, norm):
    """x += y, normed where the file says so, and scaled."""
    y, scale = _normed(alone, w, y, norm, w.n_embd), np.float32(w.residual_scale)
    for i in range(x.size):
        x[i] += y[i] * scale


@inner(makes_arrays=True)
def _turned(alone, w, x, n_head, places):
    """Each token's heads, turned to its position; nothing where the tables do not have it."""
    n_tok = places.size // 2
    positions, y = np.empty(n_tok, np.int32), np.empty(x.size, np.float32)
    for t in range(n_tok):
        positions[t] = places[2 * t + 1]
    n = w.n_turn * w.n_pair
    table = array_at(F32, w.cos, n), array_at(F32, w.sin, n), w.n_pair
    args = alone, x, n_head, w.n_head_dim, positions, *table, w.neighbours != 0, y
    return y if call_rope(w.rope, args) else x[:0]


@inner(makes_arrays=True)
def _attended(team, alone, w, q, k, v, places):
    """Each token is remembered, then looks at its sequence.  -> f32 [n_tok * n_head * n_head_dim]"""
    out, n_q, n_kv = np.empty(q.size, np.float32), w.n_head * w.n_head_dim, w.n_head_kv * w.n_head_dim
    for t in range(places.size // 2):
        slot, position = places[2 * t], places[2 * t + 1]
        _write(w, w.k, slot, position, k[t * n_kv : (t + 1) * n_kv])
        _write(w, w.v, slot, position, v[t * n_kv : (t + 1) * n_kv])
        mine, found = q[t * n_q : (t + 1) * n_q], out[t * n_q : (t + 1) * n_q]
        if w.n_head_dim % VECTOR == 0:
            _attend(team, alone, w, slot, position, w.n_head_dim, mine, found)
        else:
            _attend_widened(alone, w, slot, position, mine, found)
    return out


@inner(makes_arrays=True)
def _write(w, address, slot, position, x):
    call_write(w.write, (x, 1, w.n_head_kv, w.n_head_dim, _rows(w, address, slot, position)))


@inner(makes_arrays=True)
def _attend(team, alone, w, slot, position, d, q, out):
    rule = RuleRecord(np.float32(w.scale), w.window, np.float32(w.softcap), True, array_at(F32, w.slopes, w.n_head))
    keys, values, n_pos = _rows(w, w.k, slot, 0), _rows(w, w.v, slot, 0), position + 1
    work = 2 * q.size * (min(w.window, n_pos) if w.window > 0 else n_pos)
    shape = 1, w.n_head, w.n_head_kv, n_pos, d
    call_attend(w.attend, (team if work >= WORTH else alone, q, keys, values, *shape, position, rule, out))


@inner(makes_arrays=True)
def _attend_widened(alone, w, slot, position, q, out):
    """Heads of no whole vectors, with zeros at their ends."""
    d, whole = w.n_head_dim, -(-w.n_head_dim // VECTOR) * VECTOR
    wide, found = np.zeros(w.n_head * whole, np.float32), np.empty(w.n_head * whole, np.float32)
    for i in range(q.size):
        wide[i // d * whole + i % d] = q[i]
    _attend(alone, alone, w, slot, position, whole, wide, found)
    for i in range(q.size):
        out[i] = found[i // d * whole + i % d]


@inner(makes_arrays=True)
def _rows(w, address, slot, position):
    """A slot's from `position` on."""
    a = array_at(U16, address + slot * w.slot_size, w.slot_size // 2)
    return Rows(a[position * w.step :], w.step, w.head, w.kind)
