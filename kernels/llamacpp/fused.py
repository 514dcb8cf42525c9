"""A product and a sum with one rounding."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def fma32(typing, a, b, c):
    """Return a * b + c of three f32, rounded once."""

    def generate(context, builder, sig, args):
        f32 = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.fma", [f32], ir.FunctionType(f32, [f32] * 3))
        return builder.call(function, args)

    return types.float32(types.float32, types.float32, types.float32), generate
