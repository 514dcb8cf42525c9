"""Whole decoder layers in one call, for one token of each sequence: saves the time that decoding spends in Python.

    layers_numba(layers, x, places)     for each layer:  x += attend(norm(x));  x += feed_forward(norm(x))

engine/model/decoder.py defines the computation.  This file repeats it in compiled code with the same kernels in the
same order, so that the results are equal to the bit (tests/engine/model/test_whole.py).  Kernels are called by address:
this file compiles quickly, for any formats of the weights.

Without it, a model of 260 thousand weights spends five sixths of a token's time between kernels, a 1B model a ninth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, typeof, types

from .activation import GELU, SILU, activate_gate
from .attention import Attention, RuleRecord, attend_rows, sinks_of, slopes_of
from .decode_experts import MIX, ROUTER, STACKS, ExpertsCall, call_mix
from .decode_matrix import (
    F32,
    I64,
    INT,
    MATRIX,
    address_of,
    array_at,
    count_weights,
    has_kernel,
    matrix_record,
    multiply,
    record_fields,
)
from .hadamard import rotate_in_place
from .jit import Entry, inner, kernel
from .kv import BLOCK, VECTOR, WRITTEN_FAST, Rows, in_blocks, strided, write_rows
from .norm import norm_rows
from .packed.tiles import in_whole_tiles
from .rope import Rope, cos_and_sin_table, rotate_tokens
from .threads import MIN_PARALLEL_WORK, ONE_THREAD, run

SINGLE = np.dtype(np.float32)
ACTS = {"silu": SILU, "gelu": GELU}
ATTENTION, GATED = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
NORMS = "attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"


# A layer as a record for compiled code.  Arrays are stored as addresses, 0 for one that the file lacks.
PLACES = np.dtype(record_fields("address", "slot_size", "step", "head", "kind"))  # bytes; then as in kv.Rows
LAYER = np.dtype(
    [
        *record_fields(*ATTENTION, *GATED, kind=MATRIX),
        *record_fields(*NORMS),
        *record_fields("n_embd", "n_head", "n_head_kv", "n_head_dim", "act", "window", "slopes", "sinks"),
        *record_fields("n_row", "n_word"),  # of a token in Scratch: f32 of the largest field, i32 of `memory`
        *record_fields("n_slot", "n_kept", "bases"),  # positions bases[slot] .. bases[slot] + n_kept - 1 of a slot
        *record_fields("k", "v", kind=PLACES),
        *record_fields("k_group", "v_group"),
        *record_fields(
            "n_rope_pos", "n_pair", "neighbours", "cos", "sin"
        ),  # RoPE's tables hold n_rope_pos positions; 0 if the layer has no RoPE
        *record_fields("n_factor", "factors"),  # of queries by position, f32; 0: none
        *record_fields("mix", "experts"),  # a kernel and an EXPERTS record, in place of GATED; 0: none
        *record_fields("rms_norm", "rope", "write", "attend", "activate_gate_code"),  # kernels
        *record_fields("eps", "scale", "softcap", "residual_scale", kind=np.float64),
    ]
)

# --- the kernels, called by address

U16, I32 = (types.Array(kind, 1, "C") for kind in (types.uint16, types.int32))
RECORDS = types.Array(from_dtype(LAYER), 1, "C")
WEIGHT = types.Array(types.float32, 1, "C", readonly=True)
ROWS = types.NamedTuple((U16, INT, INT, INT), Rows)
RULE = typeof(RuleRecord(np.float32(1), 0, np.float32(0), 0, *np.zeros((2, 1), np.float32)))

CALLS = {
    "rms_norm": Entry(norm_rows, I64, F32, WEIGHT, types.float32, INT, F32),
    "rope": Entry(rotate_tokens, I64, F32, INT, INT, I32, F32, F32, INT, types.boolean, F32, result=types.boolean),
    "write": Entry(write_rows, F32, INT, INT, INT, ROWS),
    "attend": Entry(attend_rows, I64, F32, ROWS, ROWS, INT, INT, INT, INT, INT, INT, RULE, F32),
    "activate_gate_code": Entry(activate_gate, I64, INT, F32, F32, F32),
}
call_rms_norm, call_rope, call_write, call_attend, call_activate_gate = (entry.call for entry in CALLS.values())

# --- Python side


class LayerCall:
    """A layer's weights and its KV cache, with the record that compiled code reads.

    weights        the tensors of ATTENTION, NORMS, and GATED or a mixture of experts by name, a matrix's bias as
                   "<name>_bias"; None for a missing one
    k, v           [n_slot, n_kept, n_head_kv, n_head_dim], made by new_cache
    groups         sizes of the groups in which keys and values are rotated (hadamard.py), 0: not rotated
    bases          i64 [n_slot], read at each call: the position that a slot's first row has; None: 0
    n_used         experts for each token, 0 without experts
    factors        i32 [n_tok] -> f32 [n_tok]: what queries at these positions are multiplied by; None: 1
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
        groups: tuple[int, int] = (0, 0),
        *,
        bases: np.ndarray | None = None,
        n_used: int = 0,
        factors: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.record, self.rope, self.factors = np.zeros(1, LAYER), rope, factors
        self.address: int = self.record.ctypes.data
        bases = np.zeros(len(k), np.int64) if bases is None else bases
        self.referenced: list[Any] = [k, v, bases]  # keeps alive the arrays that the record's addresses point to
        self.experts = ExpertsCall(weights, n_used) if n_used else None
        matrices = ATTENTION if self.experts else ATTENTION + GATED
        self.n_weight = sum(count_weights(weights[name]) for name in matrices)
        if self.experts:
            self.n_weight += self.experts.n_weight
            self.set(mix=MIX.address, experts=self.experts.record.ctypes.data)
        n_q, n_embd = weights["attn_q"].shape
        self.n_embd: int = n_embd
        sizes = [(*a.shape[:3], a.shape[3] * (BLOCK if in_blocks(a.dtype) else 1)) for a in (k, v)]
        if sizes[0] != sizes[1] or sizes[0][3] * n_head != n_q:
            raise ValueError(
                f"a cache of k {sizes[0]} and v {sizes[1]}, expected one size, and heads of {n_q // n_head}"
            )
        for name in matrices:
            self.set(**{name: matrix_record(weights[name], weights.get(f"{name}_bias"), self.referenced)})
        products = [self.record[name]["weight"][0] for name in ATTENTION + GATED]
        padded_heads = n_head * -(-n_q // n_head // VECTOR) * VECTOR
        self.set(
            n_row=max(n_embd, padded_heads, *(product["n_row"] for product in products)),
            n_word=max(product["n_word"] for product in products),
        )
        self.set(**{name: self.address_of(weights.get(name)) for name in NORMS})
        self.set(n_embd=n_embd, n_head=n_head, n_head_kv=k.shape[2], n_head_dim=n_q // n_head, act=ACTS[act])
        self.set(
            scale=rule.scale,
            softcap=rule.softcap,
            window=rule.window,
            slopes=self.address_of(slopes_of(rule, n_head)),
            sinks=self.address_of(sinks_of(rule, n_head)),
        )
        self.set(n_slot=k.shape[0], n_kept=k.shape[1], bases=bases.ctypes.data)
        self.set(k=self.places(k), v=self.places(v))
        self.set(eps=eps, residual_scale=residual_scale, k_group=groups[0], v_group=groups[1])
        self.set(**{name: entry.address for name, entry in CALLS.items()})
        self.extend_tables(1)

    def set(self, **record: object) -> None:
        """Set fields of the LAYER record."""
        for name, value in record.items():
            self.record[name] = value

    @staticmethod
    def fits(weights: Mapping[str, Any], k: np.ndarray, v: np.ndarray, act: str) -> bool:
        """Check whether a layer with these weights (all that its file has) can run as one call."""
        present = {name for name, w in weights.items() if w is not None}
        matrices = ATTENTION + ((ROUTER, *STACKS) if ROUTER in present else GATED)
        known = {*matrices, *NORMS, *(f"{name}_bias" for name in matrices)}
        if act not in ACTS or not {k.dtype, v.dtype} <= WRITTEN_FAST or not set(matrices) <= present <= known:
            return False
        if ROUTER in present and not ExpertsCall.fits(weights, act):
            return False
        return all(has_kernel(weights[name]) for name in matrices)

    @staticmethod
    def places(cache: np.ndarray) -> tuple[int, ...]:
        """Return the PLACES record of keys or values."""
        rows = strided(cache[0])
        return cache.ctypes.data, cache.strides[0], rows.step, rows.head, rows.kind

    def address_of(self, a: np.ndarray | None) -> int:
        """Return the address of `a` as f32, 0 for None."""
        return address_of(a, self.referenced)

    def extend_tables(self, n: int) -> None:
        """Extend the tables of RoPE and of factors to at least positions 0 .. n - 1."""
        if self.rope is not None:
            cos, sin = cos_and_sin_table(self.rope, n)
            self.referenced.append((cos, sin))
            self.set(n_rope_pos=len(cos), n_pair=cos.shape[1], neighbours=self.rope.style == "norm")
            self.set(cos=cos.ctypes.data, sin=sin.ctypes.data)
        if self.factors is not None and n > self.record["n_factor"][0]:
            n = max(512, 1 << (n - 1).bit_length())
            self.set(factors=self.address_of(self.factors(np.arange(n, dtype=np.int32))), n_factor=n)

    def complete(self, n: int) -> None:
        """Make what compiled code lacked: tables for positions 0 .. n - 1, and the experts that it chose."""
        self.extend_tables(n)
        if self.experts:
            self.experts.pack_wanted()


class LayerRun:
    """Layers that run in one call, `last` being the number of the last one."""

    def __init__(self, layers: Sequence[LayerCall], last: int):
        self.calls, self.last = layers, last
        self.addresses = np.array([layer.address for layer in layers])
        self.n_embd, self.n_weight = layers[0].n_embd, layers[0].n_weight


def layers_numba(layers: LayerRun, x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Run `layers` on one token of each sequence, and write its keys and values into the cache.

    x f32 [n_tok, n_embd], places i64 [n_tok, 2]: slot and position -> x, changed in place

    Raises: IndexError for a slot or position outside the cache, ValueError for another shape or layout of `x`
    """
    if x.shape != (len(places), layers.n_embd) or x.dtype != SINGLE or not x.flags.c_contiguous:
        raise ValueError(f"x is {x.dtype} {x.shape}, expected contiguous float32 {(len(places), layers.n_embd)}")
    if places.shape[1:] != (2,):
        raise ValueError(
            f"places have shape {places.shape}, expected a slot and a position for each of {len(x)} tokens"
        )
    work, flat, done, end = len(x) * layers.n_weight, (x.reshape(-1), places.reshape(-1)), 0, 2 * len(layers.calls)
    while done < end:
        done = run(_layers, work, ONE_THREAD, layers.addresses, *flat, done)
        if done < 0:
            n_slot, n_kept = (int(layers.calls[0].record[name][0]) for name in ("n_slot", "n_kept"))
            raise IndexError(
                f"slots and positions {places.tolist()}, the cache has {n_slot} slots of {n_kept} positions"
            )
        if done < end:
            layers.calls[done // 2].complete(int(places[:, 1].max()) + 1)
    return x


def compile_layers() -> None:
    """Compile the whole-layer kernel ahead of its first call."""
    _layers.compile((I64, I64, I64, F32, I64, INT))


# --- compiled side


class Scratch(NamedTuple):
    """Values that a layer computes on its way, f32, flat; all layers of a call use the same memory.

    h               normalized x, [n_tok, n_embd]
    q, k, v, out    of attention, [n_tok, heads of n_head_dim]
    gate, up        of the feed-forward block, [n_tok, n_ff]
    y               what the layer adds to x, [n_tok, n_embd]
    query, result   of one token, in heads padded with zeros to whole vectors
    memory          i32, of a product
    positions       i32 [n_tok]
    """

    h: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    out: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    y: np.ndarray
    query: np.ndarray
    result: np.ndarray
    memory: np.ndarray
    positions: np.ndarray


@kernel(makes_arrays=True)
def _layers(team, one_thread, addresses, x, places, done):
    """Run the layers whose records are at `addresses`, of which `done` halves are done.  -> the halves done now

    x f32 [n_tok * n_embd], places i64 [n_tok * 2].  A layer is two halves: attention, then feed-forward.  Stops before
    a half that lacks something: longer tables, or packed experts.  Returns -1, with nothing done, if a slot or position
    is outside the cache.
    """
    return _run_layers(team, one_thread, addresses, x, places, done, _new_scratch(addresses, places))


@inner(makes_arrays=True)
def _new_scratch(addresses, places):
    """Allocate what the largest layer needs.  `positions` have their values."""
    n_tok, n_row, n_word = places.size // 2, 0, 0
    for address in addresses:
        w = array_at(RECORDS, address, 1)[0]
        n_row, n_word = max(n_row, w.n_row), max(n_word, w.n_word)
    n = in_whole_tiles(n_tok)
    x, memory, positions = (
        np.empty((10, n * n_row), np.float32),
        np.empty(n * n_word, np.int32),
        np.empty(n_tok, np.int32),
    )
    for t in range(n_tok):
        positions[t] = places[2 * t + 1]
    return Scratch(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9], memory, positions)


@inner
def _run_layers(team, one_thread, addresses, x, places, done, s):
    """Do the work of `_layers`.  Functions from here on make no arrays, so they need not count references."""
    for il in range(addresses.size):
        w = array_at(RECORDS, addresses[il], 1)[0]
        bases = array_at(I64, w.bases, w.n_slot)
        for i in range(0, places.size, 2):
            if not (0 <= places[i] < w.n_slot and 0 <= places[i + 1] - bases[places[i]] < w.n_kept):
                return -1
    for half in range(done, 2 * addresses.size):
        w = array_at(RECORDS, addresses[half // 2], 1)[0]
        if half % 2:
            complete = _feed_and_add(team, one_thread, w, s, x, places)
        else:
            complete = _attend_and_add(team, one_thread, w, s, x, places)
        if not complete:
            return half
    return 2 * addresses.size


@inner
def _attend_and_add(team, one_thread, w, s, x, places):
    """Run a layer's first half.  Returns False, with nothing done, if a table is too short."""
    n_tok, n_q, n_kv = places.size // 2, w.n_head * w.n_head_dim, w.n_head_kv * w.n_head_dim
    q, k, v, out = s.q[: n_tok * n_q], s.k[: n_tok * n_kv], s.v[: n_tok * n_kv], s.out[: n_tok * n_q]
    _norm(one_thread, w, x, w.attn_norm, w.n_embd, s.h)
    multiply(team, one_thread, w.attn_q, s.h, n_tok, s.memory, s.q)
    multiply(team, one_thread, w.attn_k, s.h, n_tok, s.memory, s.k)
    multiply(team, one_thread, w.attn_v, s.h, n_tok, s.memory, s.v)
    _norm(one_thread, w, q, w.attn_q_norm, w.n_head_dim, q)
    _norm(one_thread, w, k, w.attn_k_norm, w.n_head_dim, k)
    if w.n_rope_pos > 0 and not (
        _rotate(one_thread, w, q, w.n_head, s.positions) and _rotate(one_thread, w, k, w.n_head_kv, s.positions)
    ):
        return False
    if w.n_factor > 0 and not _scale_queries(w, q, places):
        return False
    _write_and_attend(team, one_thread, w, s, q, k, v, places, out)
    multiply(team, one_thread, w.attn_output, out, n_tok, s.memory, s.y)
    _add(one_thread, w, x, s.y, w.post_attention_norm)
    return True


@inner
def _feed_and_add(team, one_thread, w, s, x, places):
    """Run a layer's second half.  Returns False, with nothing done, if chosen experts are not packed."""
    n_tok = places.size // 2
    _norm(one_thread, w, x, w.ffn_norm, w.n_embd, s.h)
    if w.mix != 0:
        if not call_mix(w.mix, (team, one_thread, w.experts, s.h, n_tok, s.y[: x.size])):
            return False
    else:
        n = n_tok * w.ffn_gate.weight.n_out
        gate, up = s.gate[:n], s.up[:n]
        multiply(team, one_thread, w.ffn_gate, s.h, n_tok, s.memory, s.gate)
        multiply(team, one_thread, w.ffn_up, s.h, n_tok, s.memory, s.up)
        call_activate_gate(
            w.activate_gate_code, (team if 10 * n >= MIN_PARALLEL_WORK else one_thread, w.act, gate, up, gate)
        )
        multiply(team, one_thread, w.ffn_down, gate, n_tok, s.memory, s.y)
    _add(one_thread, w, x, s.y, w.post_ffw_norm)
    return True


@inner
def _scale_queries(w, q, places):
    """Multiply each token's query by the factor of its position.  Returns False, with nothing done, without one"""
    n, factors = w.n_head * w.n_head_dim, array_at(F32, w.factors, w.n_factor)
    for t in range(places.size // 2):
        if places[2 * t + 1] >= factors.size:
            return False
    for t in range(places.size // 2):
        for i in range(t * n, (t + 1) * n):
            q[i] *= factors[places[2 * t + 1]]
    return True


@inner
def _norm(one_thread, w, x, weight, n, y):
    """Normalize rows of n numbers into `y`, which may be `x`.  Does nothing if `weight` is 0 (absent)."""
    if weight != 0:
        call_rms_norm(w.rms_norm, (one_thread, x, array_at(F32, weight, n), np.float32(w.eps), x.size // n, y))


@inner
def _add(one_thread, w, x, y, norm):
    """Add y to x in place; y is first normalized if the file has that norm, then scaled."""
    y, scale = y[: x.size], np.float32(w.residual_scale)
    _norm(one_thread, w, y, norm, w.n_embd, y)
    for i in range(x.size):
        x[i] += y[i] * scale


@inner
def _rotate(one_thread, w, x, n_head, positions):
    """Rotate each token's heads to its position.  Returns False, with nothing done, if the tables are too short."""
    n = w.n_rope_pos * w.n_pair
    table = array_at(F32, w.cos, n), array_at(F32, w.sin, n), w.n_pair
    return call_rope(w.rope, (one_thread, x, n_head, w.n_head_dim, positions, *table, w.neighbours != 0, x))


@inner
def _write_and_attend(team, one_thread, w, s, q, k, v, places, out):
    """Write each token's key and value into the cache, then attend.  -> out f32 [n_tok * n_head * n_head_dim]"""
    if w.k_group > 0:
        rotate_in_place(q, w.k_group)
        rotate_in_place(k, w.k_group)
    if w.v_group > 0:
        rotate_in_place(v, w.v_group)
    n_q, n_kv = w.n_head * w.n_head_dim, w.n_head_kv * w.n_head_dim
    bases = array_at(I64, w.bases, w.n_slot)
    for t in range(places.size // 2):
        slot = places[2 * t]
        row = places[2 * t + 1] - bases[slot]
        _write(w, w.k, slot, row, k[t * n_kv : (t + 1) * n_kv])
        _write(w, w.v, slot, row, v[t * n_kv : (t + 1) * n_kv])
        query, result = q[t * n_q : (t + 1) * n_q], out[t * n_q : (t + 1) * n_q]
        if w.n_head_dim % VECTOR == 0:
            _attend(team, one_thread, w, slot, row, w.n_head_dim, query, result)
        else:
            _attend_padded(one_thread, w, s, slot, row, query, result)
    if w.v_group > 0:
        rotate_in_place(out, w.v_group)


@inner
def _write(w, places, slot, row, x):
    call_write(w.write, (x, 1, w.n_head_kv, w.n_head_dim, _rows(places, slot, row)))


@inner
def _attend(team, one_thread, w, slot, row, d, q, out):
    """Attend to the rows up to `row`: rules see distances alone."""
    lists = array_at(F32, w.slopes, w.n_head), array_at(F32, w.sinks, w.n_head)
    rule = RuleRecord(np.float32(w.scale), w.window, np.float32(w.softcap), 0, lists[0], lists[1])
    keys, values, n_pos = _rows(w.k, slot, 0), _rows(w.v, slot, 0), row + 1
    work = 2 * q.size * (min(w.window, n_pos) if w.window > 0 else n_pos)
    shape = 1, w.n_head, w.n_head_kv, n_pos, d
    call_attend(w.attend, (team if work >= MIN_PARALLEL_WORK else one_thread, q, keys, values, *shape, row, rule, out))


@inner
def _attend_padded(one_thread, w, s, slot, row, q, out):
    """Attend with heads padded with zeros to whole vectors."""
    d, d_padded = w.n_head_dim, -(-w.n_head_dim // VECTOR) * VECTOR
    for h in range(w.n_head):
        for i in range(d):
            s.query[h * d_padded + i] = q[h * d + i]
        for i in range(d, d_padded):
            s.query[h * d_padded + i] = 0
    n = w.n_head * d_padded
    _attend(one_thread, one_thread, w, slot, row, d_padded, s.query[:n], s.result[:n])
    for h in range(w.n_head):
        for i in range(d):
            out[h * d + i] = s.result[h * d_padded + i]


@kernel(inline="always")
def _rows(places, slot, row):
    """Return a slot's cache rows from `row` on."""
    a = array_at(U16, places.address + slot * places.slot_size, places.slot_size // 2)
    return Rows(a[row * places.step :], places.step, places.head, places.kind)
