"""A native llama.cpp's tokenizer, called in this process: the reference for ids, pieces and text.

NUMLLAMA_LLAMA_CPP names the folder of a built llama.cpp's libraries (build/bin); written for commit 0c1e57098.
"""

import ctypes
import os
from pathlib import Path

import pytest

_log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_quiet = _log(lambda level, text, data: None)


class ModelParams(ctypes.Structure):
    """llama.h, struct llama_model_params."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, ctypes.c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, ctypes.c_void_p) for name in ("tensor_split", "progress_callback", "user_data", "kv_overrides")),
        *((name, ctypes.c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc")),
        ("load_mtp", ctypes.c_bool),
    ]


class LlamaVocab:
    """The vocabulary of one GGUF, read by llama.cpp."""

    def __init__(self, path):
        folder = os.environ.get("NUMLLAMA_LLAMA_CPP")
        if not folder:
            pytest.skip("needs NUMLLAMA_LLAMA_CPP, a folder with libllama.so")
        self._lib = lib = ctypes.CDLL(str(Path(folder) / "libllama.so"))
        for name in ("llama_model_load_from_file", "llama_model_get_vocab"):
            getattr(lib, name).restype = ctypes.c_void_p
        lib.llama_model_default_params.restype = ModelParams
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
        for name in ("get_add_bos", "get_add_eos", "is_eog"):
            getattr(lib, f"llama_vocab_{name}").restype = ctypes.c_bool
        lib.llama_log_set(_quiet, None)
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        assert self._model, f"llama.cpp cannot load {path}"
        self._vocab = ctypes.c_void_p(lib.llama_model_get_vocab(ctypes.c_void_p(self._model)))
        self.n_vocab = lib.llama_vocab_n_tokens(self._vocab)
        self.bos, self.eos, self.eot = (self._id(name) for name in ("bos", "eos", "eot"))
        self.add_bos, self.add_eos = lib.llama_vocab_get_add_bos(self._vocab), lib.llama_vocab_get_add_eos(self._vocab)
        self.eog = {id for id in range(self.n_vocab) if lib.llama_vocab_is_eog(self._vocab, id)}

    def _id(self, name):
        id = getattr(self._lib, f"llama_vocab_{name}")(self._vocab)
        return None if id == -1 else id

    def close(self):
        self._lib.llama_model_free(ctypes.c_void_p(self._model))

    def encode(self, text, add_special=True, parse_special=True):
        raw = text.encode("utf-8", "surrogateescape")
        ids = (ctypes.c_int32 * (4 * len(raw) + 16))()
        n = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), add_special, parse_special)
        return ids[:n]

    def piece(self, id, special=True):
        buffer = ctypes.create_string_buffer(4096)
        n = self._lib.llama_token_to_piece(self._vocab, id, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def detokenize(self, ids, remove_special=False, unparse_special=True):
        buffer = ctypes.create_string_buffer(64 * len(ids) + 64)
        array = (ctypes.c_int32 * len(ids))(*ids)
        n = self._lib.llama_detokenize(
            self._vocab, array, len(ids), buffer, len(buffer), remove_special, unparse_special
        )
        return buffer.raw[:n]
