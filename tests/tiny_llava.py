"""Generated projector files: three random layers of a CLIP tower, and LLaVA's or MobileVLM's projector."""

import io
import os

import numpy as np

from numllama.engine.gguf.write import write_gguf
from numllama.kernels.quants import FORMATS_BY_NAME, quantize

F32 = FORMATS_BY_NAME["F32"]


def tiny_mmproj(
    path: str | os.PathLike[str],
    projector: str = "mlp",
    quant: str = "F32",
    seed: int = 0,
    *,
    n_embd: int = 32,
    n_head: int = 2,
    n_ff: int = 64,
    n_layer: int = 3,
    n_out: int = 64,
    image_size: int = 32,
    patch_size: int = 8,
    swapped: bool = False,
    class_embd: bool = True,
    **kv,
) -> str | os.PathLike[str]:
    """Write an mmproj to `path`, the same bytes for the same arguments, in milliseconds.

    projector   "mlp", "mlp_norm", "ldp" or "ldpv2"
    quant       format of the matrices (the patch embedding: F32, or F16 with any other); vectors are F32
    n_layer     layers in the file; the last one is not used
    n_out       the text model's n_embd
    swapped     exchange the names of ffn_up and ffn_down, as in old files
    kv          key-values to add or replace, with "__" for "."; None removes one
    """
    format = FORMATS_BY_NAME[quant]
    random = np.random.default_rng(seed)
    tensors = []

    def put(name, shape, std, format=F32, mean=0.0):
        x = (mean + std * random.standard_normal(shape)).astype(np.float32)
        tensors.append((name, format, shape, quantize(format, x)))

    def linear(name, n_out, n_in, gain=1.0):
        put(f"{name}.weight", (n_out, n_in), gain * n_in**-0.5, format)
        put(f"{name}.bias", (n_out,), 0.2)

    def norm(name, n):
        put(f"{name}.weight", (n,), 0.2, mean=1.0)
        put(f"{name}.bias", (n,), 0.2)

    n_pos = (image_size // patch_size) ** 2 + class_embd
    if class_embd:
        put("v.class_embd", (n_embd,), 1)
    patch = (n_embd, 3, patch_size, patch_size)
    put("v.patch_embd.weight", patch, (3 * patch_size**2) ** -0.5, F32 if quant == "F32" else FORMATS_BY_NAME["F16"])
    put("v.position_embd.weight", (n_pos, n_embd), 0.5)
    norm("v.pre_ln", n_embd)
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    for blk in (f"v.blk.{il}" for il in range(n_layer)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"{blk}.{name}", n_embd, n_embd)
        norm(f"{blk}.ln1", n_embd)
        norm(f"{blk}.ln2", n_embd)
        linear(f"{blk}.{up}", n_ff, n_embd)
        linear(f"{blk}.{down}", n_embd, n_ff)

    if projector == "mlp":
        linear("mm.0", n_out, n_embd)
        linear("mm.2", n_out, n_out, 2)
    elif projector == "mlp_norm":
        linear("mm.0", n_out, n_embd)
        norm("mm.1", n_out)
        linear("mm.3", n_out, n_out)
        norm("mm.4", n_out)
    elif projector == "ldp":
        linear("mm.model.mlp.1", n_out, n_embd)
        linear("mm.model.mlp.3", n_out, n_out, 2)
        for block in (f"mm.model.mb_block.{i}.block" for i in (1, 2)):
            put(f"{block}.0.0.weight", (n_out, 3, 3), 0.4, FORMATS_BY_NAME["F16"])
            norm(f"{block}.0.1", n_out)
            linear(f"{block}.1.fc1", n_out // 4, n_out)
            linear(f"{block}.1.fc2", n_out, n_out // 4)
            put(f"{block}.2.0.weight", (n_out, n_out), n_out**-0.5, format)
            norm(f"{block}.2.1", n_out)
    elif projector == "ldpv2":
        linear("mm.model.mlp.0", n_out, n_embd)
        linear("mm.model.mlp.2", n_out, n_out, 2)
        put("mm.model.peg.0.weight", (n_out, 3, 3), 0.4, FORMATS_BY_NAME["F16"])
        put("mm.model.peg.0.bias", (n_out,), 0.2)

    values = {
        "general.architecture": "clip",
        "general.name": f"tiny-{projector}-{quant}",
        "clip.projector_type": projector.removesuffix("_norm"),
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.use_gelu": False,
        "clip.vision.image_size": image_size,
        "clip.vision.patch_size": patch_size,
        "clip.vision.embedding_length": n_embd,
        "clip.vision.feed_forward_length": n_ff,
        "clip.vision.projection_dim": n_out,
        "clip.vision.block_count": n_layer,
        "clip.vision.attention.head_count": n_head,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": np.array([0.48145466, 0.4578275, 0.40821073], np.float32),
        "clip.vision.image_std": np.array([0.26862954, 0.26130258, 0.27577711], np.float32),
        **{key.replace("__", "."): value for key, value in kv.items()},
    }
    write_gguf(path, {key: value for key, value in values.items() if value is not None}, tensors)
    return path


def picture(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """Return smooth colours with some noise, on which resizing has an effect.  u8 [height, width, 3]"""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = np.stack([np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in random.uniform(0, 2, (3, 3))], axis=-1)
    return np.clip(128 + 90 * waves + random.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG", mode: str | None = None, **options) -> bytes:
    """Encode `pixels` as an image file."""
    from PIL import Image

    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()
