"""Numba's compiler with what this project's kernels need of it, which takes a third less time.

    KernelCompiler      for functions that Python calls
    InnerCompiler       for functions that only kernels call

Numba's other passes over a function's code are for closures, comprehensions, `with`, isinstance, literal_unroll and
expressions over whole arrays, none of which a kernel may contain, and for notes on types.  After each pass Numba
computes again which variables are alive, which passes that need it do for themselves.  Machine code is the same.
"""

from __future__ import annotations

from functools import cache, cached_property, partial

from llvmlite.binding import Linkage
from numba import types
from numba._dynfunc import make_function
from numba.core import typed_passes, untyped_passes
from numba.core.compiler import Compiler, Flags
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.ir_utils import build_definitions
from numba.core.ssa import reconstruct_ssa
from numba.core.targetconfig import ConfigStack


@register_pass(mutates_CFG=False, analysis_only=False)
class Ssa(untyped_passes.ReconstructSSA):
    """Numba's pass without an analysis of what its result keeps alive."""

    _name = "numllama_ssa"

    def run_pass(self, state):
        state.func_ir = reconstruct_ssa(state.func_ir)
        state.func_ir._definitions = build_definitions(state.func_ir.blocks)
        return True


@register_pass(mutates_CFG=False, analysis_only=False)
class StripPhis(typed_passes.PreLowerStripPhis):
    """Numba's pass without an analysis of what its result keeps alive."""

    _name = "numllama_strip_phis"

    def run_pass(self, state):
        state.func_ir = self._strip_phi_nodes(state.func_ir)
        state.func_ir._definitions = build_definitions(state.func_ir.blocks)
        return True


PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.InlineInlinables,
    untyped_passes.FindLiterallyCalls,
    Ssa,
    untyped_passes.DeadBranchPrune,
    typed_passes.NopythonTypeInference,
    StripPhis,
    typed_passes.IRLegalization,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class KernelPasses(PassManager):
    """Passes over a function's code, without Numba's timers and checks between them."""

    def _runPass(self, index, pss, internal_state):
        pss.analysis = self._analysis
        pss.run_pass(internal_state)


@cache
def all_passes() -> KernelPasses:
    """Return PASSES as Numba runs them."""
    passes = KernelPasses("numllama")
    for kind in PASSES:
        passes.add_pass(kind, kind.__name__)
    passes.finalize()
    return passes


class KernelFlags(Flags):
    """Flags that do not change: Numba's tables have them in their keys."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        return self is other or super().__eq__(other)


@cache
def kernel_flags(flags: Flags) -> KernelFlags:
    """Return one object for all equal flags."""
    return KernelFlags(flags)


def optimize_functions(codegen, module) -> None:
    """Run LLVM's passes over each function.  Numba makes them again for each, and for those that are only declared."""
    module.data_layout = codegen._data_layout
    passes, builder = codegen._function_pass_manager()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)


class KernelCompiler(Compiler):
    """A compiler of functions that Python calls."""

    def __init__(self, typingctx, targetctx, library, args, return_type, flags, locals):
        codegen = targetctx.codegen()
        if library is None:
            library = codegen.create_library("kernel")
            library.enable_object_caching()  # so that it can be saved
        library._optimize_functions = partial(optimize_functions, codegen)
        super().__init__(typingctx, targetctx, library, args, return_type, kernel_flags(flags), locals)

    def _compile_core(self):
        with ConfigStack().enter(self.state.flags):
            all_passes().run(self.state)
        self.state.pipeline = None  # which refers to this object
        return self.state.cr


class InnerCompiler(KernelCompiler):
    """A compiler that leaves optimization to the kernel that contains the function.

    Numba would optimize the function by itself, then again within each of its callers, and so on upwards.  No machine
    code is made for the function itself: linked code that calls it by name would find that slow version instead of its
    own.
    """

    def __init__(self, typingctx, targetctx, library, *args):
        library = library or targetctx.codegen().create_library("inner")
        library._optimize_final_module = lambda: None
        library._finalize_final_module = partial(self.leave_to_kernels, library)
        super().__init__(typingctx, targetctx, library, *args)
        self.state.targetctx.get_executable = self.finish

    def compile_extra(self, func):
        result = super().compile_extra(func)
        if not self.state.flags.nrt and is_reference_counted(result.signature.return_type):
            raise TypeError(f"{func.__name__} returns {result.signature.return_type}, so it needs makes_arrays")
        return result

    @staticmethod
    def finish(library, function, environment):
        """Finish the function's code, of which kernels link copies.  -> its key in Numba's tables, not to be called"""
        library.finalize()
        module = function.lookup_module()
        return make_function(module, function.qualname, "", 0, environment, (library,))

    @staticmethod
    def leave_to_kernels(library) -> None:
        library._finalized = True
        for function in library._final_module.functions:
            if not function.is_declaration and function.linkage == Linkage.external:
                function.linkage = "linkonce_odr"  # so that a kernel may contain it twice, and leave it out


def is_reference_counted(kind: types.Type) -> bool:
    """Check whether values of this type refer to reference-counted memory."""
    return isinstance(kind, types.Array) or (isinstance(kind, types.BaseTuple) and any(map(is_reference_counted, kind)))
