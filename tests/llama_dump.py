"""Dumps of a native llama.cpp: every value of a pass, as a callback of its scheduler (cb_eval) sees them.

A user's dump has one array for each name: of several with the same name the last, which is the one that later
operations read.  Values before RoPE have the same name as those after it.
"""

import ctypes
from pathlib import Path

import numpy as np
from libllama import GgmlTensor, LibLlama

from numllama.engine.oracle.dumps import Dump, StoredArray
from numllama.kernels.quants import FORMATS, GGMLType, dequantize

CACHES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}  # ggml.h, enum ggml_type
VIEWS = ("VIEW", "PERMUTE", "TRANSPOSE", "NONE")
Callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


def array_of(tensor):
    """Read a tensor in the processor's memory.  -> a copy in NumPy's order of axes; None for a type without numbers"""
    shape, strides, kind = list(tensor.ne)[::-1], list(tensor.nb)[::-1], GGMLType(tensor.type)
    dtype = {GGMLType.F32: np.float32, GGMLType.F16: np.float16, GGMLType.I32: np.int32}.get(kind)
    n_bytes = sum((n - 1) * s for n, s in zip(shape[:-1], strides[:-1], strict=True)) + shape[-1] * strides[-1]
    if dtype is None:
        if kind not in FORMATS:
            return None
        format = FORMATS[kind]
        n_bytes = int(np.prod(shape)) // format.block_size * format.block_bytes
        raw = np.frombuffer(ctypes.string_at(tensor.data, n_bytes), format.layout)
        return dequantize(format, raw.reshape(*shape[:-1], -1))
    raw = np.frombuffer(ctypes.string_at(tensor.data, n_bytes), np.uint8)
    return np.ndarray(shape, dtype, raw, strides=strides).copy()


class DumpingLlama(LibLlama):
    """libllama of one build, with the values of its passes."""

    def dump(self, path, tokens, flash=0, cache="f32", pre_rope=False, **more):
        """Compute `tokens` and return all values by name.  -> {name: array}

        flash       0: off, 1: on
        pre_rope    values before RoPE are kept under names of their own
        """
        op_name = ctypes.CDLL(str(Path(self.lib._name).parent / "libggml-base.so")).ggml_op_name
        op_name.restype, op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
        values = {}

        def see(pointer, ask, data):
            tensor = GgmlTensor.from_address(pointer)
            if not ask:
                name, operation = tensor.name.decode(), op_name(tensor.op).decode()
                base = name.partition("-")[0]
                if operation not in VIEWS and "(" not in name and "cache" not in name:
                    if pre_rope and base in ("Qcur", "Kcur") and operation in ("MUL_MAT", "RESHAPE", "ADD"):
                        name = name.replace("cur-", "cur_projected-")
                    values[name] = array_of(tensor)
            return True

        callback = Callback(see)
        kept = {"type_k": CACHES[cache], "type_v": CACHES[cache], "flash_attn_type": flash}
        kept |= {"cb_eval": ctypes.cast(callback, ctypes.c_void_p).value, **more}
        with self._computed(path, tokens, {}, **kept):
            pass
        return {name: x for name, x in values.items() if x is not None}


def as_dump(values, tokens):
    """Return a dump of these arrays in memory."""
    return Dump(Path("llama.cpp"), {n: StoredArray(x.shape, lambda x=x: x) for n, x in values.items()}, list(tokens))
