"""A mixture of experts in one call, for whole layers: engine/model/moe.py in compiled code, with the same bits.

Experts are packed when they are first chosen.  Compiled code marks the missing ones as wanted and returns; then Python
packs them, and the call is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import from_dtype, types

from .activation import SILU, activate_gate, softmax_rows
from .decode_matrix import (
    F32,
    I64,
    INT,
    MATRIX,
    array_at,
    count_weights,
    has_kernel,
    matrix_record,
    new_product,
    record_fields,
)
from .jit import Entry, inner, kernel
from .tensor import LowRank, Tensor
from .threads import MIN_PARALLEL_WORK

STACKS = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"
ROUTER = "ffn_gate_inp"
MIN_WEIGHT_SUM = 2.0**-14  # as in moe.py
LINE = 16  # lanes of a row of the softmax

EXPERT = np.dtype(record_fields("gate", "up", "down", kind=MATRIX))
EXPERTS = np.dtype(
    [
        ("router", MATRIX),
        *record_fields("n_expert", "n_used", "n_embd", "experts", "wanted"),  # the last two: EXPERT[n_expert], i64
        *record_fields("softmax", "activate_gate"),  # kernels
    ]
)
RECORDS, EXPERT_RECORDS = types.Array(from_dtype(EXPERTS), 1, "C"), types.Array(from_dtype(EXPERT), 1, "C")
SOFTMAX = Entry(softmax_rows, I64, F32, INT)
ACTIVATE_GATE = Entry(activate_gate, I64, INT, F32, F32, F32)
call_softmax, call_activate_gate = SOFTMAX.call, ACTIVATE_GATE.call


class ExpertsCall:
    """A layer's router and experts, with the record that compiled code reads.  weights as in LayerCall"""

    def __init__(self, weights: Mapping[str, Any], n_used: int):
        self.weights, self.referenced = weights, list[Any]()
        stacks = [weights[name] for name in STACKS]
        n_expert = len(stacks[0].blocks)
        self.record, self.experts = np.zeros(1, EXPERTS), np.zeros(n_expert, EXPERT)
        self.wanted = np.zeros(n_expert, np.int64)
        self.n_weight = count_weights(weights[ROUTER]) + n_used * sum(map(count_weights, stacks))
        router = matrix_record(weights[ROUTER], weights.get(f"{ROUTER}_bias"), self.referenced)
        arrays = self.experts.ctypes.data, self.wanted.ctypes.data
        sizes = n_expert, n_used, stacks[2].shape[1]
        self.record[0] = router, *sizes, *arrays, SOFTMAX.address, ACTIVATE_GATE.address

    @staticmethod
    def fits(weights: Mapping[str, Any], act: str) -> bool:
        """Check whether compiled code can run these experts."""
        return act == "silu" and all(has_kernel(weights[name]) for name in (ROUTER, *STACKS))

    def pack_wanted(self) -> None:
        """Pack the experts that compiled code asked for."""
        for e in np.flatnonzero(self.wanted).tolist():
            self.experts[e] = tuple(self.matrix(name, e) for name in STACKS)
            self.wanted[e] = 0

    def matrix(self, name: str, e: int) -> tuple[Any, ...]:
        """Return the MATRIX record of expert `e` in the stack `name`."""
        stack, bias = self.weights[name], self.weights.get(f"{name}_bias")
        w = expert_of(stack, e)
        self.referenced.append(w)
        return matrix_record(w, None if bias is None else bias[e], self.referenced)


def expert_of(stack: Tensor, e: int) -> Tensor:
    """Return a matrix of a stack, with its own terms of adapters."""
    w = stack.matrices[e]
    terms = tuple(LowRank(term.a.matrices[e], term.b.matrices[e], term.scale) for term in stack.low_rank)
    return Tensor(w.name, w.format, w.shape, w.blocks, terms, w._forms) if terms else w


# --- compiled side


@kernel(makes_arrays=True)
def mix_experts(team, one_thread, address, h, n_tok, out):
    """Compute what the experts add.  Returns False, with nothing done, if some of the chosen must be packed first.

    h and out f32 [n_tok * n_embd]
    """
    w = array_at(RECORDS, address, 1)[0]
    chosen, weights = _choose(one_thread, w, new_product(team, one_thread, w.router, h, n_tok), n_tok)
    experts, wanted = array_at(EXPERT_RECORDS, w.experts, w.n_expert), array_at(I64, w.wanted, w.n_expert)
    complete = True
    for e in chosen:
        if experts[e].gate.weight.matmul == 0:
            wanted[e], complete = 1, False
    if not complete:
        return False
    parts, rows = np.empty(chosen.size * w.n_embd, np.float32), np.empty(chosen.size, np.int64)
    for e in range(w.n_expert):
        n = 0
        for i in range(chosen.size):
            if chosen[i] == e:
                rows[n] = i
                n += 1
        if n > 0:
            _run_expert(team, one_thread, w, experts[e], h, rows[:n], weights, parts)
    for t in range(n_tok):
        to = out[t * w.n_embd : (t + 1) * w.n_embd]
        for k in range(w.n_used):
            part = parts[(t * w.n_used + k) * w.n_embd : (t * w.n_used + k + 1) * w.n_embd]
            for i in range(w.n_embd):
                to[i] = part[i] if k == 0 else to[i] + part[i]
    return True


@inner(makes_arrays=True)
def _choose(one_thread, w, logits, n_tok):
    """Choose each token's experts in descending order, ties by index.  -> i64, f32 [n_tok * n_used], their weights"""
    n, n_line = w.n_expert, -(-w.n_expert // LINE) * LINE
    probs = np.full(n_tok * n_line, -np.inf, np.float32)
    for t in range(n_tok):
        for e in range(n):
            probs[t * n_line + e] = logits[t * n + e]
    call_softmax(w.softmax, (one_thread, probs, n_tok))
    chosen, weights = np.empty(n_tok * w.n_used, np.int64), np.empty(n_tok * w.n_used, np.float32)
    for t in range(n_tok):
        row, total = probs[t * n_line : t * n_line + n], 0.0
        for k in range(t * w.n_used, (t + 1) * w.n_used):
            best = -1
            for e in range(n):
                if row[e] >= 0 and (best < 0 or row[e] > row[best]):
                    best = e
            if best < 0:  # not numbers
                best = k - t * w.n_used
            chosen[k], weights[k] = best, row[best]
            total += np.float64(row[best])
            row[best] = -1
        divisor = max(np.float32(total), np.float32(MIN_WEIGHT_SUM))
        for k in range(t * w.n_used, (t + 1) * w.n_used):
            weights[k] /= divisor
    return chosen, weights


@inner(makes_arrays=True)
def _run_expert(team, one_thread, w, expert, h, rows, weights, parts):
    """Compute an expert's part for the tokens that chose it; `rows` are their places in `weights` and `parts`."""
    n_embd = w.n_embd
    x = np.empty(rows.size * n_embd, np.float32)
    for j in range(rows.size):
        to, row = x[j * n_embd : (j + 1) * n_embd], h[rows[j] // w.n_used * n_embd :]
        for i in range(n_embd):  # as in kv.py, an assignment to a slice compiles for 1.4 s
            to[i] = row[i]
    gate = new_product(team, one_thread, expert.gate, x, rows.size)
    up = new_product(team, one_thread, expert.up, x, rows.size)
    call_activate_gate(
        w.activate_gate, (team if 10 * gate.size >= MIN_PARALLEL_WORK else one_thread, SILU, gate, up, gate)
    )
    down = new_product(team, one_thread, expert.down, gate, rows.size)
    for j in range(rows.size):
        weight, at = weights[rows[j]], rows[j] * n_embd
        for i in range(n_embd):
            parts[at + i] = down[j * n_embd + i] * weight


MIX = Entry(mix_experts, I64, I64, INT, F32, INT, F32, result=types.boolean)
call_mix = MIX.call
