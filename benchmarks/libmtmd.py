"""A native llama.cpp's vision, called in this process: the reference for the embeddings of an image.

NUMLLAMA_LLAMA_CPP names the folder of a built llama.cpp's libraries (build/bin); written for commit 0c1e57098.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


class ContextParams(ctypes.Structure):
    """mtmd.h, struct mtmd_context_params."""

    _fields_ = [
        ("use_gpu", ctypes.c_bool),
        ("device", ctypes.c_void_p),
        ("print_timings", ctypes.c_bool),
        ("n_threads", ctypes.c_int),
        *((name, ctypes.c_char_p) for name in ("image_marker", "media_marker")),
        ("flash_attn_type", ctypes.c_int),
        ("warmup", ctypes.c_bool),
        *((name, ctypes.c_int) for name in ("image_min_tokens", "image_max_tokens")),
        *((name, ctypes.c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        ("batch_max_tokens", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("progress_callback", "progress_callback_user_data")),
    ]


class InputPart(ctypes.Structure):
    """mtmd.h, struct mtmd_input_part; here always an image."""

    _fields_ = [("text", ctypes.c_void_p), ("bitmap", ctypes.c_void_p)]


class InitOptions(ctypes.Structure):
    """mtmd-helper.h, struct mtmd_helper_init_opt; its options are for video."""

    _fields_ = [
        ("fps_target", ctypes.c_float),
        ("ffmpeg_bin_dir", ctypes.c_char_p),
        ("timestamp_interval_ms", ctypes.c_int64),
    ]


class Bitmap(ctypes.Structure):
    """mtmd-helper.h, struct mtmd_helper_bitmap_wrapper."""

    _fields_ = [("bitmap", ctypes.c_void_p), ("video", ctypes.c_void_p)]


class LibMtmd:
    """libmtmd of one build."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.lib = lib = ctypes.CDLL(str(Path(folder) / "libmtmd.so"))
        pointer, size, whole = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
        for name, result, *arguments in (
            ("log_set", None, pointer, pointer),
            ("context_params_default", ContextParams),
            ("init_from_file", pointer, ctypes.c_char_p, pointer, ContextParams),
            ("free", None, pointer),
            ("bitmap_init", pointer, ctypes.c_uint32, ctypes.c_uint32, pointer),
            ("bitmap_free", None, pointer),
            ("bitmap_get_nx", ctypes.c_uint32, pointer),
            ("bitmap_get_ny", ctypes.c_uint32, pointer),
            ("bitmap_get_data", ctypes.POINTER(ctypes.c_uint8), pointer),
            ("helper_init_opt_default", InitOptions),
            ("helper_bitmap_init_from_buf", Bitmap, pointer, ctypes.c_char_p, size, ctypes.c_bool, InitOptions),
            ("input_chunks_init", pointer),
            ("input_chunks_size", size, pointer),
            ("input_chunks_get", pointer, pointer, size),
            ("input_chunks_free", None, pointer),
            ("input_chunk_get_n_tokens", size, pointer),
            ("tokenize_from_parts", whole, pointer, pointer, pointer, size, ctypes.c_bool),
            ("encode_chunk", whole, pointer, pointer),
            ("get_output_embd", ctypes.POINTER(ctypes.c_float), pointer),
        ):
            function = getattr(lib, f"mtmd_{name}")
            function.restype, function.argtypes = result, arguments
        lib.mtmd_log_set(quiet, None)

    @classmethod
    def from_environment(cls) -> LibMtmd | None:
        """Return the build that NUMLLAMA_LLAMA_CPP names, or None."""
        folder = os.environ.get("NUMLLAMA_LLAMA_CPP")
        return cls(folder) if folder else None

    def rows(self, path: str | os.PathLike[str], pixels: np.ndarray, n_embd: int) -> np.ndarray:
        """Encode an image with the projector file `path`.  u8 [h, w, 3] -> f32 [n_rows, n_embd]

        In the plainest configuration: CPU, one thread, no flash attention.
        """
        with self.loaded(path) as context, self.cut(context, pixels) as chunks:
            return np.concatenate([self.encoded(context, chunk, n_embd) for chunk in chunks])

    def decoded(self, image: bytes) -> np.ndarray | None:
        """Decode an image file with stb_image, None if it fails.  -> u8 [h, w, 3]"""
        lib = self.lib
        bitmap = lib.mtmd_helper_bitmap_init_from_buf(
            None, image, len(image), False, lib.mtmd_helper_init_opt_default()
        ).bitmap
        if not bitmap:
            return None
        shape = lib.mtmd_bitmap_get_ny(bitmap), lib.mtmd_bitmap_get_nx(bitmap), 3
        pixels = np.ctypeslib.as_array(lib.mtmd_bitmap_get_data(bitmap), shape).copy()
        lib.mtmd_bitmap_free(bitmap)
        return pixels

    @contextmanager
    def loaded(self, path: str | os.PathLike[str], n_thread: int = 1, flash_attention: int = 0) -> Iterator[int]:
        """Provide a context.  flash_attention: -1 llama.cpp's choice, 0 off, 1 on"""
        params = self.lib.mtmd_context_params_default()
        params.use_gpu = params.print_timings = params.warmup = False
        params.n_threads, params.flash_attn_type = n_thread, flash_attention
        context = self.lib.mtmd_init_from_file(os.fsencode(path), None, params)
        assert context, f"llama.cpp cannot load {path}"
        yield context
        self.lib.mtmd_free(context)

    @contextmanager
    def cut(self, context: int, pixels: np.ndarray) -> Iterator[list[int]]:
        """Provide the image's tiles, resized and normalized, as libmtmd's chunks."""
        h, w, _ = pixels.shape
        bitmap = self.lib.mtmd_bitmap_init(w, h, np.ascontiguousarray(pixels).ctypes.data)
        part, chunks = InputPart(bitmap=bitmap), self.lib.mtmd_input_chunks_init()
        parts = (ctypes.c_void_p * 1)(ctypes.addressof(part))
        code = self.lib.mtmd_tokenize_from_parts(context, chunks, parts, 1, False)
        assert code == 0, f"mtmd_tokenize_from_parts returned {code}"
        yield [self.lib.mtmd_input_chunks_get(chunks, i) for i in range(self.lib.mtmd_input_chunks_size(chunks))]
        self.lib.mtmd_input_chunks_free(chunks)
        self.lib.mtmd_bitmap_free(bitmap)

    def encoded(self, context: int, chunk: int, n_embd: int) -> np.ndarray:
        """Encode a tile.  -> f32 [n_rows, n_embd]"""
        code = self.lib.mtmd_encode_chunk(context, chunk)
        assert code == 0, f"mtmd_encode_chunk returned {code}"
        n_rows = self.lib.mtmd_input_chunk_get_n_tokens(chunk)
        return np.ctypeslib.as_array(self.lib.mtmd_get_output_embd(context), (n_rows, n_embd)).copy()
