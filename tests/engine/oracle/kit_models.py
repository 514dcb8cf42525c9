"""The models of the kit, small and random, by name: "gemma2", "llama:Q4_K", "mixtral", "llama-large"."""

from dataclasses import replace

import numpy as np
from tiny_encoder import ENCODERS, tiny_encoder

from numllama.engine.model.load import load_model
from numllama.kernels import Tensor
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

VARIANTS = {  # name -> family and arguments of tiny_gguf
    "mixtral": ("llama", {"n_expert": 4}),
    "llama-small": ("llama", {"llama__attention__layer_norm_rms_epsilon": 1e-3}),  # an eps that matters
    "llama-large": ("llama", {}),
    "llama-wide": ("llama", {"n_embd": 128, "n_head": 2, "n_head_kv": 1}),  # heads of 64, as quantized caches need
}
LARGE = np.float32(3e4)  # some values are then beyond 65504, the largest float16
NO_ENCODER = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def kit_model(folder, name):
    """Write and load the model `name`."""
    family, _, quant = name.partition(":")
    path = folder / f"{name.replace(':', '-')}.gguf"
    if family in ENCODERS:
        tiny_encoder(path, **{"family": "bert", "quant": quant or "F32", **ENCODERS[family]})
        return load_model(path)
    variant, options = VARIANTS.get(family, (family, {}))
    tiny_gguf(path, variant, "Q4_K" if quant in NO_ENCODER else quant or "F32", **options)
    model = load_model(path)
    if quant in NO_ENCODER:
        return with_random_blocks(model, FORMATS_BY_NAME[quant])
    return with_large_values(model) if family == "llama-large" else model


def with_large_values(model):
    """Multiply attn_v and divide attn_output by the same number."""

    def scaled(w, factor):
        return Tensor(w.name, w.format, w.shape, w.blocks * factor)

    blk = tuple(
        replace(b, attn_v=scaled(b.attn_v, LARGE), attn_output=scaled(b.attn_output, 1 / LARGE))
        for b in model.weights.blk
    )
    return replace(model, weights=replace(model.weights, blk=blk))


def with_random_blocks(model, format, seed=0):
    """Give attn_q of each layer random blocks of a format that has no encoder."""
    random = np.random.default_rng(seed)

    def made(w):
        shape = (w.shape[0], w.shape[1] // format.block_size)
        blocks = random.integers(0, 256, (*shape, format.block_bytes), np.uint8).view(format.layout)[..., 0]
        if "d" in format.layout.names:
            blocks["d"] = 1
            x = format.dequantize(blocks.reshape(-1))
            blocks["d"] = random.uniform(0.5, 1.5, shape) / (np.sqrt(w.shape[1]) * x.std())
        else:  # IQ1_M has its scale in the upper bits of its scales: 2^-10
            blocks["scales"] = blocks["scales"] & 0x0FFF | np.array([0, 0, 0x4000, 0x1000], np.uint16)
        return Tensor(w.name, format, w.shape, blocks)

    blk = tuple(replace(b, attn_q=made(b.attn_q)) for b in model.weights.blk)
    return replace(model, weights=replace(model.weights, blk=blk))
