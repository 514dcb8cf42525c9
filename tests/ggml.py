"""A native ggml, called in this process: the reference for the formats' bytes and floats.

NUMLLAMA_LLAMA_CPP names the folder of a built llama.cpp's libraries (build/bin); written for commit 0c1e57098.
"""

import ctypes
import os
from pathlib import Path

import numpy as np

_encode = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class TypeTraits(ctypes.Structure):
    """ggml.h, struct ggml_type_traits."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


class Ggml:
    """libggml-base and libggml-cpu of one build."""

    def __init__(self, folder):
        self.base = ctypes.CDLL(str(Path(folder) / "libggml-base.so"))
        self.cpu = ctypes.CDLL(str(Path(folder) / "libggml-cpu.so"))
        self.base.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        self.base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.base.ggml_quantize_requires_imatrix.restype = ctypes.c_bool

    @classmethod
    def from_environment(cls):
        """Return the build that NUMLLAMA_LLAMA_CPP names, or None."""
        folder = os.environ.get("NUMLLAMA_LLAMA_CPP")
        return cls(folder) if folder else None

    def quantize(self, format, x):
        """Quantize weights as llama-quantize does.  f32 [n, block_size] -> blocks [n]

        Formats that need to know how important weights are get the same importance for all.
        """
        x = np.ascontiguousarray(x, np.float32)
        blocks = np.zeros(len(x), format.layout)
        alike = (
            np.ones(format.block_size, np.float32) if self.base.ggml_quantize_requires_imatrix(format.type) else None
        )
        importance = None if alike is None else alike.ctypes.data
        written = self.base.ggml_quantize_chunk(
            format.type, x.ctypes.data, blocks.ctypes.data, 0, len(x), format.block_size, importance
        )
        assert written == blocks.nbytes
        return blocks

    def dequantize(self, format, blocks):
        """Dequantize blocks.  blocks [n] -> f32 [n, block_size]"""
        blocks = np.ascontiguousarray(blocks)
        x = np.zeros((len(blocks), format.block_size), np.float32)
        to_float = self.base.ggml_get_type_traits(format.type).contents.to_float
        _encode(to_float)(blocks.ctypes.data, x.ctypes.data, x.size)
        return x

    def activations(self, format, x):
        """Quantize activations as the CPU code does: Q8_0, Q8_1 or Q8_K.  f32 [n, block_size] -> blocks [n]"""
        x = np.ascontiguousarray(x, np.float32)
        blocks = np.zeros(len(x), format.layout)
        encode = getattr(self.cpu, f"quantize_row_{format.name.lower().replace('k', 'K')}")
        ctypes.cast(encode, _encode)(x.ctypes.data, blocks.ctypes.data, x.size)
        return blocks
