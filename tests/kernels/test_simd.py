"""Vector operations: each level compared with plain integers; levels that this machine lacks only as assembly."""

import re

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import pytest
from numba import literally, types
from numba.core import config
from numba.extending import intrinsic

from numllama.kernels import simd
from numllama.kernels.jit import kernel
from numllama.kernels.simd import (
    bits,
    broadcast,
    convert,
    f32_to_half,
    f32x16,
    fma,
    half_to_f32,
    i8x16,
    i8x64,
    i32x16,
    largest,
    load,
    maximum,
    registers,
    round_to_half,
    splat,
    store,
    total,
    u8x64,
    u16x16,
)

compiled = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")
SUPPORTED = [level for level, required in simd.REQUIRED_FEATURES.items() if required <= simd.cpu_features()]


def dot4_of(level, table):
    @intrinsic
    def dot4(typing, total, u, s):
        return total(total, u, s), lambda context, builder, sig, args: table[level](builder, *args)

    return dot4


@compiled
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("level", simd.REQUIRED_FEATURES)
def test_dot4_adds_four_products_to_each_lane(level, signed):
    if level not in SUPPORTED:
        pytest.skip(f"this CPU cannot run {level}")
    dot4 = dot4_of(level, simd.DOT4_SIGNED if signed else simd.DOT4)
    vec = i8x64 if signed else u8x64

    @kernel
    def one(start, u, s, out):
        store(out, 0, dot4(load(i32x16, start, 0), load(vec, u, 0), load(i8x64, s, 0)))

    rng = np.random.default_rng(7)
    s = rng.integers(-127, 128, 64, dtype=np.int8)
    u = rng.integers(-128, 128, 64, dtype=np.int8) if signed else rng.integers(0, 128, 64, dtype=np.uint8)
    u[:8], s[:8] = (-128 if signed else 127), 127  # where 16 bits would saturate
    start = rng.integers(-1000, 1000, 16, dtype=np.int32)
    bias = 128 if signed and level == "avx512vnni" else 0
    expected = start + ((u.astype(np.int32) + bias) * s).reshape(16, 4).sum(axis=1)
    got = np.zeros(16, np.int32)
    one(start, u, s, got)
    np.testing.assert_array_equal(got, expected)


@compiled
@pytest.mark.parametrize("level", simd.REQUIRED_FEATURES)
def test_lookup_returns_the_value_of_each_code(level):
    if level not in SUPPORTED:
        pytest.skip(f"this CPU cannot run {level}")

    @intrinsic
    def lookup(typing, table, q):
        return i8x64(table, q), lambda context, builder, sig, args: simd.LOOKUP[level](builder, *args)

    @kernel
    def one(table, q, out):
        store(out, 0, lookup(load(i8x16, table, 0), load(u8x64, q, 0)))

    rng = np.random.default_rng(8)
    table, q = rng.permutation(256)[:16].astype(np.uint8).view(np.int8), rng.integers(0, 16, 64, dtype=np.uint8)
    got = np.zeros(64, np.int8)
    one(table, q, got)
    np.testing.assert_array_equal(got, table[q])


TARGETS = {
    "avx512vnni": ("x86_64-unknown-linux-gnu", "znver4", "vpdpbusd"),
    "avx2": ("x86_64-unknown-linux-gnu", "haswell", "vpmaddubsw"),
    "neon": ("aarch64-unknown-linux-gnu", "neoverse-n1", "sdot"),
    "portable": ("aarch64-unknown-linux-gnu", "cortex-a53", "mul"),
}


@pytest.mark.parametrize("level", TARGETS)
def test_dot4_lowers_to_the_instruction_of_its_level(level):
    triple, cpu, instruction = TARGETS[level]
    sums, bytes64 = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.IntType(8), 64)
    assert_lowers(simd.DOT4[level], sums, [sums, bytes64, bytes64], triple, cpu, instruction)


@pytest.mark.parametrize(
    "level, instruction", [("avx512vnni", "vpshufb"), ("avx2", "vpshufb"), ("neon", "tbl"), ("portable", "bsl|bit|bif")]
)
def test_lookup_lowers_to_the_instruction_of_its_level(level, instruction):
    triple, cpu, _ = TARGETS[level]
    bytes16, bytes64 = (ir.VectorType(ir.IntType(8), n) for n in (16, 64))
    assert_lowers(simd.LOOKUP[level], bytes64, [bytes16, bytes64], triple, cpu, instruction)


def assert_lowers(build, result, arguments, triple, cpu, instruction):
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(result, arguments), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(build(builder, *function.args))
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    assembly = machine.emit_assembly(llvm.parse_assembly(str(module)))
    assert re.search(rf"\b({instruction})\b", assembly)
    assert not re.search(r"^\s+(call|bl)\s", assembly, re.M)  # no library call per lane


@pytest.mark.parametrize(
    "requested, features, level",
    [
        ("", set(), "portable"),
        ("", {"avx2", "fma", "f16c"}, "avx2"),
        ("", {"avx2", "fma"}, "portable"),  # without F16C, half floats would need a library call
        ("portable", simd.REQUIRED_FEATURES["avx512vnni"], "portable"),
        ("", simd.REQUIRED_FEATURES["avx512vnni"] | {"sse2"}, "avx512vnni"),
        ("", {"neon", "dotprod"}, "neon"),
    ],
)
def test_the_best_supported_level_is_the_default(requested, features, level):
    assert simd.choose_level(requested, features) == level


def test_a_level_that_would_abort_the_process_is_refused():
    with pytest.raises(ValueError, match=r"'avx512vnni', but this \w+ CPU lacks avx512bw, avx512f"):
        simd.choose_level("avx512vnni", {"avx2", "fma", "f16c"})
    with pytest.raises(ValueError, match="'sse9', expected one of avx512vnni, neon, avx2, portable"):
        simd.choose_level("sse9", set())


def test_features_follow_numba_s_own_settings(monkeypatch):
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,-avx512f,+fma")
    assert simd.cpu_features() == {"avx2", "fma"}
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    assert simd.cpu_features() == set()


HALVES = np.arange(65536, dtype=np.uint16)
FINITE = np.isfinite(HALVES.view(np.float16))


@kernel
def all_halves(native, out):
    for i in range(0, 65536, 16):
        store(out, i, half_to_f32(load(u16x16, native, i)))


@compiled
def test_every_finite_half_converts_to_its_float():
    got = np.empty(65536, np.float32)
    all_halves(HALVES, got)
    np.testing.assert_array_equal(got[FINITE], HALVES.view(np.float16)[FINITE].astype(np.float32))


@kernel
def portable_halves(native, out):
    for i in range(0, 65536, 16):
        store(out, i, half_portable(load(u16x16, native, i)))


@intrinsic
def half_portable(typing, h):
    return f32x16(h), lambda context, builder, sig, args: simd.half_to_f32_portable(builder, args[0])


@compiled
def test_portable_and_native_half_conversions_agree_on_finite_values():
    got = np.empty(65536, np.float32)
    portable_halves(HALVES, got)
    np.testing.assert_array_equal(got[FINITE], HALVES.view(np.float16)[FINITE].astype(np.float32))


def around_halves():
    """Return every finite half, the midpoints between neighbours, and the floats next to each midpoint.  -> f32 [n]"""
    exact = HALVES.view(np.float16)[FINITE].astype(np.float32)
    ties = (exact[1:] + exact[:-1]) / 2
    return np.concatenate([exact, ties, np.nextafter(ties, np.float32(1)), np.nextafter(ties, np.float32(-1))])


@kernel
def rounded(x, out, portable):
    for i in range(0, x.size, 16):
        store(out, i, portable_round(load(f32x16, x, i)) if portable else round_to_half(load(f32x16, x, i)))


@intrinsic
def portable_round(typing, x):
    return f32x16(f32x16), lambda context, builder, sig, args: simd.round_to_half_portable(builder, args[0])


@compiled
@pytest.mark.parametrize("portable", [False, True])
def test_rounding_to_half_equals_numpy(portable):
    x = around_halves()
    x = x[np.abs(x) < 65520]
    x = np.resize(x, 16 * -(-x.size // 16))
    got = np.empty_like(x)
    rounded(x, got, portable)
    np.testing.assert_array_equal(got, x.astype(np.float16).astype(np.float32))


@kernel
def shortened(x, lanes, singly, portable):
    for i in range(0, x.size, 16):
        store(lanes, i, portable_half(load(f32x16, x, i)) if portable else f32_to_half(load(f32x16, x, i)))
    for i in range(x.size):
        singly[i] = portable_half(x[i]) if portable else f32_to_half(x[i])


@intrinsic
def portable_half(typing, x):
    kind = u16x16 if x == f32x16 else types.uint16
    return kind(x), lambda context, builder, sig, args: simd.f32_to_half_portable(builder, args[0])


@compiled
@pytest.mark.parametrize("portable", [False, True])
def test_converting_to_half_equals_numpy(portable):
    x = around_halves()
    edges = [0, 1e-45, 65504, 65519.99, 65520, 65536, 1e30, np.inf, np.nan]
    x = np.resize(np.concatenate([x, np.float32(edges), -np.float32(edges)]), 16 * (x.size // 16 + 5))
    lanes, singly = np.empty((2, x.size), np.uint16)
    shortened(x, lanes, singly, portable)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(lanes, expected)
    np.testing.assert_array_equal(singly, expected)


@kernel
def mixture(x, y, out, n):
    literally(n)
    sums = registers(f32x16, n)
    for i in range(n):
        sums[i] = splat(f32x16, i)
    for i in range(n):
        sums[i] = fma(load(f32x16, x, 0), broadcast(f32x16, y, i), sums[i]) - 0.5
    whole = convert(i32x16, maximum(sums[0], sums[1]) * 4.0)
    store(out, 0, convert(f32x16, (whole << 2) >> 1))
    out[16] = total(sums[n - 1])
    out[17] = largest(sums[n - 1])
    store(out, 18, bits(f32x16, bits(u8x64, load(f32x16, x, 0)) ^ 0))


@compiled
def test_operators_work_lane_by_lane():
    x, y = np.arange(-8, 8, dtype=np.float32), np.array([0.5, 1.0, -2.0], np.float32)
    out = np.zeros(34, np.float32)
    mixture(x, y, out, 3)
    sums = x * y[:, None] + np.arange(3, dtype=np.float32)[:, None] - 0.5
    np.testing.assert_array_equal(out[:16], (np.maximum(sums[0], sums[1]) * 4).astype(np.int32) * 2)
    assert out[16] == sums[2].sum() and out[17] == sums[2].max()  # exact in float32, so every order gives the same sum
    np.testing.assert_array_equal(out[18:], x)
