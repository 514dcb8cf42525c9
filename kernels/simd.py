"""LLVM's vectors as Numba types, for kernels that work on lanes explicitly.  The only file with machine instructions.

    f32x16 i32x16 u8x64 ...     types: 16 float32 lanes, 64 bytes; + - * & | ^ << >> lane by lane, or with a scalar
    zero(f32x16)  splat(f32x16, x)  broadcast(f32x16, a, i)     0, x, a[i] in every lane
    load(f32x16, a, i)  store(a, i, v)                          a[i : i + 16]; `a` is flat, its bounds are not checked
    load_twice(f32x16, a, i)                                    a[i : i + 8], each in two neighbouring lanes
    scatter(a, i, step, v)  prefetch(a, i)                      a[i + step * lane] = v[lane]; fetch a[i] into the cache
    registers(f32x16, n)                                        n vectors to index; real registers once loops unroll
    convert(V, v)  bits(V, v)                                   the same numbers, the same bits, as another type
    fma(a, b, c)  maximum(a, b)  minimum(a, b)                  a * b + c; lane by lane
    total(v)  largest(v)  totals(v, w, x, y)  largests(...)     over the lanes; of four vectors, as four lanes
    swap_neighbours(v)  interleave(v, w, x, y)                  lanes 1 0 3 2 ...; v[0] w[0] x[0] y[0] v[1] ...
    lane(v, i)  with_lane(v, i, x)                              v[i]; v with x in lane i
    half_to_f32(u16x16)  f32_to_half(x)                         float16 bits -> f32x16, and back; back for scalars too
    round_to_half(x)  round_to_bf16(x)                          an f32 rounded to the shorter type, still as f32;
                                                                round_to_half for vectors too
    dot4(sum, u, s)  dot4_signed(sum, a, s)                     sum[r] + sum over c < 4 of u[4 r + c] * s[4 r + c]
    lookup(table, q)                                            table[q[i]]: 16 values, codes u8x64 of 0 .. 15

fma and the operations from half_to_f32 on depend on the machine.  LEVEL names the implementation in use:

    portable        generic vector code for any CPU; no fused multiply-add
    avx2            vpmaddubsw, FMA, F16C                      x86-64 from 2013 on
    avx512vnni      vpdpbusd on 64 bytes                       Intel from 2019, AMD Zen 4 on
    neon            sdot                                       ARMv8.2 with the dot product extension

NUMLLAMA_SIMD=<level> selects a lower one.  A level that the CPU lacks would abort the process, so it is refused here.
"""

from __future__ import annotations

import operator
import os
import platform

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

# --- levels that this machine supports


REQUIRED_FEATURES = {
    "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx2", "fma", "f16c"},
    "neon": {"neon", "dotprod"},
    "avx2": {"avx2", "fma", "f16c"},
    "portable": set(),
}  # fastest first


def cpu_features() -> set[str]:
    """Return LLVM's names of the CPU features that Numba compiles for, given NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    if config.CPU_FEATURES is not None:
        listed = config.CPU_FEATURES
    else:
        listed = "" if config.CPU_NAME == "generic" else codegen.get_host_cpu_features()
    return {name[1:] for name in listed.split(",") if name.startswith("+")}


def choose_level(requested: str, features: set[str]) -> str:
    """Return the requested level, or the best that `features` support if `requested` is "".

    Raises: ValueError for an unknown level, and for one that the CPU cannot run.
    """
    supported = [level for level, required in REQUIRED_FEATURES.items() if required <= features]
    if not requested:
        return supported[0]
    if requested not in REQUIRED_FEATURES:
        raise ValueError(f"NUMLLAMA_SIMD is '{requested}', expected one of {', '.join(REQUIRED_FEATURES)}")
    if requested not in supported:
        missing = ", ".join(sorted(REQUIRED_FEATURES[requested] - features))
        raise ValueError(f"NUMLLAMA_SIMD is '{requested}', but this {platform.machine()} CPU lacks {missing}")
    return requested


LEVEL = choose_level(os.environ.get("NUMLLAMA_SIMD", ""), cpu_features())

# --- the types


class Vec(types.Type):
    """A vector of `n` lanes of a Numba number type."""

    def __init__(self, lane: types.Number, n: int):
        self.lane, self.n = lane, n
        super().__init__(f"{lane}x{n}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ir.FloatType() if self.lane == types.float32 else ir.IntType(self.lane.bitwidth), self.n)


@register_model(Vec)
class VecModel(models.PrimitiveModel):
    """The data model of Vec: an LLVM vector, in memory and in registers."""

    def __init__(self, manager, vec):
        super().__init__(manager, vec, vec.llvm)


f32x16, f32x4 = Vec(types.float32, 16), Vec(types.float32, 4)
i32x16, i32x4 = Vec(types.int32, 16), Vec(types.int32, 4)
u16x16 = Vec(types.uint16, 16)
u8x64, i8x64, u8x16, i8x16 = Vec(types.uint8, 64), Vec(types.int8, 64), Vec(types.uint8, 16), Vec(types.int8, 16)


# --- operators: vector with vector, or with a scalar, which is copied to every lane


def splat_value(builder, vec, x):
    """Build a vector with `x` in every lane."""
    one = builder.insert_element(ir.Constant(vec.llvm, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), vec.n), [0] * vec.n))


def shift_right(builder, vec, a, b):
    """Build a right shift, which copies the sign bit if the lanes are signed."""
    return builder.ashr(a, b) if vec.lane.signed else builder.lshr(a, b)


INTEGER = {
    operator.add: lambda builder, vec, a, b: builder.add(a, b),
    operator.sub: lambda builder, vec, a, b: builder.sub(a, b),
    operator.mul: lambda builder, vec, a, b: builder.mul(a, b),
    operator.and_: lambda builder, vec, a, b: builder.and_(a, b),
    operator.or_: lambda builder, vec, a, b: builder.or_(a, b),
    operator.xor: lambda builder, vec, a, b: builder.xor(a, b),
    operator.lshift: lambda builder, vec, a, b: builder.shl(a, b),
    operator.rshift: shift_right,
}
FLOAT = {
    operator.add: lambda builder, vec, a, b: builder.fadd(a, b),
    operator.sub: lambda builder, vec, a, b: builder.fsub(a, b),
    operator.mul: lambda builder, vec, a, b: builder.fmul(a, b),
    operator.truediv: lambda builder, vec, a, b: builder.fdiv(a, b),
}


def define_operator(op):
    """Define operator `op` for vectors."""

    class Template(AbstractTemplate):
        def generic(self, args, kws):
            vec = args[0]
            if not isinstance(vec, Vec) or op not in (FLOAT if vec.lane == types.float32 else INTEGER):
                return None
            if args[1] == vec:
                return signature(vec, vec, vec)
            if isinstance(args[1], types.Number):
                return signature(vec, vec, vec.lane)
            return None

    infer_global(op)(Template)

    def lower(context, builder, sig, args):
        vec, other = sig.args
        b = args[1] if other == vec else splat_value(builder, vec, args[1])
        return (FLOAT if vec.lane == types.float32 else INTEGER)[op](builder, vec, args[0], b)

    lower_builtin(op, Vec, Vec)(lower)
    lower_builtin(op, Vec, types.Number)(lower)


for op in INTEGER | FLOAT:
    define_operator(op)


# --- memory; `vec` is one of the types above


def address(context, builder, array_type, array, i, llvm):
    """Build the address of element `i` of `array`, as a pointer to `llvm`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [i]), llvm.as_pointer())


@intrinsic
def zero(typing, vec):
    """Return a vector of zeros."""
    v = vec.instance_type
    return v(vec), lambda context, builder, sig, args: ir.Constant(v.llvm, None)


@intrinsic
def splat(typing, vec, x):
    """Return a vector with `x` in every lane."""
    v = vec.instance_type
    return v(vec, v.lane), lambda context, builder, sig, args: splat_value(builder, v, args[1])


@intrinsic
def load(typing, vec, array, i):
    """Load a `vec` from array[i] on; no alignment is needed."""
    v = vec.instance_type

    def generate(context, builder, sig, args):
        pointer = address(context, builder, array, args[1], args[2], v.llvm)
        return builder.load(pointer, typ=v.llvm, align=1)

    return v(vec, array, types.intp), generate


@intrinsic
def load_twice(typing, vec, array, i):
    """Load half a `vec` from array[i] on, each element to two neighbouring lanes."""
    v = vec.instance_type

    def generate(context, builder, sig, args):
        half = ir.VectorType(v.llvm.element, v.n // 2)
        elements = builder.load(address(context, builder, array, args[1], args[2], half), typ=half, align=1)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), v.n), [i // 2 for i in range(v.n)])
        return builder.shuffle_vector(elements, ir.Constant(half, ir.Undefined), lanes)

    return v(vec, array, types.intp), generate


@intrinsic
def broadcast(typing, vec, array, i):
    """Return a `vec` with array[i] in every lane."""
    v = vec.instance_type

    def generate(context, builder, sig, args):
        pointer = address(context, builder, array, args[1], args[2], v.llvm.element)
        return splat_value(builder, v, builder.load(pointer, typ=v.llvm.element, align=1))

    return v(vec, array, types.intp), generate


@intrinsic
def store(typing, array, i, vector):
    """Store the vector's lanes to array[i] on; no alignment is needed."""

    def generate(context, builder, sig, args):
        builder.store(args[2], address(context, builder, array, args[0], args[1], vector.llvm), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def scatter(typing, array, i, step, vector):
    """Store each lane of the vector to array[i + step * lane]."""

    def generate(context, builder, sig, args):
        data = context.make_array(array)(context, builder, args[0]).data
        for lane in range(vector.n):
            x = builder.extract_element(args[3], ir.Constant(ir.IntType(32), lane))
            i = builder.add(args[1], builder.mul(args[2], ir.Constant(args[2].type, lane)))
            builder.store(x, builder.gep(data, [i]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), generate


@intrinsic
def line_start(typing, array):
    """Return the first index whose element begins a cache line of 64 bytes.  `array` f32 or i32"""

    def generate(context, builder, sig, args):
        data = builder.ptrtoint(context.make_array(array)(context, builder, args[0]).data, ir.IntType(64))
        rest = builder.and_(builder.neg(data), ir.Constant(ir.IntType(64), 63))
        return builder.lshr(rest, ir.Constant(ir.IntType(64), 2))

    return types.intp(array), generate


@intrinsic
def prefetch(typing, array, i):
    """Fetch the cache line of a[i] into the second-level cache.  Never faults, even if `i` is out of bounds."""

    def generate(context, builder, sig, args):
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        pointer = address(context, builder, array, args[0], args[1], ir.IntType(8))
        builder.call(function, [pointer, whole(0), whole(2), whole(1)])  # to read, level 2, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic(prefer_literal=True)
def registers(typing, vec, n):
    """Return an array of `n` uninitialized vectors.  `n` must be a literal in the caller: `literally(n)`."""
    if not isinstance(n, types.IntegerLiteral):
        return None
    v, count = vec.instance_type, n.literal_value

    def generate(context, builder, sig, args):
        return builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(v.llvm, count)), v.llvm.as_pointer())

    return types.CPointer(v)(vec, n), generate


# --- numbers


@intrinsic
def convert(typing, vec, vector):
    """Convert the vector's numbers to `vec`: floats are rounded toward zero, integers are extended or truncated."""
    to = vec.instance_type

    def generate(context, builder, sig, args):
        if to.lane == types.float32:
            return (builder.sitofp if vector.lane.signed else builder.uitofp)(args[1], to.llvm)
        if vector.lane == types.float32:
            return (builder.fptosi if to.lane.signed else builder.fptoui)(args[1], to.llvm)
        if to.lane.bitwidth <= vector.lane.bitwidth:
            return builder.trunc(args[1], to.llvm)
        return (builder.sext if vector.lane.signed else builder.zext)(args[1], to.llvm)

    return to(vec, vector), generate


@intrinsic
def bits(typing, vec, vector):
    """Reinterpret the vector's bits as `vec`."""
    to = vec.instance_type
    return to(vec, vector), lambda context, builder, sig, args: builder.bitcast(args[1], to.llvm)


def call(builder, name, result, *args):
    """Build a call of LLVM's intrinsic `name` with the given result and argument types."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@intrinsic
def fma(typing, a, b, c):
    """Return a * b + c, rounded once except at level portable."""

    def generate(context, builder, sig, args):
        if LEVEL == "portable":  # llvm.fma would call a function per lane if the CPU lacks the instruction
            return builder.fadd(builder.fmul(args[0], args[1]), args[2])
        return call(builder, f"llvm.fma.v{a.n}f32", a.llvm, *args)

    return a(a, a, a), generate


def select(builder, vec, sign, a, b):
    """Build a where a > b (or a < b), else b."""
    compare = builder.fcmp_ordered if vec.lane == types.float32 else builder.icmp_signed
    return builder.select(compare(sign, a, b), a, b)


@intrinsic
def maximum(typing, a, b):
    """Return the larger of each pair of lanes."""
    return a(a, a), lambda context, builder, sig, args: select(builder, a, ">", *args)


@intrinsic
def minimum(typing, a, b):
    """Return the smaller of each pair of lanes."""
    return a(a, a), lambda context, builder, sig, args: select(builder, a, "<", *args)


def halves(builder, v):
    """Build the lower and the upper half of a vector."""
    n = v.type.count // 2
    lanes = [ir.Constant(ir.VectorType(ir.IntType(32), n), [*range(i, i + n)]) for i in (0, n)]
    return [builder.shuffle_vector(v, v, index) for index in lanes]


def concatenate(builder, a, b):
    """Build one vector of the lanes of `a`, then of `b`."""
    n = 2 * a.type.count
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), n), [*range(n)]))


def fold(builder, v, combine):
    """Combine the lanes as a tree, lower half with upper half until one is left: the same order on every machine."""
    while v.type.count > 1:
        v = combine(*halves(builder, v))
    return builder.extract_element(v, ir.Constant(ir.IntType(32), 0))


@intrinsic
def swap_neighbours(typing, vector):
    """Return lanes 1, 0, 3, 2, ..."""

    def generate(context, builder, sig, args):
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.n), [i ^ 1 for i in range(vector.n)])
        return builder.shuffle_vector(args[0], args[0], lanes)

    return vector(vector), generate


@intrinsic
def total(typing, vector):
    """Return the sum of the lanes."""

    def generate(context, builder, sig, args):
        return fold(builder, args[0], builder.fadd if vector.lane == types.float32 else builder.add)

    return vector.lane(vector), generate


@intrinsic
def totals(typing, v, w, x, y):
    """Return the `total` of each of four vectors of 16, bit for bit, at the cost of one and a half.  -> four lanes"""

    def generate(context, builder, sig, args):
        return fold_four(builder, args, builder.fadd if v.lane == types.float32 else builder.add)

    return Vec(v.lane, 4)(v, w, x, y), generate


def fold_four(builder, vectors, combine):
    """Build `fold` of four vectors of 16 lanes at once.  -> four lanes"""

    def sides(a, b, size):  # the first halves, and the second halves, of each group of `size` lanes of a and b
        n = a.type.count
        first = [start + i for start in range(0, 2 * n, size) for i in range(size // 2)]
        kind = ir.VectorType(ir.IntType(32), n)
        return [builder.shuffle_vector(a, b, ir.Constant(kind, [i + shift for i in first])) for shift in (0, size // 2)]

    a, b = (combine(*sides(*pair, 16)) for pair in (vectors[:2], vectors[2:]))
    four = combine(*sides(a, b, 8))  # four lanes of each vector
    for size in (4, 2):
        four = halves(builder, combine(*sides(four, four, size)))[0]
    return four


@intrinsic
def largest(typing, vector):
    """Return the largest lane."""

    def generate(context, builder, sig, args):
        return fold(builder, args[0], lambda a, b: select(builder, vector, ">", a, b))

    return vector.lane(vector), generate


@intrinsic
def largests(typing, v, w, x, y):
    """Return the `largest` of each of four f32x16.  -> f32x4"""

    def generate(context, builder, sig, args):
        return fold_four(builder, args, lambda a, b: select(builder, v, ">", a, b))

    return Vec(v.lane, 4)(v, w, x, y), generate


@intrinsic
def lane(typing, vector, i):
    """Return lane i."""
    return vector.lane(vector, types.intp), lambda context, builder, sig, args: builder.extract_element(*args)


@intrinsic
def with_lane(typing, vector, i, x):
    """Return the vector with `x` in lane i."""
    return vector(vector, types.intp, vector.lane), lambda context, builder, sig, args: builder.insert_element(
        args[0], args[2], args[1]
    )


@intrinsic
def interleave(typing, v, w, x, y):
    """Return the lanes v[0] w[0] x[0] y[0] v[1] ... of four vectors."""
    result = Vec(v.lane, 4 * v.n)

    def generate(context, builder, sig, args):
        lanes = [v.n * k + i for i in range(v.n) for k in range(4)]
        pairs = concatenate(builder, *args[:2]), concatenate(builder, *args[2:])
        return builder.shuffle_vector(*pairs, ir.Constant(ir.VectorType(ir.IntType(32), result.n), lanes))

    return result(v, w, x, y), generate


# --- machine-dependent operations


def half_to_f32_portable(builder, h):
    """Build the conversion: move sign, exponent and fraction, then multiply by 2^112 to correct the exponent's bias.

    Works for subnormals.  Infinities and NaNs, which scales and cached keys never are, become finite numbers >= 65536.
    """
    n = h.type.count
    wide, real = ir.VectorType(ir.IntType(32), n), ir.VectorType(ir.FloatType(), n)
    h = builder.zext(h, wide)
    magnitude = builder.shl(builder.and_(h, ir.Constant(wide, [0x7FFF] * n)), ir.Constant(wide, [13] * n))
    value = builder.fmul(builder.bitcast(magnitude, real), ir.Constant(real, [2.0**112] * n))
    sign = builder.shl(builder.and_(h, ir.Constant(wide, [0x8000] * n)), ir.Constant(wide, [16] * n))
    return builder.bitcast(builder.or_(builder.bitcast(value, wide), sign), real)


def half_to_f32_native(builder, h):
    """Build the conversion with the CPU's own instruction."""
    half = ir.VectorType(ir.HalfType(), h.type.count)
    return builder.fpext(builder.bitcast(h, half), ir.VectorType(ir.FloatType(), h.type.count))


@intrinsic
def half_to_f32(typing, h):
    """Convert float16 bits to float32.  u16x16 -> f32x16"""
    generate = half_to_f32_portable if LEVEL == "portable" else half_to_f32_native
    return Vec(types.float32, h.n)(h), lambda context, builder, sig, args: generate(builder, args[0])


def round_to_half_portable(builder, x):
    """Build rounding to 11 bits, ties to even.  For |x| < 65520.

    Below 2^-14 the result is a multiple of 2^-24, which adding and subtracting 0.75 produces.
    """
    real, whole = x.type, ir.IntType(32)
    if isinstance(real, ir.VectorType):
        whole = ir.VectorType(whole, real.count)

    def constant(type, value):
        return ir.Constant(type, [value] * type.count if isinstance(type, ir.VectorType) else value)

    b = builder.bitcast(x, whole)
    odd = builder.and_(builder.lshr(b, constant(whole, 13)), constant(whole, 1))
    rounded = builder.add(builder.add(b, constant(whole, 0x0FFF)), odd)
    normal = builder.bitcast(builder.and_(rounded, constant(whole, -0x2000)), real)
    tiny = builder.fsub(builder.fadd(x, constant(real, 0.75)), constant(real, 0.75))
    small = builder.icmp_unsigned("<", builder.and_(b, constant(whole, 0x7FFFFFFF)), constant(whole, 0x38800000))
    return builder.select(small, tiny, normal)


def round_to_half_native(builder, x):
    """Build rounding with the CPU's own conversions."""
    half = ir.VectorType(ir.HalfType(), x.type.count) if isinstance(x.type, ir.VectorType) else ir.HalfType()
    return builder.fpext(builder.fptrunc(x, half), x.type)


@intrinsic
def round_to_half(typing, x):
    """Round to the nearest float16 value, kept as float32.  f32x16 -> f32x16, f32 -> f32"""
    generate = round_to_half_portable if LEVEL == "portable" else round_to_half_native
    result = x if isinstance(x, Vec) else types.float32
    return result(result), lambda context, builder, sig, args: generate(builder, args[0])


def f32_to_half_portable(builder, x):
    """Build the conversion: ties to even, infinity from 65520 on, NaN to NaN.  Moves the rounded magnitude's bits."""
    many = isinstance(x.type, ir.VectorType)
    whole = ir.VectorType(ir.IntType(32), x.type.count) if many else ir.IntType(32)

    def constant(value):
        return ir.Constant(whole, [value] * whole.count if many else value)

    def smaller(a, b):
        return builder.icmp_unsigned("<", a, constant(b))

    b = builder.bitcast(x, whole)
    size = builder.and_(b, constant(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, constant(13)), constant(1))
    normal = builder.lshr(builder.add(builder.add(size, odd), constant(0x0FFF - (112 << 23))), constant(13))
    half = ir.Constant(x.type, [0.5] * x.type.count if many else 0.5)  # its last bit is 2^-24, as in a subnormal half
    tiny = builder.fadd(builder.bitcast(size, x.type), half)
    tiny = builder.sub(builder.bitcast(tiny, whole), builder.bitcast(half, whole))
    overflow = builder.select(smaller(size, 0x7F800001), constant(0x7C00), constant(0x7E00))
    bits = builder.select(smaller(size, 0x47800000), builder.select(smaller(size, 0x38800000), tiny, normal), overflow)
    bits = builder.or_(bits, builder.and_(builder.lshr(b, constant(16)), constant(0x8000)))
    return builder.trunc(bits, ir.VectorType(ir.IntType(16), whole.count) if many else ir.IntType(16))


def f32_to_half_native(builder, x):
    """Build the conversion with the CPU's own instruction."""
    n = x.type.count if isinstance(x.type, ir.VectorType) else 0
    half, bits = ir.HalfType(), ir.IntType(16)
    if n:
        half, bits = ir.VectorType(half, n), ir.VectorType(bits, n)
    return builder.bitcast(builder.fptrunc(x, half), bits)


@intrinsic
def f32_to_half(typing, x):
    """Convert float32 to float16 bits.  f32x16 -> u16x16, f32 -> u16"""
    generate = f32_to_half_portable if LEVEL == "portable" else f32_to_half_native
    result = Vec(types.uint16, x.n) if isinstance(x, Vec) else types.uint16
    return result(x if isinstance(x, Vec) else types.float32), lambda context, builder, sig, args: generate(
        builder, args[0]
    )


@intrinsic
def round_to_bf16(typing, x):
    """Round to the nearest BF16 value, ties to even, kept as float32.  Not for NaNs."""

    def generate(context, builder, sig, args):
        whole = ir.IntType(32)
        b = builder.bitcast(args[0], whole)
        odd = builder.and_(builder.lshr(b, whole(16)), whole(1))
        b = builder.and_(builder.add(builder.add(b, whole(0x7FFF)), odd), whole(-0x10000))
        return builder.bitcast(b, ir.FloatType())

    return types.float32(types.float32), generate


def quarter_sums(builder, products):
    """Build the sums of lanes 4 r .. 4 r + 3, as i32.  <4 n x i16> -> <n x i32>"""
    n = products.type.count // 4
    wide = ir.VectorType(ir.IntType(32), n)
    every_fourth = [ir.Constant(wide, [4 * r + c for r in range(n)]) for c in range(4)]
    a, b, c, d = (builder.sext(builder.shuffle_vector(products, products, index), wide) for index in every_fourth)
    return builder.add(builder.add(a, b), builder.add(c, d))


def dot4_portable(builder, total, u, s, extend="zext"):
    """Build dot4 from multiplications in 16 bits."""
    wide = ir.VectorType(ir.IntType(16), u.type.count)
    products = builder.mul(getattr(builder, extend)(u, wide), builder.sext(s, wide))
    return builder.add(total, quarter_sums(builder, products))


def dot4_signed_portable(builder, total, a, s):
    """Build dot4_signed from multiplications in 16 bits."""
    return dot4_portable(builder, total, a, s, extend="sext")


def dot4_avx2(builder, total, u, s):
    """Build dot4 with vpmaddubsw and vpmaddwd, 32 bytes at a time."""
    if u.type.count > 32:
        parts = zip(*(halves(builder, v) for v in (total, u, s)), strict=True)
        return concatenate(builder, *(dot4_avx2(builder, *part) for part in parts))
    i16x16, i32x8 = ir.VectorType(ir.IntType(16), 16), ir.VectorType(ir.IntType(32), 8)
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", i16x16, u, s)
    return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", i32x8, pairs, ir.Constant(i16x16, [1] * 16)))


def dot4_signed_avx2(builder, total, a, s):
    """Build |a| times (s with a's sign).  The sum of a pair is at most 2 * 128 * 127, which fits into 16 bits."""
    if a.type.count > 32:
        parts = zip(*(halves(builder, v) for v in (total, a, s)), strict=True)
        return concatenate(builder, *(dot4_signed_avx2(builder, *part) for part in parts))
    magnitude = call(builder, "llvm.x86.avx2.psign.b", a.type, a, a)
    return dot4_avx2(builder, total, magnitude, call(builder, "llvm.x86.avx2.psign.b", a.type, s, a))


def dot4_avx512vnni(builder, total, u, s):
    # The declaration of LLVM up to 21; later versions upgrade it when they parse it.
    """Build dot4 with vpdpbusd."""
    u, s = (builder.bitcast(v, total.type) for v in (u, s))
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, u, s)


def dot4_signed_avx512vnni(builder, total, a, s):
    """Build (a + 128) times s.  The caller's sum starts at -SIGNED_BIAS * sum(s)."""
    return dot4_avx512vnni(builder, total, builder.xor(a, ir.Constant(a.type, [-128] * a.type.count)), s)


def dot4_neon(builder, total, a, s):
    """Build dot4 or dot4_signed with sdot, 16 bytes at a time."""
    if a.type.count > 16:
        parts = zip(*(halves(builder, v) for v in (total, a, s)), strict=True)
        return concatenate(builder, *(dot4_neon(builder, *part) for part in parts))
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, a, s)


DOT4 = {
    "portable": dot4_portable,
    "avx2": dot4_avx2,
    "avx512vnni": dot4_avx512vnni,
    "neon": dot4_neon,
}
DOT4_SIGNED = {
    "portable": dot4_signed_portable,
    "avx2": dot4_signed_avx2,
    "avx512vnni": dot4_signed_avx512vnni,
    "neon": dot4_neon,
}
SIGNED_BIAS = 128 if LEVEL == "avx512vnni" else 0


@intrinsic
def dot4(typing, total, u, s):
    """Add four products to each lane: u8 in 0..127 times i8 in -127..127.  A pair fits into 16 bits: none saturates."""
    return total(total, u, s), lambda context, builder, sig, args: DOT4[LEVEL](builder, *args)


@intrinsic
def dot4_signed(typing, total, a, s):
    """Add four products to each lane: i8 times i8 in -127..127, plus SIGNED_BIAS * sum(s)."""
    return total(total, a, s), lambda context, builder, sig, args: DOT4_SIGNED[LEVEL](builder, *args)


def lookup_portable(builder, table, q):
    """Build the lookup as a tree of selects, one level for each bit of the codes."""
    byte = ir.IntType(8)
    entries = [builder.extract_element(table, ir.Constant(ir.IntType(32), i)) for i in range(16)]
    values = [splat_value(builder, i8x64, entry) for entry in entries]
    for bit in range(4):
        mask = ir.Constant(q.type, [byte(1 << bit)] * 64)
        is_set = builder.icmp_unsigned("!=", builder.and_(q, mask), ir.Constant(q.type, None))
        values = [builder.select(is_set, *pair) for pair in zip(values[1::2], values[::2], strict=True)]
    return values[0]


def lookup_avx2(builder, table, q):
    """Build the lookup with vpshufb on 32 bytes."""
    low, high = (
        call(builder, "llvm.x86.avx2.pshuf.b", half.type, concatenate(builder, table, table), half)
        for half in halves(builder, q)
    )
    return concatenate(builder, low, high)


def lookup_avx512vnni(builder, table, q):
    """Build the lookup with vpshufb on 64 bytes."""
    four = concatenate(builder, *[concatenate(builder, table, table)] * 2)
    return call(builder, "llvm.x86.avx512.pshuf.b.512", q.type, four, q)


def lookup_neon(builder, table, q):
    """Build the lookup with tbl on 16 bytes."""
    if q.type.count > 16:
        return concatenate(builder, *(lookup_neon(builder, table, half) for half in halves(builder, q)))
    return call(builder, "llvm.aarch64.neon.tbl1.v16i8", q.type, table, q)


LOOKUP = {
    "portable": lookup_portable,
    "avx2": lookup_avx2,
    "avx512vnni": lookup_avx512vnni,
    "neon": lookup_neon,
}


@intrinsic
def lookup(typing, table, q):
    """Return table[q[i]] in each lane.  i8x16, u8x64 of 0 .. 15 -> i8x64"""
    return i8x64(table, q), lambda context, builder, sig, args: LOOKUP[LEVEL](builder, *args)
