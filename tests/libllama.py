"""A native llama.cpp, called in this process: the reference for logits and embeddings.

NUMLLAMA_LLAMA_CPP names the folder of a built llama.cpp's libraries (build/bin); written for commit 0c1e57098.  The
plainest configuration, without avoidable rounding: CPU, one thread, weights not repacked, no flash attention, float32
keys and values, one micro-batch.
"""

import ctypes
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from llama_vocab import ModelParams, _quiet

POOLING = {"": -1, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama.h, enum llama_pooling_type
# ggml.h, enum ggml_type
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}


class ContextParams(ctypes.Structure):
    """llama.h, struct llama_context_params."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, ctypes.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, ctypes.c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, ctypes.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((name, ctypes.c_float) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, ctypes.c_int32) for name in ("type_k", "type_v")),
        *((name, ctypes.c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *((name, ctypes.c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full")),
        ("kv_unified", ctypes.c_bool),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
    ]


class GgmlTensor(ctypes.Structure):
    """ggml.h, struct ggml_tensor."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]

    def array(self):
        """Copy the values of an F32 tensor, axes in NumPy's order, without leading ones of length 1."""
        shape, strides = list(self.ne)[::-1], list(self.nb)[::-1]
        n_bytes = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 4
        buffer = (ctypes.c_char * n_bytes).from_address(self.data)
        x = np.ndarray(shape, np.float32, buffer, strides=strides).copy()
        while x.ndim > 2 and x.shape[0] == 1:
            x = x[0]
        return x


EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(GgmlTensor), ctypes.c_bool, ctypes.c_void_p)


class LlamaBatch(ctypes.Structure):
    """llama.h, struct llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")),
    ]


class LibLlama:
    """libllama of one build."""

    def __init__(self, folder):
        self.lib = lib = ctypes.CDLL(str(Path(folder) / "libllama.so"))
        pointer, floats = ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)
        for name, result, *arguments in (
            ("log_set", None, pointer, pointer),
            ("model_default_params", ModelParams),
            ("model_load_from_file", pointer, ctypes.c_char_p, ModelParams),
            ("model_get_vocab", pointer, pointer),
            ("model_n_embd_out", ctypes.c_int32, pointer),
            ("model_free", None, pointer),
            ("vocab_n_tokens", ctypes.c_int32, pointer),
            ("context_default_params", ContextParams),
            ("init_from_model", pointer, pointer, ContextParams),
            ("free", None, pointer),
            ("decode", ctypes.c_int32, pointer, LlamaBatch),
            ("get_logits", floats, pointer),
            ("get_embeddings", floats, pointer),
            ("get_embeddings_seq", floats, pointer, ctypes.c_int32),
            ("adapter_lora_init", pointer, pointer, ctypes.c_char_p),
            ("set_adapters_lora", ctypes.c_int32, pointer, ctypes.POINTER(pointer), ctypes.c_size_t, floats),
        ):
            function = getattr(lib, f"llama_{name}")
            function.restype, function.argtypes = result, arguments
        lib.llama_log_set(_quiet, None)

    @classmethod
    def from_environment(cls):
        """Return the build that NUMLLAMA_LLAMA_CPP names, or None."""
        folder = os.environ.get("NUMLLAMA_LLAMA_CPP")
        return cls(folder) if folder else None

    def logits(self, path, tokens, adapters=None, cache="f32", defaults=False, **more):
        """Compute the logits of the model in GGUF `path` at each position of one text.  -> f32 [n_tok, n_vocab]

        adapters   scales of LoRA files, by path
        cache      type of the KV cache, or two joined by a slash; blocks need flash attention
        defaults   weights repacked and flash attention, as llama.cpp does unless told otherwise; else for blocks only
        """
        k, _, v = cache.partition("/")
        kept = {"type_k": TYPES[k], "type_v": TYPES[v or k], "flash_attn_type": int(defaults or cache != "f32")}
        with self._computed(path, tokens, adapters or {}, repack=defaults, **kept, **more) as (model, ctx):
            n_vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(model))
            return np.ctypeslib.as_array(self.lib.llama_get_logits(ctx), (len(tokens), n_vocab)).copy()

    def values(self, path, tokens, **more):
        """Compute all F32 values of one text by name, with defaults and an f16 cache; the last one of a name stays."""
        found = {}

        def keep(tensor, ask, _):
            t = tensor.contents
            if not ask and t.type == TYPES["f32"]:
                found[t.name.decode()] = t.array()
            return True

        callback = EvalCallback(keep)
        pointer = ctypes.cast(callback, ctypes.c_void_p).value
        self.logits(path, tokens, **{"cache": "f16", "defaults": True, "cb_eval": pointer} | more)
        return found

    def all_values(self, path, tokens):
        """Compute all float32 values of one plain pass.  -> name -> arrays, in the order of computation"""
        found = {}

        @EvalCallback
        def see(pointer, is_question, _):
            tensor = pointer.contents
            if not is_question:
                found.setdefault(tensor.name.decode(), []).append(tensor.array())
            return tensor.type == TYPES["f32"]

        with self._computed(path, tokens, {}, cb_eval=ctypes.cast(see, ctypes.c_void_p)):
            return found

    def embeddings(self, path, tokens, pooling=""):
        """Compute the final hidden states of one text; pooling "" uses the file's own.

        -> f32 [n_tok, n_embd] for "none", f32 [n_embd] for "mean", "cls" and "last"; not normalized
        """
        with self._computed(path, tokens, {}, pooling_type=POOLING[pooling], embeddings=True) as (model, ctx):
            n_embd = self.lib.llama_model_n_embd_out(model)
            pooled = self.lib.llama_get_embeddings_seq(ctx, 0)
            if pooled:
                return np.ctypeslib.as_array(pooled, (n_embd,)).copy()
            return np.ctypeslib.as_array(self.lib.llama_get_embeddings(ctx), (len(tokens), n_embd)).copy()

    @contextmanager
    def _computed(self, path, tokens, adapters, repack=False, n_ubatch=None, **more):
        """Provide (model, context) after `tokens`, with an output for each; `more` are context parameters."""
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, repack
        model = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        assert model, f"llama.cpp cannot load {path}"
        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = max(256, len(tokens))
        params.n_ubatch = n_ubatch or params.n_ctx
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type, params.type_k, params.type_v = 0, TYPES["f32"], TYPES["f32"]
        for name, value in more.items():
            setattr(params, name, value)
        ctx = self.lib.llama_init_from_model(model, params)
        assert ctx, f"llama.cpp cannot create a context for {path}"
        loras = [self.lib.llama_adapter_lora_init(model, os.fsencode(adapter)) for adapter in adapters]
        assert all(loras), f"llama.cpp cannot load one of {', '.join(map(str, adapters))}"
        n = len(loras)
        scales = (ctypes.c_float * n)(*adapters.values())
        assert self.lib.llama_set_adapters_lora(ctx, (ctypes.c_void_p * n)(*loras), n, scales) == 0
        ids, outputs = np.array(tokens, np.int32), np.ones(len(tokens), np.int8)
        code = self.lib.llama_decode(ctx, LlamaBatch(len(ids), token=ids.ctypes.data, logits=outputs.ctypes.data))
        assert code == 0, f"llama_decode returned {code}"
        yield model, ctx
        self.lib.llama_free(ctx)
        self.lib.llama_model_free(model)
