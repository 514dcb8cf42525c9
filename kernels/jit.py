"""`@kernel`: how Numba compiles this project's kernels.

    nogil         other Python threads run while a kernel works
    error_model   "numpy": x / 0 is inf or nan, so division needs no branch, which would prevent vector code
    fastmath      off: sums keep their written order, and so their bits

NUMBA_DISABLE_JIT=1 turns compilation off.

compiler.py compiles in less time than Numba does, and code_file.py loads in less time and memory, but both use inner
classes of Numba.  With a release of Numba that they were not tested with, neither is imported: Numba's own compiler and
cache (numba_cache.py) take their place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import numba
from numba import types
from numba.core import config
from numba.core.typing.templates import signature
from numba.extending import intrinsic, overload

from .folder import cache_folder, log

TESTED_NUMBA = tuple(f"0.{minor}." for minor in range(62, 69))  # CONTRIBUTING.md says how one is added
FLAGS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}

if numba.__version__.startswith(TESTED_NUMBA):
    from .code_file import enable_cache
    from .compiler import InnerCompiler, KernelCompiler

    KERNEL, INNER, COPIED = {"pipeline_class": KernelCompiler}, {"pipeline_class": InnerCompiler}, {"forceinline": True}
else:
    from .numba_cache import use_numba_cache as enable_cache

    log.debug("Numba %s was not tested with kernels/compiler.py: kernels take longer to compile", numba.__version__)
    KERNEL, INNER = {}, {}
    COPIED = {"inline": "always"}  # LLVM would copy loops for any constant: products took 2.7 times longer


def kernel(function: Callable | None = None, makes_arrays: bool = False, **options):
    """Compile `function` on its first call for each set of argument types.  Also `@kernel(inline="always")`.

    makes_arrays   as for `inner`
    """
    if function is None:
        return partial(kernel, makes_arrays=makes_arrays, **options)
    compiled = numba.njit(**FLAGS, **KERNEL, _nrt=makes_arrays, **options)(function)
    if not config.DISABLE_JIT:
        enable_cache(compiled, cache_folder())
    return compiled


def inner(function: Callable | None = None, makes_arrays: bool = False, copied: bool = False):
    """Compile a function that only kernels call.  Their code contains it, so it needs no entry from Python and no file.

    makes_arrays   `@inner(makes_arrays=True)` for a function that allocates or returns an array.  Others do not count
                   references, which saves up to four locked instructions each time an array is passed on.  They may
                   call one that returns no array.
    copied         inline every call, however long the function, so that a call's constant argument is constant
                   in its loops
    """
    if function is None:
        return partial(inner, makes_arrays=makes_arrays, copied=copied)
    options = {"no_cpython_wrapper": True, "_nrt": makes_arrays} | (COPIED if copied else {})
    return numba.njit(**FLAGS, **INNER, **options)(function)


def by_type(name: str, otherwise: Callable | None = None):
    """Make a function for kernels to call, whose body depends on the type of its first argument.

    scale = by_type("scale")
    @scale.case(A, B)       the body for NamedTuple classes A and B; a vector type will do as well
    otherwise               the body for every other type; without one such a call does not compile
    """
    cases: dict = {}

    def choose(first, *args):
        return cases.get(type(first), otherwise)(first, *args)

    def case(*kinds):
        def add(body):
            cases.update(dict.fromkeys(kinds, body))
            return body

        return add

    choose.__name__, choose.cases, choose.case = name, cases, case
    options = FLAGS | INNER | {"no_cpython_wrapper": True, "_nrt": False}
    body_for = lambda first, *args: cases.get(getattr(first, "instance_class", first), otherwise)  # noqa: E731
    overload(choose, jit_options=options, strict=False)(body_for)
    return choose


class Entry:
    """A kernel's machine code for given argument types, which another kernel calls by its address.

    The caller does not contain the code: it is compiled once, and callers compile quickly.

        entry.address           from Python; compiles the kernel on first use
        entry.call(address, (a, b))     in a kernel: function(a, b); an array is accepted for a read-only one
    """

    def __init__(self, compiled, *args, result=types.void):
        self.compiled, self.signature = compiled, signature(result, *args)
        self.call = caller(self.signature)

    @cached_property
    def address(self) -> int:
        self.compiled.compile(self.signature.args)
        code = self.compiled.overloads[self.signature.args]
        assert code.signature.return_type == self.signature.return_type, code.signature
        return code.library.get_pointer_to_function(code.fndesc.llvm_func_name)


def caller(callee):
    """Return an intrinsic (address, args) that calls the machine code at `address`, of signature `callee`."""

    @intrinsic
    def call(typing, address, args):
        def generate(context, builder, sig, values):
            kind = context.call_conv.get_function_type(callee.return_type, callee.args)
            function = builder.inttoptr(values[0], kind.as_pointer())
            unpacked = [
                context.cast(builder, builder.extract_value(values[1], i), have, want)
                for i, (have, want) in enumerate(zip(args.types, callee.args, strict=True))
            ]
            _, result = context.call_conv.call_function(builder, function, callee.return_type, callee.args, unpacked)
            return result

        return callee.return_type(types.int64, args), generate

    return call
