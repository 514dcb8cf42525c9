"""`bench kernels`: every kernel and format: checked, then timed, beside what this machine can do at most.

    numllama bench kernels [--format Q4_0 ...] [--threads 1 2]

GB/s count the bytes of the weight as it is in memory, once a call; GFLOP/s two operations a weight and token.  A row of
the table is a cell of the results: `bench report` and `bench compare` read them like those of other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from time import perf_counter

import numpy as np

from ..engine.errors import EngineError, RequestError
from ..engine.model.batch import Span
from ..engine.model.cache import KVCache
from ..kernels import GGML, NUMBA, Attention, Rope, Tensor, packed, threads
from ..kernels.attention import attention_numpy
from ..kernels.kv import in_blocks
from ..kernels.quants import FORMATS, FORMATS_BY_NAME, QuantFormat, quantize
from ..kernels.rounding import round_activations
from ..kernels.select import descending, descending_numpy
from . import disturbance, machine
from .invocation import Invocation
from .results import ResultsFile
from .rounds import finish_run

N_OUT, N_IN = 5632, 2048  # the feed-forward of a 1.1B Llama
ROUNDS, ROUND_S = 5, 0.04  # of a row
OURS = "numllama"
ATTENTION_SHAPES = (  # n_tok, n_pos, n_head, n_head_kv, n_head_dim, what the row's name says of the rest, the rest
    (1, 4096, 32, 8, 64, "", {}),
    (1, 4096, 32, 4, 64, "", {}),
    (1, 4096, 32, 32, 128, "", {}),
    (1, 4096, 8, 4, 256, ", windowed", {"window": 1024, "softcap": 50.0}),
    (512, 512, 32, 4, 64, "", {}),
    (512, 512, 32, 8, 128, "", {}),
    (512, 512, 12, 12, 64, ", not causal", {"causal": False, "slopes": (2.0 ** -np.arange(1, 13)).astype(np.float32)}),
)


def weight(format: QuantFormat, n_out: int = N_OUT, n_in: int = N_IN) -> Tensor:
    """Random rows, quantized; 64 of them repeated, as some encoders take their time."""
    rows = np.random.default_rng(0).standard_normal((64, n_in), np.float32)
    blocks = np.tile(quantize(format, rows), (n_out // 64, 1))
    return Tensor(format.name, format, (n_out, n_in), blocks)


def check_equal(name: str, ours: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Refuse to time a kernel that is wrong.  Raises: EngineError"""
    if (found := float(np.abs(ours - expected).max())) > tolerance:
        raise EngineError(f"{name} is {found:.3g} away from its reference, expected at most {tolerance:.3g}: not timed")


def check_matmul(w: Tensor, x: np.ndarray) -> None:
    """Compare the first 64 rows with the ggml set, which sums in float64."""
    expected = GGML.matmul(Tensor(w.name, w.format, (64, w.shape[1]), w.blocks[:64]), x)
    check_equal(f"matmul {w.name}", NUMBA.matmul(w, x)[:, :64], expected, 1e-4 * float(np.abs(expected).max()))


def check_attention(name: str, q, k, v, first: int, how: Attention) -> None:
    """Compare the last query with the twin in NumPy, which gets the queries as kernels round them for blocks."""
    query = round_activations(q[-1:], "Q8_0") if in_blocks(k.dtype) else q[-1:]
    expected = attention_numpy(query, k, v, first + len(q) - 1, how)
    check_equal(name, NUMBA.attention(q, k, v, first, how)[-1:], expected, 1e-4)


def seconds(call, at_least: float = ROUND_S) -> float:
    """The median of as many calls as fit into `at_least` seconds, three or more."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least:
        began = perf_counter()
        call()
        times.append(perf_counter() - began)
    return float(np.median(times))


@dataclass(frozen=True)
class Timed:
    """A row of the table: a kernel with a format, tokens and threads; `call` makes one call of `n_layer` layers.

    n_byte, n_flop   of one layer; 0 if they say nothing
    """

    kernel: str
    format: str
    tokens: int
    threads: int
    call: Callable[[], object]
    n_byte: float
    n_flop: float = 0.0
    n_layer: int = 1

    @property
    def cell(self) -> str:
        tokens, threads = f"{self.tokens} token{'s' * (self.tokens > 1)}", f"{self.threads} thread"
        return f"{self.kernel} {self.format}, {tokens}, {threads}{'s' * (self.threads > 1)}"

    def measure(self) -> dict[str, float]:
        """Time one round."""
        t = seconds(self.call) / self.n_layer
        figures = {"us": t * 1e6, "gb_s": self.n_byte / t / 1e9}
        return figures | ({"gflop_s": self.n_flop / t / 1e9} if self.n_flop else {})


def matmul_rows(formats: list[QuantFormat], n_threads: list[int], n_toks: list[int]) -> Iterator[Timed]:
    """Yield a row for each format, number of tokens and of threads."""
    for format in formats:
        w = weight(format)
        for n_tok in n_toks:
            x = np.random.default_rng(1).standard_normal((n_tok, N_IN), np.float32)
            check_matmul(w, x)
            form = w.form(packed.pack_weight)
            n_byte, n_flop = form.codes.nbytes + form.scales.nbytes, 2 * n_tok * N_OUT * N_IN
            for n in n_threads:
                yield Timed("matmul", format.name, n_tok, n, lambda w=w, x=x: NUMBA.matmul(w, x), n_byte, n_flop)


def attention_rows(n_threads: list[int]) -> Iterator[Timed]:
    """Yield a row for each shape, type of cache and number of threads: decode far in, and a prompt.

    Keys and values of several layers in turn, 128 MB in f16, so that they come from memory as in decode.
    """
    for n_tok, n_pos, n_head, n_head_kv, d, said, more in ATTENTION_SHAPES:
        how, first = Attention(d**-0.5, **more), n_pos - n_tok
        seen = sum(end - begin for begin, end in (how.seen(first + t, n_pos) for t in range(n_tok)))
        rng = np.random.default_rng(0)
        q = rng.standard_normal((n_tok, n_head, d), np.float32)
        n_layer = max(1, (128 << 20) // (4 * n_pos * n_head_kv * d)) if n_tok == 1 else 1
        for name in ("f16", "q8_0", "q4_0"):
            cache = KVCache(n_layer, n_head_kv, d, n_pos, type=name)
            span = Span(slot=0, start=0, length=n_pos)
            for il in range(n_layer):
                cache.write(il, span, *(rng.standard_normal((n_pos, n_head_kv, d), np.float32) for _ in "kv"))
            layers = [cache.read(il, span) for il in range(n_layer)]
            kernel = f"attention {n_head}/{n_head_kv} heads of {d}, {n_pos} positions{said}"
            check_attention(f"{kernel}, {name}", q, *layers[0], first, how)

            def all_layers(q=q, layers=layers, first=first, how=how):
                for k, v in layers:
                    NUMBA.attention(q, k, v, first, how)

            n_byte = cache.nbytes / n_layer * (n_pos - how.seen(first, n_pos)[0]) / n_pos
            for n in n_threads:
                yield Timed(kernel, name, n_tok, n, all_layers, n_byte, 4 * seen * n_head * d, n_layer)


def elementwise_rows(n_threads: list[int]) -> Iterator[Timed]:
    """Yield a row for each small operation, at one token and at many."""
    rng = np.random.default_rng(0)
    for n_tok in (1, 512):
        x, gate = rng.standard_normal((n_tok, 2048), np.float32), rng.standard_normal((n_tok, 5632), np.float32)
        q, rope, positions = x.reshape(n_tok, 32, 64), Rope("norm", 64), np.arange(n_tok, dtype=np.int32)
        calls = {
            "rms_norm 2048": (x, lambda x=x: NUMBA.rms_norm(x, x[0], 1e-5)),
            "rope 32 x 64": (x, lambda q=q, p=positions, rope=rope: NUMBA.rope(q, p, rope)),
            "silu_mul 5632": (gate, lambda g=gate: NUMBA.silu_mul(g, g)),
        }
        if n_tok == 1:
            logits = rng.standard_normal(128_256, np.float32)
            np.testing.assert_array_equal(descending(logits, 40), descending_numpy(logits, 40))
            calls["40 largest of 128256"] = logits, lambda x=logits: descending(x, 40)
        for name, (array, call) in calls.items():
            for n in n_threads:
                yield Timed(name, "F32", n_tok, n, call, 2 * array.nbytes)


def bench_kernels(call: Invocation) -> ResultsFile:
    """Run `bench kernels`.  Raises: RequestError for an unknown format"""
    options = call.options
    if unknown := [name for name in options.format or () if name not in FORMATS_BY_NAME]:
        raise RequestError(f"unknown format '{unknown[0]}'; choose from {' '.join(FORMATS_BY_NAME)}")
    header = {"part": "kernels", "settings": {"n_out": N_OUT, "n_in": N_IN}, "machine": machine.describe()}
    results = call.open_results(header | {"contenders": {OURS: machine.own_version()}})
    n_threads = list(dict.fromkeys(options.threads or [1, threads.N_CORE]))
    for n in n_threads:
        threads.limit(n)
        limits = f"read {machine.read_bandwidth():.1f} GB/s, dot4 {machine.dot_peak():.0f} GOP/s"
        results.say(f"{n} threads: {limits}, fma {machine.fma_peak():.0f} GFLOP/s")
    formats = [FORMATS_BY_NAME[name] for name in options.format or [FORMATS[type].name for type in packed.PRODUCTS]]
    rows = chain(
        matmul_rows(formats, n_threads, options.tokens), attention_rows(n_threads), elementwise_rows(n_threads)
    )
    try:
        known = set(results.run.cells)
        for row in rows:
            if row.cell not in known:
                call.progress(0.0, row.cell)
                measure_row(row, call.plan.rounds or ROUNDS, results)
    except KeyboardInterrupt:
        return results
    finish_run(results, "the rounds are done", call.plan)
    return results


def measure_row(row: Timed, n_round: int, results: ResultsFile) -> None:
    """Time a row again and again; all its rounds are marked if something disturbed one of them."""
    threads.limit(row.threads)
    row.call()
    with disturbance.watch() as found:
        rounds = [row.measure() for _ in range(n_round)]
    about = {"kernel": row.kernel, "format": row.format, "tokens": row.tokens, "threads": row.threads}
    for number, figures in enumerate(rounds):
        line = {"cell": row.cell, "round": number, "order": 0, "contender": OURS, "figures": figures, "raw": about}
        results.add_round(line | {"disturbance": found.to_json(), "disturbed": found.reasons})
