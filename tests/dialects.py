"""Model files in Ollama's dialect, each with a twin in llama.cpp's that has the same weights.

The twin is a file of tests/tiny.py.  Here are its keys and tensors under the names of Ollama's converters of 2025
(convert/ before Ollama's commit 9db4bdbad), written by hand and not with the translation's tables.
"""

import numpy as np

from numllama.engine.gguf.read import BOOL, F32, GGUF, I32, STR, U32, ArrayType, TypedValue
from numllama.engine.gguf.write import write_gguf
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

F16 = FORMATS_BY_NAME["F16"]


def rewritten(source, path, keys=(), tensors=(), drop=(), more=None, add=()):
    """Write the file `source` to `path` under other names.

    keys, tensors   new names by old ones
    drop            keys to leave out
    more            keys to add or replace
    add             tensors to add: name, f16 array
    """
    gguf, keys, tensors = GGUF.open(source), dict(keys), dict(tensors)
    kv = {keys.get(key, key): value for key, value in gguf.typed.items() if key not in drop}
    table = [(tensors.get(name, name), t.format, t.shape, t.blocks) for name, t in gguf.tensors.items()]
    table += [(name, F16, x.shape, x.astype("<f2")) for name, x in add]
    write_gguf(path, kv | (more or {}), table)
    return path


def mistral3_twins(folder, tower=False):
    """Write a Ministral with YaRN twice -> (Ollama's, llama.cpp's); `tower`: a layer of Pixtral inside the first."""
    theirs = tiny_gguf(folder / "theirs.gguf", "mistral3", quant="F16", tokenizer="bpe", tokenizer__ggml__pre="tekken")
    scaling = "mistral3.rope.scaling"
    keys = {
        f"{scaling}.yarn_beta_fast": f"{scaling}.beta_fast",
        f"{scaling}.yarn_beta_slow": f"{scaling}.beta_slow",
        f"{scaling}.yarn_log_multiplier": f"{scaling}.mscale_all_dim",
        "mistral3.attention.temperature_scale": "mistral3.rope.scaling_beta",
    }
    more = {"mistral3.rope.scaling.mscale": F32(1.0), **(pixtral_keys() if tower else {})}
    add = pixtral_tensors() if tower else []
    return rewritten(theirs, folder / "ollamas.gguf", keys, drop=["tokenizer.ggml.pre"], more=more, add=add), theirs


def pixtral_keys():
    sizes = {"block_count": 1, "embedding_length": 16, "feed_forward_length": 24, "attention.head_count": 2}
    sizes |= {"image_size": 32, "patch_size": 8, "num_channels": 3}
    keys = {f"mistral3.vision.{name}": U32(n) for name, n in sizes.items()}
    return keys | {"mistral3.spatial_merge_size": U32(2), "mistral3.vision.rope.freq_base": F32(1e4)}


def pixtral_tensors():
    random = np.random.default_rng(1)
    shapes = {f"v.blk.0.attn_{part}": (16, 16) for part in ("q", "k", "v", "output")}
    shapes |= {"v.patch_conv": (16, 3, 8, 8), "v.blk.0.ffn_up": (24, 16), "v.blk.0.ffn_down": (16, 24)}
    shapes |= {"v.blk.0.ffn_gate": (24, 16), "mm.linear_1": (64, 16), "mm.linear_2": (64, 64)}
    shapes |= {"mm.patch_merger.merging_layer": (16, 64)}
    names = ["v.blk.0.attn_norm", "v.blk.0.ffn_norm", "v.encoder_norm", "mm.norm"]
    shapes |= {name: (16,) for name in names}
    return [(f"{name}.weight", random.standard_normal(shape).astype(np.float16)) for name, shape in shapes.items()]


def gemma3_twins(folder, n_ctx=256, n_extra=2):
    """Write a Gemma 3 twice -> (Ollama's, llama.cpp's).  The first has `n_extra` tokens too many."""
    scaled = n_ctx >= 131072
    theirs = tiny_gguf(
        folder / "theirs.gguf",
        "gemma3",
        quant="F16",
        n_ctx=n_ctx,
        gemma3__attention__layer_norm_rms_epsilon=F32(1e-6),
        gemma3__rope__freq_base=F32(5e5),
        gemma3__rope__freq_base_swa=F32(2e4),
        gemma3__rope__scaling__type="linear" if scaled else "none",
    )
    drop = ["gemma3.attention.layer_norm_rms_epsilon", "gemma3.rope.scaling.type", "gemma3.rope.scaling.factor"]
    keys = {
        "gemma3.rope.freq_base": "gemma3.rope.global.freq_base",
        "gemma3.rope.freq_base_swa": "gemma3.rope.local.freq_base",
    }
    kv = GGUF.open(theirs).kv
    longer = {
        "tokenizer.ggml.tokens": ArrayType(STR)(
            [*kv["tokenizer.ggml.tokens"], *(f"<extra{i}>" for i in range(n_extra))]
        ),
        "tokenizer.ggml.scores": np.r_[kv["tokenizer.ggml.scores"], np.zeros(n_extra)].astype(np.float32),
        "tokenizer.ggml.token_type": np.r_[kv["tokenizer.ggml.token_type"], [4] * n_extra].astype(np.int32),
    }
    more = {**longer, "tokenizer.ggml.add_unknown_token": BOOL(False)}
    return rewritten(theirs, folder / "ollamas.gguf", keys, drop=drop, more=more), theirs


def file_of(path, architecture, keys, tensors=()):
    """Write a file of `keys`, those of the architecture without its name, and of F16 tensors: names with shapes."""
    random = np.random.default_rng(0)
    spaces = ("general.", "tokenizer.", "clip.")
    kv = {"general.architecture": STR(architecture)}
    kv |= {key if key.startswith(spaces) else f"{architecture}.{key}": value for key, value in keys.items()}
    table = [(name, random.standard_normal(shape).astype("<f2")) for name, shape in dict(tensors).items()]
    write_gguf(path, kv, [(name, F16, x.shape, x) for name, x in table])
    return GGUF.open(path)


def i32s(*numbers):
    return TypedValue(ArrayType(I32), np.array(numbers, np.int32))
