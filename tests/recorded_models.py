"""Models that recordings are of, made again: random ones from their seeds, others from the weights that are kept.

Each is compared with the digest of the tensors that were recorded, so that a generator or a quantization which changes
is an error here, not a riddle in the tests.

    tiny-spm-*, tiny256-*       Llamas of two layers.  Their vocabularies were Llama 2's, which are not kept: here they
                                have pieces that never occur, and those that recorded prompts need
    tiny-llava-mmproj-F32       a projector as LLaVA 1.5's
    stories260K-*               from stories260K-F32.gguf
    scripted-F16                a Llama that says what its script says; made by tests/scripted.py, in F32
"""

from __future__ import annotations

import gzip
import json
import zlib
from hashlib import sha256

import numpy as np
from gguf import GGMLQuantizationType, quants
from scripted import scripted_gguf

from numllama.engine.gguf.read import F32, U32, read_gguf
from numllama.engine.gguf.write import gguf_chunks, write_gguf
from numllama.kernels.quants import FORMATS_BY_NAME, quantize
from tiny import BYTE, CONTROL, NORMAL, UNKNOWN, prefixes

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14, "Q6_K": 18}  # general.file_type
LLAMAS = {  # seed, n_vocab, n_embd, n_ff
    "tiny-spm": (11, 32000, 64, 192),
    "tiny256": (12, 2048, 256, 768),
}


def make(path, kept):
    """Write the model that `path` is named after; `kept` is the folder tests/golden/recorded.

    Raises: ValueError if it is another than the one recorded.
    """
    name, _, quant = path.stem.rpartition("-")
    if name in LLAMAS:
        random_llama(
            path, name, quant, json.loads(gzip.decompress((kept / "llava_tiny.json.gz").read_bytes()))["pieces"]
        )
    elif name == "tiny-llava-mmproj":
        random_projector(path)
    elif name in ("stories260K", "stories260K-mean"):
        stories(path, kept / "models/stories260K-F32.gguf", quant, pooled=name.endswith("mean"))
    elif name == "scripted":
        scripted_gguf(path, json.loads((kept.parent / "transcripts.json").read_text())["scripts"])
        return
    else:
        raise ValueError(f"no model {path.stem!r} is kept or can be made, see tests/golden/README.md")
    expected = json.loads((kept / "models/digests.json").read_text())[path.stem]
    if (got := digest(path)) != expected:
        raise ValueError(f"{path.stem}: the tensors' SHA-256 is {got}, the recorded model's is {expected}")


def digest(path):
    """Hash the tensors of a GGUF, names and data, in the order of their names."""
    whole = sha256()
    for name, tensor in sorted(read_gguf(path).tensors.items()):
        whole.update(name.encode() + tensor.blocks.tobytes())
    return whole.hexdigest()


def encoded(x, quant):
    """Encode weights: by gguf-py where it can, by our own quantize where llama-quantize did it."""
    format = FORMATS_BY_NAME[quant]
    if quant in ("F32", "F16"):
        return x.astype(f"<f{format.block_bytes}")
    if quant in ("Q4_K", "Q6_K"):
        return quantize(format, x)
    return quants.quantize(x, GGMLQuantizationType[quant]).view(format.layout)


def random_of(seed, name):
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# --- Llamas


def random_llama(path, name, quant, pieces):
    """Write a Llama of two layers, four heads and two for keys and values."""
    seed, n_vocab, n_embd, n_ff = LLAMAS[name]
    n_kv, depth = n_embd // 2, np.float64(4) ** -0.5
    blk = {
        "attn_norm": (n_embd,),
        "attn_q": (n_embd, n_embd, n_embd**-0.5),
        "attn_k": (n_kv, n_embd, n_embd**-0.5),
        "attn_v": (n_kv, n_embd, n_embd**-0.5),
        "attn_output": (n_embd, n_embd, n_embd**-0.5 * depth),
        "ffn_norm": (n_embd,),
        "ffn_gate": (n_ff, n_embd, n_embd**-0.5),
        "ffn_up": (n_ff, n_embd, n_embd**-0.5),
        "ffn_down": (n_embd, n_ff, n_ff**-0.5 * depth),
    }
    shapes = {"token_embd": (n_vocab, n_embd, 1.0)}
    shapes |= {f"blk.{il}.{part}": shape for il in range(2) for part, shape in blk.items()}
    shapes |= {"output_norm": (n_embd,), "output": (n_vocab, n_embd, 2.5 / n_embd**0.5)}
    tensors = []
    for tensor, shape in ((f"{tensor}.weight", shape) for tensor, shape in shapes.items()):
        random = random_of(seed, tensor)
        if len(shape) == 1:
            x, format = random.uniform(0.75, 1.25, shape).astype(np.float32), "F32"
        else:
            *shape, std = shape
            x, format = random.standard_normal(shape, np.float32) * np.float32(std), quant
        tensors.append((tensor, FORMATS_BY_NAME[format], tuple(shape), encoded(x, format)))
    kv = {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": FILE_TYPES[quant],
        "llama.block_count": 2,
        "llama.context_length": 2048,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": n_embd // 4,
        "llama.vocab_size": n_vocab,
    }
    write_gguf(
        path, kv | vocabulary(n_vocab, {int(id): piece for id, piece in pieces.items() if int(id) < n_vocab}), tensors
    )


def vocabulary(n_vocab, pieces):
    """Fill a vocabulary of SPM's kind around `pieces`, {id: piece}, and what these are merged from.

    All other pieces are numbers in brackets, of characters that are no pieces: they never occur.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [pieces.get(id, f"[{id}]") for id in range(len(tokens), n_vocab)]
    whole = set(pieces.values())
    parts = [part for part in (*sorted(set("".join(sorted(whole)))), *prefixes(sorted(whole))) if part not in whole]
    free = (id for id in range(259, n_vocab) if id not in pieces)
    for id, part in zip(free, parts, strict=False):
        tokens[id] = part
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.r_[np.zeros(259), -np.arange(n_vocab - 259)].astype(np.float32),
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (n_vocab - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


# --- a projector


def random_projector(path, n_embd=64, n_ff=128, n_layer=3, patch=14, image=112, seed=7):
    """Write a CLIP tower of three layers, of which two run, and LLaVA's two-layer projector to 64 numbers."""
    tensors = []

    def tensor(name, x):
        tensors.append((name, FORMATS_BY_NAME["F32"], x.shape, x.astype("<f4")))

    def matrix(name, *shape, std=None):
        std = np.float32(std or shape[-1] ** -0.5)
        tensor(name, random_of(seed, name).standard_normal(shape, np.float32) * std)

    def vector(name, n, mean=0.0):
        tensor(name, mean + 0.1 * random_of(seed, name).standard_normal(n))

    def norm(name):
        vector(f"{name}.weight", n_embd, 1.0)
        vector(f"{name}.bias", n_embd)

    def layer(name, n_out, n_in):
        matrix(f"{name}.weight", n_out, n_in)
        vector(f"{name}.bias", n_out)

    matrix("v.class_embd", n_embd, std=0.5)
    matrix("v.patch_embd.weight", n_embd, 3, patch, patch, std=(3 * patch * patch) ** -0.5)
    matrix("v.position_embd.weight", (image // patch) ** 2 + 1, n_embd, std=0.3)
    norm("v.pre_ln")
    for blk in (f"v.blk.{il}" for il in range(n_layer)):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            layer(f"{blk}.{part}", n_embd, n_embd)
        norm(f"{blk}.ln1")
        norm(f"{blk}.ln2")
        layer(f"{blk}.ffn_up", n_ff, n_embd)
        layer(f"{blk}.ffn_down", n_embd, n_ff)
    layer("mm.0", 64, n_embd)
    layer("mm.2", 64, 64)
    kv = {
        "general.architecture": "clip",
        "general.name": "tiny-llava-mmproj",
        "general.type": "mmproj",
        "general.file_type": U32(0),
        "clip.projector_type": "mlp",
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.use_gelu": False,
        "clip.vision.image_size": U32(image),
        "clip.vision.patch_size": U32(patch),
        "clip.vision.embedding_length": U32(n_embd),
        "clip.vision.feed_forward_length": U32(n_ff),
        "clip.vision.projection_dim": U32(64),
        "clip.vision.block_count": U32(n_layer),
        "clip.vision.attention.head_count": U32(4),
        "clip.vision.attention.layer_norm_epsilon": F32(1e-5),
        "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073],
        "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    write_gguf(path, kv, tensors)


# --- a trained model


def stories(path, source, quant, pooled=False):
    """Write stories260K in another format; matrices whose rows are no whole blocks become F16."""
    gguf = read_gguf(source)
    tensors = []
    for name, tensor in gguf.tensors.items():
        x = tensor.dequantize()
        format = quant if x.ndim == 2 and quant != "F32" else "F32"
        if format != "F32" and x.shape[-1] % FORMATS_BY_NAME[format].block_size:
            format = "F16"
        tensors.append((name, FORMATS_BY_NAME[format], x.shape, encoded(x, format)))
    kv = dict(gguf.typed)
    kv["general.file_type"] = U32(FILE_TYPES[quant])
    if pooled:
        kv["llama.pooling_type"] = U32(1)
    write_gguf(path, kv, tensors)


def stored(kept, model):
    """Make the GGUFs of the store that an Ollama left: the ones uploaded, and what it made of them.

    It gives the Llamas as llama-quantize does: the tensors by name, two key-values at the end.
    """
    for name in ("tiny-llava-mmproj-F32", "stories260K-F32", "stories260K-Q8_0"):
        content = model(name).read_bytes()
        yield sha256(content).hexdigest(), content
        if name != "tiny-llava-mmproj-F32":
            gguf = read_gguf(model(name))
            last = ("general.quantization_version", "general.file_type")
            kv = {key: value for key, value in gguf.typed.items() if key not in last}
            kv |= {key: U32(gguf.kv[key]) for key in last}
            tensors = sorted(gguf.tensors.values(), key=lambda tensor: (tensor.name.startswith("blk."), tensor.name))
            content = b"".join(gguf_chunks(kv, tensors))
            yield sha256(content).hexdigest(), content
